//! `meshctl token`: what lets machines in.

use ringmesh_proto::admin::{CreateTokenRequest, CreateTokenResponse, ListTokensRequest, RevokeTokenRequest};

use crate::{
    cli::{NetworkName, seconds},
    connect::Connection,
    failure::{Exit, Failure},
    output::{
        self, Format, now_ms,
        tokens::{Created, Revoked, Tokens},
    },
    remote::CoordinatorAt,
};

/// What can be done with join tokens.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Makes a token and prints it, this once; by default for one node within 24 hours
    Create {
        /// Nodes that join with it are relays: meshctl relay run
        #[arg(long, env = "MESH_TOKEN_RELAY")]
        relay: bool,
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        at: CoordinatorAt,
    },
    /// Lists the tokens and what became of them
    List {
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        at: CoordinatorAt,
    },
    /// Makes a token useless; nodes that joined with it stay
    Revoke {
        /// The token's id, as listed
        id: String,
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        at: CoordinatorAt,
    },
}

/// What a new token allows.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Terms {
    /// How many nodes may join with the token
    #[arg(long, env = "MESH_TOKEN_USES", value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// Any number of nodes may join with it
    #[arg(long, env = "MESH_TOKEN_REUSABLE", conflicts_with = "uses")]
    reusable: bool,
    /// How long it can be used: 90s, 15m, 24h, 7d; a bare number is seconds
    #[arg(long, env = "MESH_TOKEN_TTL", value_name = "TIME", default_value = "24h", value_parser = seconds)]
    ttl: u64,
    /// A tag for the nodes that join with it; may be repeated
    #[arg(long = "tag", env = "MESH_TOKEN_TAGS", value_name = "TAG", value_delimiter = ',')]
    tags: Vec<String>,
    /// Nodes that join with it are forgotten soon after they go offline
    #[arg(long, env = "MESH_TOKEN_EPHEMERAL")]
    ephemeral: bool,
}

/// `meshctl token ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { relay, terms, network, at } => {
            let coordinator = at.open().await?;
            let created = Created::new(create(&coordinator, network.network, terms, relay).await?, false);
            output::note(created.token.terms(now_ms()));
            created.whereto().into_iter().for_each(output::note);
            let command = created.command();
            output::note(format!(
                "the token is shown this once; on the other machine: {command} --token TOKEN"
            ));
            output::result(format, &created)
        }
        Command::List { network: NetworkName { network }, at } => {
            let coordinator = at.open().await?;
            let mut tokens = coordinator.tokens();
            let response = coordinator
                .call("list the tokens", tokens.list_tokens(ListTokensRequest { network }))
                .await?;
            output::result(format, &Tokens::from(response))
        }
        Command::Revoke { id, network: NetworkName { network }, at } => {
            check_id(&id)?;
            let coordinator = at.open().await?;
            let mut tokens = coordinator.tokens();
            let request = RevokeTokenRequest { network, id, ..Default::default() };
            let response = coordinator.call("revoke the token", tokens.revoke_token(request)).await?;
            output::result(format, &Revoked::from(response))
        }
    }
}

/// Asks for a new token on these terms; nodes that join with a `relay`'s are relays.
pub(crate) async fn create(
    coordinator: &Connection,
    network: String,
    terms: Terms,
    relay: bool,
) -> Result<CreateTokenResponse, Failure> {
    let request = CreateTokenRequest {
        network,
        ttl_seconds: terms.ttl,
        max_uses: if terms.reusable { 0 } else { terms.uses },
        reusable: terms.reusable,
        tags: terms.tags,
        ephemeral: terms.ephemeral,
        relay,
        ..Default::default()
    };
    coordinator.call("create a token", coordinator.tokens().create_token(request)).await
}

/// A token's secret is easily pasted where its id belongs.
fn check_id(id: &str) -> Result<(), Failure> {
    if id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "a token is revoked by its id, 16 hex digits")
        .attempt("see the ids with: meshctl token list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_taken_for_its_id() {
        assert_eq!(check_id("00000000000000ff"), Ok(()));
        for id in ["mesh1_AAAA", "", "00000000000000fg", "ff"] {
            assert_eq!(check_id(id).unwrap_err().exit(), Exit::Usage, "{id}");
        }
    }
}
