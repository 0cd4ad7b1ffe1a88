//! A marked block in the hosts file, for a machine without a resolver that could be told of a zone.
//!
//! ```text
//! 127.0.0.1 localhost
//! # BEGIN ringmesh mesh0
//! # Kept by the mesh's daemon: what stands here is replaced when a node comes or goes.
//! 100.64.0.1  alpha.mesh alpha
//! # END ringmesh mesh0
//! ```
//!
//! Whose block it is says the interface, so two daemons do not get in each other's way. What lies outside is never touched.
//! That the line before the block had no end is noted in the block itself, so that taking it out gives back the very same
//! bytes, whatever became of the state directory.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    net::IpAddr,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ringmesh_proto::control::Reason;
use rustix::{
    fs::{AtFlags, Gid, Mode, StatxAttributes, StatxFlags, Uid},
    io::Errno,
};
use tracing::debug;

use crate::error::Failure;

/// A longer file is not one that somebody's resolver reads line by line.
const MAX_FILE: u64 = 64 << 20;
/// How often the file's lock is tried, and how long apart: two seconds in all.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// What an extended attribute may have, and how long the list of their names may be (xattr(7)).
const XATTR_MAX: usize = 1 << 16;
/// Names of a host may be this long in text (RFC 1035 section 2.3.4).
const NAME_MAX: usize = 253;
/// After `# BEGIN ringmesh INTERFACE`: the line before had no end, and got one.
const OPEN_LINE: &str = "after-open-line";

/// A name, its short form if it may have one, and an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) address: IpAddr,
    /// Without a dot at its end: `alpha.mesh`.
    pub(crate) name: String,
    /// `alpha`.
    pub(crate) short: Option<String>,
}

/// The block of one interface in a hosts file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostsBlock {
    path: PathBuf,
    interface: String,
}

impl HostsBlock {
    /// The block of `interface` in the file at `path`.
    pub(crate) fn new(path: &Path, interface: &str) -> Self {
        Self { path: path.to_owned(), interface: interface.to_owned() }
    }

    /// Makes the block say exactly this; tells whether the file had to be changed.
    ///
    /// # Errors
    /// The block was broken by somebody (then nothing is changed), or the file cannot be read or written.
    pub(crate) fn put(&self, entries: &[Entry]) -> Result<bool, Failure> {
        self.edit(|text| put(text, &self.interface, entries))
    }

    /// Takes the block out; tells whether there was one.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub(crate) fn remove(&self) -> Result<bool, Failure> {
        self.remove_what_a_kill_left();
        match self.edit(|text| remove(text, &self.interface)) {
            Err(_) if !self.path.exists() => Ok(false),
            result => result,
        }
    }

    /// A new file that did not come to be put in the place of the old one.
    fn remove_what_a_kill_left(&self) {
        let Ok(path) = fs::canonicalize(&self.path) else { return };
        let temporary = temporary_of(&path);
        // Under the lock, for another daemon may just be writing it.
        if temporary.exists()
            && !is_mounted(&path)
            && let Ok(_lock) = lock(&path)
            && let Err(error) = fs::remove_file(&temporary)
        {
            debug!(file = %temporary.display(), %error, "cannot remove what an interrupted change left");
        }
    }

    /// What tells, without reading the file, that nobody changed it.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        let found = fs::metadata(&self.path).ok()?;
        Some(Stamp([found.dev(), found.ino(), found.len()], [found.mtime(), found.mtime_nsec()]))
    }

    /// Whether the file has the block.
    ///
    /// # Errors
    /// The block is broken, or the file cannot be read.
    pub(crate) fn is_there(&self) -> Result<bool, Failure> {
        let text = match File::open(&self.path).and_then(|mut file| read(&mut file)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Failure::host(format!("reading {}", self.path.display()), &error)),
        };
        find(&text, &self.interface).map(|found| found.is_some()).map_err(|broken| self.broken(&broken))
    }

    fn broken(&self, broken: &Broken) -> Failure {
        let (file, interface) = (self.path.display(), &self.interface);
        Failure::new(
            Reason::Conflict,
            format!(
                "{file}, line {}: the mesh's block there is broken: {}; nothing was changed. Remove what is left of it by hand, from \
                 `# BEGIN ringmesh {interface}` to `# END ringmesh {interface}`",
                broken.line, broken.what
            ),
        )
    }

    /// Changes the file under its lock, by replacing it or, where that cannot be, in place.
    fn edit(&self, change: impl Fn(&[u8]) -> Result<Vec<u8>, Broken>) -> Result<bool, Failure> {
        let shown = self.path.display();
        // Where it really is: a link stays a link.
        let path = fs::canonicalize(&self.path)
            .map_err(|error| Failure::host(format!("looking for {shown}"), &error))?;
        let mut file = lock(&path).map_err(|error| Failure::host(format!("locking {shown}"), &error))?;
        let before = read(&mut file).map_err(|error| Failure::host(format!("reading {shown}"), &error))?;
        let after = change(&before).map_err(|broken| self.broken(&broken))?;
        if after == before {
            return Ok(false);
        }
        write(&path, &file, &before, &after)
            .map_err(|error| Failure::host(format!("writing {shown}"), &error))?;
        Ok(true)
    }
}

