//! Queries by UDP.

use std::sync::Arc;
use std::time::Duration;

use tokio::{net::UdpSocket, task::JoinSet, time::sleep};

use super::{
    answering::{Decision, Resolver},
    counters::Refusal,
    message::{QUERY_MAX, Transport},
    server::Machine,
};

/// How long to leave a socket alone that the kernel gives nothing from.
const PAUSE: Duration = Duration::from_millis(10);

/// Answers what comes to `socket`, for ever.
pub(super) async fn serve(socket: UdpSocket, machine: Arc<Machine>, resolver: Arc<Resolver>) {
    let socket = Arc::new(socket);
    // One byte more than may come, so that what is longer is seen to be.
    let mut buffer = vec![0; QUERY_MAX + 1];
    // What waits for resolvers: as many as there are places.
    let mut waiting = JoinSet::new();
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = waiting.join_next(), if !waiting.is_empty() => continue,
        };
        let Ok((len, from)) = received else {
            sleep(PAUSE).await;
            continue;
        };
        if !machine.has(from.ip()) {
            resolver.counters.refused(Refusal::Stranger);
            continue;
        }
        let Some(message) = buffer.get(..len) else { continue };
        let answer = match resolver.decide(message, Transport::Udp) {
            Decision::Silence(_) => continue,
            Decision::Answer(answer, _) => answer,
            Decision::Forward(query) => match resolver.forwarder.place() {
                Ok(place) => {
                    let (socket, resolver) = (Arc::clone(&socket), Arc::clone(&resolver));
                    let message = message.to_vec();
                    waiting.spawn(async move {
                        let reply = resolver.forward(Ok(place), &message, &query, Transport::Udp).await;
                        if socket.send_to(&reply.bytes, from).await.is_err() {
                            resolver.counters.refused(Refusal::Untaken);
                        }
                    });
                    continue;
                }
                refused => resolver.forward(refused, message, &query, Transport::Udp).await.bytes,
            },
        };
        // An asker whose socket is full does not keep the others waiting.
        if socket.try_send_to(&answer, from).is_err() {
            resolver.counters.refused(Refusal::Untaken);
        }
    }
}
