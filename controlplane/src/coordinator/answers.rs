//! What is answered to those who asked for a change: enough to answer the same again.

use ringmesh_tunnel::key::{NetworkId, NodeId, TokenId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    network::{
        api_keys::{ApiKeyId, ApiKeyRow},
        row::{NodeRow, TokenRow},
    },
    policy::Problem,
    store::Revision,
};

/// A token that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewToken {
    #[serde(with = "text")]
    pub(crate) id: TokenId,
    pub(crate) row: TokenRow,
    /// The text to hand to whoever shall join; it is nowhere else in the clear.
    #[serde(with = "text")]
    pub(crate) text: Secret,
}

/// A token that was revoked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RevokedToken {
    #[serde(with = "text")]
    pub(crate) id: TokenId,
    pub(crate) row: TokenRow,
}

/// A stock device that was added.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewDevice {
    #[serde(with = "text")]
    pub(crate) id: NodeId,
    pub(crate) row: NodeRow,
    /// Base64, as WireGuard has it.
    #[serde(with = "text")]
    pub(crate) psk: Secret,
}

/// A member that was removed, as it was.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RemovedNode {
    #[serde(with = "text")]
    pub(crate) id: NodeId,
    pub(crate) row: NodeRow,
}

/// A network that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewNetwork {
    #[serde(with = "text")]
    pub(crate) id: NetworkId,
}

/// An API key that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewApiKey {
    #[serde(with = "text")]
    pub(crate) id: ApiKeyId,
    pub(crate) row: ApiKeyRow,
    /// What its holder sends; it is nowhere else in the clear.
    #[serde(with = "text")]
    pub(crate) text: Secret,
}

/// An API key that was revoked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RevokedApiKey {
    #[serde(with = "text")]
    pub(crate) id: ApiKeyId,
    pub(crate) row: ApiKeyRow,
}

/// What became of a policy that was to come in force.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AppliedPolicy {
    /// The revision of the policy in force, if that did not change.
    pub(crate) former: Option<Revision>,
    pub(crate) serial: u64,
    pub(crate) warnings: Vec<Problem>,
}

/// A text that is for one reader alone: it cannot be printed, and is wiped when it goes.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    pub(crate) const fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Values of their own text form. The only place where a [`Secret`] is written: into an answer, which is wrapped before it is stored.
mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use zeroize::Zeroizing;

    use super::Secret;

    pub(super) trait Text: Sized {
        fn text(&self) -> Zeroizing<String>;
        fn of(text: &str) -> Option<Self>;
    }

    impl Text for Secret {
        fn text(&self) -> Zeroizing<String> {
            self.0.clone()
        }

        fn of(text: &str) -> Option<Self> {
            Some(Self(Zeroizing::new(text.into())))
        }
    }

    macro_rules! by_display {
        ($($id:ty),+) => {$(
            impl Text for $id {
                fn text(&self) -> Zeroizing<String> {
                    Zeroizing::new(self.to_string())
                }

                fn of(text: &str) -> Option<Self> {
                    text.parse().ok()
                }
            }
        )+};
    }
    by_display!(super::TokenId, super::NodeId, super::NetworkId, super::ApiKeyId);

    pub(super) fn serialize<S: Serializer>(value: &impl Text, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.text())
    }

    pub(super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        T::of(&text).ok_or_else(|| D::Error::custom("not what was written"))
    }
}
