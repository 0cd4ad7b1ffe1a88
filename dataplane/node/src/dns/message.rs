//! Queries as they come and answers as they go (RFC 1035 §4, RFC 6891).
//!
//! The header and the question are read here before anything else is: one question, no answers, no compression. So what
//! the library is given next allocates no more than the query is long.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{Name, RData, Record},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

/// A message's header, bytes.
pub(super) const HEADER: usize = 12;
/// The longest query that is read, bytes: one with a name and EDNS options needs a few hundred.
pub(super) const QUERY_MAX: usize = 4096;
/// The longest answer by UDP to an asker that says nothing of its buffer, bytes (RFC 1035 §4.2.1).
pub(super) const PLAIN_MAX: u16 = 512;
/// The longest answer by UDP to any asker, bytes: longer ones might be cut into fragments (DNS flag day 2020).
pub(super) const DATAGRAM_MAX: u16 = 1232;
/// The bit of the third byte that marks an answer, and the one that says it is cut short.
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;

/// How a query came, by which its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// A message's first twelve bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    flags: [u8; 2],
    /// Questions, answers, authorities, additionals.
    counts: [u16; 4],
}

impl Header {
    /// Reads the header; `None` if the message is too short for one.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let [a, b, flags @ .., q0, q1, n0, n1, u0, u1, d0, d1]: &[u8; HEADER] = message.first_chunk()?;
        let counts = [[*q0, *q1], [*n0, *n1], [*u0, *u1], [*d0, *d1]].map(u16::from_be_bytes);
        Some(Self { id: u16::from_be_bytes([*a, *b]), flags: *flags, counts })
    }

    /// Whether the message is an answer.
    pub(super) const fn is_response(&self) -> bool {
        let [first, _] = self.flags;
        first & RESPONSE != 0
    }

    /// Whether the message is an answer that was cut short.
    pub(super) const fn is_truncated(&self) -> bool {
        let [first, _] = self.flags;
        first & TRUNCATED != 0
    }

    /// What the message is about; 0 is a query.
    pub(super) const fn opcode(&self) -> u8 {
        let [first, _] = self.flags;
        (first >> 3) & 0x0f
    }

    /// The lower bits of the response code, which the header has.
    pub(super) fn code(&self) -> ResponseCode {
        let [_, second] = self.flags;
        ResponseCode::from_low(second & 0x0f)
    }

    pub(super) const fn questions(&self) -> u16 {
        let [questions, ..] = self.counts;
        questions
    }

    /// An answer that is only a header: to what cannot be read any further.
    fn bare(&self, code: ResponseCode) -> Vec<u8> {
        let [id0, id1] = self.id.to_be_bytes();
        let [first, _] = self.flags;
        // The opcode and the wish for recursion are repeated; recursion is on offer.
        let first = RESPONSE | (first & 0x79);
        let mut bytes = vec![id0, id1, first, 0x80 | (code.low() & 0x0f)];
        bytes.resize(HEADER, 0);
        bytes
    }
}

/// A query that can be answered.
#[derive(Debug)]
pub(super) struct Query {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    /// What is asked; the name is as the asker wrote it.
    pub(super) question: Question,
    /// Where the question ends in the message.
    question_end: usize,
    edns: Option<Offer>,
}

/// What the asker says of itself by EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    takes: u16,
    version: u8,
    dnssec_ok: bool,
}

/// Why a message is no query that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// There is no header: there is nobody to answer.
    NoHeader,
    /// It is an answer itself.
    Response,
    /// It gets this answer, with this code.
    Bare(Vec<u8>, ResponseCode),
}

impl Query {
    /// Reads a query from all of `message`.
    pub(super) fn parse(message: &[u8]) -> Result<Self, Unreadable> {
        let header = Header::parse(message).ok_or(Unreadable::NoHeader)?;
        if header.is_response() {
            return Err(Unreadable::Response);
        }
        let bare = |code| Unreadable::Bare(header.bare(code), code);
        if header.opcode() != 0 {
            return Err(bare(ResponseCode::NotImp));
        }
        let malformed = || bare(ResponseCode::FormErr);
        let [1, 0, 0, _] = header.counts else { return Err(malformed()) };
        if message.len() > QUERY_MAX {
            return Err(malformed());
        }
        let question_end = question_end(message).ok_or_else(malformed)?;
        let mut decoder = BinDecoder::new(message);
        let mut read = Message::read(&mut decoder).map_err(|_| malformed())?;
        let question = read.queries.pop().filter(|_| decoder.is_empty()).ok_or_else(malformed)?;
        let edns = read.edns.as_ref().map(|edns| Offer {
            takes: edns.max_payload(),
            version: edns.version(),
            dnssec_ok: edns.flags().dnssec_ok,
        });
        Ok(Self {
            id: header.id,
            recursion_desired: read.metadata.recursion_desired,
            checking_disabled: read.metadata.checking_disabled,
            question,
            question_end,
            edns,
        })
    }

