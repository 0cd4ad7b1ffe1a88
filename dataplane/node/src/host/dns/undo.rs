//! What was changed on the machine and would outlive a killed daemon, written down before it is done.
//!
//! The note is a state file. It is there from before the first change until after the last one was taken back; the next start
//! and `meshctl cleanup` take back what it names.

use std::path::PathBuf;

use ringmesh_proto::control::Reason;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    Paths,
    hosts::HostsBlock,
    resolvconf::{Flavor, Resolvconf, interface_of},
};
use crate::{
    config::is_interface_name,
    error::Failure,
    state::{StateDir, StateFile},
};

/// The format written today.
const VERSION: u32 = 1;

/// Something that was done to the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub(crate) enum Change {
    /// A block in a hosts file.
    Hosts {
        /// The file.
        path: PathBuf,
        /// Whose block.
        interface: String,
    },
    /// A record of resolvconf's.
    Resolvconf {
        /// The program.
        program: PathBuf,
        /// Whether it is Debian's, and not openresolv.
        debian: bool,
        /// The record's name.
        record: String,
    },
}

impl Change {
    /// Whether it is something that this program does to a machine. The interface may have been another one then.
    fn is_ours(&self, paths: &Paths) -> bool {
        match self {
            Self::Hosts { path, interface } => *path == paths.hosts && is_interface_name(interface),
            Self::Resolvconf { program, record, .. } => {
                paths.resolvconf.contains(program) && interface_of(record).is_some_and(is_interface_name)
            }
        }
    }

    /// Takes it back; what was done, in words, or `None` if there was nothing to do.
    ///
    /// A note is no order: what this program would never have done is left alone, whoever wrote that it did.
    fn undo(&self, paths: &Paths) -> Result<Option<String>, Failure> {
        if !self.is_ours(paths) {
            return Err(Failure::new(
                Reason::Conflict,
                format!(
                    "{} names a change that ringmesh never makes on this machine ({self:?}): see who wrote it, and take \
                     it out of the file",
                    StateFile::Undo.name()
                ),
            ));
        }
        match self {
            Self::Hosts { path, interface } => {
                let removed = HostsBlock::new(path, interface).remove()?;
                Ok(removed.then(|| format!("removed the block of {interface} from {}", path.display())))
            }
            Self::Resolvconf { program, debian, record } => {
                // With the program went its records.
                if !program.exists() {
                    return Ok(None);
                }
                let flavor = if *debian { Flavor::Debian } else { Flavor::Openresolv };
                Resolvconf::known(program, flavor, record).remove()?;
                Ok(Some(format!("had {} forget {record}", program.display())))
            }
        }
    }
}

/// The note, as written.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    v: u32,
    changes: Vec<Change>,
}

/// What is written down. A note that cannot be read is set aside, and with it what it named is no longer known.
///
/// # Errors
/// The disk refuses.
fn noted(state: &StateDir) -> Result<Vec<Change>, Failure> {
    let Some(content) = state.read(StateFile::Undo)? else { return Ok(Vec::new()) };
    match serde_json::from_slice::<File>(&content) {
        Ok(file) if file.v == VERSION => Ok(file.changes),
        Ok(file) => {
            state.set_aside(
                StateFile::Undo,
                &format!("its version is {}, this program knows {VERSION}", file.v),
            );
            Ok(Vec::new())
        }
        Err(error) => {
            state.set_aside(StateFile::Undo, &error);
            Ok(Vec::new())
        }
    }
}

fn write(state: &StateDir, changes: Vec<Change>) -> Result<(), Failure> {
    if changes.is_empty() {
        return state.remove(StateFile::Undo);
    }
    let text = serde_json::to_vec_pretty(&File { v: VERSION, changes })
        .map_err(|error| Failure::invalid(format!("what was changed cannot be written down: {error}")))?;
    state.write(StateFile::Undo, &text)
}

/// Writes down what is about to be done; on the disk when this returns.
///
/// # Errors
/// The disk refuses; then it must not be done.
pub(crate) fn note(state: &StateDir, change: Change) -> Result<(), Failure> {
    let mut changes = noted(state)?;
    if changes.contains(&change) {
        return Ok(());
    }
    changes.push(change);
    write(state, changes)
}

