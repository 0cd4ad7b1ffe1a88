//! How this machine is told whom to ask for mesh names, and how that is taken back.
//!
//! | way | what is changed | after a kill |
//! |---|---|---|
//! | systemd-resolved | settings of the link, by D-Bus | gone with the link |
//! | resolvconf | one record of ours | noted, and taken back by the next start or by `meshctl cleanup` |
//! | hosts file | one marked block | the same |
//!
//! `/etc/resolv.conf` is read, and never written. Where nothing works the node goes on without, and says so.

mod hosts;
mod resolv_conf;
mod resolvconf;
mod resolved;
mod undo;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tracing::{error, info, warn};

pub(crate) use self::hosts::Entry;
use self::{
    hosts::{HostsBlock, Stamp},
    resolv_conf::ResolvConf,
    resolvconf::Resolvconf,
    resolved::Resolved,
    undo::Change,
};
use crate::{
    config::{Dns, DnsMode},
    error::Failure,
    state::StateDir,
};

/// Where names are asked for unless said otherwise.
pub(crate) const DNS_PORT: u16 = 53;
/// A resolved that has just been started may not know its links yet: so often, and so far apart, is it told again.
const RESOLVED_ATTEMPTS: u32 = 3;
const RESOLVED_PAUSE: Duration = Duration::from_millis(300);
/// Every so many looks at the machine is asked for a resolved that should be there and is not.
const LOOKS_FOR_RESOLVED: u32 = 5;

/// What of the machine is looked at or changed; tests have their own.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The hosts file.
    pub(crate) hosts: PathBuf,
    /// The C library's list of servers.
    pub(crate) resolv_conf: PathBuf,
    /// Where a resolvconf program may be, best first.
    pub(crate) resolvconf: Vec<PathBuf>,
    /// The D-Bus address of the system bus; `None`: as the system says.
    pub(crate) bus: Option<String>,
}

impl Default for Paths {
    fn default() -> Self {
        let folders = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            resolvconf: folders.iter().map(|folder| format!("{folder}/resolvconf").into()).collect(),
            bus: None,
        }
    }
}

/// What the machine shall know of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// The network's device.
    pub(crate) interface: String,
    /// Its index.
    pub(crate) index: u32,
    /// Where this node answers; none: it does not.
    pub(crate) servers: Vec<IpAddr>,
    /// On which port.
    pub(crate) port: u16,
    /// The zone of the network's names.
    pub(crate) zone: String,
    /// The zones of its addresses: `64.100.in-addr.arpa`.
    pub(crate) reverse: Vec<String>,
    /// Whether names may be used without the zone.
    pub(crate) search: bool,
    /// Every name with its addresses.
    pub(crate) entries: Vec<Entry>,
}

/// By whom `/etc/resolv.conf` is kept, which decides what would be heeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Resolved,
    Resolvconf,
    Other,
}

/// How the machine was told.
#[derive(Debug)]
enum Way {
    Nowhere,
    Resolved(Box<Resolved>),
    Resolvconf(Resolvconf),
    Hosts(HostsBlock),
}

/// What a look at the machine came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// It is to be told anew: what keeps its names is another program now.
    pub(crate) tell_anew: bool,
    /// The servers for other names may be others.
    pub(crate) upstreams: bool,
}

/// The machine, as far as it was told of the network's names.
#[derive(Debug)]
pub(crate) struct HostNames {
    paths: Paths,
    config: Dns,
    state: Arc<StateDir>,
    way: Way,
    reason: String,
    keeper: Keeper,
    /// resolved was there, and refused: asking it again would be refused again.
    resolved_refused: bool,
    resolv_conf: Option<Vec<u8>>,
    /// The hosts file as it was when it was last right.
    right: Option<Stamp>,
    looks: u32,
    told: Option<Link>,
}

