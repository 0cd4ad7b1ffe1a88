//! A policy at work: what it allows passes, and so do the replies; what it does not is not even answered.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use ringmesh_lab::Host;
use serde_json::Value;

use super::{
    lab_failure,
    mesh::{Mesh, Node},
    show::Outcome,
};
use crate::failure::{Exit, Failure};

/// The port that the policy opens, of TCP and of UDP.
const OPEN: u16 = 8080;
/// One that it does not.
const SHUT: u16 = 8081;
/// What passes arrives within this.
const SOON: Duration = Duration::from_secs(2);
/// What has not arrived by then will not: the same took a thousandth of it before.
const SILENCE: Duration = Duration::from_millis(400);
/// What is sent there and back.
const WORDS: &[u8] = b"who goes there?";

/// The policy, as anybody would write it.
fn text(from: &str, to: &str) -> String {
    format!(
        "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\nprotocol = \"icmp\"\n\n\
         [[allow]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\nprotocol = \"tcp\"\nports = [{OPEN}]\n\n\
         [[allow]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\nprotocol = \"udp\"\nports = [{OPEN}]\n\n\
         [[test]]\nfrom = \"{from}\"\nto = \"{to}\"\nallow = [\"tcp/{OPEN}\", \"icmp\"]\ndeny = [\"tcp/{SHUT}\"]\n"
    )
}

/// Puts it in force, and waits until every node has it in its data plane.
pub(super) fn apply(mesh: &Mesh, from: &Node, to: &Node) -> Result<Outcome, Failure> {
    let words = ["policy", "apply", "-", "--wait", "10s", "--output", "json"];
    let output = mesh.coordinator.meshctl_given(words, text(from.name(), to.name()).as_bytes())?;
    let applied: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
        Failure::new(Exit::General, "meshctl policy apply did not print JSON").cause(error.to_string())
    })?;
    let installation = &applied["installation"];
    let count = |list: &str| installation[list].as_array().map_or(0, Vec::len);
    let revision = applied["revision"].as_u64().unwrap_or_default();
    let took = installation["waited_ms"].as_u64().unwrap_or_default();
    let (installed, behind) = (count("installed"), count("behind"));
    if installed != mesh.nodes.len() || behind > 0 {
        let error = format!("r{revision} is installed on {installed} nodes, and {behind} are behind");
        return Err(Failure::new(Exit::General, error));
    }
    let text = format!(
        "r{revision} on {installed} nodes in {took} ms: {} may open tcp/{OPEN} and udp/{OPEN} of {}; icmp for all",
        from.name(),
        to.name()
    );
    Ok(Outcome::new(text).fact("revision", revision).fact("installed_ms", took))
}

/// What listens on a node, on the port that is open and the one that is not.
#[derive(Debug)]
pub(super) struct Doors {
    listeners: [TcpListener; 2],
}

impl Doors {
    /// Opens both, and shows that a connection to either comes about while the policy has nothing against it.
    pub(super) fn open(from: &Node, to: &Node) -> Result<Self, Failure> {
        let address = address(to)?;
        let listen = |port| TcpListener::bind(SocketAddr::new(address, port));
        let open = || Ok([listen(OPEN)?, listen(SHUT)?]);
        let listeners = at(to, open)?.map_err(failed("cannot listen on an address of the mesh"))?;
        let doors = Self { listeners };
        for listener in &doors.listeners {
            echo(from, listener).map_err(failed("a connection fails while all members reach each other"))?;
        }
        Ok(doors)
    }