/// Takes back everything that is written down, the last first, and tells what was done. What cannot be taken back stays noted.
///
/// # Errors
/// The first that could not be taken back; the others were all the same.
pub(crate) fn undo(state: &StateDir, paths: &Paths) -> Result<Vec<String>, Failure> {
    let changes = noted(state)?;
    let (mut done, mut left, mut failed) = (Vec::new(), Vec::new(), None);
    for change in changes.into_iter().rev() {
        match change.undo(paths) {
            Ok(words) => done.extend(words),
            Err(failure) => {
                warn!(event = "leftovers_kept", %failure, "a change of this machine cannot be taken back");
                left.insert(0, change);
                failed.get_or_insert(failure);
            }
        }
    }
    for words in &done {
        info!(event = "host_restored", "{words}");
    }
    write(state, left)?;
    failed.map_or(Ok(done), Err)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::dns::hosts::Entry;

    fn change(folder: &std::path::Path, interface: &str) -> Change {
        Change::Hosts { path: folder.join("hosts"), interface: interface.to_owned() }
    }

    fn paths(folder: &std::path::Path) -> Paths {
        let (hosts, resolvconf) =
            (folder.join("hosts"), vec![folder.join("gone"), folder.join("resolvconf")]);
        Paths { hosts, resolvconf, ..Paths::default() }
    }

    fn put(folder: &std::path::Path, interface: &str) {
        let entry = Entry { address: "100.64.0.1".parse().unwrap(), name: "a.mesh".to_owned(), short: None };
        HostsBlock::new(&folder.join("hosts"), interface).put(&[entry]).unwrap();
    }

    #[test]
    fn what_was_noted_is_taken_back_at_the_next_start_and_then_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hosts"), "127.0.0.1 localhost").unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        for interface in ["mesh0", "mesh1"] {
            note(&state, change(folder.path(), interface)).unwrap();
            note(&state, change(folder.path(), interface)).unwrap();
            put(folder.path(), interface);
        }
        drop(state);
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let done = undo(&state, &paths(folder.path())).unwrap();
        assert_eq!(done.len(), 2, "{done:?}");
        assert!(done[0].contains("mesh1") && done[1].contains("mesh0"), "the last first: {done:?}");
        assert_eq!(fs::read_to_string(folder.path().join("hosts")).unwrap(), "127.0.0.1 localhost");
        assert!(state.read(StateFile::Undo).unwrap().is_none());
        assert!(undo(&state, &paths(folder.path())).unwrap().is_empty());
    }

    #[test]
    fn what_was_noted_but_never_done_is_nothing_to_take_back() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hosts"), "127.0.0.1 localhost").unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        note(&state, change(folder.path(), "mesh0")).unwrap();
        let record = "tun0.mesh0.mesh".to_owned();
        let gone = Change::Resolvconf { program: folder.path().join("gone"), debian: false, record };
        note(&state, gone).unwrap();
        assert!(undo(&state, &paths(folder.path())).unwrap().is_empty());
        assert_eq!(fs::read_to_string(folder.path().join("hosts")).unwrap(), "127.0.0.1 localhost");
    }

    #[test]
    fn what_cannot_be_taken_back_stays_noted_and_the_rest_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        fs::write(&hosts, "").unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        for interface in ["mesh0", "mesh1"] {
            note(&state, change(folder.path(), interface)).unwrap();
            put(folder.path(), interface);
        }
        let text = fs::read_to_string(&hosts).unwrap();
        fs::write(&hosts, text.replace("# END ringmesh mesh1\n", "")).unwrap();
        let failure = undo(&state, &paths(folder.path())).unwrap_err();
        assert!(failure.to_string().contains("broken"), "{failure}");
        assert!(!fs::read_to_string(&hosts).unwrap().contains("mesh0"));
        assert_eq!(noted(&state).unwrap(), [change(folder.path(), "mesh1")]);
    }

    #[test]
    fn a_note_that_cannot_be_read_is_kept_for_people() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        for bad in ["{", r#"{"v":9,"changes":[]}"#, r#"{"v":1,"changes":[{"what":"registry"}]}"#] {
            state.write(StateFile::Undo, bad.as_bytes()).unwrap();
            assert!(undo(&state, &paths(folder.path())).unwrap().is_empty());
            let kept = fs::read_dir(folder.path()).unwrap().flatten();
            assert!(
                kept.into_iter().any(|it| it.file_name().to_string_lossy().contains(".corrupt-")),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_note_of_what_we_never_do_runs_no_program_and_changes_no_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let state = StateDir::open(&at("state")).unwrap();
        for program in ["resolvconf", "evil"] {
            let script = format!("#!/bin/sh\necho \"$@\" >> {}\n", at(&format!("{program}.ran")).display());
            fs::write(at(program), script).unwrap();
            fs::set_permissions(at(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let resolvconf = |program: &str, record: &str| Change::Resolvconf {
            program: at(program),
            debian: false,
            record: record.to_owned(),
        };
        fs::write(at("hosts"), "127.0.0.1 localhost\n").unwrap();
        put(folder.path(), "mesh0");
        fs::copy(at("hosts"), at("other")).unwrap();
        let block = fs::read_to_string(at("hosts")).unwrap();
        for change in [
            resolvconf("evil", "tun0.mesh0.mesh"),
            resolvconf("./resolvconf/../evil", "tun0.mesh0.mesh"),
            resolvconf("resolvconf", "eth0"),
            resolvconf("resolvconf", "tun0..mesh"),
            resolvconf("resolvconf", "tun0.eth0\n-a.mesh"),
            resolvconf("resolvconf", "tun0.../../etc.mesh"),
            Change::Hosts { path: at("other"), interface: "mesh0".to_owned() },
            Change::Hosts { path: at("hosts"), interface: "mesh0\n".to_owned() },
        ] {
            note(&state, change.clone()).unwrap();
            let failure = undo(&state, &paths(folder.path())).unwrap_err();
            assert!(failure.to_string().contains("never makes"), "{change:?}: {failure}");
            assert_eq!(noted(&state).unwrap(), [change], "kept for people");
            state.remove(StateFile::Undo).unwrap();
        }
        assert!(!at("evil.ran").exists() && !at("resolvconf.ran").exists());
        for name in ["hosts", "other"] {
            assert_eq!(fs::read_to_string(at(name)).unwrap(), block, "{name}");
        }

        // The same of what we do is taken back, also of an interface that we have no more.
        note(&state, resolvconf("resolvconf", "tun0.mesh7.mesh")).unwrap();
        note(&state, change(folder.path(), "mesh0")).unwrap();
        assert_eq!(undo(&state, &paths(folder.path())).unwrap().len(), 2);
        assert_eq!(fs::read_to_string(at("resolvconf.ran")).unwrap(), "-f -d tun0.mesh7.mesh\n");
        assert_ne!(fs::read_to_string(at("hosts")).unwrap(), block);
    }
}
