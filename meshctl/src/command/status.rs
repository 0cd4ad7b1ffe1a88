//! `meshctl status` and `meshctl peers`.

use ringmesh_proto::local::{StatusRequest, StatusResponse};

use crate::{
    cli::NodeSocket,
    connect::Connection,
    failure::{Exit, Failure},
    output::{self, Format, peers::Peers, status::Status},
};

/// What is asked of the node daemon without more words.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) socket: NodeSocket,
}

/// A coordinator's word on the map holds for an hour (the expiry of a head); beyond it a map may be behind.
const STALE_MS: u64 = 3_600_000;

/// Asks a running daemon for its status.
pub(crate) async fn ask(connection: &Connection) -> Result<StatusResponse, Failure> {
    connection.call("read the status", connection.local().status(StatusRequest {})).await
}

/// `meshctl status`.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let connection = args.socket.connect().await?;
    let status = ask(&connection).await?;
    let verdict = verdict(&status);
    output::result(format, &Status::from(status))?;
    verdict
}

/// `meshctl peers`.
pub(crate) async fn peers(format: Format, args: Args) -> Result<(), Failure> {
    let connection = args.socket.connect().await?;
    let status = ask(&connection).await?;
    let verdict = verdict(&status);
    output::result(format, &Peers::from(status))?;
    verdict
}

/// Success for a node that has joined and whose map was confirmed within the hour, if ever since its daemon started.
fn verdict(status: &StatusResponse) -> Result<(), Failure> {
    let Some(network) = &status.network else {
        return Err(Failure::new(Exit::NotJoined, "this machine is in no network")
            .attempt("meshctl join --token TOKEN; make one on the coordinator: meshctl token create"));
    };
    if status.state == "removed" {
        return Err(Failure::new(Exit::NotJoined, "this node was removed from its network").attempt(
            "meshctl leave, which clears what is left of it; then join again with a new token, if it shall",
        ));
    }
    if status.state == "expired" {
        return Err(Failure::new(Exit::NotJoined, "this node's membership has ended; it reaches nobody").attempt(
            "look at the coordinator, which renews it once it is reached; or whether this machine's clock is right",
        ));
    }
    match network.map_age_ms {
        Some(age) if age > STALE_MS => Err(Failure::new(Exit::NotJoined, "the network map is stale")
            .cause(format!("no coordinator confirmed it for {}", output::table::span(age)))
            .attempt("look at the coordinator; traffic goes on as the map says until its records expire")),
        Some(_) | None => Ok(()),
    }
}

/// Fails for a node that was removed from its network.
pub(crate) fn not_removed(status: &StatusResponse) -> Result<(), Failure> {
    if status.state != "removed" {
        return Ok(());
    }
    Err(Failure::new(Exit::NotJoined, "this node was removed from its network").attempt(
        "meshctl leave, which clears what is left of it; then join again with a new token, if it shall",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmesh_proto::local::Network;

    fn status(map_age_ms: Option<u64>) -> StatusResponse {
        StatusResponse {
            network: Some(Network { map_age_ms, ..Network::default() }),
            ..StatusResponse::default()
        }
    }

    #[test]
    fn a_map_unconfirmed_for_over_an_hour_is_stale() {
        assert_eq!(verdict(&status(Some(STALE_MS))), Ok(()));
        assert_eq!(verdict(&status(None)), Ok(()));
        assert_eq!(verdict(&status(Some(STALE_MS + 1))).unwrap_err().exit(), Exit::NotJoined);
    }

    #[test]
    fn a_removed_node_is_no_member_however_fresh_its_map() {
        let removed = StatusResponse { state: "removed".to_owned(), ..status(Some(0)) };
        let failure = verdict(&removed).unwrap_err();
        assert_eq!(failure.exit(), Exit::NotJoined);
        assert!(failure.to_string().contains("meshctl leave"), "{failure}");
    }

    #[test]
    fn a_node_whose_membership_has_ended_is_not_well_however_fresh_its_map() {
        let expired = StatusResponse { state: "expired".to_owned(), ..status(Some(0)) };
        assert_eq!(verdict(&expired).unwrap_err().exit(), Exit::NotJoined);
        let waits = StatusResponse { state: "no-key".to_owned(), ..status(Some(0)) };
        assert_eq!(verdict(&waits), Ok(()), "keys are on their way");
    }

    #[test]
    fn a_machine_in_no_network_has_not_joined() {
        assert_eq!(verdict(&StatusResponse::default()).unwrap_err().exit(), Exit::NotJoined);
    }
}
