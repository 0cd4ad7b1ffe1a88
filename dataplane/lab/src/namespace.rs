//! One machine's namespaces (network, mounts, host name), held by descriptors and without a name in the file system.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    panic,
    path::Path,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::error::LabError;

/// Kinds of namespace that every machine of the lab has its own of, with their names in `/proc/<pid>/ns`.
///
/// Mounts come last: afterwards `/proc` may be another one.
const KINDS: [(CloneFlags, &str); 3] =
    [(CloneFlags::CLONE_NEWNET, "net"), (CloneFlags::CLONE_NEWUTS, "uts"), (CloneFlags::CLONE_NEWNS, "mnt")];

/// Directories that hold a machine's state, and so are empty ones of its own in memory.
const OWN_DIRECTORIES: [&str; 2] = ["/run", "/var/lib"];
/// Files by which a machine finds others, and so are copies of its own: what a daemon on it writes there stays there.
const OWN_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// A set of namespaces; the kernel ends them when no descriptor and no process holds them.
#[derive(Debug)]
pub(crate) struct Namespace {
    held: [(CloneFlags, File); KINDS.len()],
    /// Device and inode of the network namespace, which is what tells it from others.
    id: (u64, u64),
}

impl Namespace {
    /// Makes new ones: nothing but a loopback that is down, empty state directories, `name` as the host name.
    pub(crate) fn new(name: &str) -> Result<Self, LabError> {
        // On a thread of its own, because `unshare` moves the calling thread.
        on_thread(|| {
            let flags = KINDS.iter().fold(CloneFlags::empty(), |all, (kind, _)| all | *kind);
            unshare(flags).map_err(|e| LabError::system("create namespaces", e))?;
            nix::unistd::sethostname(name).map_err(|e| LabError::system("set the host name", e))?;
            const NONE: Option<&str> = None;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(NONE, "/", NONE, private, NONE).map_err(|e| LabError::system("make mounts private", e))?;
            own_files().map_err(|e| LabError::system("copy files of a machine's own", e))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            for directory in OWN_DIRECTORIES {
                mount(Some("tmpfs"), directory, Some("tmpfs"), flags, Some("mode=0755"))
                    .map_err(|e| LabError::system(format!("mount an empty {directory}"), e))?;
            }
            Self::own()
        })
    }

    /// Those that the calling thread is in.
    pub(crate) fn own() -> Result<Self, LabError> {
        let open = |(kind, name): (CloneFlags, &str)| -> Result<_, LabError> {
            let file = File::open(format!("/proc/thread-self/ns/{name}"));
            Ok((kind, file.map_err(|e| LabError::system("open a namespace", e))?))
        };
        let [net, uts, mnt] = KINDS.map(open);
        let held = [net?, uts?, mnt?];
        let id = held[0].1.metadata().map_err(|e| LabError::system("look at a namespace", e))?;
        Ok(Self { held, id: (id.dev(), id.ino()) })
    }

    /// A number that no other one on this machine has while this one is there.
    pub(crate) fn unique(&self) -> u64 {
        self.id.1
    }

    /// The network namespace's descriptor, for netlink.
    pub(crate) fn net(&self) -> &File {
        &self.held[0].1
    }

    /// Moves the calling thread here; makes system calls only. The working directory is lost if the thread shares it.
    pub(crate) fn join(&self) -> io::Result<()> {
        for (kind, file) in &self.held {
            setns(file.as_fd(), *kind)?;
        }
        Ok(())
    }

    /// A `join` for a process between fork and exec, that keeps the working directory if it exists here.
    pub(crate) fn joiner(&self) -> io::Result<impl Fn() -> io::Result<()> + Send + Sync + 'static + use<>> {
        let mut held = Vec::new();
        for (kind, file) in &self.held {
            held.push((*kind, file.try_clone()?));
        }
        let directory = std::env::current_dir().map_or_else(
            |_| Ok(c"/".to_owned()),
            |path| CString::new(std::os::unix::ffi::OsStringExt::into_vec(path.into_os_string())),
        )?;
        Ok(move || {
            for (kind, file) in &held {
                setns(file.as_fd(), *kind)?;
            }
            let _ = nix::unistd::chdir(directory.as_c_str());
            Ok(())
        })
    }

    /// Runs `work` on a thread in these namespaces.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        on_thread(|| {
            // A thread that shares its working directory with others may not change its mounts.
            unshare(CloneFlags::CLONE_FS)?;
            let directory = std::env::current_dir();
            self.join()?;
            if let Ok(directory) = directory {
                let _ = std::env::set_current_dir(directory);
            }
            Ok(work())
        })
        .map_err(|e: io::Error| LabError::system("enter namespaces", e))
    }

    /// Whether process `pid` is in this network namespace; `false` too if it is gone or hidden from us.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| (ns.dev(), ns.ino()) == self.id)
    }
}

/// Puts copies in the place of [`OWN_FILES`], as far as there are such files.
pub(crate) fn own_files() -> io::Result<()> {
    const NONE: Option<&str> = None;
    const PLACE: &str = "/run";
    // For a moment only: the copies stay in it, unseen, for as long as they are mounted elsewhere.
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, NONE)?;
    let copied = OWN_FILES.iter().try_for_each(|file| {
        let content = match fs::read(file) {
            Ok(content) => content,
            // None, or a link to what the machine has elsewhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let copy = Path::new(PLACE).join(Path::new(file).file_name().unwrap_or_default());
        fs::write(&copy, content)?;
        Ok(mount(Some(&copy), *file, NONE, MsFlags::MS_BIND, NONE)?)
    });
    umount2(PLACE, MntFlags::MNT_DETACH)?;
    copied
}

/// Runs `work` on a thread of its own, which may leave its namespaces behind; a panic goes on in the caller.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
}
