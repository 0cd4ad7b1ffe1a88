//! The worker: one pinned thread around [`ringmesh_io::PacketIo::turn`], and the only one that moves packets.

use ringmesh_aead::{Cipher, Kernel};
use ringmesh_io::{Choice, Chosen, KernelIo, Offloads, PacketIo as _, Parts, affinity};
use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{Event, Random, Tunnel, key::PublicKey};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::{error::Failure, fallback::Links, handshaker::Handshakes, pipeline::Pipeline, plane::Command};

/// [`Worker::run`] with a cipher: chosen where a daemon is put together, used where a worker is started, so that nothing in
/// between has to know of it.
pub(crate) type Work = fn(Worker, oneshot::Sender<Result<Started, Failure>>) -> Result<(), String>;

/// What a worker found when it began.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) chosen: Chosen,
    /// Those asked for that the kernel has.
    pub(crate) offloads: Offloads,
}

/// Everything a worker thread begins with.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) choice: Choice,
    pub(crate) cpu: Option<usize>,
    /// What its sessions seal and open with.
    pub(crate) kernel: Kernel,
    pub(crate) key: PublicKey,
    pub(crate) parts: Parts,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) handshakes: Handshakes,
    pub(crate) links: Links,
}

impl Worker {
    /// Runs until it is told to stop. `started` hears what is in use, or why there is no back end.
    ///
    /// # Errors
    /// What ended the loop, as a sentence, if it was not asked to end.
    pub(crate) fn run<C: Cipher>(
        self,
        started: oneshot::Sender<Result<Started, Failure>>,
    ) -> Result<(), String> {
        pin(self.cpu);
        let mtu = self.parts.mtu;
        let tunnel = Tunnel::<C>::with_cipher(0, self.key, Random::system(), self.kernel);
        let begun = tunnel.map_err(|error| error.to_string()).and_then(|tunnel| {
            // Here and not before: a ring belongs to the thread that made it.
            let (io, chosen) =
                KernelIo::open(self.choice, self.parts).map_err(|refused| refused.to_string())?;
            Ok((tunnel, io, chosen))
        });
        let (mut tunnel, mut io, chosen) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                let _ = started.send(Err(Failure::new(Reason::Host, why)));
                return Ok(());
            }
        };
        tunnel.set_mtu(mtu);
        let _ = started.send(Ok(Started { chosen, offloads: io.offloads() }));
        let mut pipeline = Pipeline::new(tunnel, self.handshakes, self.links, self.commands, self.events);
        while !pipeline.is_stopping() {
            io.turn(pipeline.deadline(), &mut pipeline)
                .map_err(|error| format!("packet I/O failed: {error}"))?;
            pipeline.answer_reports(io.counters());
        }
        io.flush().map_err(|error| format!("packet I/O failed at the end: {error}"))
    }
}

/// Keeps the thread on the processor asked for, or on one of those allowed, so that several daemons of a machine spread over it.
fn pin(asked: Option<usize>) {
    let one_of =
        |allowed: Vec<usize>| allowed.get(std::process::id() as usize % allowed.len().max(1)).copied();
    let cpu = asked.or_else(|| affinity::allowed().ok().and_then(one_of));
    let Some(cpu) = cpu else { return };
    match affinity::pin(cpu) {
        Ok(()) => debug!(cpu, "worker pinned"),
        Err(error) => {
            warn!(event = "worker_unpinned", cpu, %error, "the worker is not pinned; packets still flow, only less evenly")
        }
    }
}