/// Device, number and length of a file, and when it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([u64; 3], [i64; 2]);

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Broken {
    /// From 1 on.
    line: usize,
    what: &'static str,
}

/// A whole block.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    /// From the first byte of its first line to the last of its last.
    range: Range<usize>,
    /// The line before had no end.
    open_line: bool,
}

/// What a line has to do with blocks.
#[derive(Debug, PartialEq, Eq)]
enum Marker<'a> {
    Begin { interface: &'a [u8], open_line: bool },
    End { interface: &'a [u8] },
}

fn marker(line: &[u8]) -> Option<Marker<'_>> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (hash, what, whose) = (words.next()?, words.next()?, words.next()?);
    if hash != b"#" || whose != b"ringmesh" {
        return None;
    }
    let interface = words.next()?;
    match what {
        b"BEGIN" => Some(Marker::Begin { interface, open_line: words.next() == Some(OPEN_LINE.as_bytes()) }),
        b"END" => Some(Marker::End { interface }),
        _ => None,
    }
}

/// The lines with their ends, and where each begins.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    text.split_inclusive(|byte| *byte == b'\n').scan(0, |offset, line| {
        let begin = *offset;
        *offset = begin + line.len();
        Some((begin, line))
    })
}

/// The block of `interface`, if there is one.
fn find(text: &[u8], interface: &str) -> Result<Option<Found>, Broken> {
    let own = interface.as_bytes();
    // Where it began, on which line, and whether after an open line.
    let mut open: Option<(usize, usize, bool)> = None;
    let mut found: Option<Found> = None;
    for (number, (begin, line)) in (1..).zip(lines(text)) {
        match marker(line) {
            Some(Marker::Begin { interface, open_line }) if interface == own => {
                if open.is_some() {
                    return Err(Broken { line: number, what: "it begins a second time before it ends" });
                }
                if found.is_some() {
                    return Err(Broken { line: number, what: "there is a second one" });
                }
                open = Some((begin, number, open_line));
            }
            Some(Marker::End { interface }) if interface == own => {
                let Some((start, _, open_line)) = open.take() else {
                    return Err(Broken { line: number, what: "it ends without having begun" });
                };
                found = Some(Found { range: start..begin + line.len(), open_line });
            }
            // Another one's marker inside ours: an end was lost, and we cannot know where.
            Some(_) if open.is_some() => {
                return Err(Broken { line: number, what: "another one begins or ends inside of it" });
            }
            _ => {}
        }
    }
    match open {
        Some((_, line, _)) => Err(Broken { line, what: "it has no end" }),
        None => Ok(found),
    }
}

/// The text with the block saying `entries`, where it was or at the end.
fn put(text: &[u8], interface: &str, entries: &[Entry]) -> Result<Vec<u8>, Broken> {
    let (before, open_line, after) = match find(text, interface)? {
        Some(Found { range, open_line }) => (&text[..range.start], open_line, &text[range.end..]),
        None => (text, !text.is_empty() && !text.ends_with(b"\n"), &[][..]),
    };
    let mut result = before.to_vec();
    if !result.is_empty() && !result.ends_with(b"\n") {
        result.push(b'\n');
    }
    let taken = outside_names(before, after);
    result.extend_from_slice(block(interface, open_line, entries, &taken).as_bytes());
    result.extend_from_slice(after);
    Ok(result)
}

/// The text without the block.
fn remove(text: &[u8], interface: &str) -> Result<Vec<u8>, Broken> {
    let Some(Found { range, open_line }) = find(text, interface)? else { return Ok(text.to_vec()) };
    let (mut before, mut after) = (text[..range.start].to_vec(), text[range.end..].to_vec());
    if open_line && after.is_empty() {
        before.pop_if(|last| *last == b'\n');
    } else if open_line {
        // Another daemon's block came to stand behind: whoever goes last takes our end of line away.
        let first = after.iter().position(|byte| *byte == b'\n').unwrap_or(after.len());
        if let Some(Marker::Begin { open_line: false, .. }) = marker(&after[..first]) {
            after.splice(first..first, format!(" {OPEN_LINE}").into_bytes());
        }
    }
    before.append(&mut after);
    Ok(before)
}

/// The names that the rest of the file gives to somebody.
fn outside_names(before: &[u8], after: &[u8]) -> std::collections::BTreeSet<String> {
    let rest = before.split(|byte| *byte == b'\n').chain(after.split(|byte| *byte == b'\n'));
    rest.flat_map(|line| {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.skip(1).map(|name| String::from_utf8_lossy(name).to_ascii_lowercase())
    })
    .collect()
}