    /// That the rule lets through what it is about, and nothing else.
    pub(super) fn try_both(&self, from: &Node, to: &Node) -> Result<Outcome, Failure> {
        let [open, shut] = &self.listeners;
        echo(from, open).map_err(failed("what the policy allows does not pass"))?;
        let shut = shut.local_addr().map_err(failed("the listener has no address"))?;
        let back = SocketAddr::new(address(from)?, OPEN);
        // The other way round the rule allows nothing.
        let _listener = at(from, || TcpListener::bind(back))?.map_err(failed("cannot listen"))?;
        thread::scope(|scope| {
            let tries = [(from, shut), (to, back)]
                .map(|(from, to)| scope.spawn(move || refused(&from.machine.host, from.name(), to)));
            tries
                .into_iter()
                .try_for_each(|found| found.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        let text = format!(
            "tcp/{OPEN} from {} to {} passes; tcp/{SHUT}, which did before, does not, nor tcp/{OPEN} from {} to {}",
            from.name(),
            to.name(),
            to.name(),
            from.name()
        );
        Ok(Outcome::new(text))
    }
}

/// A datagram is answered though its receiver may open nothing, and only so.
pub(super) fn reply(from: &Node, to: &Node) -> Result<Outcome, Failure> {
    let bind = |node: &Node| -> Result<UdpSocket, Failure> {
        let address = SocketAddr::new(address(node)?, OPEN);
        let socket = at(node, || UdpSocket::bind(address))?.map_err(failed("cannot bind a UDP socket"))?;
        socket.set_read_timeout(Some(SOON)).map_err(failed("cannot set a timeout"))?;
        Ok(socket)
    };
    let (asker, answerer) = (bind(from)?, bind(to)?);
    let unasked = SocketAddr::new(address(from)?, OPEN);
    let mut buffer = [0; 64];
    // Not asked yet, it reaches nobody.
    answerer.send_to(WORDS, unasked).map_err(failed("cannot send"))?;
    asker.set_read_timeout(Some(SILENCE)).map_err(failed("cannot set a timeout"))?;
    if asker.recv(&mut buffer).is_ok() {
        let error = format!("{} reaches {} by UDP, which no rule allows", to.name(), from.name());
        return Err(Failure::new(Exit::General, error));
    }
    asker.set_read_timeout(Some(SOON)).map_err(failed("cannot set a timeout"))?;
    let asked = answerer.local_addr().map_err(failed("the socket has no address"))?;
    asker.send_to(WORDS, asked).map_err(failed("cannot send"))?;
    let (length, who) =
        answerer.recv_from(&mut buffer).map_err(failed("what the policy allows does not arrive"))?;
    answerer.send_to(buffer.get(..length).unwrap_or_default(), who).map_err(failed("cannot send"))?;
    let length = asker.recv(&mut buffer).map_err(failed("a reply does not pass"))?;
    if buffer.get(..length) != Some(WORDS) {
        return Err(Failure::new(Exit::General, "the reply is not what was sent"));
    }
    let text = format!(
        "{} answers {} on udp/{OPEN}, though it may open nothing: unasked, it was not heard",
        to.name(),
        from.name()
    );
    Ok(Outcome::new(text))
}

/// Connects, and has its words come back.
fn echo(from: &Node, listener: &TcpListener) -> io::Result<()> {
    let address = listener.local_addr()?;
    let connect = || TcpStream::connect_timeout(&address, SOON);
    let mut near = from.machine.host.enter(connect).map_err(io::Error::other)??;
    // Once connected, the kernel holds the connection for the listener: accepting it does not wait.
    let (mut far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(SOON))?;
    }
    let mut words = [0; WORDS.len()];
    near.write_all(WORDS)?;
    far.read_exact(&mut words)?;
    far.write_all(&words)?;
    near.read_exact(&mut words)?;
    if words == WORDS { Ok(()) } else { Err(io::Error::other("other words came back")) }
}

/// That a connection does not come about, though somebody listens.
fn refused(host: &Host, name: &str, to: SocketAddr) -> Result<(), Failure> {
    let connected = host.enter(|| TcpStream::connect_timeout(&to, SILENCE)).map_err(lab_failure)?;
    match connected {
        Err(_) => Ok(()),
        Ok(_) => Err(Failure::new(Exit::General, format!("{name} reaches {to}, which no rule allows"))),
    }
}

/// Does something on a node's machine.
fn at<T: Send>(node: &Node, work: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    node.machine.host.enter(work).map_err(lab_failure)
}

fn address(node: &Node) -> Result<IpAddr, Failure> {
    let address = node.addresses.first().copied();
    address.ok_or_else(|| Failure::new(Exit::General, format!("{} has no address", node.name())))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(Exit::General, what).cause(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_the_demo_is_a_policy() {
        ringmesh_controlplane::policy::PolicyFile::parse(&text("node1", "node2")).unwrap();
    }
}
