//! What goes wrong in a life, and how it comes right again.

use std::time::Duration;

use crate::liar::Lie;
use crate::world::NodeIndex;

use super::{Life, birth};

/// What will be right again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recovery {
    Mend(NodeIndex, NodeIndex),
    UnblockUdp(NodeIndex),
    UnblockTcp(NodeIndex),
    Start(NodeIndex),
    Return(NodeIndex),
    BeHonest(NodeIndex),
}

impl Life {
    /// Lets happen what is due.
    pub(super) fn suffer(&mut self, now: Duration) {
        let mut happened = false;
        while let Some(recovery) = self.recoveries.take(now) {
            self.recover(recovery);
            happened = true;
        }
        if now >= self.next_misfortune {
            self.strike(now);
            happened = true;
            // Half of all pauses are long enough for everything to be demanded again.
            let pause = if self.rng.chance(0.5) { (1, 9) } else { (14, 30) };
            self.next_misfortune =
                now + self.rng.duration(&(Duration::from_secs(pause.0)..=Duration::from_secs(pause.1)));
        }
        if happened {
            self.watch.survey(&self.world);
        }
    }

    fn recover(&mut self, recovery: Recovery) {
        self.note(format!("over: {recovery:?}"));
        match recovery {
            Recovery::Mend(a, b) => {
                self.world.network.mend(a, b);
                self.world.network.mend(b, a);
            }
            Recovery::UnblockUdp(node) => self.world.network.block_udp(node, false),
            Recovery::UnblockTcp(node) => self.world.network.block_tcp(node, false),
            // Two misfortunes may have stopped it.
            Recovery::Start(node) if self.world.node(node).is_running() => {}
            Recovery::Start(node) => {
                self.world.restart(node);
                self.watch.restarted(&self.world, node);
            }
            Recovery::Return(node) => self.world.set_away(node, false),
            Recovery::BeHonest(relay) => self.set_lie(relay, None),
        }
    }

    fn strike(&mut self, now: Duration) {
        let node = *self.rng.pick(&self.nodes);
        let all = self.world.indices();
        let other = *self.rng.pick(&all);
        let until = now + self.rng.duration(&(Duration::from_secs(3)..=Duration::from_secs(40)));
        match self.rng.below(13) {
            0 | 1 if node != other => self.cut(node, other, until),
            2 => self.cut_from_relays(node, until),
            3 | 4 => self.stop_relay(now, until),
            5 => self.roam(node),
            6 => self.reboot_router(node),
            7 | 8 => {
                self.note(format!("UDP is blocked at {node:?}"));
                self.world.network.block_udp(node, true);
                self.recoveries.enter(until, Recovery::UnblockUdp(node));
            }
            9 if self.rng.chance(0.3) => {
                self.note(format!("TCP is blocked at {node:?}"));
                self.world.network.block_tcp(node, true);
                self.recoveries.enter(until, Recovery::UnblockTcp(node));
            }
            10 if self.rng.chance(0.5) => {
                self.note(format!("the coordinator is out of reach of {node:?}"));
                self.world.set_away(node, true);
                self.recoveries.enter(until, Recovery::Return(node));
            }
            10 => {
                self.note(format!("something rattles at {node:?}"));
                self.world.rattle(node);
            }
            11 => self.corrupt_relay(node, until),
            _ => {
                self.note(format!("{node:?} restarts"));
                self.world.restart(node);
                self.watch.restarted(&self.world, node);
            }
        }
    }

    fn cut(&mut self, a: NodeIndex, b: NodeIndex, until: Duration) {
        let one_way = self.rng.chance(0.4);
        self.note(format!("cut between {a:?} and {b:?}, one way: {one_way}"));
        self.world.network.cut(a, b);
        if !one_way {
            self.world.network.cut(b, a);
        }
        self.recoveries.enter(until, Recovery::Mend(a, b));
    }

    fn cut_from_relays(&mut self, node: NodeIndex, until: Duration) {
        for relay in self.relays.clone() {
            self.cut(node, relay, until);
        }
    }

    fn stop_relay(&mut self, now: Duration, until: Duration) {
        if self.relays.is_empty() {
            return;
        }
        let relay = *self.rng.pick(&self.relays);
        if !self.world.node(relay).is_running() {
            return;
        }
        self.note(format!("relay {relay:?} stops"));
        self.world.stop(relay);
        let start = if self.rng.chance(0.5) { now } else { until };
        self.recoveries.enter(start, Recovery::Start(relay));
    }

    /// A relay begins to lie, or another one takes its place that does.
    fn corrupt_relay(&mut self, node: NodeIndex, until: Duration) {
        if self.relays.is_empty() {
            return;
        }
        let (relay, other) = (*self.rng.pick(&self.relays), *self.rng.pick(&self.nodes));
        let lies = [Lie::Crosses, Lie::Repeats, Lie::Alters, Lie::Withholds(node, other), Lie::Misnumbers];
        let lie = *self.rng.pick(&lies);
        // One lie at a time: who is found out is honest first.
        if self.world.node(relay).lie().is_none() {
            self.set_lie(relay, Some(lie));
            self.recoveries.enter(until, Recovery::BeHonest(relay));
        }
    }

    fn set_lie(&mut self, relay: NodeIndex, lie: Option<Lie>) {
        self.note(format!("relay {relay:?} lies: {lie:?}"));
        let renamed = [self.world.node(relay).lie(), lie].contains(&Some(Lie::Misnumbers));
        self.world.set_lie(relay, lie);
        if renamed {
            self.watch.restarted(&self.world, relay);
            // It tells nodes where they are seen, too, and that begins anew.
            self.watch.moved(&self.world, &self.nodes);
        }
    }

    fn roam(&mut self, node: NodeIndex) {
        let (place, what) = birth::place(&mut self.world, &mut self.rng);
        self.note(format!("{node:?} moves: {what}, {place:?}"));
        self.world.roam(node, place);
        self.watch.moved(&self.world, &[node]);
    }

    fn reboot_router(&mut self, node: NodeIndex) {
        let realm = self.world.network.place(node).realm;
        let Some(&router) = self.world.network.routers_above(realm).last() else { return };
        self.note(format!("the router of {node:?} reboots"));
        self.world.network.reboot_router(router);
        let network = &self.world.network;
        let behind = |node: &NodeIndex| network.routers_above(network.place(*node).realm).contains(&router);
        let moved: Vec<NodeIndex> = self.nodes.iter().copied().filter(behind).collect();
        self.watch.moved(&self.world, &moved);
    }
}
