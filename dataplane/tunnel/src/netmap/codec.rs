//! The binary form of records: a version byte, then fields of (tag, length, value) in ascending order of tags.
//!
//! | part | bytes |
//! |---|---|
//! | version | 1, always 1 |
//! | tag | 1 |
//! | length of the value | 2, big endian |
//! | value | as many |
//!
//! A tag stands at most once. Who meets a tag it does not know skips it if it is below [`CRITICAL`] and refuses the record
//! if not: what only adds is tagged low, what restricts is tagged high. Numbers are big endian and of fixed width; absent
//! options and empty lists are left out, so that a record has one form.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::limits::{DOMAIN_MAX, NAME_MAX};
use crate::ip::Prefix;
use crate::time::UnixTime;

/// The version of the form, the first byte of every record.
pub(super) const VERSION: u8 = 1;
/// The first tag that may not be skipped.
const CRITICAL: u8 = 0x80;

/// Why bytes are not a record, or a record cannot be put into bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end before the record does.
    #[error("the record ends early: it was cut off on its way")]
    Truncated,
    /// Bytes follow the end.
    #[error("bytes follow the record's end")]
    Trailing,
    /// The version byte is one we do not know.
    #[error("the record has form {found}, this program knows form {VERSION}: update this program")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// Tags repeat or descend.
    #[error("field {tag:#04x} is out of order or repeated: the record was not made by this protocol's rules")]
    Order {
        /// The tag out of order.
        tag: u8,
    },
    /// A field that must be understood is not.
    #[error("the record depends on field {tag:#04x}, which this program does not know: update this program")]
    Critical {
        /// The unknown tag.
        tag: u8,
    },
    /// A field that must be there is not.
    #[error("the record has no {field}")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// A field's value is not what it must be.
    #[error("the {field} must be {must}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// A list or value is longer than its bound.
    #[error("the {field} exceeds the limit of {most}")]
    TooMany {
        /// The field's name.
        field: &'static str,
        /// The most there may be.
        most: usize,
    },
}

/// Takes bytes off the front of a slice; every method fails rather than read past its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(RecordError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(RecordError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RecordError> {
        self.array::<1>().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a byte of length and as many bytes.
    pub(crate) fn short(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// Takes an address: its family, 4 or 6, and its bytes.
    pub(crate) fn address(&mut self) -> Result<IpAddr, RecordError> {
        match self.u8()? {
            4 => self.array().map(|bytes| Ipv4Addr::from_octets(bytes).into()),
            6 => self.array().map(|bytes| Ipv6Addr::from_octets(bytes).into()),
            _ => Err(RecordError::Value { field: "address family", must: "4 or 6" }),
        }
    }

    /// Takes an address and its prefix length.
    pub(crate) fn prefix(&mut self) -> Result<Prefix, RecordError> {
        let address = self.address()?;
        let must = "an address and a prefix length that leaves no host bits";
        Prefix::new(address, self.u8()?).map_err(|_| RecordError::Value { field: "route", must })
    }

    /// Takes an address and a UDP port.
    pub(crate) fn endpoint(&mut self) -> Result<SocketAddr, RecordError> {
        let address = self.address()?;
        Ok(SocketAddr::new(address, self.u16()?))
    }

    /// Fails if anything is left.
    pub(crate) const fn end(self) -> Result<(), RecordError> {
        if self.rest.is_empty() { Ok(()) } else { Err(RecordError::Trailing) }
    }
}

/// Reads a record's fields, asked for in ascending order of their tags.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    reader: Reader<'a>,
    /// The field that was read last and not yet asked for.
    next: Option<(u8, &'a [u8])>,
    last: Option<u8>,
}

