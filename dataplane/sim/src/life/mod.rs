//! A mesh's life, with misfortunes from a seed: what is promised whatever happens.
//!
//! A life is one to three minutes of three to six nodes and up to two relays, behind NATs of all kinds, while pairs of
//! them talk and things go wrong. Every quarter of a second the [`watch`] compares what the nodes do with what
//! [`theory`](crate::theory) says they can.

mod birth;
mod excuses;
mod misfortune;
pub mod watch;

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::agenda::Agenda;
use crate::fault::Fault;
use crate::rng::Rng;
use crate::world::{NodeIndex, World};

pub use self::excuses::Excuses;

use self::misfortune::Recovery;
use self::watch::Watch;

/// How often the watch looks.
const TICK: Duration = Duration::from_millis(250);
/// How often each side of a pair that talks sends a packet.
const PACKET_INTERVAL: Duration = Duration::from_millis(500);

/// What is wrong with a life's nodes from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// What every node has built in.
    pub fault: Fault,
}

/// What a life was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Summary {
    /// How long it was.
    pub length: Duration,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Packets sent.
    pub packets: u64,
    /// Packets whose arrival was demanded.
    pub demanded: u64,
    /// Packets that had to arrive and did not, though those before and after did.
    pub single: u64,
    /// Looks at a pair that had to be on a direct path, and was.
    pub direct: u64,
    /// Sessions that came up, counted at both ends.
    pub sessions: u64,
    /// Those of them that came before their time, by what excused them.
    pub excuses: Excuses,
    /// A fingerprint of all that happened.
    pub fingerprint: u64,
}

/// A broken promise, and how it came to it.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// What was promised and not kept.
    pub promise: String,
    /// What happened before.
    pub story: String,
}

/// Lives one life.
///
/// # Errors
///
/// With the first promise that is broken.
pub fn live(seed: u64, options: Options) -> Result<Summary, Broken> {
    let mut life = Life::new(seed, options);
    let outcome = catch_unwind(AssertUnwindSafe(|| life.live()));
    let promise = match outcome {
        Ok(Ok(summary)) => return Ok(summary),
        Ok(Err(promise)) => promise,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("a panic without words").to_owned()
        }
    };
    Err(Broken { seed, promise, story: life.story() })
}

/// A mesh and what is to become of it.
#[derive(Debug)]
pub(crate) struct Life {
    world: World,
    rng: Rng,
    nodes: Vec<NodeIndex>,
    relays: Vec<NodeIndex>,
    end: Duration,
    /// What is wrong and will be right again.
    recoveries: Agenda<Recovery>,
    next_misfortune: Duration,
    /// Nothing goes wrong and nobody talks until then.
    quiet_until: Duration,
    talks: Vec<Talk>,
    next_talks: Duration,
    watch: Watch,
    history: Vec<(Duration, String)>,
}

/// A pair that talks.
#[derive(Clone, Copy, Debug)]
struct Talk {
    a: NodeIndex,
    b: NodeIndex,
    next: [Duration; 2],
}

impl Life {
    fn live(&mut self) -> Result<Summary, String> {
        self.choose_talks();
        while self.world.elapsed() < self.end {
            self.tick()?;
        }
        Ok(Summary {
            length: self.end,
            datagrams: self.world.network.sent(),
            packets: self.world.ledger.len() as u64,
            demanded: self.watch.demanded(),
            single: self.watch.single(),
            direct: self.watch.direct(),
            sessions: self.watch.sessions(),
            excuses: self.watch.excuses(),
            fingerprint: self.world.fingerprint(),
        })
    }

    fn tick(&mut self) -> Result<(), String> {
        let now = self.world.elapsed();
        self.suffer(now);
        if now >= self.next_talks && now >= self.quiet_until {
            self.choose_talks();
        }
        self.talk(now);
        self.world.run(TICK);
        self.watch.look(&self.world)
    }

    fn talk(&mut self, now: Duration) {
        for at in 0..self.talks.len() {
            let Talk { a, b, next } = self.talks[at];
            for (direction, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
                if now >= next[direction] && self.world.node(from).is_running() {
                    self.talks[at].next[direction] = now + PACKET_INTERVAL;
                    let len = self.rng.below(100) as usize;
                    let number = self.world.send(from, to, len);
                    self.watch.sent(&self.world, from, to, number);
                }
            }
        }
    }

    /// Chooses who talks for the next while: one to four pairs, or for once nobody.
    fn choose_talks(&mut self) {
        let now = self.world.elapsed();
        self.talks.clear();
        self.next_talks = now + self.rng.duration(&(Duration::from_secs(20)..=Duration::from_secs(60)));
        if now > Duration::ZERO && self.rng.chance(0.15) {
            self.quiet_until = now + self.rng.duration(&(Duration::from_secs(55)..=Duration::from_secs(75)));
            self.next_misfortune = self.next_misfortune.max(self.quiet_until);
            self.note("nobody talks".into());
        } else {
            let count = 1 + self.rng.below(4);
            for _ in 0..count {
                let (a, b) = (*self.rng.pick(&self.nodes), *self.rng.pick(&self.nodes));
                let (a, b) = (a.min(b), a.max(b));
                let known = self.talks.iter().any(|talk| (talk.a, talk.b) == (a, b));
                if a != b && !known {
                    let next = [(); 2].map(|()| now + self.rng.duration(&(Duration::ZERO..=PACKET_INTERVAL)));
                    self.talks.push(Talk { a, b, next });
                }
            }
            let pairs: Vec<String> =
                self.talks.iter().map(|talk| format!("{}-{}", talk.a.number(), talk.b.number())).collect();
            self.note(format!("these talk: {}", pairs.join(" ")));
        }
        let pairs: Vec<_> = self.talks.iter().map(|talk| (talk.a, talk.b)).collect();
        self.watch.talking(&self.world, &pairs);
    }

    fn note(&mut self, what: String) {
        self.history.push((self.world.elapsed(), what));
    }

    /// All that happened, for whoever looks for the fault.
    fn story(&self) -> String {
        let mut lines: Vec<(Duration, String)> = self.history.clone();
        for node in self.world.indices() {
            for (at, event) in &self.world.node(node).events {
                lines.push((*at, format!("  node {}: {event:?}", node.number())));
            }
        }
        lines.sort_by_key(|(at, _)| *at);
        let mut story = String::new();
        for (at, what) in lines {
            let _ = writeln!(story, "{:9.3} {what}", at.as_secs_f64());
        }
        let story = story + &self.watch.describe(&self.world);
        // In the words of the history: node ids are hard to tell apart.
        self.world
            .indices()
            .into_iter()
            .fold(story, |story, node| story.replace(&format!("{:?}", node.id()), &format!("{node:?}")))
    }
}
