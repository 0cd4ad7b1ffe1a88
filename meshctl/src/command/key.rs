//! `meshctl key`: by what automation may ask a coordinator.

use ringmesh_proto::admin::{ApiKeyRole, CreateApiKeyRequest, ListApiKeysRequest, RevokeApiKeyRequest};

use crate::{
    cli::seconds,
    failure::{Exit, Failure},
    output::{
        self, Format,
        keys::{Created, Keys, Revoked},
        now_ms,
    },
    remote::CoordinatorAt,
};

/// What can be done with API keys.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Makes a key and prints it, this once; by default it may look and change nothing, for 90 days
    Create {
        /// What it is for: it stands in lists and in the history
        #[arg(long, env = "MESH_KEY_NAME", value_name = "NAME")]
        name: String,
        /// What its holder may do
        #[arg(long, env = "MESH_KEY_ROLE", value_enum, default_value_t)]
        role: Role,
        /// How long it can be used: 15m, 24h, 90d, at most 366d; a bare number is seconds
        #[arg(long, env = "MESH_KEY_TTL", value_name = "TIME", default_value = "90d", value_parser = seconds)]
        ttl: u64,
        #[command(flatten)]
        network: OneNetwork,
        #[command(flatten)]
        at: CoordinatorAt,
    },
    /// Lists the keys and when each was used last
    List {
        #[command(flatten)]
        at: CoordinatorAt,
    },
    /// Makes a key useless, and ends what is being watched with it
    Revoke {
        /// The key's id, as listed
        id: String,
        #[command(flatten)]
        at: CoordinatorAt,
    },
}

/// Which network a key is for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OneNetwork {
    /// The one network that the key is for [default: all, and what belongs to none]
    #[arg(
        short,
        long,
        env = "MESH_NETWORK",
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    network: String,
}

/// What the holder of a key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// What changes nothing
    #[default]
    ReadOnly,
    /// Everything
    Operator,
}

/// `meshctl key ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { name, role, ttl, network: OneNetwork { network }, at } => {
            let role = match role {
                Role::ReadOnly => ApiKeyRole::ReadOnly,
                Role::Operator => ApiKeyRole::Operator,
            };
            let request = CreateApiKeyRequest {
                name,
                role: role.into(),
                network,
                ttl_seconds: ttl,
                ..Default::default()
            };
            let coordinator = at.open().await?;
            let response =
                coordinator.call("create an API key", coordinator.keys().create_api_key(request)).await?;
            let created = Created::from(response);
            output::note(created.key.terms(now_ms()));
            output::note("the key is shown this once; elsewhere: meshctl --server HOST --api-key file:PATH");
            output::result(format, &created)
        }
        Command::List { at } => {
            let coordinator = at.open().await?;
            let response = coordinator
                .call("list the API keys", coordinator.keys().list_api_keys(ListApiKeysRequest {}))
                .await?;
            output::result(format, &Keys::from(response))
        }
        Command::Revoke { id, at } => {
            check_id(&id)?;
            let coordinator = at.open().await?;
            let request = RevokeApiKeyRequest { id, ..Default::default() };
            let response =
                coordinator.call("revoke the API key", coordinator.keys().revoke_api_key(request)).await?;
            output::result(format, &Revoked::from(response))
        }
    }
}

/// A key's secret is easily pasted where its id belongs.
fn check_id(id: &str) -> Result<(), Failure> {
    if id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "an API key is revoked by its id, 16 hex digits")
        .attempt("see the ids with: meshctl key list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_taken_for_its_id() {
        assert_eq!(check_id("00000000000000ff"), Ok(()));
        for id in ["meshkey1_AAAA", "", "00000000000000fg", "00000000000000FF", "ff"] {
            assert_eq!(check_id(id).unwrap_err().exit(), Exit::Usage, "{id}");
        }
    }
}