impl<'a> Fields<'a> {
    /// Starts a record, at its version byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        match reader.u8()? {
            VERSION => Ok(Self { reader, next: None, last: None }),
            found => Err(RecordError::Version { found }),
        }
    }

    /// Returns the value of the field `tag` if it is there. Fields before it that nobody asked for are unknown ones.
    pub(crate) fn get(&mut self, tag: u8) -> Result<Option<&'a [u8]>, RecordError> {
        while let Some((found, value)) = self.peek()? {
            if found > tag {
                return Ok(None);
            }
            self.next = None;
            if found == tag {
                return Ok(Some(value));
            }
            Self::skip(found)?;
        }
        Ok(None)
    }

    /// Returns the value of a field that must be there.
    pub(crate) fn require(&mut self, tag: u8, field: &'static str) -> Result<&'a [u8], RecordError> {
        self.get(tag)?.ok_or(RecordError::Missing { field })
    }

    /// Returns a field of fixed width that must be there.
    pub(crate) fn array<const N: usize>(
        &mut self,
        tag: u8,
        field: &'static str,
    ) -> Result<[u8; N], RecordError> {
        fixed(self.require(tag, field)?, field)
    }

    /// Returns a field of fixed width if it is there.
    pub(crate) fn option<const N: usize>(
        &mut self,
        tag: u8,
        field: &'static str,
    ) -> Result<Option<[u8; N]>, RecordError> {
        self.get(tag)?.map(|value| fixed(value, field)).transpose()
    }

    pub(crate) fn u8(&mut self, tag: u8, field: &'static str) -> Result<u8, RecordError> {
        self.array::<1>(tag, field).map(u8::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, tag: u8, field: &'static str) -> Result<u64, RecordError> {
        self.array(tag, field).map(u64::from_be_bytes)
    }

    /// Returns a wall time, in milliseconds since 1970.
    pub(crate) fn time(&mut self, tag: u8, field: &'static str) -> Result<UnixTime, RecordError> {
        self.u64(tag, field).map(UnixTime::from_millis)
    }

    /// Returns a list that is empty if absent; `item` reads one entry, `most` is how many there may be.
    pub(crate) fn list<T>(
        &mut self,
        tag: u8,
        field: &'static str,
        most: usize,
        mut item: impl FnMut(&mut Reader<'a>) -> Result<T, RecordError>,
    ) -> Result<Vec<T>, RecordError> {
        let mut list = Vec::new();
        let Some(value) = self.get(tag)? else { return Ok(list) };
        let mut reader = Reader::new(value);
        // An empty list is left out, so that a record has one form.
        loop {
            if list.len() == most {
                return Err(RecordError::TooMany { field, most });
            }
            list.push(item(&mut reader)?);
            if reader.is_empty() {
                return Ok(list);
            }
        }
    }

    /// Ends the record: what is left must be fields that may be skipped.
    pub(crate) fn end(mut self) -> Result<(), RecordError> {
        while let Some((found, _)) = self.peek()? {
            self.next = None;
            Self::skip(found)?;
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<(u8, &'a [u8])>, RecordError> {
        if self.next.is_none() && !self.reader.is_empty() {
            let tag = self.reader.u8()?;
            if self.last.is_some_and(|last| tag <= last) {
                return Err(RecordError::Order { tag });
            }
            let length = self.reader.u16()?;
            self.next = Some((tag, self.reader.take(length.into())?));
            self.last = Some(tag);
        }
        Ok(self.next)
    }

    const fn skip(tag: u8) -> Result<(), RecordError> {
        if tag < CRITICAL { Ok(()) } else { Err(RecordError::Critical { tag }) }
    }
}

fn fixed<const N: usize>(value: &[u8], field: &'static str) -> Result<[u8; N], RecordError> {
    value.try_into().map_err(|_| RecordError::Value { field, must: "of its fixed width" })
}

/// Writes a record's fields, in ascending order of their tags.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts a record with its version byte.
    pub(crate) fn record() -> Self {
        Self { bytes: vec![VERSION] }
    }

    /// Writes a field.
    pub(crate) fn field(&mut self, tag: u8, field: &'static str, value: &[u8]) -> Result<(), RecordError> {
        let most = usize::from(u16::MAX);
        let length = u16::try_from(value.len()).map_err(|_| RecordError::TooMany { field, most })?;
        self.bytes.push(tag);
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(value);
        Ok(())
    }

    /// Writes a list, or nothing if it is empty; `item` writes one entry.
    pub(crate) fn list<T>(
        &mut self,
        tag: u8,
        field: &'static str,
        most: usize,
        list: &[T],
        mut item: impl FnMut(&mut Vec<u8>, &T) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        if list.len() > most {
            return Err(RecordError::TooMany { field, most });
        }
        if list.is_empty() {
            return Ok(());
        }
        let mut value = Vec::new();
        list.iter().try_for_each(|entry| item(&mut value, entry))?;
        self.field(tag, field, &value)
    }

    /// Ends the record, which must not exceed `most` bytes.
    pub(crate) fn end(self, most: usize) -> Result<Vec<u8>, RecordError> {
        if self.bytes.len() > most {
            Err(RecordError::TooMany { field: "record", most })
        } else {
            Ok(self.bytes)
        }
    }
}

/// Writes a byte of length and the bytes.
pub(crate) fn put_short(bytes: &mut Vec<u8>, field: &'static str, value: &[u8]) -> Result<(), RecordError> {
    let most = usize::from(u8::MAX);
    bytes.push(u8::try_from(value.len()).map_err(|_| RecordError::TooMany { field, most })?);
    bytes.extend(value);
    Ok(())
}

/// Writes an address: its family, 4 or 6, and its bytes.
pub(crate) fn put_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            bytes.push(4);
            bytes.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes.push(6);
            bytes.extend(v6.octets());
        }
    }
}

