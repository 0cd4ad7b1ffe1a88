//! What a policy's leaves say: rules, which only allow, and names.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use core::fmt;
use core::net::IpAddr;

use super::codec::{
    Fields, Reader, RecordError, Writer, check_domain, check_word, put_address, put_prefix, put_short, text,
};
use super::limits::{LEAF_MAX, NAME_ADDRESSES_MAX, PORTS_MAX, SELECTORS_MAX};
use crate::ip::Prefix;
use crate::key::NodeId;

/// Who or what one side of a rule is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Every member, with its routes.
    All,
    /// One node.
    Node(NodeId),
    /// Members of a group.
    Group(String),
    /// Members with a tag.
    Tag(String),
    /// A range of addresses, whoever has them.
    Prefix(Prefix),
}

/// Which transport a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Every one.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6 over IPv6.
    Icmp,
    /// Another one, by its number in the IP header; never 1, 6, 17 or 58, which have names.
    Number(u8),
}

impl Protocol {
    /// Tells whether ports have a meaning.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    /// Puts the protocol into a form byte and its number.
    const fn emit(self) -> [u8; 2] {
        match self {
            Self::Any => [0, 0],
            Self::Icmp => [1, 1],
            Self::Tcp => [1, 6],
            Self::Udp => [1, 17],
            Self::Number(number) => [1, number],
        }
    }

    const fn parse(bytes: [u8; 2]) -> Result<Self, RecordError> {
        match bytes {
            [0, 0] => Ok(Self::Any),
            [1, 1] => Ok(Self::Icmp),
            [1, 6] => Ok(Self::Tcp),
            [1, 17] => Ok(Self::Udp),
            // ICMPv6 goes with ICMP: a second name would be a second form of one rule.
            [1, number] if number != 58 => Ok(Self::Number(number)),
            _ => {
                Err(RecordError::Value { field: "protocol", must: "any, or a number that has no other name" })
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Makes a range; `None` if it would be empty.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// Returns the lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Returns the highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Tells whether `port` is in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl From<u16> for PortRange {
    /// Makes the range of one port.
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An allowance: sources may open flows to destinations. There is no rule that denies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Who may begin; none means nobody. At most [`SELECTORS_MAX`].
    pub sources: Vec<Selector>,
    /// With whom; none means nobody. At most [`SELECTORS_MAX`].
    pub destinations: Vec<Selector>,
    /// By which transport.
    pub protocol: Protocol,
    /// To which ports of the destination; none means every one. Only with TCP or UDP; at most [`PORTS_MAX`].
    pub ports: Vec<PortRange>,
}

/// A name beyond those of nodes. Addresses, because it may point outside the network's members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameRecord {
    /// The name below the network's zone, labels and dots in lower case.
    pub name: String,
    /// What it resolves to; at least one, at most [`NAME_ADDRESSES_MAX`].
    pub addresses: Vec<IpAddr>,
}

/// A leaf of a policy's tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaf {
    /// A rule.
    Rule(Rule),
    /// A name.
    Name(NameRecord),
}

const LEAF_KIND: u8 = 0x01;
const LEAF_RULE: u8 = 1;
const LEAF_NAME: u8 = 2;

impl Leaf {
    /// Puts the leaf into its one binary form, which is what the tree hashes.
    ///
    /// # Errors
    ///
    /// If it breaks one of its bounds or rules.
    pub fn emit(&self) -> Result<Vec<u8>, RecordError> {
        let mut writer = Writer::record();
        match self {
            Self::Rule(rule) => {
                writer.field(LEAF_KIND, "leaf kind", &[LEAF_RULE])?;
                rule.emit(&mut writer)?;
            }
            Self::Name(name) => {
                writer.field(LEAF_KIND, "leaf kind", &[LEAF_NAME])?;
                name.emit(&mut writer)?;
            }
        }
        writer.end(LEAF_MAX)
    }

    /// Reads the leaf from all of `bytes`.
    ///
    /// # Errors
    ///
    /// If they are not a leaf, or one that needs a newer program.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > LEAF_MAX {
            return Err(RecordError::TooMany { field: "record", most: LEAF_MAX });
        }
        let mut fields = Fields::new(bytes)?;
        let leaf = match fields.u8(LEAF_KIND, "leaf kind")? {
            LEAF_RULE => Self::Rule(Rule::parse(&mut fields)?),
            LEAF_NAME => Self::Name(NameRecord::parse(&mut fields)?),
            _ => return Err(RecordError::Value { field: "leaf kind", must: "rule (1) or name (2)" }),
        };
        fields.end()?;
        Ok(leaf)
    }
}

