//! `meshctl trace`: whether a flow may be opened, stage by stage, and what decides.
//!
//! The coordinator knows every rule, the nodes what their owners deny besides. Whoever of them is on this machine is asked.

use std::path::PathBuf;

use ringmesh_proto::{
    admin, local,
    local::{Network, StatusRequest},
};
use tonic::{Code, Response};

use super::filter::{has_ports, protocol};
use crate::{
    cli::NetworkName,
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    output::{
        self, Format,
        trace::{Stage, Told, Trace},
    },
};

/// What is to be traced, and who is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Who begins: a name, an address or an id
    source: String,
    /// Whom it wants to reach: a name, an address or an id
    destination: String,
    /// What it wants: tcp/443, udp/53, icmp, or a protocol's number
    #[arg(value_parser = service)]
    service: Service,
    /// The node daemon's unix socket
    #[arg(long, env = "MESH_SOCKET", value_name = "PATH", default_value = "/run/mesh/meshd.sock")]
    socket: PathBuf,
    /// The coordinator's unix socket for operators
    #[arg(
        long,
        env = "MESH_COORDINATOR_SOCKET",
        value_name = "PATH",
        default_value = "/run/mesh-coordinator/coordinator.sock"
    )]
    coordinator_socket: PathBuf,
    #[command(flatten)]
    network: NetworkName,
}

/// What a flow is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    protocol: String,
    /// 0: a protocol without ports.
    port: u16,
}

impl Service {
    fn text(&self) -> String {
        let Self { protocol, port } = self;
        if *port == 0 { protocol.clone() } else { format!("{protocol}/{port}") }
    }
}

/// A service on the command line.
fn service(text: &str) -> Result<Service, String> {
    let (word, port) = match text.split_once('/') {
        Some((word, port)) => (word, Some(port)),
        None => (text, None),
    };
    let protocol = protocol(word).map_err(|error| format!("{error}, as in tcp/443"))?;
    let port = match (has_ports(&protocol), port) {
        (false, None) => 0,
        (false, Some(_)) => return Err(format!("`{text}`: only tcp and udp have ports")),
        (true, None) => return Err(format!("`{text}`: which port? As in {protocol}/443")),
        (true, Some(port)) => port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("`{port}` is not a port: expected 1 to 65535"))?,
    };
    Ok(Service { protocol, port })
}

/// `meshctl trace`; ends with 7 if it is denied.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let (told, seen) = args.ask().await?;
    let unseen = [&args.source, &args.destination].into_iter().filter(|end| !seen.contains(end));
    let unseen = unseen.cloned().collect();
    let service = args.service.text();
    let trace = Trace::new(args.source.clone(), args.destination.clone(), service, told, unseen);
    output::result(format, &trace)?;
    if trace.allowed { Ok(()) } else { Err(Failure::told(Exit::Refused)) }
}

impl Args {
    /// Asks the coordinator and the node of this machine, as far as they are here and know; tells also of which of both ends
    /// the owner's denials were seen.
    async fn ask(&self) -> Result<(Vec<Told>, Vec<&String>), Failure> {
        let mut told = Vec::new();
        let mut seen = Vec::new();
        let coordinator = Connection::open(Daemon::Coordinator, &self.coordinator_socket).await;
        if let Ok(coordinator) = &coordinator {
            told.push(self.ask_coordinator(coordinator).await?);
        }
        let node = self.node().await;
        if let Ok((node, me)) = &node {
            seen.extend([&self.source, &self.destination].into_iter().filter(|end| is_me(me, end)));
            if !seen.is_empty() {
                // Whom no rule is about a node does not know; the coordinator, if it is here, has told why.
                told.extend(self.ask_node(node, me, !told.is_empty()).await?);
            }
        }
        if !told.is_empty() {
            return Ok((told, seen));
        }
        let doing = format!("trace from {} to {}", self.source, self.destination);
        let failure = match (coordinator, node) {
            // The node is here, and neither end is.
            (_, Ok(_)) => Failure::new(Exit::Usage, format!("cannot {doing} from this machine"))
                .cause("no coordinator runs here, and neither of both is this node"),
            (Err(coordinator), Err(node)) if coordinator.exit() == Exit::Permission => {
                drop(node);
                coordinator
            }
            (_, Err(node)) => node,
        };
        Err(failure.attempt("ask on the coordinator's machine, or on the machine of one of both"))
    }

    /// The node of this machine, if it is in a network.
    async fn node(&self) -> Result<(Connection, Network), Failure> {
        let node = Connection::open(Daemon::Node, &self.socket).await?;
        let status = node.call("read the status", node.local().status(StatusRequest {})).await?;
        let network =
            status.network.ok_or_else(|| Failure::new(Exit::NotJoined, "this machine is in no network"))?;
        Ok((node, network))
    }

    async fn ask_coordinator(&self, coordinator: &Connection) -> Result<Told, Failure> {
        let request = admin::TraceRequest {
            network: self.network.network.clone(),
            source: self.source.trim_end_matches('.').to_owned(),
            destination: self.destination.trim_end_matches('.').to_owned(),
            protocol: self.service.protocol.clone(),
            port: self.service.port.into(),
        };
        let mut policies = coordinator.policies();
        let admin::TraceResponse { stages, allowed, by } =
            coordinator.call("trace", policies.trace(request)).await?;
        let stage = |admin::TraceStage { stage, outcome, detail }| Stage {
            told_by: "coordinator".to_owned(),
            stage,
            outcome,
            detail,
        };
        Ok(Told { stages: stages.into_iter().map(stage).collect(), allowed, by })
    }

