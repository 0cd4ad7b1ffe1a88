//! Why a relay passed something not on.

use std::fmt;

use ringmesh_tunnel::DropReason;

macro_rules! relay_drops {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// The reason for which a relay did not pass on a datagram. Never an error and never a reply, as with
        /// [`DropReason`], beside which it stands: that one says what became of the relay's own sessions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RelayDrop {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl RelayDrop {
            /// Every reason there is, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used as a metric label and in status tables.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

relay_drops! {
    /// It is for no network of this server: neither a message nor a relayed datagram, or of a network that is not here.
    UnknownNetwork = "unknown_network",
    /// Longer than any datagram of ours can be.
    TooLong = "too_long",
    /// No pair has this channel: it was never given out, or one of the two is no member any more.
    UnknownChannel = "unknown_channel",
    /// It came from elsewhere than where the channel's owner was last heard.
    WrongHop = "wrong_hop",
    /// What follows the header is none of the four messages.
    NotSealed = "not_sealed",
    /// The other end of the channel is not here: never heard, or not for 90 s.
    Away = "away",
    /// The client sends more than one client may.
    ClientRate = "client_rate",
    /// The client sends more than its share of what all may send together.
    SharedRate = "shared_rate",
    /// A packet inside the session with the relay: the relay passes on sealed datagrams only.
    PlainPacket = "plain_packet",
    /// As much waits for the stream it was for as may: it drains too slowly, or not at all, and is cut then.
    SlowReader = "slow_reader",
    /// The stream it was for has ended.
    NoLink = "no_link",
    /// The system did not take it for sending: no route, a full socket, too long for the device, no socket of that family.
    SendFailed = "send_failed",
}

impl fmt::Display for RelayDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a datagram went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The relay's own session refused it; counted there.
    Session(DropReason),
    /// The relay did not pass it on.
    Relay(RelayDrop),
}

impl From<DropReason> for Dropped {
    fn from(reason: DropReason) -> Self {
        Self::Session(reason)
    }
}

impl From<RelayDrop> for Dropped {
    fn from(reason: RelayDrop) -> Self {
        Self::Relay(reason)
    }
}

/// How often each [`RelayDrop`] occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayDrops([u64; RelayDrop::ALL.len()]);

impl Default for RelayDrops {
    fn default() -> Self {
        Self([0; RelayDrop::ALL.len()])
    }
}

impl RelayDrops {
    /// How often `reason` occurred.
    #[must_use]
    pub fn get(&self, reason: RelayDrop) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (RelayDrop, u64)> + '_ {
        RelayDrop::ALL.iter().map(|&reason| (reason, self.get(reason)))
    }

    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Counts `times` drops.
    pub(crate) fn add(&mut self, reason: RelayDrop, times: u64) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += times;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut counters = RelayDrops::default();
        for &reason in RelayDrop::ALL {
            counters.add(reason, 1);
        }
        assert!(counters.iter().all(|(_, count)| count == 1));
        let mut names: Vec<_> = RelayDrop::ALL.iter().map(|reason| reason.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RelayDrop::ALL.len());
    }
}
