//! What a node keeps between starts, in one private directory.
//!
//! | file | holds | if it is lost |
//! |---|---|---|
//! | `identity` | the OpenSSH Ed25519 private key | the node must join again |
//! | `network.json` | which network, which node, where coordinators are | the node must join again |
//! | `map` | the last verified network map | a coordinator sends it again |
//! | `secrets` | the network's secrets and pre-shared keys | a coordinator sends them again |
//! | `timestamps` | the highest handshake timestamp and record serial spent | the clock is trusted instead |
//! | `denials.json` | what the owner denies beyond the policy | what was denied may be allowed again |
//! | `join.json` | a join whose answer may be lost | the key alone makes a repeated join the same one |
//! | `undo.json` | what was changed on the machine and outlives a kill | `meshctl cleanup` finds the block in the hosts file by its interface; a record of resolvconf is to be removed by hand |
//!
//! A file that cannot be understood is never overwritten: identity, membership and denials stop the daemon with the cure, the others are
//! moved aside under a name that says so.

mod directory;
mod identity;
mod membership;
mod pending;
mod secrets;
mod timestamps;

pub(crate) use self::directory::{StateDir, StateFile};
pub(crate) use self::identity::Identity;
pub(crate) use self::membership::{Membership, Standing};
pub(crate) use self::pending::PendingJoin;
pub(crate) use self::secrets::Secrets;
pub(crate) use self::timestamps::TIMESTAMP_RENEWAL;
pub(crate) use self::timestamps::Timestamps;
