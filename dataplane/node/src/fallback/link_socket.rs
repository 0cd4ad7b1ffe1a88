//! The link socket: where an SSH server on this machine hands us streams from afar.
//!
//! Anybody on the machine may connect, whoever a remote peer logs in as. So whoever connects is a stranger, and stays one until
//! the session inside has spoken: strangers are few, of each user fewer, they are gone after ten seconds, and get no answer but
//! what the handshake gives.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::Carrier;
use rustix::{
    fs::{FileType, Mode, OFlags, fchmod, fstat},
    process::geteuid,
};
use tokio::{
    net::{UnixListener, UnixSocket, UnixStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{
    link::Opened,
    queue::{Hub, LinkEnd},
    stream,
};
use crate::error::Failure;

/// Streams in all.
const MAX_STREAMS: usize = 256;
/// Streams of one user, proven or not: an SSH server serves all peers as one, so this is not few.
const MAX_PER_USER: usize = 192;
/// Streams in all on which nothing authentic came yet.
const MAX_STRANGERS: usize = 32;
/// The same of one user, so that no user takes the places of another.
const MAX_STRANGERS_PER_USER: usize = 16;
/// Connections of one user that are heard at once; further ones as [`EVERY`] allows. All peers that come by one SSH server may
/// come back in the same second.
const BURST: u32 = 64;
/// A user's connections are heard so often, on average.
const EVERY: Duration = Duration::from_millis(1000 / 32);
/// The same of all users together, who may be as many as one person has containers.
const BURST_OF_ALL: u32 = 4 * BURST;
const EVERY_OF_ALL: Duration = Duration::from_millis(1000 / 128);
/// Users that are told apart at a time.
const MAX_USERS: usize = 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;
/// Waiting for the kernel when it has no file descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The listening socket. Dropping it removes the file and closes every stream.
#[derive(Debug)]
pub(crate) struct LinkSocket {
    path: PathBuf,
    /// The inode, so that a successor's file is never removed.
    inode: Option<u64>,
    task: JoinHandle<()>,
}

impl LinkSocket {
    /// Listens on `path` with mode 0666, replacing a file that a dead daemon left. The directory must be there.
    ///
    /// # Errors
    /// A daemon answers there already, something else is in the way, others than root and this daemon's user could replace the
    /// socket, or the system refuses.
    pub(crate) async fn bind(path: &Path, hub: Hub) -> Result<Self, Failure> {
        let path = safe_path(path)?;
        let shown = path.display();
        clear_the_way(&path).await?;
        let listener =
            public_listener(&path).map_err(|error| Failure::host(format!("listening on {shown}"), &error))?;
        let inode = fs::symlink_metadata(&path).ok().map(|found| found.ino());
        // Mode 0666 less the umask, so far.
        open_to_everybody(&path)
            .map_err(|error| Failure::host(format!("opening {shown} to everybody"), &error))?;
        debug!(socket = %shown, "the link socket listens");
        Ok(Self { inode, task: tokio::spawn(accept(listener, hub)), path })
    }
}

impl Drop for LinkSocket {
    fn drop(&mut self) {
        self.task.abort();
        let still_ours = fs::symlink_metadata(&self.path).ok().map(|found| found.ino()) == self.inode;
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            debug!(socket = %self.path.display(), %error, "cannot remove the link socket's file");
        }
    }
}

/// The socket's path without symbolic links, if nobody but root and this daemon's user can put something else in its place.
fn safe_path(path: &Path) -> Result<PathBuf, Failure> {
    let shown = path.display();
    let name = path.file_name().ok_or_else(|| Failure::invalid(format!("{shown} does not name a file")))?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    let looking =
        |error| Failure::host(format!("looking at {} for the link socket", directory.display()), &error);
    // From here on only this path is used: links that lead to it are not followed again.
    let directory = fs::canonicalize(directory).map_err(looking)?;
    let own = geteuid().as_raw();
    for above in directory.ancestors() {
        let found = fs::symlink_metadata(above).map_err(looking)?;
        judge(found.uid(), found.mode(), own, above == directory).map_err(|why| {
            let above = above.display();
            Failure::new(
                Reason::Host,
                format!(
                    "{above} {why}: `chown` it to root and `chmod 755 {above}`, or give another link_socket"
                ),
            )
        })?;
    }
    Ok(directory.join(name))
}

/// Whether the directory `innermost`, or one above it, is safe from others than root and the user `own`; why not.
fn judge(owner: u32, mode: u32, own: u32, innermost: bool) -> Result<(), &'static str> {
    if owner != 0 && owner != own {
        return Err("belongs to another user, who could replace the link socket");
    }
    let others_write = mode & 0o022 != 0;
    // In a sticky directory nobody replaces what is not his, and what is in it on the way was judged before; but he may be first.
    let keeps = !innermost && mode & 0o1000 != 0;
    if others_write && !keeps {
        return Err("can be written by others, who could replace the link socket");
    }
    Ok(())
}

