//! What a query gets: the one path of every query, whether it came by a socket or from `meshctl`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType, rdata::SOA},
};
use tokio::sync::watch;

use super::{
    counters::{By, Counters, Refusal},
    forward::{Forwarder, Place, Unanswered},
    message::{Header, Query, Response, Transport, Unreadable},
    special::{Special, special},
    zone::{ANSWER_TTL, Apex, Lookup, NEGATIVE_TTL, Zone},
};
use crate::error::Failure;

/// What is decided of a query without asking anybody.
#[derive(Debug)]
pub(super) enum Decision {
    /// It gets nothing.
    Silence(Refusal),
    /// It gets this answer, which has this code.
    Answer(Vec<u8>, ResponseCode),
    /// It is for the resolvers that were in place.
    Forward(Box<Query>),
}

/// Decides what `message` gets from `zone`.
pub(super) fn decide(message: &[u8], zone: &Zone, transport: Transport) -> Decision {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(Unreadable::NoHeader) => return Decision::Silence(Refusal::NoHeader),
        Err(Unreadable::Response) => return Decision::Silence(Refusal::Response),
        Err(Unreadable::Bare(answer, code)) => return Decision::Answer(answer, code),
    };
    let Some(response) = respond(&query, zone) else { return Decision::Forward(Box::new(query)) };
    let code = response.code;
    Decision::Answer(query.emit(response, transport), code)
}

/// The answer of this node; `None` if others are to be asked.
fn respond(query: &Query, zone: &Zone) -> Option<Response> {
    if query.has_newer_edns() {
        return Some(Response::bare(ResponseCode::BADVERS));
    }
    let (name, kind) = (query.question.name(), query.question.query_type());
    if kind == RecordType::OPT {
        // A part of messages, which no name has.
        return Some(Response::bare(ResponseCode::FormErr));
    }
    let is_transfer = matches!(kind, RecordType::AXFR | RecordType::IXFR);
    if is_transfer || query.question.query_class() != DNSClass::IN {
        return Some(Response::bare(ResponseCode::Refused));
    }
    match zone.lookup(name, kind) {
        Lookup::Found(data) => Some(Response {
            code: ResponseCode::NoError,
            authoritative: true,
            answers: data.into_iter().map(|data| (ANSWER_TTL, data)).collect(),
            authority: None,
        }),
        Lookup::NoData(apex) => Some(negative(query, apex, ResponseCode::NoError)),
        Lookup::NoName(apex) => Some(negative(query, apex, ResponseCode::NXDomain)),
        Lookup::Elsewhere => match special(name, kind)? {
            Special::Loopback(Some(data)) => Some(Response {
                code: ResponseCode::NoError,
                authoritative: true,
                answers: vec![(ANSWER_TTL, data)],
                authority: None,
            }),
            Special::Loopback(None) => Some(of_nobody(query, ResponseCode::NoError)),
            Special::Nowhere => Some(of_nobody(query, ResponseCode::NXDomain)),
        },
    }
}

/// That there is nothing, with the start of authority that says for how long to believe it (RFC 2308 §2, §5).
fn negative(query: &Query, apex: Apex<'_>, code: ResponseCode) -> Response {
    let soa = Record::from_rdata(query.ancestor(apex.labels), NEGATIVE_TTL, apex.soa.clone());
    let authority = Some(soa.into_record_of_rdata());
    Response { code, authoritative: true, answers: Vec::new(), authority }
}

/// The same of a special name, for whose zone this node stands in.
fn of_nobody(query: &Query, code: ResponseCode) -> Response {
    let name = query.ancestor(1);
    let soa = SOA::new(name.clone(), name, 1, 3600, 600, 86_400, NEGATIVE_TTL);
    negative(query, Apex { labels: 1, soa: &soa }, code)
}

/// Everything that answers, shared by sockets, connections and the local API.
#[derive(Debug)]
pub(super) struct Resolver {
    zone: watch::Receiver<Arc<Zone>>,
    pub(super) forwarder: Forwarder,
    pub(super) counters: Counters,
}

/// An answer, and who it is from.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    /// The resolver that was asked; `None` if this node answered.
    pub(super) upstream: Option<SocketAddr>,
}

impl Resolver {
    pub(super) fn new(zone: watch::Receiver<Arc<Zone>>, forwarder: Forwarder) -> Self {
        Self { zone, forwarder, counters: Counters::default() }
    }

    /// What `message` gets without asking anybody, counted if that is all it gets.
    pub(super) fn decide(&self, message: &[u8], transport: Transport) -> Decision {
        let zone = Arc::clone(&self.zone.borrow());
        let decision = decide(message, &zone, transport);
        match &decision {
            Decision::Silence(why) => self.counters.refused(*why),
            Decision::Answer(_, code) => self.counters.answered(By::Node, *code),
            Decision::Forward(_) => {}
        }
        decision
    }