impl HostNames {
    /// A machine that was told nothing yet.
    pub(crate) fn new(paths: Paths, config: Dns, state: Arc<StateDir>) -> Self {
        Self {
            paths,
            config,
            state,
            way: Way::Nowhere,
            reason: "the network is not up yet".to_owned(),
            keeper: Keeper::Other,
            resolved_refused: false,
            resolv_conf: None,
            right: None,
            looks: 0,
            told: None,
        }
    }

    /// Tells the machine in the best way there is. What it was told before is taken back.
    pub(crate) async fn tell(&mut self, link: Link) {
        self.undo().await;
        self.resolv_conf = std::fs::read(&self.paths.resolv_conf).ok();
        self.keeper = self.keeper();
        self.resolved_refused = false;
        self.right = None;
        let ways: &[DnsMode] = match self.config.mode {
            DnsMode::Auto => &[DnsMode::Resolved, DnsMode::Resolvconf, DnsMode::Hosts],
            DnsMode::Resolved => &[DnsMode::Resolved],
            DnsMode::Resolvconf => &[DnsMode::Resolvconf],
            DnsMode::Hosts => &[DnsMode::Hosts],
            DnsMode::Off => &[],
        };
        let mut refused = Vec::new();
        for way in ways {
            let result = match way {
                DnsMode::Resolved => self.by_resolved(&link).await,
                DnsMode::Resolvconf => self.by_resolvconf(&link).await,
                DnsMode::Hosts => self.by_hosts(&link).await,
                DnsMode::Auto | DnsMode::Off => continue,
            };
            match result {
                Ok((way, words)) => {
                    self.way = way;
                    self.reason = [vec![words], refused].concat().join("; ");
                    info!(
                        event = "dns_told",
                        way = self.mode(),
                        reason = self.reason,
                        "the machine knows whom to ask for mesh names"
                    );
                    self.told = Some(link);
                    return;
                }
                // The same may stand in the way of several.
                Err(words) if refused.contains(&words) => {}
                Err(words) => refused.push(words),
            }
        }
        if self.config.mode == DnsMode::Off {
            self.reason = "the configuration says so ([dns] mode = \"off\")".to_owned();
        } else {
            self.reason = refused.join("; ");
            warn!(
                event = "dns_untold",
                reason = self.reason,
                "this machine cannot be told of mesh names; the node goes on without"
            );
        }
        self.told = Some(link);
    }

    async fn by_resolved(&mut self, link: &Link) -> Result<(Way, String), String> {
        answers(link)?;
        if self.config.mode == DnsMode::Auto && self.keeper != Keeper::Resolved {
            return Err(format!("{} does not lead to systemd-resolved", self.paths.resolv_conf.display()));
        }
        let resolved = Resolved::find(self.paths.bus.as_deref()).await?;
        let mut attempt = 1;
        loop {
            match resolved.tell(link).await {
                Ok(()) => {
                    return Ok((
                        Way::Resolved(Box::new(resolved)),
                        "systemd-resolved answers on this machine".to_owned(),
                    ));
                }
                Err(words) if attempt == RESOLVED_ATTEMPTS => {
                    self.resolved_refused = true;
                    return Err(words);
                }
                Err(_) => tokio::time::sleep(RESOLVED_PAUSE).await,
            }
            attempt += 1;
        }
    }

    async fn by_resolvconf(&self, link: &Link) -> Result<(Way, String), String> {
        answers(link)?;
        let shown = self.paths.resolv_conf.display();
        if link.port != DNS_PORT {
            return Err(format!("{shown} cannot name port {}", link.port));
        }
        if self.config.mode == DnsMode::Auto && self.keeper != Keeper::Resolvconf {
            return Err(format!("{shown} was not made by resolvconf"));
        }
        // The C library asks one server after the other, so that one of ours is enough.
        let Some(server) = link.servers.first().copied() else { return Err("there is no server".to_owned()) };
        let search = link.search.then(|| link.zone.clone());
        let (paths, interface, state) = (self.paths.clone(), link.interface.clone(), Arc::clone(&self.state));
        let put = move || {
            let found = Resolvconf::find(&paths.resolvconf, &interface)?;
            let change = Change::Resolvconf {
                program: found.program().to_owned(),
                debian: found.flavor() == resolvconf::Flavor::Debian,
                record: found.record().to_owned(),
            };
            undo::note(&state, change).map_err(|failure| failure.to_string())?;
            let done = found
                .put(server, search.as_deref(), &paths.resolv_conf)
                .map_err(|failure| failure.to_string());
            done.inspect_err(|_| take_back(&state, &paths))?;
            Ok(found)
        };
        let found = blocking(put).await?;
        let words = format!("{} keeps {shown}", found.program().display());
        Ok((Way::Resolvconf(found), words))
    }

