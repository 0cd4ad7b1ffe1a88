//! What a coordinator takes of the machine before anything else: its ports and the operators' socket.
//!
//! Nothing here needs a runtime or starts a thread. So a process can take a port below 1024, give up every right for good, and only
//! then start the threads that strangers talk to.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use ringmesh_monitor::Monitor;
use ringmesh_relay::Ports;

use crate::{
    config::{Config, USUAL_METRICS},
    relay::{self, RelayError},
    run::StartError,
    server::{self, AdminSocket},
};

/// How many numbers are tried where any would do, to find one that is free for TCP and UDP.
const PORT_TRIES: u32 = 16;

/// A coordinator that has its ports and its socket, and does not serve yet. Dropping it gives them back.
#[derive(Debug)]
pub struct Bound {
    pub(crate) config: Config,
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
    pub(crate) relay: Option<Ports>,
    pub(crate) socket: AdminSocket,
    pub(crate) monitor: Option<Monitor>,
}

/// Takes what `config` asks for, and as many file descriptors as the process may have. To be called before the process has a second thread, if it is to give up rights afterwards.
///
/// # Errors
/// [`StartError`], of the configuration, the ports and the socket.
pub fn bind(config: Config) -> Result<Bound, StartError> {
    config.check()?;
    server::raise_file_limit();
    let (listener, address, relay) = ports(&config)?;
    let socket = AdminSocket::bind(&config.admin_socket)?;
    let monitor = config.metrics.listen.bind(USUAL_METRICS)?;
    Ok(Bound { config, listener, address, relay, socket, monitor })
}

/// Takes the TCP port, and the relay's UDP port, which is the same number unless said otherwise.
fn ports(config: &Config) -> Result<(TcpListener, SocketAddr, Option<Ports>), StartError> {
    let mut tries = 0;
    loop {
        let listener = tcp(config.listen)?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        if !config.relay.enabled {
            return Ok((listener, address, None));
        }
        match relay::bind(&config.relay, config.relay.listen.unwrap_or(address)) {
            Ok(ports) => return Ok((listener, address, Some(ports))),
            // Any number would do, and this one is free for TCP only.
            Err(RelayError::PortTaken { .. })
                if config.listen.port() == 0 && config.relay.listen.is_none() && tries < PORT_TRIES =>
            {
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn tcp(address: SocketAddr) -> Result<TcpListener, StartError> {
    server::listen(address).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            StartError::PortTaken { address }
        } else if source.kind() == io::ErrorKind::PermissionDenied {
            StartError::PortPrivileged { address }
        } else {
            StartError::Listen { address, source }
        }
    })
}
