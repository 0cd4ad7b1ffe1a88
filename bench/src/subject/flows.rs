//! Rules and flows for a filter to have much to look through.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringmesh_lab::Host;

use super::End;

/// Rules of the policy.
const RULES: usize = 1000;
/// Sockets of each end; every one of the first talks with every one of the second.
const SOCKETS: usize = 100;
/// Flows between them.
pub(super) const COUNT: u64 = (SOCKETS * SOCKETS) as u64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rounds in which a lost datagram is sent again.
const ROUNDS: usize = 10;

/// A policy of many rules about single ports, and one that allows all that they do not.
pub(super) fn policy(hosts: &[Host; 2]) -> String {
    let [first, second] = hosts.each_ref().map(Host::name);
    let mut text = String::new();
    for port in 0..RULES - 1 {
        let (from, to) = if port % 2 == 0 { (first, second) } else { (second, first) };
        let rule = format!(
            "[[allow]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\nprotocol = \"tcp\"\nports = [{}]\n",
            1000 + port
        );
        text.push_str(&rule);
    }
    let all = writeln!(text, "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]");
    all.expect("invariant: a string takes whatever is written");
    text
}

/// UDP flows between the two ends, each answered.
#[derive(Debug)]
pub(super) struct Flows {
    near: Vec<UdpSocket>,
    far: Vec<UdpSocket>,
    far_addresses: Vec<SocketAddr>,
}

impl Flows {
    /// Opens the sockets; nothing is sent yet.
    pub(super) fn open(ends: &[End; 2]) -> Result<Self> {
        let sockets = |end: &End| -> Result<Vec<UdpSocket>> {
            let address = end.address();
            let bound = end.enter(move || {
                let bind = |_| {
                    let socket = UdpSocket::bind((address, 0))?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    Ok(socket)
                };
                (0..SOCKETS).map(bind).collect::<std::io::Result<Vec<_>>>()
            })?;
            bound.context("opening the sockets of flows")
        };
        let (near, far) = (sockets(&ends[0])?, sockets(&ends[1])?);
        let far_addresses = far.iter().map(UdpSocket::local_addr).collect::<std::io::Result<_>>()?;
        Ok(Self { near, far, far_addresses })
    }

    /// Sends a datagram and its answer over every flow.
    pub(super) fn refresh(&self) -> Result<()> {
        for near in &self.near {
            let mut answered = vec![false; self.far.len()];
            for _ in 0..ROUNDS {
                let open = |at: &usize| !answered[*at];
                let asked: Vec<usize> = (0..self.far.len()).filter(open).collect();
                for at in asked {
                    near.send_to(&at.to_be_bytes(), self.far_addresses[at]).context("opening a flow")?;
                    answered[at] = self.answer(near, at);
                }
                if answered.iter().all(|answered| *answered) {
                    break;
                }
            }
            ensure!(answered.iter().all(|answered| *answered), "a flow was not answered {ROUNDS} times");
        }
        Ok(())
    }

    /// Takes what came at a far socket and answers it; tells whether the answer arrived.
    fn answer(&self, near: &UdpSocket, at: usize) -> bool {
        let mut buffer = [0; 64];
        let Ok((length, from)) = self.far[at].recv_from(&mut buffer) else { return false };
        let sent = self.far[at].send_to(&buffer[..length], from);
        sent.is_ok() && near.recv_from(&mut buffer).is_ok()
    }
}