    async fn by_hosts(&self, link: &Link) -> Result<(Way, String), String> {
        let block = HostsBlock::new(&self.paths.hosts, &link.interface);
        let (paths, interface) = (self.paths.clone(), link.interface.clone());
        let (state, entries) = (Arc::clone(&self.state), link.entries.clone());
        let ours = block.clone();
        let put = move || {
            let change = Change::Hosts { path: paths.hosts.clone(), interface };
            undo::note(&state, change).map_err(|failure| failure.to_string())?;
            let done = ours.put(&entries).map_err(|failure| failure.to_string());
            done.inspect_err(|_| take_back(&state, &paths)).map(drop)
        };
        blocking(put).await?;
        Ok((Way::Hosts(block), format!("names are kept in {}", self.paths.hosts.display())))
    }

    /// Names or their addresses changed.
    pub(crate) async fn set_entries(&mut self, entries: Vec<Entry>) {
        if let Some(told) = &mut self.told {
            told.entries = entries;
        }
        self.right = None;
        self.renew_block().await;
    }

    /// Puts the names into the hosts file if they are not there just so, and it is there that they are kept.
    async fn renew_block(&mut self) {
        let (Way::Hosts(block), Some(told)) = (&self.way, &self.told) else { return };
        if self.right.is_some() && block.stamp() == self.right {
            return;
        }
        let (block, entries) = (block.clone(), told.entries.clone());
        let renewed = blocking(move || {
            block.put(&entries).map_err(|failure| failure.to_string())?;
            Ok(block.stamp())
        });
        let renewed = renewed.await;
        self.right = renewed.as_ref().ok().copied().flatten();
        let words = match renewed {
            Ok(_) => format!("names are kept in {}", self.paths.hosts.display()),
            Err(words) => words,
        };
        let known = self.reason.split_once("; ").map_or(self.reason.as_str(), |(first, _)| first);
        if known != words && !self.reason.starts_with(&words) {
            info!(event = "dns_told", reason = words, "how mesh names are kept on this machine changed");
            self.reason = words;
        }
    }

    /// Looks whether the machine is as it was when it was told.
    pub(crate) async fn look(&mut self) -> Look {
        self.renew_block().await;
        self.looks = self.looks.wrapping_add(1);
        let content = std::fs::read(&self.paths.resolv_conf).ok();
        let upstreams = content != self.resolv_conf;
        self.resolv_conf = content;
        let tell_anew = self.keeper() != self.keeper || self.resolved_came().await;
        Look { tell_anew, upstreams }
    }

    /// Whether resolved, which should be there and was not, is there now.
    async fn resolved_came(&self) -> bool {
        let wanted = match self.config.mode {
            DnsMode::Auto => self.keeper == Keeper::Resolved,
            DnsMode::Resolved => true,
            DnsMode::Resolvconf | DnsMode::Hosts | DnsMode::Off => false,
        };
        let answers = self.told.as_ref().is_some_and(|told| !told.servers.is_empty());
        wanted
            && answers
            && !self.resolved_refused
            && !matches!(self.way, Way::Resolved(_))
            && self.looks.is_multiple_of(LOOKS_FOR_RESOLVED)
            && Resolved::find(self.paths.bus.as_deref()).await.is_ok()
    }

