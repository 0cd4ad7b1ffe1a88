//! Mesh names on this machine: the zone of the map in force, the server that answers from it, and what the machine is told.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ringmesh_proto::{control::Reason, local};
use ringmesh_tunnel::{ip::Prefix, netmap::NetworkMap, time::UnixTime};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{Mesh, status::micros};
use crate::{
    dns::{Answer, Report, Server, Zone, forward::Upstreams},
    error::Failure,
    host::{
        Netlink,
        dns::{Entry, HostNames, Link, Paths},
    },
};

/// How often is looked whether the machine still is as it was when it was told.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The names of a network, and who answers for them.
#[derive(Debug)]
pub(super) struct NameService {
    /// Of its own: one socket gives one list at a time, and others look around as soon as the interface is up.
    netlink: Netlink,
    zone: watch::Sender<Arc<Zone>>,
    /// The map that the zone was made of.
    map: Mutex<Option<Arc<NetworkMap>>>,
    server: Mutex<Option<Arc<Server>>>,
    upstreams: watch::Sender<Vec<SocketAddr>>,
    told: Mutex<Told>,
    /// Becomes true when all is to be taken back.
    stop: watch::Sender<bool>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// Where the machine was told, and why there.
#[derive(Debug, Clone)]
struct Told {
    mode: &'static str,
    reason: String,
}

impl NameService {
    /// No names, and nobody who answers.
    ///
    /// # Errors
    /// There is no netlink.
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            netlink: Netlink::open()?,
            zone: watch::Sender::new(Arc::new(Zone::default())),
            map: Mutex::new(None),
            server: Mutex::new(None),
            upstreams: watch::Sender::new(Vec::new()),
            told: Mutex::new(Told { mode: "off", reason: "the network is not up yet".to_owned() }),
            stop: watch::Sender::new(false),
            task: tokio::sync::Mutex::new(None),
        })
    }

    /// Answers from now on for the names that `map` gives.
    ///
    /// # Errors
    /// The program is at fault.
    pub(super) async fn publish(
        &self,
        map: &Arc<NetworkMap>,
        zone: String,
        pools: Vec<Prefix>,
        now: UnixTime,
    ) -> Result<(), Failure> {
        let from = Arc::clone(map);
        // Ten thousand names take their time; heartbeats go on meanwhile.
        let made = tokio::task::spawn_blocking(move || Zone::of_map(&from, &zone, &pools, now)).await;
        let made =
            made.map_err(|error| Failure::new(Reason::Host, format!("making the zone of the map: {error}")))?;
        *self.map.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(map));
        self.zone.send_if_modified(|zone| {
            let changed = **zone != made;
            if changed {
                *zone = Arc::new(made);
            }
            changed
        });
        Ok(())
    }

    fn server(&self) -> MutexGuard<'_, Option<Arc<Server>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, host: &HostNames, not_answering: Option<&str>) {
        let reason = match not_answering {
            Some(words) => format!("{}; {words}", host.reason()),
            None => host.reason().to_owned(),
        };
        *self.told() = Told { mode: host.mode(), reason };
    }

    /// The lines of a hosts file: names of members first, so that an address leads back to its member.
    fn entries(&self, search: bool) -> Vec<Entry> {
        let zone = Arc::clone(&self.zone.borrow());
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let members: BTreeSet<&str> =
            map.iter().flat_map(|map| map.members().map(|member| member.name.as_str())).collect();
        let (mut of_members, mut others) = (Vec::new(), Vec::new());
        for (name, addresses) in zone.hosts() {
            let below = name.strip_suffix(zone.name()).and_then(|rest| rest.strip_suffix('.'));
            let place = if below.is_some_and(|below| members.contains(below)) {
                &mut of_members
            } else {
                &mut others
            };
            let short = below.filter(|below| search && !below.contains('.'));
            place.extend(addresses.into_iter().map(|address| Entry {
                address,
                name: name.clone(),
                short: short.map(str::to_owned),
            }));
        }
        of_members.append(&mut others);
        of_members
    }

    async fn stop_server(&self) {
        let server = self.server().take();
        // Whoever still asks something has it to the end of that question.
        if let Some(server) = server.and_then(Arc::into_inner) {
            server.stop().await;
        }
    }
}

impl Mesh {
    /// Starts to answer, and to tell the machine, for as long as there is a data plane.
    pub(super) async fn start_names(self: &Arc<Self>) {
        // A relay is nobody's resolver.
        if self.config.relay.is_some() {
            self.names.told().reason = "a relay answers for no names".to_owned();
            return;
        }
        let task = tokio::spawn(Arc::clone(self).keep_names());
        *self.names.task.lock().await = Some(task);
    }

    /// Takes back what the machine was told, and ends the server.
    pub(super) async fn stop_names(&self) {
        self.names.stop.send_replace(true);
        if let Some(task) = self.names.task.lock().await.take() {
            // It fails only if it panicked, and then there is nothing left to wait for.
            let _ = task.await;
        }
    }

