//! Bulk transfer: a writing and a reading thread per stream, 128 KiB at a time, default socket buffers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{StopOnDrop, Timing, Windowed, observe};

/// Bytes per read and write.
const CHUNK: usize = 128 * 1024;
/// A stream that moves nothing for so long has failed.
const STALL: Duration = Duration::from_secs(5);

/// Connected streams, ready to be loaded.
#[derive(Debug)]
pub(crate) struct Streams {
    pairs: Vec<(TcpStream, TcpStream)>,
}

impl Streams {
    /// Connects `count` streams to a listener made by `listen`; `connect` opens the sending end. Each closure runs its
    /// system calls in the namespace of its end.
    ///
    /// # Errors
    /// Those of the closures, and those of accepting.
    pub(crate) fn open(
        count: usize,
        listen: impl FnOnce() -> Result<TcpListener>,
        connect: impl Fn(SocketAddr) -> Result<TcpStream>,
    ) -> Result<Self> {
        let listener = listen()?;
        let address = listener.local_addr().context("asking for the listener's port")?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let sender = connect(address)?;
            let (receiver, _) = listener.accept().context("accepting a stream")?;
            sender.set_write_timeout(Some(STALL)).context("bounding writes")?;
            receiver.set_read_timeout(Some(STALL)).context("bounding reads")?;
            pairs.push((sender, receiver));
        }
        Ok(Self { pairs })
    }

    /// Sends as fast as all streams take it, and counts the bytes received during the window.
    ///
    /// # Errors
    /// When a stream breaks or stalls, or nothing arrives.
    pub(crate) fn run(self, timing: Timing, daemons: &[u32]) -> Result<Windowed> {
        self.run_beside(timing, daemons, || Ok(())).map(|(windowed, ())| windowed)
    }

    /// The same, with `beside` done on a thread of its own once the load is warm; it is to last no longer than the window.
    ///
    /// # Errors
    /// The same, and those of `beside`.
    pub(crate) fn run_beside<T: Send>(
        self,
        timing: Timing,
        daemons: &[u32],
        beside: impl FnOnce() -> Result<T> + Send,
    ) -> Result<(Windowed, T)> {
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
        let panicked = |_| anyhow::anyhow!("a stream's thread panicked");
        let (result, also) = thread::scope(|scope| {
            let stop_on_drop = StopOnDrop(&stop);
            let mut ends = Vec::new();
            for (sender, receiver) in &self.pairs {
                ends.push(scope.spawn(|| send(sender, &stop)));
                ends.push(scope.spawn(|| receive(receiver, &received)));
            }
            let also = scope.spawn(move || {
                thread::sleep(timing.warm_up);
                beside()
            });
            let windowed = observe(timing, daemons, || received.load(Ordering::Relaxed));
            let also = also.join().map_err(panicked)?;
            drop(stop_on_drop);
            for end in ends {
                end.join().map_err(panicked)??;
            }
            Ok::<_, anyhow::Error>((windowed?, also?))
        })?;
        ensure!(result.count > 0, "nothing arrived during the window");
        Ok((result, also))
    }
}

fn send(mut stream: &TcpStream, stop: &AtomicBool) -> Result<()> {
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk).context("sending: the stream stalled or broke")?;
    }
    stream.shutdown(Shutdown::Write).context("ending a stream")
}

fn receive(mut stream: &TcpStream, received: &AtomicU64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => received.fetch_add(length as u64, Ordering::Relaxed),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("receiving: the stream stalled or broke"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing() -> Timing {
        Timing { warm_up: Duration::from_millis(20), window: Duration::from_millis(80) }
    }

    fn listen() -> Result<TcpListener> {
        Ok(TcpListener::bind("127.0.0.1:0")?)
    }

    #[test]
    fn all_streams_carry_bytes_over_loopback() {
        let streams = Streams::open(3, listen, |to| Ok(TcpStream::connect(to)?)).unwrap();
        let result = streams.run(timing(), &[]).unwrap();
        assert!(result.rate() > 1e6, "{result:?}");
    }

    #[test]
    fn a_stream_that_breaks_is_an_error_and_not_a_small_number() {
        let streams = Streams::open(1, listen, |to| Ok(TcpStream::connect(to)?)).unwrap();
        streams.pairs[0].1.shutdown(Shutdown::Both).unwrap();
        streams.run(timing(), &[]).unwrap_err();
    }
}