    /// Waits until whoever was told has forgotten it.
    pub(crate) async fn forgotten(&mut self) {
        match &mut self.way {
            Way::Resolved(resolved) => {
                if !resolved.started_anew().await {
                    warn!(event = "bus_lost", "the system bus went away");
                    tokio::time::sleep(RESOLVED_PAUSE).await;
                }
            }
            Way::Nowhere | Way::Resolvconf(_) | Way::Hosts(_) => std::future::pending().await,
        }
    }

    /// Takes back all that the machine was told.
    pub(crate) async fn undo(&mut self) {
        let told = self.told.take();
        match std::mem::replace(&mut self.way, Way::Nowhere) {
            Way::Nowhere => {}
            Way::Resolved(resolved) => {
                if let Some(told) = told {
                    resolved.revert(told.index).await;
                }
            }
            Way::Resolvconf(_) | Way::Hosts(_) => {
                let (state, paths) = (Arc::clone(&self.state), self.paths.clone());
                let _ = blocking(move || {
                    take_back(&state, &paths);
                    Ok(())
                })
                .await;
            }
        }
        self.reason = "the network is not up".to_owned();
    }

    /// Who is to be asked for other names: whoever was before, and never ourselves.
    pub(crate) async fn upstreams(&self) -> Vec<SocketAddr> {
        let own: BTreeSet<_> = self.told.iter().flat_map(|told| told.servers.iter().copied()).collect();
        let path = self.paths.resolv_conf.clone();
        let resolvconf = match &self.way {
            Way::Resolvconf(found) => Some(found.clone()),
            Way::Nowhere | Way::Resolved(_) | Way::Hosts(_) => None,
        };
        let servers = blocking(move || {
            Ok(match resolvconf {
                Some(found) => found.others(&path, &own),
                None => {
                    let mut servers = ResolvConf::read(&path).unwrap_or_default().servers;
                    servers.retain(|server| !own.contains(server));
                    servers
                }
            })
        });
        let servers = servers.await.unwrap_or_default();
        servers.into_iter().map(|server| SocketAddr::new(server, DNS_PORT)).collect()
    }

    /// Where the machine was told: `resolved`, `resolvconf`, `hosts` or `off`.
    pub(crate) fn mode(&self) -> &'static str {
        match self.way {
            Way::Nowhere => "off",
            Way::Resolved(_) => "resolved",
            Way::Resolvconf(_) => "resolvconf",
            Way::Hosts(_) => "hosts",
        }
    }

    /// Why there, or what went wrong.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    fn keeper(&self) -> Keeper {
        let path = &self.paths.resolv_conf;
        match ResolvConf::read(path) {
            Ok(found) if found.asks_resolved() => Keeper::Resolved,
            _ if resolvconf::made(path) => Keeper::Resolvconf,
            _ => Keeper::Other,
        }
    }
}

/// Whom others could ask.
fn answers(link: &Link) -> Result<(), String> {
    if link.servers.is_empty() { Err("this node answers no queries".to_owned()) } else { Ok(()) }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

/// Takes back what is noted; what cannot be stays noted for the next start.
fn take_back(state: &StateDir, paths: &Paths) {
    if let Err(failure) = undo::undo(state, paths) {
        error!(event = "leftovers_kept", %failure, "what this machine was told of mesh names is not taken back; `meshctl cleanup` tries again");
    }
}

/// Takes back what a killed daemon of this state directory left on the machine, and tells what that was.
///
/// # Errors
/// Something cannot be taken back; it stays noted.
pub(crate) fn clean_up(state: &StateDir, paths: &Paths) -> Result<Vec<String>, Failure> {
    undo::undo(state, paths)
}

/// Removes the block of an interface from the hosts file, if there is one: for when the note of it was lost.
///
/// # Errors
/// The block is broken, or the file cannot be changed.
pub(crate) fn remove_block(paths: &Paths, interface: &str) -> Result<Option<String>, Failure> {
    let block = HostsBlock::new(&paths.hosts, interface);
    if !block.is_there()? {
        return Ok(None);
    }
    block.remove()?;
    Ok(Some(format!("removed the block of {interface} from {}", paths.hosts.display())))
}

#[cfg(test)]
mod tests;
