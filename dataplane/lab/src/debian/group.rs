//! A cgroup for one machine: systemd manages all processes of it as its own, and knows nothing of other machines'.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::mount::{MsFlags, mount};

use crate::{error::LabError, namespace::Namespace};

/// Where the tree of cgroups is mounted on a host of the lab, for nobody else to see.
const TREE: &str = "/run/cgroup";
/// What the names begin with of those that the lab made.
const PREFIX: &str = "ringmesh-lab-";
/// What a killed lab could not remove is nobody's any more after this.
const FORGOTTEN: Duration = Duration::from_mins(10);
/// How long the last process of a machine may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The cgroup of one machine, removed with all below it when dropped.
#[derive(Debug)]
pub(super) struct Group {
    host: Arc<Namespace>,
    path: PathBuf,
}

impl Group {
    /// Makes one below the cgroup that the caller is in.
    pub(super) fn new(host: &Arc<Namespace>) -> Result<Self, LabError> {
        let name = format!("{PREFIX}{}", host.unique());
        let path = host
            .run(|| {
                const NONE: Option<&str> = None;
                if !Path::new(TREE).exists() {
                    fs::create_dir(TREE)?;
                    mount(Some("cgroup2"), TREE, Some("cgroup2"), MsFlags::empty(), NONE)?;
                }
                let own = fs::read_to_string("/proc/self/cgroup")?;
                let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
                let parent = Path::new(TREE).join(own);
                remove_forgotten(&parent);
                let path = parent.join(name);
                fs::create_dir(&path).map(|()| path)
            })?
            .map_err(|e| LabError::system("make a cgroup", e))?;
        Ok(Self { host: Arc::clone(host), path })
    }

    /// The file by which a process on the host moves itself in.
    pub(super) fn door(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Waits until no process is left, and removes it.
    fn remove(&self) -> Result<(), LabError> {
        let began = Instant::now();
        let removed = self.host.run(|| {
            loop {
                match remove_tree(&self.path) {
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy && began.elapsed() < PATIENCE => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    done => return done,
                }
            }
        })?;
        removed.map_err(|e| LabError::system("remove a cgroup", e))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The next machine removes what could not be removed now.
        let _ = self.remove();
    }
}

/// Removes a cgroup and those below it: directories only, since its files go with it. Fails while a process is in one.
fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Removes what labs left behind that were killed.
fn remove_forgotten(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let made = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old =
            made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age > FORGOTTEN));
        if is_old && entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = remove_tree(&entry.path());
        }
    }
}