/// Lets every user connect to the socket that lies at `path`, and touches nothing else: no link is followed, and what is changed
/// is what was looked at.
fn open_to_everybody(path: &Path) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&file)?;
    let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
    if !is_socket || found.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("something else has taken the place of the socket"));
    }
    // The kernel changes modes of a descriptor opened by O_PATH only by this name of it.
    fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), Permissions::from_mode(0o666))
}

fn public_listener(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // The file gets the mode that the socket has when it is bound, less the umask.
    fchmod(&socket, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// Removes a socket file that nobody listens on; anything else stays.
async fn clear_the_way(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::host(format!("looking at {shown}"), &error)),
    };
    let conflict = |what: &str| Err(Failure::new(Reason::Conflict, format!("{shown} {what}")));
    if !found.file_type().is_socket() {
        return conflict("is in the way and is not a socket: move it, or give another link_socket");
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Failure::host(format!("removing the stale socket {shown}"), &error)),
        Ok(_) => conflict("belongs to a daemon that runs: stop it, or give this one its own link_socket"),
        Err(error) => Err(Failure::host(format!("asking who listens on {shown}"), &error)),
    }
}

/// Who is connected.
#[derive(Debug, Default)]
struct Crowd {
    streams: Count,
    strangers: Count,
}

/// A number in all, and of each user.
#[derive(Debug, Default)]
struct Count {
    all: usize,
    users: BTreeMap<u32, usize>,
}

impl Count {
    fn of(&self, user: u32) -> usize {
        self.users.get(&user).copied().unwrap_or_default()
    }

    fn add(&mut self, user: u32) {
        self.all += 1;
        *self.users.entry(user).or_default() += 1;
    }

    fn remove(&mut self, user: u32) {
        self.all = self.all.saturating_sub(1);
        let left = self.of(user).saturating_sub(1);
        if left == 0 {
            self.users.remove(&user);
        } else {
            self.users.insert(user, left);
        }
    }
}

/// How often connections are heard: each one is work for the worker.
#[derive(Debug, Default)]
struct Pace {
    /// When each user, who has connected lately, will be as if he never had.
    users: BTreeMap<u32, Instant>,
    all: Option<Instant>,
}

impl Pace {
    /// Whether a connection of `user` at `now` is heard.
    fn hears(&mut self, user: u32, now: Instant) -> bool {
        if self.users.len() >= MAX_USERS {
            self.users.retain(|_, calm| *calm > now);
        }
        let known = self.users.get(&user).copied();
        if known.is_none() && self.users.len() >= MAX_USERS {
            return false;
        }
        let Some(calm) = later(known, now, EVERY, BURST) else { return false };
        let Some(all) = later(self.all, now, EVERY_OF_ALL, BURST_OF_ALL) else { return false };
        self.users.insert(user, calm);
        self.all = Some(all);
        true
    }
}

/// A bucket that leaks, kept as the moment at which it is empty: that moment after one more drop, unless it runs over.
fn later(empty: Option<Instant>, now: Instant, every: Duration, burst: u32) -> Option<Instant> {
    let next = empty.map_or(now, |empty| empty.max(now)) + every;
    (next <= now + every * burst).then_some(next)
}

type Shared = Arc<Mutex<Crowd>>;

fn lock(crowd: &Shared) -> MutexGuard<'_, Crowd> {
    crowd.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One stream's place, and its place among the strangers while it is one.
struct Place {
    crowd: Shared,
    user: u32,
    stranger: bool,
}

