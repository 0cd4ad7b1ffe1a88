//! What a daemon does about signals: ends in good order on SIGTERM and SIGINT, outlives its terminal.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    failure::{Exit, Failure},
    supervisor,
};

/// The signals that a daemon listens to, from the moment this is made.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Listens from now on. Must be called within a runtime.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let on = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::General, "cannot listen to signals").cause(error.to_string())
            })
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    /// Waits until the daemon is asked to end. A terminal that closes (SIGHUP) does not ask that.
    pub(crate) async fn end(mut self) {
        loop {
            let asked = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.hang_up.recv() => {
                    tracing::debug!("SIGHUP: the terminal has gone, which does not matter");
                    continue;
                }
            };
            supervisor::tell_stopping();
            tracing::info!(event = "signal_received", signal = asked, "ending");
            return;
        }
    }
}
