//! Small packets: one thread sends 64-byte payloads as fast as the kernel takes them, one counts what arrives.

use std::io::{ErrorKind, Result as IoResult};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::SockRef;

use super::batch::{Receiver, SIZE, Sender};
use super::{StopOnDrop, Timing, Windowed, observe};

/// Asked of the kernel for both sockets, in bytes; it grants what `rmem_max` and `wmem_max` allow.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// How long the sink waits before it looks whether to stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// Begins every payload, so that a stray packet is not counted.
const MARK: [u8; 8] = *b"ringmesh";

/// Floods `sink` from `source`, which must be connected to it, and counts the packets that arrive during the window.
///
/// # Errors
/// When a socket fails, nothing arrives, or something else than what was sent arrives.
pub(crate) fn flood(
    source: &UdpSocket,
    sink: &UdpSocket,
    timing: Timing,
    daemons: &[u32],
) -> Result<Windowed> {
    SockRef::from(source).set_send_buffer_size(SOCKET_BUFFER).context("enlarging the send buffer")?;
    SockRef::from(sink).set_recv_buffer_size(SOCKET_BUFFER).context("enlarging the receive buffer")?;
    sink.set_read_timeout(Some(PATIENCE)).context("bounding receives")?;

    let stop = AtomicBool::new(false);
    let (received, alien) = (AtomicU64::new(0), AtomicU64::new(0));
    let delivered = thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let sender = scope.spawn(|| send(source, &stop));
        let counter = scope.spawn(|| count(sink, &stop, &received, &alien));
        let delivered = observe(timing, daemons, || received.load(Ordering::Relaxed));
        drop(stop_on_drop);
        for end in [sender, counter] {
            end.join().map_err(|_| anyhow::anyhow!("a thread of the flood panicked"))??;
        }
        delivered
    })?;
    ensure!(alien.load(Ordering::Relaxed) == 0, "packets arrived that nobody sent, or damaged ones");
    ensure!(delivered.count > 0, "no packet arrived during the window");
    Ok(delivered)
}

fn send(source: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let mut payload = [0x5a; SIZE];
    payload[..MARK.len()].copy_from_slice(&MARK);
    let mut sender = Sender::new(payload);
    while !stop.load(Ordering::Relaxed) {
        if patient(sender.send(source)).context("flooding")?.is_none() {
            thread::yield_now();
        }
    }
    Ok(())
}

fn count(sink: &UdpSocket, stop: &AtomicBool, received: &AtomicU64, alien: &AtomicU64) -> Result<()> {
    let mut receiver = Receiver::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(datagrams) = patient(receiver.receive(sink)).context("counting a flood")? else { continue };
        let (mut ours, mut others) = (0, 0);
        for datagram in datagrams {
            let is_ours = datagram.len() == SIZE && datagram.starts_with(&MARK);
            *(if is_ours { &mut ours } else { &mut others }) += 1;
        }
        received.fetch_add(ours, Ordering::Relaxed);
        alien.fetch_add(others, Ordering::Relaxed);
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
    fn a_flood_over_loopback_arrives() {
        let (source, sink) = pair();
        let flood = flood(&source, &sink, timing(), &[]).unwrap();
        assert!(flood.count > 100, "{flood:?}");
    }

    #[test]
    fn strangers_packets_are_noticed() {
        let (source, sink) = pair();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(b"not of this flood", sink.local_addr().unwrap()).unwrap();
        let error = flood(&source, &sink, timing(), &[]).unwrap_err();
        assert!(error.to_string().contains("nobody sent"), "{error}");
    }
}
