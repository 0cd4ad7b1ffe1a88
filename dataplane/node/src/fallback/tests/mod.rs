//! Streams as a node meets them: real sockets, real TLS, real SSH servers, and strangers of every kind.

mod endpoint;
mod hostile;
mod openssh;
mod queue;
mod secrets;
mod socket;
mod streams;
mod websocket;

use std::time::Duration;

use ringmesh_io::Waker;
use ringmesh_tunnel::{Link, key::IdentitySecret};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::queue::{Arrival, DialOpen, Hub, Links, links};

/// What a test waits for comes much sooner.
const SOON: Duration = Duration::from_secs(20);

/// A node without a tunnel: what the worker would see.
struct Side {
    links: Links,
    hub: Hub,
    _dials: mpsc::Receiver<DialOpen>,
}

impl Side {
    fn new() -> Self {
        let (links, hub, _dials) = links(Waker::new().unwrap());
        Self { links, hub, _dials }
    }

    /// The next thing that happens.
    async fn arrival(&mut self) -> Arrival {
        self.arrival_within(SOON).await.expect("nothing happened")
    }

    async fn arrival_within(&mut self, limit: Duration) -> Option<Arrival> {
        let until = Instant::now() + limit;
        loop {
            match self.links.receive() {
                Some(arrival) => return Some(arrival),
                // The worker's waker is an eventfd for a ring; a test has none.
                None if Instant::now() < until => sleep(Duration::from_millis(1)).await,
                None => return None,
            }
        }
    }

    /// The next `count` datagrams, and the one link they came by.
    async fn datagrams(&mut self, count: usize) -> (Link, Vec<Vec<u8>>) {
        let (mut from, mut came) = (None, Vec::new());
        while came.len() < count {
            match self.arrival().await {
                Arrival::Datagrams { link, mut batch } => {
                    assert_eq!(*from.get_or_insert(link), link);
                    came.extend(batch.datagrams().map(|datagram| datagram.to_vec()));
                }
                other @ (Arrival::Opened { .. } | Arrival::Failed { .. } | Arrival::Closed { .. }) => {
                    panic!("{other:?} after {} of {count} datagrams", came.len())
                }
            }
        }
        (from.unwrap(), came)
    }

    /// Waits until a link is closed, whatever comes before.
    async fn closed(&mut self, expected: Link) {
        loop {
            if let Arrival::Closed { link } = self.arrival().await
                && link == expected
            {
                return;
            }
        }
    }

    /// Sends as the worker does.
    fn send(&mut self, link: Link, datagrams: &[Vec<u8>]) {
        for datagram in datagrams {
            self.links.send(link, datagram).unwrap();
        }
        self.links.flush();
    }
}

/// Datagrams of many lengths; no two are equal.
fn datagrams(count: usize, seed: usize) -> Vec<Vec<u8>> {
    let lengths = [2, 148, 92, 1452, 64, 9216, 32, 1000];
    (0..count)
        .map(|index| {
            let mut datagram = vec![index as u8; lengths[(index + seed) % lengths.len()]];
            datagram[0] = seed as u8;
            datagram[1] = (index >> 8) as u8;
            datagram
        })
        .collect()
}

/// Sends datagrams both ways over a link that one side opened and the other accepted, until all have arrived.
async fn exchange(dialled: (&mut Side, Link), accepted: &mut Side) -> Link {
    let (here, link) = dialled;
    let (there, back) = (datagrams(60, 1), datagrams(60, 2));
    here.send(link, &there);
    let (incoming, came) = accepted.datagrams(there.len()).await;
    assert!(came == there, "the datagrams there came whole and in order");
    accepted.links.confirm(incoming);
    accepted.send(incoming, &back);
    let (from, came) = here.datagrams(back.len()).await;
    assert!(came == back, "the datagrams back came whole and in order");
    assert_eq!(from, link);
    incoming
}

fn identity(number: u8) -> IdentitySecret {
    IdentitySecret::from_seed([number; 32])
}

/// Bytes of memory that this process has, as the kernel counts them.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