    /// Asks the node of this machine; none if it does not know the other end, and that `may_not_know`.
    async fn ask_node(
        &self,
        node: &Connection,
        me: &Network,
        may_not_know: bool,
    ) -> Result<Option<Told>, Failure> {
        let request = local::TraceRequest {
            source: bare(&me.zone, &self.source).to_owned(),
            destination: bare(&me.zone, &self.destination).to_owned(),
            protocol: self.service.protocol.clone(),
            port: self.service.port.into(),
        };
        let mut client = node.local();
        let asked = async {
            match client.trace(request).await {
                Err(status) if may_not_know && status.code() == Code::NotFound => Ok(Response::new(None)),
                answer => answer.map(|answer| answer.map(Some)),
            }
        };
        let Some(local::TraceResponse { stages, allowed, by }) = node.call("trace", asked).await? else {
            return Ok(None);
        };
        let name = me.self_.as_ref().map(|me| me.name.clone()).unwrap_or_default();
        let stage = |local::TraceStage { stage, outcome, detail }| Stage {
            told_by: name.clone(),
            stage,
            outcome,
            detail,
        };
        Ok(Some(Told { stages: stages.into_iter().map(stage).collect(), allowed, by }))
    }
}

/// A name without the zone that it may have been given with: `web1.mesh.` is `web1`.
fn bare<'a>(zone: &str, name: &'a str) -> &'a str {
    let name = name.trim_end_matches('.');
    let bare = name.len().checked_sub(zone.len()).filter(|_| !zone.is_empty());
    let bare =
        bare.and_then(|at| name.split_at_checked(at)).filter(|(_, end)| end.eq_ignore_ascii_case(zone));
    bare.and_then(|(bare, _)| bare.strip_suffix('.')).unwrap_or(name)
}

/// Whether `end` names the node of this machine: by name, full name, id or address.
fn is_me(network: &Network, end: &str) -> bool {
    let Some(me) = &network.self_ else { return false };
    let end = bare(&network.zone, end);
    let same_address = |address: &str| {
        let parsed: Option<std::net::IpAddr> = end.parse().ok();
        parsed.is_some_and(|end| address.parse() == Ok(end))
    };
    me.name.eq_ignore_ascii_case(end)
        || me.id.eq_ignore_ascii_case(end)
        || same_address(&me.ipv4)
        || same_address(&me.ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmesh_proto::local::Self_;

    #[test]
    fn a_service_has_a_port_where_there_are_ports() {
        let of = |protocol: &str, port| Ok(Service { protocol: protocol.to_owned(), port });
        assert_eq!(service("tcp/443"), of("tcp", 443));
        assert_eq!(service("UDP/53"), of("udp", 53));
        assert_eq!(service("icmp"), of("icmp", 0));
        assert_eq!(service("47"), of("47", 0));
        for (text, word) in [
            ("tcp", "which port"),
            ("tcp/", "not a port"),
            ("tcp/0", "not a port"),
            ("tcp/65536", "not a port"),
            ("tcp/80-90", "not a port"),
            ("icmp/8", "only tcp and udp"),
            ("https", "not a protocol"),
            ("", "not a protocol"),
        ] {
            let error = service(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert_eq!(service("tcp/443").unwrap().text(), "tcp/443");
        assert_eq!(service("icmp").unwrap().text(), "icmp");
    }

    #[test]
    fn a_name_is_taken_out_of_its_zone() {
        for (name, expected) in [
            ("web1.mesh", "web1"),
            ("web1.Mesh.", "web1"),
            ("web1", "web1"),
            ("mesh", "mesh"),
            (".mesh", ""),
            ("webmesh", "webmesh"),
            ("\u{e9}mesh", "\u{e9}mesh"),
            ("100.64.0.1", "100.64.0.1"),
            ("", ""),
        ] {
            assert_eq!(bare("mesh", name), expected, "{name}");
        }
        assert_eq!(bare("", "web1."), "web1");
    }

    #[test]
    fn this_node_is_known_by_any_of_its_names() {
        let me = Self_ {
            id: "60b7173ca9f2feac".to_owned(),
            name: "web1".to_owned(),
            ipv4: "100.64.0.2".to_owned(),
            ipv6: "fd12:3456:789a::2".to_owned(),
            ..Self_::default()
        };
        let network = Network { zone: "mesh".to_owned(), self_: Some(me), ..Network::default() };
        for end in [
            "web1",
            "WEB1",
            "web1.mesh",
            "web1.mesh.",
            "60b7173ca9f2feac",
            "100.64.0.2",
            "fd12:3456:789a:0::2",
        ] {
            assert!(is_me(&network, end), "{end}");
        }
        for end in ["web", "web1.other", "100.64.0.1", "", "60b7173ca9f2fea"] {
            assert!(!is_me(&network, end), "{end}");
        }
        assert!(!is_me(&Network::default(), ""));
    }
}