/// The block's lines. A short name that the machine's owner gave to somebody stays that one's.
fn block(
    interface: &str,
    open_line: bool,
    entries: &[Entry],
    taken: &std::collections::BTreeSet<String>,
) -> String {
    let flag = if open_line { format!(" {OPEN_LINE}") } else { String::new() };
    let mut text = format!(
        "# BEGIN ringmesh {interface}{flag}\n\
         # Kept by the mesh's daemon: what stands here is replaced when a node comes or goes.\n"
    );
    for Entry { address, name, short } in entries {
        if !is_host_name(name) {
            continue;
        }
        let short = short.as_deref().filter(|short| is_host_name(short) && !short.contains('.'));
        match short.filter(|short| *short != "localhost" && !taken.contains(*short)) {
            Some(short) => text.push_str(&format!("{address}\t{name} {short}\n")),
            None => text.push_str(&format!("{address}\t{name}\n")),
        }
    }
    text.push_str(&format!("# END ringmesh {interface}\n"));
    text
}

/// Whether a name can stand in a hosts file and mean itself.
fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name.parse::<IpAddr>().is_err()
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    if file.metadata()?.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too long for a hosts file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

/// Opens the file and locks it against other daemons of ours. Whoever may read a file may hold its lock: somebody who does not
/// let go of it makes us wait, and no more.
fn lock(path: &Path) -> io::Result<File> {
    for _ in 0..LOCK_ATTEMPTS {
        let file = File::open(path)?;
        match file.try_lock() {
            Ok(()) if is_still(path, &file) => return Ok(file),
            // Replaced while we waited: the lock we have is of a file that is gone.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    debug!(file = %path.display(), "another program holds the file's lock; going on without");
    File::open(path)
}

fn is_still(path: &Path, file: &File) -> bool {
    let (Ok(there), Ok(open)) = (fs::metadata(path), file.metadata()) else { return false };
    (there.dev(), there.ino()) == (open.dev(), open.ino())
}

/// Replaces the content of the file at `path`, which is open as `file`.
fn write(path: &Path, file: &File, before: &[u8], after: &[u8]) -> io::Result<()> {
    // Another name of the same file would keep the old content.
    let has_other_names = file.metadata()?.nlink() > 1;
    if !has_other_names && !is_mounted(path) {
        match replace(path, file, before, after) {
            Ok(()) => return Ok(()),
            // A bind mount that the kernel did not tell of, or a directory that nobody may write to.
            Err(error) if cannot_be_replaced(&error) => {
                debug!(file = %path.display(), %error, "cannot be replaced; writing in place");
            }
            Err(error) => return Err(error),
        }
    }
    write_in_place(path, before, after)
}

/// Whether something is mounted just there, as every container's hosts file is: then it cannot be replaced.
fn is_mounted(path: &Path) -> bool {
    let told = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::empty());
    told.is_ok_and(|told| told.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn cannot_be_replaced(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    [Errno::BUSY, Errno::XDEV, Errno::ROFS, Errno::ACCESS, Errno::PERM]
        .into_iter()
        .any(|it| errno == Some(it))
}

/// Always the same, and only used under the lock: what a kill leaves is found the next time.
fn temporary_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.ringmesh"))
}

/// Puts a new file in the place of the old one, with its owner, its mode and its extended attributes (SELinux keeps its label
/// there).
fn replace(path: &Path, file: &File, before: &[u8], after: &[u8]) -> io::Result<()> {
    let temporary = temporary_of(path);
    let result = (|| {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
        // Locked before it can be found, so that another daemon waits until all is done.
        new.try_lock()?;
        new.write_all(after)?;
        let old = file.metadata()?;
        let (uid, gid) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
        rustix::fs::fchown(&new, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&new, Mode::from_raw_mode(old.mode()))?;
        copy_attributes(file, &new);
        new.sync_all()?;
        // Somebody else who does not know of our lock may have been at it.
        if !is_still(path, file) || read(&mut File::open(path)?)? != before {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another program is changing it"));
        }
        fs::rename(&temporary, path)?;
        if let Some(directory) = path.parent() {
            File::open(directory).and_then(|directory| directory.sync_all())?;
        }
        Ok(())
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// What cannot be copied is missing: most file systems have none, and some attributes are the kernel's own.
fn copy_attributes(from: &File, to: &File) {
    let mut names = vec![0_u8; XATTR_MAX];
    let Ok(length) = rustix::fs::flistxattr(from, &mut names[..]) else { return };
    for name in names[..length.min(XATTR_MAX)].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; XATTR_MAX];
        let copied = rustix::fs::fgetxattr(from, name, &mut value[..]).and_then(|length| {
            rustix::fs::fsetxattr(to, name, &value[..length.min(XATTR_MAX)], rustix::fs::XattrFlags::empty())
        });
        if let Err(error) = copied {
            debug!(name = %String::from_utf8_lossy(name), %error, "an attribute of the hosts file was not copied");
        }
    }
}

/// Writes only from the first difference on: whoever reads meanwhile finds what comes before it.
fn write_in_place(path: &Path, before: &[u8], after: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let same = before.iter().zip(after).take_while(|(old, new)| old == new).count();
    file.write_all_at(&after[same..], same as u64)?;
    file.set_len(after.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
