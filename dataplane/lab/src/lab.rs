//! The whole of a lab: what it holds, and how it is taken down.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, Ordering},
};

use crate::{error::LabError, host::Host, namespace::Namespace, residents, sandbox, switch::Switch};

/// Switches and hosts of one experiment. Dropping it kills what runs on the hosts and removes all links.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

/// What hosts and switches need of their lab.
#[derive(Debug)]
pub(crate) struct Shared {
    namespaces: Mutex<Vec<Arc<Namespace>>>,
    switches: AtomicU8,
}

impl Shared {
    pub(crate) fn namespace(&self, name: &str) -> Result<Arc<Namespace>, LabError> {
        let namespace = Arc::new(Namespace::new(name)?);
        namespace.link_up("lo")?;
        self.held().push(Arc::clone(&namespace));
        Ok(namespace)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Arc<Namespace>>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lab {
    /// An empty lab.
    ///
    /// # Errors
    /// [`LabError::NotPrivileged`] unless root or in a sandbox (see [`enter`](crate::enter)).
    pub fn new() -> Result<Self, LabError> {
        if !sandbox::has_capabilities() {
            return Err(LabError::NotPrivileged);
        }
        let shared = Shared { namespaces: Mutex::new(Vec::new()), switches: AtomicU8::new(0) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A switch: a bridge in a namespace of its own. The first has 10.1.0.0/24 and fd10:0:0:1::/64, and so on.
    pub fn switch(&self) -> Result<Switch, LabError> {
        let number = self.shared.switches.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Switch::new(Arc::clone(&self.shared), number)
    }

    /// A host with a loopback and nothing else; [`Switch::host`] makes one that is attached.
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        Host::new(&self.shared, name)
    }

    /// Lays a cable between two hosts, without a switch: their names for their ends of it. It has no addresses.
    pub fn cable(&self, one: &Host, other: &Host) -> Result<(String, String), LabError> {
        one.cable_to(other)
    }

    /// Takes the lab down; answers how many processes were still running on its hosts and had to be killed.
    ///
    /// Dropping a lab does the same, but cannot say whether it worked.
    ///
    /// # Errors
    /// [`LabError::Survivors`] if a process could not be killed; netlink's errors if a link could not be removed.
    pub fn close(self) -> Result<usize, LabError> {
        self.take_down()
    }

    fn take_down(&self) -> Result<usize, LabError> {
        let namespaces = std::mem::take(&mut *self.shared.held());
        let all: Vec<&Namespace> = namespaces.iter().map(Arc::as_ref).collect();
        let found = residents::evict(&all)?;
        // The kernel would do this too, but later, and somebody may be waiting for the links to be gone.
        for namespace in all {
            for link in namespace.links()? {
                if namespace.links()?.contains(&link) {
                    namespace.remove_link(&link)?;
                }
            }
        }
        Ok(found)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Nobody is left to be told; what stays goes when this process does.
        let _ = self.take_down();
    }
}
