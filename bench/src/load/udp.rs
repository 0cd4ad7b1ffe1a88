//! Small packets: one thread sends 64-byte payloads at a pace, one counts what arrives and in which order.

use std::io::{ErrorKind, Result as IoResult};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::SockRef;

use super::batch::{Receiver, Sender, number};
use super::pace::{Pace, Pacer};
use super::{StopOnDrop, Timing, Windowed, observe};

/// Asked of the kernel for both sockets, in bytes; it grants what `rmem_max` and `wmem_max` allow.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// How long the sink waits before it looks whether to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// What became of a flood.
#[derive(Clone, Debug)]
pub(crate) struct Flood {
    /// Packets that arrived.
    pub(crate) delivered: Windowed,
    /// Packets per second that the kernel took from the generator in the same window.
    pub(crate) offered: f64,
    /// Packets of the whole flood that arrived after a later one.
    pub(crate) overtaken: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    alien: AtomicU64,
    overtaken: AtomicU64,
}

/// Floods `sink` from `source`, which must be connected to it, and counts the packets that arrive during the window.
///
/// # Errors
/// When a socket fails, nothing arrives, or something else than what was sent arrives.
pub(crate) fn flood(
    source: &UdpSocket,
    sink: &UdpSocket,
    pace: Pace,
    timing: Timing,
    daemons: &[u32],
) -> Result<Flood> {
    SockRef::from(source).set_send_buffer_size(SOCKET_BUFFER).context("enlarging the send buffer")?;
    SockRef::from(sink).set_recv_buffer_size(SOCKET_BUFFER).context("enlarging the receive buffer")?;
    sink.set_read_timeout(Some(PATIENCE)).context("bounding receives")?;

    let stop = AtomicBool::new(false);
    let counts = Counts::default();
    let (first_sent, last_sent) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
    let delivered = thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let sender = scope.spawn(|| send(source, pace, &stop, &counts));
        let counter = scope.spawn(|| count(sink, &stop, &counts));
        // What was offered is read at the same instants as what arrived.
        let delivered = observe(timing, daemons, || {
            let sent = counts.sent.load(Ordering::Relaxed);
            first_sent.fetch_min(sent, Ordering::Relaxed);
            last_sent.fetch_max(sent, Ordering::Relaxed);
            counts.received.load(Ordering::Relaxed)
        });
        drop(stop_on_drop);
        for end in [sender, counter] {
            end.join().map_err(|_| anyhow::anyhow!("a thread of the flood panicked"))??;
        }
        delivered
    })?;
    ensure!(counts.alien.into_inner() == 0, "packets arrived that nobody sent, or damaged ones");
    ensure!(delivered.count > 0, "no packet arrived during the window");
    let sent = last_sent.into_inner().saturating_sub(first_sent.into_inner());
    let offered = sent as f64 / delivered.elapsed.as_secs_f64();
    Ok(Flood { delivered, offered, overtaken: counts.overtaken.into_inner() })
}

fn send(source: &UdpSocket, pace: Pace, stop: &AtomicBool, counts: &Counts) -> Result<()> {
    let mut pacer = Pacer::start(pace)?;
    let mut sender = Sender::new();
    while !stop.load(Ordering::Relaxed) {
        let sent = patient(sender.send(source)).context("flooding")?.unwrap_or_default();
        counts.sent.fetch_add(sent as u64, Ordering::Relaxed);
        if sent == 0 {
            thread::yield_now();
        }
        pacer.sent(sent)?;
    }
    Ok(())
}

fn count(sink: &UdpSocket, stop: &AtomicBool, counts: &Counts) -> Result<()> {
    let mut receiver = Receiver::new();
    let mut expected = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(datagrams) = patient(receiver.receive(sink)).context("counting a flood")? else { continue };
        let (mut ours, mut others, mut late) = (0, 0, 0);
        for datagram in datagrams {
            let Some(number) = number(datagram) else {
                others += 1;
                continue;
            };
            ours += 1;
            late += u64::from(number < expected);
            expected = expected.max(number + 1);
        }
        counts.received.fetch_add(ours, Ordering::Relaxed);
        counts.alien.fetch_add(others, Ordering::Relaxed);
        counts.overtaken.fetch_add(late, Ordering::Relaxed);
    }
    Ok(())
}

/// Turns a full queue or a timeout, which are normal here, into `None`.
fn patient<T>(result: IoResult<T>) -> IoResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing() -> Timing {
        Timing { warm_up: Duration::from_millis(20), window: Duration::from_millis(100) }
    }

    fn pair() -> (UdpSocket, UdpSocket) {
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let source = UdpSocket::bind("127.0.0.1:0").unwrap();
        source.connect(sink.local_addr().unwrap()).unwrap();
        (source, sink)
    }

    #[test]
    fn a_flood_over_loopback_arrives_in_order() {
        let (source, sink) = pair();
        let flood = flood(&source, &sink, Pace::Share(0.5), timing(), &[]).unwrap();
        assert!(flood.delivered.count > 100 && flood.offered > 0.0, "{flood:?}");
        assert_eq!(flood.overtaken, 0);
    }

    #[test]
    fn strangers_packets_are_noticed() {
        let (source, sink) = pair();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(b"not of this flood", sink.local_addr().unwrap()).unwrap();
        let error = flood(&source, &sink, Pace::Rate(10_000.0), timing(), &[]).unwrap_err();
        assert!(error.to_string().contains("nobody sent"), "{error}");
    }
}