    /// The bytes of the question in the message that this was read from.
    pub(super) fn question_bytes<'m>(&self, message: &'m [u8]) -> &'m [u8] {
        message.get(HEADER..self.question_end).unwrap_or_default()
    }

    /// Whether the asker speaks an EDNS that is newer than ours, 0.
    pub(super) fn has_newer_edns(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    /// The longest answer that the asker says it takes, bytes.
    pub(super) fn takes(&self, transport: Transport) -> u16 {
        match transport {
            Transport::Udp => self.edns.map_or(PLAIN_MAX, |edns| edns.takes.max(PLAIN_MAX)),
            Transport::Tcp => u16::MAX,
        }
    }

    /// Puts an answer into bytes, cut short to its question (and so marked) if it would be longer than the asker takes, or
    /// than goes into a datagram.
    pub(super) fn emit(&self, response: Response, transport: Transport) -> Vec<u8> {
        let most = match transport {
            Transport::Udp => self.takes(transport).min(DATAGRAM_MAX),
            Transport::Tcp => u16::MAX,
        };
        let Response { code, authoritative, answers, authority } = response;
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.recursion_available = true;
        message.add_query(self.question.clone());
        let own = |(ttl, data): (u32, RData)| Record::from_rdata(self.question.name().clone(), ttl, data);
        message.add_answers(answers.into_iter().map(own));
        message.add_authorities(authority);
        if let Some(edns) = &self.edns {
            let mut answer = Edns::new();
            answer.set_max_payload(DATAGRAM_MAX).set_version(0).set_dnssec_ok(edns.dnssec_ok);
            message.set_edns(answer);
        }
        let fits = |bytes: &Vec<u8>| bytes.len() <= usize::from(most);
        let whole = message.to_vec().ok().filter(fits);
        // What has no room even for its question has at least room for a header.
        whole.or_else(|| message.truncate().to_vec().ok().filter(fits)).unwrap_or_else(|| self.bare_failure())
    }

    fn bare_failure(&self) -> Vec<u8> {
        Header { id: self.id, flags: [u8::from(self.recursion_desired), 0], counts: [0; 4] }
            .bare(ResponseCode::ServFail)
    }

    /// The asked name's last `labels` labels, as the asker wrote them.
    pub(super) fn ancestor(&self, labels: usize) -> Name {
        let name = self.question.name();
        let skip = name.iter().len().saturating_sub(labels);
        Name::from_labels(name.iter().skip(skip)).unwrap_or_else(|_| name.clone())
    }
}

/// What an answer says.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) code: ResponseCode,
    pub(super) authoritative: bool,
    /// Lives, seconds, and data, all of the asked name.
    pub(super) answers: Vec<(u32, RData)>,
    pub(super) authority: Option<Record>,
}

impl Response {
    /// An answer that is only a code.
    pub(super) const fn bare(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: Vec::new(), authority: None }
    }
}

/// Finds where the first question ends, whose name must be written out: nothing stands before it that it could point to.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    const NAME_MAX: usize = 255;
    let mut end = HEADER;
    loop {
        let len = usize::from(*message.get(end)?);
        if len > 63 {
            return None;
        }
        end = end.checked_add(len)?.checked_add(1)?;
        if end.checked_sub(HEADER)? > NAME_MAX {
            return None;
        }
        if len == 0 {
            break;
        }
    }
    // Its type and class.
    end = end.checked_add(4)?;
    (end <= message.len()).then_some(end)
}

/// Whether two questions are one: names in any case (RFC 4343), type and class alike.
pub(super) fn same_question(one: &[u8], other: &[u8]) -> bool {
    match (one.split_last_chunk::<4>(), other.split_last_chunk::<4>()) {
        (Some((name, kind)), Some((other_name, other_kind))) => {
            name.eq_ignore_ascii_case(other_name) && kind == other_kind
        }
        _ => false,
    }
}

/// Marks an answer of which only header and question are left as cut short.
pub(super) fn set_cut_short(message: &mut [u8]) {
    if let Some([_, _, flags, _, _, _, counts @ ..]) = message.first_chunk_mut::<HEADER>() {
        *flags |= TRUNCATED;
        // One question stays; answers, authorities and additionals are gone.
        counts.fill(0);
    }
}

/// Puts another id into a message.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}
