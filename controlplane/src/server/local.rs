//! The operators' connections: a unix socket's, of which the kernel says whose they are.

use std::{future::Future, io, sync::Arc};

use hyper_util::server::graceful::GracefulShutdown;
use tokio::{net::UnixStream, sync::Semaphore};
use tonic::service::Routes;

use super::{
    accept::rest,
    http::{self, Visitor},
    protocol::Protocol,
    socket::AdminSocket,
};

/// Connections of operators at a time.
const MAX_CONNECTIONS: usize = 256;

/// What the kernel says of the program at the other end of the unix socket (SO_PEERCRED), as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its effective user id.
    pub uid: u32,
    /// Its process id, for the log.
    pub pid: Option<i32>,
}

impl Caller {
    /// Whether it is root or the coordinator's own user.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.uid == 0 || self.uid == nix::unistd::geteuid().as_raw()
    }
}

/// Accepts on the socket until `shutdown`, then lets requests end.
pub(super) async fn serve(
    socket: AdminSocket,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let listener = socket.listener()?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let accept = async {
        loop {
            let accepted = listener.accept().await;
            let slot = slots.clone().acquire_owned().await;
            match accepted {
                Ok((stream, _)) => {
                    let (routes, watcher) = (routes.clone(), graceful.watcher());
                    tokio::spawn(async move {
                        let _slot = slot;
                        if let Some((caller, protocol, stream)) = open(stream).await {
                            http::serve(stream, protocol, Visitor::Local(caller), routes, watcher).await;
                        }
                    });
                }
                Err(error) => rest(&error).await,
            }
        }
    };
    tokio::select! {
        () = shutdown => {}
        () = accept => {}
    }
    // Its file goes first: whoever comes now shall see that nobody is there.
    drop((listener, socket));
    graceful.shutdown().await;
    Ok(())
}

/// Finds out who is there, and what is spoken.
async fn open(stream: UnixStream) -> Option<(Caller, Protocol, super::Rewound<UnixStream>)> {
    let caller = match stream.peer_cred() {
        Ok(credentials) => Caller { uid: credentials.uid(), pid: credentials.pid() },
        Err(error) => {
            tracing::warn!(event = "local_caller_unknown", %error, "refused a local connection: the kernel does not say whose it is");
            return None;
        }
    };
    match Protocol::tell(stream, None).await {
        Ok((protocol, stream)) => Some((caller, protocol, stream)),
        Err(error) => {
            tracing::debug!(%error, "a local connection ended before it began");
            None
        }
    }
}
