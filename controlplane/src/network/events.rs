//! What happened in a network, and who did it: the rows that durable changes write of themselves, and what is kept of them.

use serde::{Deserialize, Serialize};

/// What sort of somebody made a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ActorKind {
    /// A user of the coordinator's machine.
    User,
    /// Whoever holds an API key.
    ApiKey,
    /// A member, about itself.
    Node,
    /// The coordinator, unasked.
    Coordinator,
}

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Actor {
    pub(crate) kind: ActorKind,
    /// Of a user his name, of an API key its id, of a node its id; empty for the coordinator.
    pub(crate) id: String,
    /// For people: a user's name, an API key's name, a node's name.
    pub(crate) name: String,
}

impl Actor {
    /// A user of the coordinator's machine.
    pub(crate) fn user(name: String) -> Self {
        Self { kind: ActorKind::User, id: name.clone(), name }
    }

    /// Whoever holds an API key.
    pub(crate) fn api_key(id: impl ToString, name: impl Into<String>) -> Self {
        Self { kind: ActorKind::ApiKey, id: id.to_string(), name: name.into() }
    }

    /// A member, about itself.
    pub(crate) fn node(id: impl ToString, name: impl Into<String>) -> Self {
        Self { kind: ActorKind::Node, id: id.to_string(), name: name.into() }
    }

    /// The coordinator, unasked.
    pub(crate) fn coordinator() -> Self {
        Self { kind: ActorKind::Coordinator, id: String::new(), name: String::new() }
    }
}

impl ActorKind {
    /// As rows and the API have it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ApiKey => "api-key",
            Self::Node => "node",
            Self::Coordinator => "coordinator",
        }
    }
}
