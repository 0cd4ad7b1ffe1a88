//! systemd-resolved, told by D-Bus whom to ask for the names below a zone (org.freedesktop.resolve1(5)).
//!
//! What is set hangs on the link, and goes when the link goes: a killed daemon leaves nothing. What is not ours is asked of
//! others, since our link is never the default route for names.

use std::{fs, io, net::IpAddr, path::Path, time::Duration};

use futures_util::StreamExt as _;
use zbus::{
    Connection,
    connection::Builder,
    fdo::{DBusProxy, NameOwnerChangedStream},
    names::BusName,
    wire::DynamicType,
};

use super::Link;

/// The name that resolved owns on the system bus.
const SERVICE: &str = "org.freedesktop.resolve1";
const OBJECT: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
/// What the kernel calls its process.
const PROCESS: &str = "systemd-resolve";
/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(5);
/// Address families, as the kernel numbers them.
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// A connection to the system bus, on which resolved is.
pub(crate) struct Resolved {
    connection: Connection,
    owners: NameOwnerChangedStream,
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolved").field("bus", &self.connection.server_guid()).finish_non_exhaustive()
    }
}

impl Resolved {
    /// Connects to the system bus, at `address` if given, and looks whether resolved is there.
    ///
    /// # Errors
    /// In words: no bus, no resolved, or another machine's.
    pub(crate) async fn find(address: Option<&str>) -> Result<Self, String> {
        let builder = match address {
            Some(address) => Builder::address(address),
            None => Builder::system(),
        };
        let building = builder.method_timeout(PATIENCE).build();
        let connection = match tokio::time::timeout(PATIENCE, building).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(format!("no system bus: {error}")),
            Err(_) => return Err("the system bus does not answer".to_owned()),
        };
        let bus = DBusProxy::new(&connection).await.map_err(|error| format!("the system bus: {error}"))?;
        // Watched before asked: no start or end in between is missed.
        let owners = bus
            .receive_name_owner_changed_with_args(&[(0, SERVICE)])
            .await
            .map_err(|error| format!("the system bus: {error}"))?;
        let name = BusName::from_static_str(SERVICE).map_err(|error| error.to_string())?;
        if !bus.name_has_owner(name.clone()).await.unwrap_or(false) {
            return Err("systemd-resolved does not run".to_owned());
        }
        let process = bus
            .get_connection_unix_process_id(name)
            .await
            .map_err(|error| format!("whose systemd-resolved it is: {error}"))?;
        is_of_this_network(process)?;
        Ok(Self { connection, owners })
    }

    /// Has everything of the link's zone asked of its servers, and nothing else.
    ///
    /// # Errors
    /// In words: resolved refuses; nothing stays set.
    pub(crate) async fn tell(&self, link: &Link) -> Result<(), String> {
        let result = self.set(link).await;
        if result.is_err() {
            self.revert(link.index).await;
        }
        result
    }

    async fn set(&self, link: &Link) -> Result<(), String> {
        let index = number(link.index)?;
        let zones = link.reverse.iter().map(|zone| (zone.as_str(), true));
        let domains: Vec<_> = [(link.zone.as_str(), !link.search)].into_iter().chain(zones).collect();
        // The servers come last: before, there is no moment at which they would be asked for other names.
        if let Err(words) = self.call("SetLinkDefaultRoute", &(index, false)).await {
            // Before systemd 240 there is no such thing, and a link with domains is no default route.
            tracing::debug!(words, "resolved knows no default route for names");
        }
        self.call("SetLinkDomains", &(index, domains)).await?;
        for (method, value) in [
            ("SetLinkLLMNR", "no"),
            ("SetLinkMulticastDNS", "no"),
            // The packets are sealed already, and a zone of our own has no chain of keys from the root.
            ("SetLinkDNSOverTLS", "no"),
            ("SetLinkDNSSEC", "no"),
        ] {
            if let Err(words) = self.call(method, &(index, value)).await {
                tracing::debug!(method, words, "resolved was built without it");
            }
        }
        let servers = link.servers.iter().map(|server| match server {
            IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
        });
        if link.port == super::DNS_PORT {
            self.call("SetLinkDNS", &(index, servers.collect::<Vec<_>>())).await
        } else {
            let servers = servers.map(|(family, address)| (family, address, link.port, ""));
            self.call("SetLinkDNSEx", &(index, servers.collect::<Vec<_>>())).await
        }
    }

    /// Takes back what was set for a link, which may be gone already.
    pub(crate) async fn revert(&self, index: u32) {
        let Ok(index) = number(index) else { return };
        if let Err(words) = self.call("RevertLink", &(index)).await {
            tracing::debug!(words, "nothing to take back at resolved");
        }
    }

    /// Waits until resolved runs anew, and knows nothing of us; false if the bus itself went away.
    pub(crate) async fn started_anew(&mut self) -> bool {
        while let Some(change) = self.owners.next().await {
            if change.args().is_ok_and(|change| change.new_owner().is_some()) {
                return true;
            }
        }
        false
    }

    async fn call<B>(&self, method: &str, body: &B) -> Result<(), String>
    where
        B: serde::Serialize + DynamicType,
    {
        let called = self.connection.call_method(Some(SERVICE), OBJECT, Some(MANAGER), method, body).await;
        called.map(drop).map_err(|error| format!("systemd-resolved refuses {method}: {error}"))
    }
}