    async fn keep_names(self: Arc<Self>) {
        let mut host = HostNames::new(Paths::default(), self.config.dns.clone(), Arc::clone(&self.state));
        let mut planes = self.plane.subscribe();
        let mut stop = self.names.stop.subscribe();
        loop {
            let is_up = planes.borrow_and_update().is_some();
            if is_up {
                self.follow_names(&mut host, &mut planes, &mut stop).await;
                host.undo().await;
                self.names.stop_server().await;
                self.names.note(&host, None);
            } else {
                tokio::select! {
                    () = told_to_stop(&mut stop) => {}
                    _ = planes.changed() => {}
                }
            }
            if *stop.borrow() {
                return;
            }
        }
    }

    /// For as long as this data plane is there. Nothing that was begun is broken off in the middle: every step ends before
    /// the next event is looked at.
    async fn follow_names(
        &self,
        host: &mut HostNames,
        planes: &mut watch::Receiver<Option<Arc<crate::plane::Plane>>>,
        stop: &mut watch::Receiver<bool>,
    ) {
        let names = &self.names;
        let mut zones = names.zone.subscribe();
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut not_answering = self.tell_host(host).await;
        loop {
            tokio::select! {
                () = told_to_stop(stop) => return,
                _ = planes.changed() => return,
                Ok(()) = zones.changed() => {
                    host.set_entries(names.entries(self.config.dns.search)).await;
                }
                () = host.forgotten() => not_answering = self.tell_host(host).await,
                _ = ticks.tick() => {
                    let look = host.look().await;
                    if look.tell_anew || not_answering.is_some() && names.server().is_none() && self.start_server().await.is_ok() {
                        not_answering = self.tell_host(host).await;
                    } else if look.upstreams {
                        self.follow_upstreams(host).await;
                    }
                }
            }
            names.note(host, not_answering.as_deref());
        }
    }

    /// Starts the server if it does not run, and tells the machine of it. Gives why nobody answers, if so.
    async fn tell_host(&self, host: &mut HostNames) -> Option<String> {
        let names = &self.names;
        let running = names.server().is_some();
        let not_answering = if running { None } else { self.start_server().await.err() };
        if let Some(words) = &not_answering {
            warn!(event = "dns_unavailable", reason = words, "this node answers no queries for mesh names");
        }
        let servers: Vec<IpAddr> = names
            .server()
            .as_ref()
            .map(|server| server.bound().iter().map(SocketAddr::ip).collect())
            .unwrap_or_default();
        let zone = Arc::clone(&names.zone.borrow());
        let interface = self.config.interface.clone();
        // An index that nobody has: resolved will say so.
        let index = names.netlink.index_of(&interface).await.ok().flatten().unwrap_or(0);
        let search = self.config.dns.search;
        host.tell(Link {
            interface,
            index,
            servers,
            port: self.config.dns.port,
            zone: zone.name().to_owned(),
            reverse: zone.reverse_zones().collect(),
            search,
            entries: names.entries(search),
        })
        .await;
        self.follow_upstreams(host).await;
        names.note(host, not_answering.as_deref());
        not_answering
    }

    async fn follow_upstreams(&self, host: &HostNames) {
        let upstreams = host.upstreams().await;
        self.names.upstreams.send_if_modified(|known| {
            let changed = *known != upstreams;
            if changed {
                info!(event = "dns_upstreams", ?upstreams, "names outside the mesh are asked of");
                *known = upstreams;
            }
            changed
        });
    }

    /// Has a server answer on those of this node's addresses that the interface has.
    async fn start_server(&self) -> Result<(), String> {
        let plan = self.running.lock().await.as_ref().map(|running| running.plan.clone());
        let Some(plan) = plan else { return Err("the network is not up".to_owned()) };
        let netlink = &self.names.netlink;
        let index = netlink.index_of(&plan.interface).await.map_err(|failure| failure.to_string())?;
        // Without IPv6 on this machine, nobody could ask at that address.
        let there = netlink.addresses().await.map_err(|failure| failure.to_string())?;
        let there: BTreeSet<IpAddr> =
            there.iter().filter(|it| Some(it.interface) == index).map(|it| it.address).collect();
        let own = plan.ipv4.map(IpAddr::from).into_iter().chain([plan.ipv6.into()]);
        let listen: Vec<_> = own
            .filter(|address| there.contains(address))
            .map(|address| SocketAddr::new(address, self.config.dns.port))
            .collect();
        if listen.is_empty() {
            return Err(format!("{} has no address of this node", plan.interface));
        }
        let upstreams = Upstreams::new(self.names.upstreams.subscribe());
        let server = Server::start(&listen, self.names.zone.subscribe(), upstreams)
            .map_err(|failure| failure.to_string())?;
        *self.names.server() = Some(Arc::new(server));
        Ok(())
    }

