//! The internet between the nodes: it promises nothing.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::rng::Rng;

/// What happens to datagrams.
#[derive(Clone, Debug)]
pub struct Weather {
    /// The share of datagrams that never arrive, 0 to 1.
    pub loss: f64,
    /// The share of datagrams that arrive twice, 0 to 1.
    pub duplication: f64,
    /// How long one is under way; a wide range reorders them.
    pub delay: RangeInclusive<Duration>,
}

impl Weather {
    /// Nothing is lost, and everything takes 10 ms.
    #[must_use]
    pub const fn fine() -> Self {
        let delay = Duration::from_millis(10)..=Duration::from_millis(10);
        Self { loss: 0.0, duplication: 0.0, delay }
    }

    /// A fifth is lost, a twentieth comes twice, and anything may overtake anything.
    #[must_use]
    pub const fn foul() -> Self {
        let delay = Duration::from_millis(1)..=Duration::from_millis(120);
        Self { loss: 0.2, duplication: 0.05, delay }
    }
}

/// A datagram under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    /// The sender's address as the receiver sees it.
    pub from: SocketAddr,
    /// Where it is to arrive.
    pub to: SocketAddr,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Carries datagrams from address to address, through the weather.
#[derive(Debug)]
pub struct Network {
    /// What happens to datagrams sent from now on.
    pub weather: Weather,
    rng: Rng,
    /// Arrival, then the order of sending, so that equal arrivals have an order too.
    under_way: BinaryHeap<Reverse<(Duration, u64, Datagram)>>,
    sent: u64,
    lost: u64,
    cut: BTreeSet<(SocketAddr, SocketAddr)>,
}

impl Network {
    /// A network in fine weather.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        let weather = Weather::fine();
        Self { weather, rng, under_way: BinaryHeap::new(), sent: 0, lost: 0, cut: BTreeSet::new() }
    }

    /// Takes a datagram at time `now`; what becomes of it is up to the weather.
    pub fn send(&mut self, datagram: Datagram, now: Duration) {
        self.sent += 1;
        if self.cut.contains(&(datagram.from, datagram.to)) || self.rng.chance(self.weather.loss) {
            self.lost += 1;
            return;
        }
        if self.rng.chance(self.weather.duplication) {
            self.carry(datagram.clone(), now);
        }
        self.carry(datagram, now);
    }

    fn carry(&mut self, datagram: Datagram, now: Duration) {
        let arrival = now + self.rng.duration(&self.weather.delay);
        let order = self.under_way.len() as u64 + (self.sent << 20);
        self.under_way.push(Reverse((arrival, order, datagram)));
    }

    /// When the next datagram arrives.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Duration> {
        self.under_way.peek().map(|Reverse((arrival, ..))| *arrival)
    }

    /// The next datagram that has arrived by `now`.
    pub fn receive(&mut self, now: Duration) -> Option<Datagram> {
        if self.next_arrival()? > now {
            return None;
        }
        self.under_way.pop().map(|Reverse((.., datagram))| datagram)
    }

    /// Nothing passes from `from` to `to` from now on; the other direction is another matter.
    pub fn cut(&mut self, from: SocketAddr, to: SocketAddr) {
        self.cut.insert((from, to));
    }

    /// Everything that was cut is whole again.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Datagrams sent so far.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Datagrams lost or cut off so far.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1))
    }

    fn arrivals(weather: Weather, count: u32) -> Vec<u32> {
        let mut network = Network::new(Rng::new(1));
        network.weather = weather;
        for number in 0..count {
            let payload = number.to_be_bytes().to_vec();
            network.send(Datagram { from: address(1), to: address(2), payload }, Duration::ZERO);
        }
        let end = Duration::from_secs(1);
        std::iter::from_fn(|| network.receive(end))
            .map(|datagram| u32::from_be_bytes(datagram.payload.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn fine_weather_delivers_everything_in_order() {
        assert_eq!(arrivals(Weather::fine(), 1000), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn foul_weather_loses_duplicates_and_reorders() {
        let arrived = arrivals(Weather::foul(), 10_000);
        let different: BTreeSet<u32> = arrived.iter().copied().collect();
        assert!((7_800..8_200).contains(&different.len()), "{} arrived", different.len());
        let twice = arrived.len() - different.len();
        assert!((300..500).contains(&twice), "{twice} arrived twice");
        assert!(!arrived.is_sorted());
    }

    #[test]
    fn cut_is_one_way_until_healed() {
        let mut network = Network::new(Rng::new(1));
        let (a, b) = (address(1), address(2));
        let passes = |network: &mut Network, from, to| {
            network.send(Datagram { from, to, payload: vec![] }, Duration::ZERO);
            network.receive(Duration::from_secs(1)).is_some()
        };
        network.cut(a, b);
        assert!(!passes(&mut network, a, b));
        assert!(passes(&mut network, b, a));
        network.heal();
        assert!(passes(&mut network, a, b));
        assert_eq!((network.sent(), network.lost()), (3, 1));
    }
}