fn number(index: u32) -> Result<i32, String> {
    i32::try_from(index).map_err(|_| "the interface has no index".to_owned())
}

/// A link is named by its index, which means another one to a resolved of another network namespace: a container that has its
/// host's bus must not change how the host asks for names.
fn is_of_this_network(process: u32) -> Result<(), String> {
    let foreign = || Err("the systemd-resolved on the bus is of another machine or container".to_owned());
    // Of other users' processes nothing is seen: it is the bus's word alone, which is this machine's (or unit's) own.
    if !Path::new(&format!("/proc/{process}")).exists() && hides_processes(&read("/proc/self/mountinfo")) {
        return Ok(());
    }
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    if name.trim_end() != PROCESS {
        return foreign();
    }
    let theirs = fs::read_link(format!("/proc/{process}/ns/net"));
    match (theirs, fs::read_link("/proc/self/ns/net")) {
        (Ok(theirs), Ok(ours)) if theirs == ours => Ok(()),
        (Ok(_), Ok(_)) => foreign(),
        // Without the right to look, it is the one that we see running.
        (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        _ => foreign(),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether `/proc` shows a user no processes but its own (`hidepid`, as systemd's `ProtectProc=invisible` mounts it).
fn hides_processes(mountinfo: &str) -> bool {
    let mut mounts = mountinfo.lines().filter(|line| line.split(' ').nth(4) == Some("/proc"));
    // The last one lies on top.
    mounts.next_back().is_some_and(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        options.split(',').any(|option| {
            matches!(
                option.strip_prefix("hidepid="),
                Some("invisible" | "ptraceable" | "noaccess" | "1" | "2" | "4")
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_bus_is_told_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:path={}", folder.path().join("bus").display());
        let words = Resolved::find(Some(&address)).await.unwrap_err();
        assert!(words.starts_with("no system bus: "), "{words}");
    }

    #[test]
    fn a_proc_that_hides_other_users_processes_is_known_by_its_mount() {
        const PLAIN: &str = "25 30 0:22 / /proc rw,nosuid shared:12 - proc proc rw";
        const HIDDEN: &str = "99 30 0:51 / /proc rw,nosuid shared:13 - proc proc rw,hidepid=invisible";
        assert!(!hides_processes(PLAIN) && !hides_processes(""));
        assert!(hides_processes(&format!("{PLAIN}\n{HIDDEN}\n")));
        assert!(!hides_processes(&format!("{HIDDEN}\n{PLAIN}\n")), "another one lies on top");
        assert!(!hides_processes(&HIDDEN.replace("invisible", "off")));
        assert!(!hides_processes(&HIDDEN.replace(" /proc ", " /elsewhere ")));
    }

    #[test]
    fn a_resolved_that_is_not_seen_here_is_another_machines() {
        // This process is of this network, but no resolved.
        assert!(is_of_this_network(std::process::id()).unwrap_err().contains("another machine"));
        assert!(is_of_this_network(u32::MAX).is_err());
    }
}
