//! Who can be measured, and with whom each is compared.

use std::fmt;

use clap::ValueEnum;

/// Who can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum SubjectKind {
    /// The cable itself.
    Raw,
    /// Our daemons on io_uring.
    Uring,
    /// Our daemons on the portable back end.
    Poll,
    /// Our daemons on io_uring with a cipher that encrypts nothing: a limit, and of no other use.
    Null,
    /// A worker's bare loop on our io_uring back end.
    BareUring,
    /// The same on the portable back end.
    BarePoll,
    /// The same on our io_uring back end without offloads: a packet an operation.
    BareSingle,
    /// The same on the `tokio-uring` crate, which has no other way than a packet an operation.
    BareTokioUring,
    /// The `wireguard-go` found in PATH.
    WireguardGo,
    /// Another `wireguard-go`, named by `--newer`.
    WireguardGoNewer,
    /// The `boringtun-cli` found in PATH.
    Boringtun,
    /// The `gotatun-cli` found in PATH.
    Gotatun,
    /// The `nebula` found in PATH.
    Nebula,
    /// Another `nebula`, named by `--newer`.
    NebulaNewer,
    /// The `tincd` found in PATH.
    Tinc,
    /// The `edge` of n2n found in PATH.
    N2n,
    /// The `tailscaled` found in PATH.
    Tailscale,
    /// Our daemons on io_uring, with a thousand rules and ten thousand flows.
    Rules,
    /// Another build of our daemons on io_uring, named by `--earlier`.
    Earlier,
    /// Our daemons around a router, straight over UDP.
    Direct,
    /// The same by way of the coordinator's relay, over UDP.
    Relay,
    /// The same by way of the coordinator's relay, over WebSockets.
    Websocket,
    /// The same over an SSH stream from node to node.
    Ssh,
}

/// One of our paths, as `meshctl peers` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathKind {
    /// UDP from node to node.
    Direct,
    /// UDP by way of a relay.
    Relay,
    /// A WebSocket to a relay, for both nodes.
    Websocket,
    /// SSH from node to node.
    Ssh,
}

impl PathKind {
    /// Returns the label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Websocket => "websocket",
            Self::Ssh => "ssh",
        }
    }
}

/// A path other than the one that was to be measured, by the end that says so.
#[derive(Clone, Debug)]
pub(crate) struct Strayed {
    host: String,
    path: String,
    asked: &'static str,
}

impl Strayed {
    /// The host called `host` says `path`, where `asked` was to be measured.
    pub(crate) fn new(host: &str, path: &str, asked: PathKind) -> Self {
        Self { host: host.to_owned(), path: path.to_owned(), asked: asked.label() }
    }
}

impl fmt::Display for Strayed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, path, asked } = self;
        write!(out, "the path of the {host} end was {path:?} and not {asked:?}")
    }
}

impl SubjectKind {
    /// What is compared unless something else is asked for: the cable, ourselves, and all others that are there.
    pub(crate) const SYSTEMS: [Self; 13] = [
        Self::Raw,
        Self::Uring,
        Self::Poll,
        Self::Null,
        Self::WireguardGo,
        Self::WireguardGoNewer,
        Self::Boringtun,
        Self::Gotatun,
        Self::Nebula,
        Self::NebulaNewer,
        Self::Tinc,
        Self::N2n,
        Self::Tailscale,
    ];
    /// What is compared by `--paths`: our own ways to reach a peer.
    pub(crate) const PATHS: [Self; 4] = [Self::Direct, Self::Relay, Self::Websocket, Self::Ssh];
    /// What is compared by `--filter`: the policy that a network begins with, and a large one.
    pub(crate) const FILTER: [Self; 2] = [Self::Uring, Self::Rules];
    /// What is compared by `--loops`: what the choice of the `io-uring` crate rests on.
    pub(crate) const LOOPS: [Self; 5] =
        [Self::Raw, Self::BareUring, Self::BarePoll, Self::BareSingle, Self::BareTokioUring];
    /// `--filter` beside another build.
    pub(crate) const FILTER_AND_EARLIER: [Self; 3] = [Self::Uring, Self::Rules, Self::Earlier];
    /// The programs of others.
    const OTHERS: [Self; 9] = [
        Self::WireguardGo,
        Self::WireguardGoNewer,
        Self::Boringtun,
        Self::Gotatun,
        Self::Nebula,
        Self::NebulaNewer,
        Self::Tinc,
        Self::N2n,
        Self::Tailscale,
    ];

    /// Returns the name in the result and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Uring => "uring",
            Self::Poll => "poll",
            Self::Null => "null",
            Self::BareUring => "bare-uring",
            Self::BarePoll => "bare-poll",
            Self::BareSingle => "bare-single",
            Self::BareTokioUring => "bare-tokio-uring",
            Self::WireguardGo => "wireguard-go",
            Self::WireguardGoNewer => "wireguard-go-newer",
            Self::Boringtun => "boringtun",
            Self::Gotatun => "gotatun",
            Self::Nebula => "nebula",
            Self::NebulaNewer => "nebula-newer",
            Self::Tinc => "tinc",
            Self::N2n => "n2n",
            Self::Tailscale => "tailscale",
            Self::Rules => "rules",
            Self::Earlier => "earlier",
            Self::Direct | Self::Relay | Self::Websocket | Self::Ssh => {
                self.path().map_or("", PathKind::label)
            }
        }
    }

    /// Says whether our daemons are measured.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Uring | Self::Poll | Self::Null | Self::Rules | Self::Earlier)
            || self.path().is_some()
    }

    /// Says whether it is a worker's bare loop.
    pub(crate) fn is_bare(self) -> bool {
        matches!(self, Self::BareUring | Self::BarePoll | Self::BareSingle | Self::BareTokioUring)
    }

    /// Returns the back end that our daemons use.
    pub(super) fn back_end(self) -> &'static str {
        if self == Self::Poll { "poll" } else { "uring" }
    }

    /// Returns the path that all packets must take, if this is about one.
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "what is said of some kinds concerns no other, nor those to come"
    )]
    pub(crate) fn path(self) -> Option<PathKind> {
        match self {
            Self::Direct => Some(PathKind::Direct),
            Self::Relay => Some(PathKind::Relay),
            Self::Websocket => Some(PathKind::Websocket),
            Self::Ssh => Some(PathKind::Ssh),
            _ => None,
        }
    }

    /// Returns what its medians are divided by: only what stands on the same ground can be compared.
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "what is said of some kinds concerns no other, nor those to come"
    )]
    pub(crate) fn references(self) -> Vec<Self> {
        match self {
            Self::Uring => [&Self::OTHERS[..], &[Self::Raw, Self::Null, Self::Earlier]].concat(),
            Self::Poll => [&[Self::Uring][..], &Self::OTHERS, &[Self::Raw]].concat(),
            Self::Null | Self::BareTokioUring => vec![Self::Raw],
            Self::BareUring | Self::BarePoll | Self::BareSingle => vec![Self::BareTokioUring, Self::Raw],
            Self::Rules => vec![Self::Uring, Self::Earlier],
            Self::Relay | Self::Websocket | Self::Ssh => vec![Self::Direct],
            other if Self::OTHERS.contains(&other) => vec![Self::Raw],
            _ => Vec::new(),
        }
    }
}