/// Writes an address and its prefix length.
pub(crate) fn put_prefix(bytes: &mut Vec<u8>, prefix: Prefix) {
    put_address(bytes, prefix.address());
    bytes.push(prefix.len());
}

/// Writes an address and a UDP port; a scope id or flow label has no meaning elsewhere and stays behind.
pub(crate) fn put_endpoint(bytes: &mut Vec<u8>, endpoint: SocketAddr) {
    put_address(bytes, endpoint.ip());
    bytes.extend(endpoint.port().to_be_bytes());
}

/// Checks a DNS label: letters, digits and hyphens (RFC 1123 §2.1), lower case so that one name has one spelling.
pub(crate) fn check_label(field: &'static str, label: &str) -> Result<(), RecordError> {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    let inside = bytes.iter().all(|byte| edge(byte) || *byte == b'-');
    if inside && bytes.len() <= NAME_MAX && bytes.first().is_some_and(edge) && bytes.last().is_some_and(edge)
    {
        return Ok(());
    }
    let must = "1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end";
    Err(RecordError::Value { field, must })
}

/// Checks a full DNS name: labels and dots, no dot at the end.
pub(crate) fn check_domain(field: &'static str, name: &str) -> Result<(), RecordError> {
    if name.len() > DOMAIN_MAX {
        return Err(RecordError::TooMany { field, most: DOMAIN_MAX });
    }
    name.split('.').try_for_each(|label| check_label(field, label))
}

/// Checks the name of a tag or group.
pub(crate) fn check_word(field: &'static str, word: &str) -> Result<(), RecordError> {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = word.as_bytes();
    let inside = bytes.iter().all(|byte| plain(byte) || b"-_.@".contains(byte));
    if inside && bytes.len() <= NAME_MAX && bytes.first().is_some_and(plain) {
        return Ok(());
    }
    let must = "1 to 63 lower-case letters, digits, `-`, `_`, `.` and `@`, beginning with a letter or digit";
    Err(RecordError::Value { field, must })
}

/// Reads text that `check` accepts.
pub(crate) fn text(
    field: &'static str,
    bytes: &[u8],
    check: fn(&'static str, &str) -> Result<(), RecordError>,
) -> Result<String, RecordError> {
    let text = str::from_utf8(bytes).map_err(|_| RecordError::Value { field, must: "UTF-8" })?;
    check(field, text)?;
    Ok(text.to_owned())
}
