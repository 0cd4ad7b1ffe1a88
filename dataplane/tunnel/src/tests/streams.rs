//! A handshake for which another path appears while it waits for its answer.

use super::*;
use crate::path::{Carrier, Link};
use crate::peer::LinkCandidate;

const SSH: LinkCandidate = LinkCandidate { number: 1, carrier: Carrier::Ssh };
/// The stream's name at the end that opened it, and at the other.
const LINK: Link = Link { number: 1, carrier: Carrier::Ssh };
const FAR_LINK: Link = Link { number: 7, carrier: Carrier::Ssh };

/// A pair whose first initiation arrives, but its answer is lost; `later`, a stream is opened.
///
/// Returns the pair, that initiation, and what the opener sends by the stream.
fn answer_lost_and_a_stream_opened(later: Duration) -> (Pair, Datagram, Vec<Datagram>) {
    let mut pair = Pair::with(1, |_| {}, |far| far.links = vec![SSH]);
    pair.send_near(b"held");
    let first = pair.wire.iter().find(|datagram| datagram.kind() == 1).unwrap().clone();
    pair.deliver(&first);
    assert_eq!(pair.sent_by(pair.far.path, 2).len(), 1, "it was answered");
    pair.cut(later);
    pair.near.tunnel.link_opened(pair.far.config.id, SSH.number, LINK, pair.now);
    let sent = pair.near.work(pair.now);
    let by_stream = sent.into_iter().filter(|datagram| datagram.to == Path::Link(LINK)).collect();
    (pair, first, by_stream)
}

/// Hands the far end what came out of the stream; returns what it answers there.
fn through_the_stream(pair: &mut Pair, datagram: &Datagram) -> Vec<Datagram> {
    let datagram = Datagram { from: Path::Link(FAR_LINK), ..datagram.clone() };
    pair.far.take(&datagram, pair.now).unwrap();
    let sent = pair.far.work(pair.now);
    sent.into_iter().filter(|datagram| datagram.to == Path::Link(FAR_LINK)).collect()
}

#[test]
fn initiation_goes_again_unchanged_by_a_stream_that_opens_soon() {
    let (mut pair, first, by_stream) = answer_lost_and_a_stream_opened(millis(1499));
    assert_eq!(by_stream.iter().map(|datagram| &datagram.bytes).collect::<Vec<_>>(), [&first.bytes]);
    // Whoever saw the first copy drops the second, as it drops a stranger's repetition.
    assert_eq!(through_the_stream(&mut pair, &by_stream[0]).len(), 0);
    assert_eq!(pair.far.dropped(DropReason::OldTimestamp), 1);
}

#[test]
fn a_new_initiation_goes_by_a_stream_that_opens_when_the_answer_is_overdue() {
    let (mut pair, first, by_stream) = answer_lost_and_a_stream_opened(millis(1500));
    assert_eq!(by_stream.len(), 1);
    assert_ne!(by_stream[0].bytes, first.bytes);
    let answers = through_the_stream(&mut pair, &by_stream[0]);
    assert_eq!(answers.iter().map(Datagram::kind).collect::<Vec<_>>(), [2]);
    let answer = Datagram { from: Path::Link(LINK), ..answers[0].clone() };
    pair.near.take(&answer, pair.now).unwrap();
    pair.near.work(pair.now);
    assert_eq!(pair.near.established(), [true]);
}

#[test]
fn streams_that_open_all_the_time_make_no_flood_of_initiations() {
    let (mut pair, _, _) = answer_lost_and_a_stream_opened(millis(1500));
    pair.sent.clear();
    for number in 2..100 {
        pair.near.tunnel.link_closed(Link { number: number - 1, ..LINK }, pair.now);
        pair.cut(millis(100));
        let link = Link { number, ..LINK };
        pair.near.tunnel.link_opened(pair.far.config.id, SSH.number, link, pair.now);
        pair.work();
    }
    let messages: std::collections::BTreeSet<&[u8]> =
        pair.sent_by(pair.near.path, 1).into_iter().map(|(_, datagram)| &datagram.bytes[..]).collect();
    // In 9.8 s: one in 1.5 s.
    assert!((4..=7).contains(&messages.len()), "{} initiations", messages.len());
}