impl Rule {
    fn emit(&self, writer: &mut Writer) -> Result<(), RecordError> {
        self.check_ports()?;
        writer.list(0x02, "sources", SELECTORS_MAX, &self.sources, Selector::emit)?;
        writer.list(0x03, "destinations", SELECTORS_MAX, &self.destinations, Selector::emit)?;
        writer.field(0x04, "protocol", &self.protocol.emit())?;
        writer.list(0x05, "ports", PORTS_MAX, &self.ports, |bytes, range| {
            bytes.extend(range.first.to_be_bytes());
            bytes.extend(range.last.to_be_bytes());
            Ok(())
        })
    }

    fn parse(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        let sources = fields.list(0x02, "sources", SELECTORS_MAX, Selector::parse)?;
        let destinations = fields.list(0x03, "destinations", SELECTORS_MAX, Selector::parse)?;
        let protocol = Protocol::parse(fields.array(0x04, "protocol")?)?;
        let ports = fields.list(0x05, "ports", PORTS_MAX, |reader| {
            let must = "a range from the lower to the higher port";
            PortRange::new(reader.u16()?, reader.u16()?)
                .ok_or(RecordError::Value { field: "port range", must })
        })?;
        let rule = Self { sources, destinations, protocol, ports };
        rule.check_ports()?;
        Ok(rule)
    }

    /// Refuses what has two readings: ports of a protocol without ports, and a named protocol by its number.
    fn check_ports(&self) -> Result<(), RecordError> {
        if !self.ports.is_empty() && !self.protocol.has_ports() {
            return Err(RecordError::Value {
                field: "ports",
                must: "absent unless the protocol is TCP or UDP",
            });
        }
        if Protocol::parse(self.protocol.emit())? != self.protocol {
            return Err(RecordError::Value { field: "protocol", must: "given by its name if it has one" });
        }
        Ok(())
    }
}

impl Selector {
    fn emit(bytes: &mut Vec<u8>, selector: &Self) -> Result<(), RecordError> {
        match selector {
            Self::All => bytes.push(0),
            Self::Node(id) => {
                bytes.push(1);
                bytes.extend(id.as_bytes());
            }
            Self::Group(name) => {
                check_word("group", name)?;
                bytes.push(2);
                put_short(bytes, "group", name.as_bytes())?;
            }
            Self::Tag(name) => {
                check_word("tag", name)?;
                bytes.push(3);
                put_short(bytes, "tag", name.as_bytes())?;
            }
            Self::Prefix(prefix) => {
                bytes.push(4);
                put_prefix(bytes, *prefix);
            }
        }
        Ok(())
    }

    fn parse(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        match reader.u8()? {
            0 => Ok(Self::All),
            1 => reader.array().map(NodeId::from_bytes).map(Self::Node),
            2 => text("group", reader.short()?, check_word).map(Self::Group),
            3 => text("tag", reader.short()?, check_word).map(Self::Tag),
            4 => reader.prefix().map(Self::Prefix),
            _ => {
                let must = "all (0), node (1), group (2), tag (3) or prefix (4)";
                Err(RecordError::Value { field: "selector", must })
            }
        }
    }
}

impl NameRecord {
    fn emit(&self, writer: &mut Writer) -> Result<(), RecordError> {
        check_domain("name", &self.name)?;
        self.check_addresses()?;
        writer.field(0x02, "name", self.name.as_bytes())?;
        writer.list(0x03, "addresses", NAME_ADDRESSES_MAX, &self.addresses, |bytes, address| {
            put_address(bytes, *address);
            Ok(())
        })
    }

    fn parse(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        let name = text("name", fields.require(0x02, "name")?, check_domain)?;
        let addresses = fields.list(0x03, "addresses", NAME_ADDRESSES_MAX, Reader::address)?;
        let record = Self { name, addresses };
        record.check_addresses()?;
        Ok(record)
    }

    const fn check_addresses(&self) -> Result<(), RecordError> {
        if self.addresses.is_empty() { Err(RecordError::Missing { field: "address" }) } else { Ok(()) }
    }
}