    /// Asks the resolvers that were in place; at once, if there is no `place` to wait for them.
    pub(super) async fn forward(
        &self,
        place: Result<Place, Unanswered>,
        message: &[u8],
        query: &Query,
        transport: Transport,
    ) -> Reply {
        let (question, takes) = (query.question_bytes(message), query.takes(transport));
        let asked = match place {
            Ok(place) => self.forwarder.ask(place, message, question, transport, takes).await,
            Err(unanswered) => Err(unanswered),
        };
        let (why, code) = match asked {
            Ok(answer) => {
                let code =
                    Header::parse(&answer.bytes).map_or(ResponseCode::ServFail, |header| header.code());
                self.counters.answered(By::Upstream, code);
                return Reply { bytes: answer.bytes, upstream: Some(answer.by) };
            }
            Err(Unanswered::NoUpstream) => (Refusal::NoUpstream, ResponseCode::Refused),
            Err(Unanswered::Busy) => (Refusal::Busy, ResponseCode::ServFail),
            Err(Unanswered::Repeated) => (Refusal::Repeated, ResponseCode::ServFail),
            Err(Unanswered::NoReply) => (Refusal::NoReply, ResponseCode::ServFail),
        };
        self.counters.refused(why);
        self.counters.answered(By::Node, code);
        Reply { bytes: query.emit(Response::bare(code), transport), upstream: None }
    }

    /// Answers a message by whatever it takes; `None` if it gets nothing.
    pub(super) async fn answer(&self, message: &[u8], transport: Transport) -> Option<Reply> {
        match self.decide(message, transport) {
            Decision::Silence(_) => None,
            Decision::Answer(bytes, _) => Some(Reply { bytes, upstream: None }),
            Decision::Forward(query) => {
                Some(self.forward(self.forwarder.place(), message, &query, transport).await)
            }
        }
    }

    /// Asks as a program on this machine would by TCP, and tells what it would see.
    pub(super) async fn query(&self, name: &str, kind: &str) -> Result<Answer, Failure> {
        let began = Instant::now();
        let parsed = if name.is_ascii() { Name::from_ascii(name) } else { Name::from_utf8(name) };
        let mut asked = parsed.map_err(|error| {
            Failure::invalid(format!("`{name}` is not a name that DNS can ask for: {error}"))
        })?;
        asked.set_fqdn(true);
        let kind: RecordType = kind.to_ascii_uppercase().parse().map_err(|_| {
            Failure::invalid(format!("`{kind}` is no type of DNS record: write A, AAAA, PTR, TXT, ..."))
        })?;
        let id = u16::try_from(getrandom::u32().unwrap_or(0) & 0xffff).unwrap_or(0);
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(asked, kind));
        let unsayable = |error| Failure::invalid(format!("`{name}` cannot be asked for: {error}"));
        let message = message.to_vec().map_err(|error| unsayable(error.to_string()))?;
        let reply = self.answer(&message, Transport::Tcp).await;
        let reply = reply.ok_or_else(|| unsayable("no answer is made to such a query".to_owned()))?;
        Answer::read(&reply, began.elapsed())
    }
}

/// What a query by name and type found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `NOERROR`, `NXDOMAIN`, ...
    pub(crate) code: String,
    /// The answer's records, in its order.
    pub(crate) records: Vec<AnswerRecord>,
    /// The resolver that was asked; `None` if this node answered.
    pub(crate) upstream: Option<SocketAddr>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// A record of an answer, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnswerRecord {
    /// Whose it is, in full, without a dot at the end.
    pub(crate) name: String,
    /// `A`, `AAAA`, ...
    pub(crate) kind: String,
    /// For how long it may be kept, seconds.
    pub(crate) ttl: u32,
    /// What it says, as a zone file has it.
    pub(crate) data: String,
}

impl Answer {
    fn read(reply: &Reply, took: Duration) -> Result<Self, Failure> {
        let who = |upstream: SocketAddr| format!("the resolver {upstream}");
        let from = reply.upstream.map_or_else(|| "this node".to_owned(), who);
        let message = Message::from_vec(&reply.bytes).map_err(|error| {
            let said = format!("{from} gave an answer that cannot be read: {error}");
            Failure::new(ringmesh_proto::control::Reason::Unreachable, said)
        })?;
        let plain = |name: &Name| {
            let text = name.to_ascii();
            text.strip_suffix('.').filter(|text| !text.is_empty()).unwrap_or(&text).to_owned()
        };
        let records = message.answers.iter().map(|record| AnswerRecord {
            name: plain(&record.name),
            kind: record.record_type().to_string(),
            ttl: record.ttl,
            data: record.data.to_string(),
        });
        let code = super::counters::code_name(message.metadata.response_code).to_owned();
        Ok(Self { code, records: records.collect(), upstream: reply.upstream, took })
    }
}
