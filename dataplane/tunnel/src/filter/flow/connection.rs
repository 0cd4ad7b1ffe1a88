//! How far a TCP connection is, as far as its flags tell: sequence numbers are between the hosts.
//!
//! Every segment that fits passes, whoever sends it; one that cannot come at this point was not asked for. The stages are
//! those that Linux's conntrack tells apart, and so is what passes in them, but for an answer to a SYN by another (RFC 9293
//! §3.5): that is the opening of a flow that exists already, and denied.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use crate::packet::Segment;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// A SYN asked for it.
    Asked,
    /// A SYN with an ACK agreed.
    Agreed,
    /// The opener's ACK came, or an ACK was the first that was seen of it.
    Open,
    /// One FIN came.
    Ending,
    /// And another.
    Ended,
    /// And an ACK.
    Over,
    /// An RST came.
    Broken,
}

/// What a segment is to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It passes, and the connection is at this stage then.
    Pass(Stage),
    /// It asks for another connection between the same ports: nothing is left of this one.
    Anew,
    /// It passes, and nothing is left of the connection: nobody had answered yet.
    Last,
    /// It cannot come now.
    Unasked,
}

impl Stage {
    /// The one with this number, as `as u8` gives it.
    pub(super) const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Asked,
            1 => Self::Agreed,
            2 => Self::Open,
            3 => Self::Ending,
            4 => Self::Ended,
            5 => Self::Over,
            _ => Self::Broken,
        }
    }

    /// Whether it has begun to end.
    pub(super) const fn is_closing(self) -> bool {
        matches!(self, Self::Ending | Self::Ended | Self::Over | Self::Broken)
    }

    /// What a segment is at this stage, by who opened the connection or by the other, who has `answered` before or not.
    #[inline]
    pub(super) const fn step(self, from_opener: bool, answered: bool, segment: Segment) -> Step {
        match segment {
            Segment::Go => self.goes_on(from_opener),
            Segment::Finish => self.finishes(),
            Segment::Reset if answered => Step::Pass(Self::Broken),
            Segment::Reset => Step::Last,
            Segment::Open if from_opener => match self {
                Self::Over | Self::Broken => Step::Anew,
                Self::Asked | Self::Agreed | Self::Open | Self::Ending | Self::Ended => Step::Pass(self),
            },
            Segment::Open if matches!(self, Self::Over) => Step::Anew,
            Segment::Open => Step::Unasked,
            Segment::Agree if matches!(self, Self::Agreed) => Step::Pass(self),
            Segment::Agree if from_opener => Step::Unasked,
            Segment::Agree if matches!(self, Self::Asked) => Step::Pass(Self::Agreed),
            Segment::Agree => Step::Pass(self),
        }
    }

    #[inline]
    const fn goes_on(self, from_opener: bool) -> Step {
        match self {
            Self::Asked if from_opener => Step::Unasked,
            Self::Agreed if from_opener => Step::Pass(Self::Open),
            Self::Ended => Step::Pass(Self::Over),
            Self::Asked | Self::Agreed | Self::Open | Self::Ending | Self::Over | Self::Broken => {
                Step::Pass(self)
            }
        }
    }

    const fn finishes(self) -> Step {
        match self {
            Self::Asked => Step::Unasked,
            Self::Agreed | Self::Open => Step::Pass(Self::Ending),
            Self::Ending => Step::Pass(Self::Ended),
            Self::Ended | Self::Over | Self::Broken => Step::Pass(self),
        }
    }
}