    /// What the server of names did since its start, if there is one.
    pub(super) fn dns_report(&self) -> Option<Report> {
        self.names.server().as_ref().map(|server| server.report())
    }

    /// How names are answered here.
    pub(crate) fn dns_status(&self) -> local::DnsStatusResponse {
        let names = &self.names;
        let Told { mode, reason } = names.told().clone();
        let zone = Arc::clone(&names.zone.borrow());
        let server = names.server().clone();
        let texts = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect();
        local::DnsStatusResponse {
            mode: mode.to_owned(),
            reason,
            zone: self.membership().zone,
            listen: server.as_ref().map(|server| texts(server.bound())).unwrap_or_default(),
            upstreams: server.as_ref().map(|server| texts(&server.upstreams())).unwrap_or_default(),
            names: u32::try_from(zone.len()).unwrap_or(u32::MAX),
            answers: server.map(|server| server.report().totals().into_iter().collect()).unwrap_or_default(),
        }
    }

    /// Asks this node's server for a name, as this machine would: without a dot it is one of the zone's, but for `localhost`
    /// and the zone itself.
    ///
    /// # Errors
    /// The question makes no sense, or nobody answers here.
    pub(crate) async fn dns_query(
        &self,
        asked: &local::DnsQueryRequest,
    ) -> Result<local::DnsQueryResponse, Failure> {
        let server = self.names.server().clone().ok_or_else(|| {
            let Told { reason, .. } = self.names.told().clone();
            Failure::new(Reason::Host, format!("this node answers no queries: {reason}"))
        })?;
        let (name, kinds) = question(&asked.name, &asked.r#type, &self.membership().zone);
        let mut whole: Option<Answer> = None;
        for kind in kinds {
            let answer = server.query(&name, &kind).await?;
            whole = Some(match whole {
                None => answer,
                Some(mut before) => {
                    before.took += answer.took;
                    before.upstream = before.upstream.or(answer.upstream);
                    if before.records.is_empty() {
                        before.code = answer.code;
                    }
                    before.records.extend(answer.records);
                    before
                }
            });
        }
        let answer = whole.ok_or_else(|| Failure::invalid("nothing was asked"))?;
        let records = answer.records.into_iter().map(|record| local::DnsRecord {
            name: record.name,
            r#type: record.kind,
            ttl: record.ttl,
            data: record.data,
        });
        let source = match answer.upstream {
            Some(upstream) => upstream.to_string(),
            // A name of others, for which no resolver was found or none answered.
            None if matches!(answer.code.as_str(), "SERVFAIL" | "REFUSED") => String::new(),
            None => "zone".to_owned(),
        };
        Ok(local::DnsQueryResponse {
            code: answer.code,
            records: records.collect(),
            source,
            took_us: micros(answer.took),
        })
    }
}

/// Ends when all is to be taken back.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could say it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The full name that a person means, and the types to ask for.
fn question(name: &str, kind: &str, zone: &str) -> (String, Vec<String>) {
    if let Ok(address) = name.parse::<IpAddr>()
        && (kind.is_empty() || kind.eq_ignore_ascii_case("ptr"))
    {
        let name = hickory_proto::rr::Name::from(address).to_ascii();
        return (name.trim_end_matches('.').to_owned(), vec!["PTR".to_owned()]);
    }
    let whole =
        name.contains('.') || name.eq_ignore_ascii_case("localhost") || name.eq_ignore_ascii_case(zone);
    let name = if whole { name.to_owned() } else { format!("{name}.{zone}") };
    let kinds = if kind.is_empty() { vec!["A".to_owned(), "AAAA".to_owned()] } else { vec![kind.to_owned()] };
    (name, kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_completed_as_this_machine_would() {
        let asked = |name, kind| question(name, kind, "mesh");
        let both = vec!["A".to_owned(), "AAAA".to_owned()];
        assert_eq!(asked("alpha", ""), ("alpha.mesh".to_owned(), both.clone()));
        assert_eq!(asked("alpha.mesh", ""), ("alpha.mesh".to_owned(), both.clone()));
        for whole in ["localhost", "LOCALHOST", "mesh", "Mesh"] {
            assert_eq!(asked(whole, ""), (whole.to_owned(), both.clone()));
        }
        assert_eq!(asked("localhost2", ""), ("localhost2.mesh".to_owned(), both));
        assert_eq!(asked("example.org", "MX"), ("example.org".to_owned(), vec!["MX".to_owned()]));
        let ptr = vec!["PTR".to_owned()];
        assert_eq!(asked("100.64.0.7", ""), ("7.0.64.100.in-addr.arpa".to_owned(), ptr.clone()));
        assert_eq!(asked("100.64.0.7", "ptr"), ("7.0.64.100.in-addr.arpa".to_owned(), ptr));
    }
}