impl Place {
    /// A place, unless there are too many.
    fn take(crowd: &Shared, user: u32) -> Option<Self> {
        let mut counts = lock(crowd);
        let full = counts.streams.all >= MAX_STREAMS
            || counts.streams.of(user) >= MAX_PER_USER
            || counts.strangers.all >= MAX_STRANGERS
            || counts.strangers.of(user) >= MAX_STRANGERS_PER_USER;
        if full {
            return None;
        }
        counts.streams.add(user);
        counts.strangers.add(user);
        Some(Self { crowd: Arc::clone(crowd), user, stranger: true })
    }

    /// Something authentic came.
    fn become_known(&mut self) {
        if std::mem::take(&mut self.stranger) {
            lock(&self.crowd).strangers.remove(self.user);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.become_known();
        lock(&self.crowd).streams.remove(self.user);
    }
}

async fn accept(listener: UnixListener, hub: Hub) {
    let crowd = Shared::default();
    let mut pace = Pace::default();
    // Dropped with this task, and with it every stream.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // The kernel says who connected; without that nobody is responsible.
                    let Ok(user) = stream.peer_cred().map(|peer| peer.uid()) else { continue };
                    if !pace.hears(user, Instant::now()) {
                        debug!(user, "a stream on the link socket was closed: they come too fast");
                        continue;
                    }
                    match Place::take(&crowd, user) {
                        Some(place) => {
                            streams.spawn(serve(stream, place, hub.accept(Carrier::Ssh)));
                        }
                        None => debug!(user, "a stream on the link socket was closed: there are too many"),
                    }
                }
                Err(error) => {
                    warn!(event = "accept_failed", %error, "cannot accept streams on the link socket");
                    sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn serve(stream: UnixStream, mut place: Place, end: LinkEnd) {
    debug!(user = place.user, link = %end.link(), "a stream was opened on the link socket");
    let mut pump = std::pin::pin!(stream::pump(stream, &end, Opened::There));
    tokio::select! {
        _ = &mut pump => return,
        () = end.proven() => place.become_known(),
    }
    pump.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_daemons_user_may_be_able_to_replace_the_socket() {
        for (owner, mode, innermost, safe) in [
            (0, 0o755, true, true),
            (7, 0o700, true, true),
            (0, 0o755, false, true),
            (0, 0o1777, false, true),
            (7, 0o1775, false, true),
            (0, 0o1777, true, false),
            (7, 0o775, true, false),
            (7, 0o757, true, false),
            (0, 0o775, false, false),
            (0, 0o777, false, false),
            (8, 0o755, true, false),
            (8, 0o700, false, false),
            (8, 0o1777, false, false),
        ] {
            assert_eq!(judge(owner, mode, 7, innermost).is_ok(), safe, "{owner} {mode:o} {innermost}");
        }
    }

    #[test]
    fn the_mode_of_a_file_that_a_link_put_in_place_of_the_socket_stays() {
        let root = tempfile::tempdir().unwrap();
        let (path, victim) = (root.path().join("link.sock"), root.path().join("shadow"));
        fs::write(&victim, "secret").unwrap();
        fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        open_to_everybody(&path).unwrap_err();
        assert_eq!(mode(&victim), 0o600);
        // Nor the socket of another program, by a link.
        fs::remove_file(&victim).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&victim).unwrap();
        fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
        open_to_everybody(&path).unwrap_err();
        assert_eq!(mode(&victim), 0o600);
        fs::rename(&victim, &path).unwrap();
        open_to_everybody(&path).unwrap();
        assert_eq!(mode(&path), 0o666);
    }

    #[test]
    fn each_user_has_a_pace_and_all_together_too_and_few_are_remembered() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let heard = |pace: &mut Pace, user, now| (0..1000).filter(|_| pace.hears(user, now)).count();
        assert_eq!(heard(&mut pace, 1, now), BURST as usize);
        assert_eq!(heard(&mut pace, 2, now), BURST as usize, "one user does not take another's");
        assert_eq!(heard(&mut pace, 1, now + EVERY * 10), 10);
        let calm = now + Duration::from_secs(60);
        assert_eq!(heard(&mut pace, 1, calm), BURST as usize);

        let mut pace = Pace::default();
        let all: usize = (0..100).map(|user| heard(&mut pace, user, now)).sum();
        assert_eq!(all, BURST_OF_ALL as usize);
        for user in 0..10_000 {
            pace.hears(user, now + EVERY_OF_ALL * user);
        }
        assert!(pace.users.len() <= MAX_USERS, "{}", pace.users.len());
    }
}
