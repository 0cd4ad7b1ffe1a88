//! The classes of packets, and why we may deny what the router accepts.

/// What kind of packet a case is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    TcpSyn,
    TcpAck,
    TcpSynAck,
    TcpRst,
    TcpFin,
    TcpOdd,
    UdpOpening,
    UdpReply,
    EchoRequest,
    EchoReply,
    ErrorLive,
    ErrorDead,
    ErrorForeign,
    ErrorMalformed,
    ErrorOther,
    OtherIcmp,
    Fragments,
    FirstFragment,
    LaterFragments,
    Shuffled,
    BadFragments,
    Extensions,
    Options,
    OtherProtocol,
    Short,
    Malformed,
    Spoofed,
    Elsewhere,
}

impl Class {
    pub const ALL: [Self; 28] = [
        Self::TcpSyn,
        Self::TcpAck,
        Self::TcpSynAck,
        Self::TcpRst,
        Self::TcpFin,
        Self::TcpOdd,
        Self::UdpOpening,
        Self::UdpReply,
        Self::EchoRequest,
        Self::EchoReply,
        Self::ErrorLive,
        Self::ErrorDead,
        Self::ErrorForeign,
        Self::ErrorMalformed,
        Self::ErrorOther,
        Self::OtherIcmp,
        Self::Fragments,
        Self::FirstFragment,
        Self::LaterFragments,
        Self::Shuffled,
        Self::BadFragments,
        Self::Extensions,
        Self::Options,
        Self::OtherProtocol,
        Self::Short,
        Self::Malformed,
        Self::Spoofed,
        Self::Elsewhere,
    ];

    /// Its row of the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpSyn => "TCP SYN",
            Self::TcpAck => "TCP ACK, with data or without",
            Self::TcpSynAck => "TCP SYN+ACK",
            Self::TcpRst => "TCP RST",
            Self::TcpFin => "TCP FIN",
            Self::TcpOdd => "TCP with flags that nobody sends",
            Self::UdpOpening => "UDP, opening or going on",
            Self::UdpReply => "UDP replies, asked for or not",
            Self::EchoRequest => "echo requests",
            Self::EchoReply => "echo replies, asked for or not",
            Self::ErrorLive => "ICMP errors that quote a live flow",
            Self::ErrorDead => "ICMP errors that quote no flow",
            Self::ErrorForeign => "ICMP errors that quote others' packets",
            Self::ErrorMalformed => "ICMP errors with a broken quote",
            Self::ErrorOther => "redirects, quenches, unknown ICMP errors",
            Self::OtherIcmp => "other ICMP, unasked",
            Self::Fragments => "all fragments in order",
            Self::FirstFragment => "a first fragment alone",
            Self::LaterFragments => "later fragments alone",
            Self::Shuffled => "all fragments in any order",
            Self::BadFragments => "overlapping, tiny, uneven, endless fragments",
            Self::Extensions => "IPv6 extension headers",
            Self::Options => "IPv4 options",
            Self::OtherProtocol => "other protocols",
            Self::Short => "short",
            Self::Malformed => "malformed",
            Self::Spoofed => "spoofed source",
            Self::Elsewhere => "for an address that is not there",
        }
    }

    /// How often it comes, against the others.
    pub const fn weight(self) -> usize {
        match self {
            Self::TcpAck | Self::UdpOpening => 9,
            Self::TcpSyn | Self::UdpReply => 8,
            Self::TcpSynAck | Self::ErrorLive => 6,
            Self::TcpRst | Self::TcpFin | Self::OtherProtocol => 5,
            Self::EchoRequest | Self::EchoReply | Self::Fragments | Self::Extensions | Self::Malformed => 4,
            Self::TcpOdd | Self::Options | Self::Spoofed => 3,
            _ => 2,
        }
    }

    /// Whether packets of this class change what is known of a connection.
    pub const fn is_tcp(self) -> bool {
        matches!(self, Self::TcpSyn | Self::TcpAck | Self::TcpSynAck | Self::TcpRst | Self::TcpFin)
    }

    /// Whether packets of this class are about a flow rather than of one.
    pub const fn is_error(self) -> bool {
        matches!(
            self,
            Self::ErrorLive | Self::ErrorDead | Self::ErrorForeign | Self::ErrorMalformed | Self::ErrorOther
        )
    }

    /// Whether there are packets of this class that pass. If not, none may.
    pub const fn can_pass(self) -> bool {
        !matches!(
            self,
            Self::TcpOdd
                | Self::ErrorDead
                | Self::ErrorForeign
                | Self::ErrorMalformed
                | Self::ErrorOther
                | Self::OtherIcmp
                | Self::LaterFragments
                | Self::BadFragments
                | Self::Short
                | Self::Malformed
                | Self::Spoofed
                | Self::Elsewhere
        )
    }
}

/// Why we deny what the router accepts. Each is a decision; whatever differs for another reason fails the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    OutOfOrder,
    TinyFragment,
    RoutingHeader,
    ManyExtensions,
    Authentication,
    QuotedVersion,
    OtherError,
    OldRequest,
    AnotherPeer,
    SimultaneousOpen,
}

impl Why {
    /// The reason, in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfOrder => {
                "a later fragment before the first: we keep no strangers' fragments, the router puts datagrams together"
            }
            Self::TinyFragment => {
                "a first fragment without the whole transport header (RFC 1858): we judge fragments, the router datagrams"
            }
            Self::RoutingHeader => {
                "a routing header of type 0 (RFC 5095 forbids it), or with segments left: a router leaves that to hosts"
            }
            Self::ManyExtensions => "more than 8 extension headers",
            Self::Authentication => {
                "an authentication header over IPv6: rules would have to see both it and what is behind it"
            }
            Self::QuotedVersion => {
                "a quote that says to be of the other version of IP: the router does not look"
            }
            Self::OtherError => {
                "a redirect, a source quench or an unknown error that quotes a flow: deprecated, or no business of a tunnel's"
            }
            Self::OldRequest => {
                "an ICMP request for an address mask, for information or about a node: obsolete, and answered by nobody"
            }
            Self::AnotherPeer => {
                "an error of one peer that quotes a flow with another: conntrack does not know peers apart"
            }
            Self::SimultaneousOpen => {
                "a SYN in answer to a SYN (RFC 9293, 3.5): nobody connects like that, and rules are about who asks first"
            }
        }
    }
}
