//! `meshctl key create|list|revoke`.

use ringmesh_proto::admin::{self, ApiKeyRole};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::{
    Document,
    table::{Columns, moment},
};

/// An API key without its secret.
#[derive(Debug, Serialize)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) name: String,
    /// `read-only`, `operator`, or `unknown` of a newer coordinator.
    pub(crate) role: &'static str,
    /// `null`: all.
    pub(crate) network: Option<String>,
    pub(crate) created_ms: u64,
    pub(crate) created_by: String,
    pub(crate) expires_ms: u64,
    /// `null`: not since the coordinator started.
    pub(crate) last_used_ms: Option<u64>,
    pub(crate) revoked: bool,
}

impl From<admin::ApiKey> for Key {
    fn from(key: admin::ApiKey) -> Self {
        let role = match key.role() {
            ApiKeyRole::ReadOnly => "read-only",
            ApiKeyRole::Operator => "operator",
            ApiKeyRole::Unspecified => "unknown",
        };
        Self {
            role,
            id: key.id,
            name: key.name,
            network: (!key.network.is_empty()).then_some(key.network),
            created_ms: key.created_ms,
            created_by: key.created_by,
            expires_ms: key.expires_ms,
            last_used_ms: (key.last_used_ms > 0).then_some(key.last_used_ms),
            revoked: key.revoked,
        }
    }
}

impl Key {
    fn state(&self, now: u64) -> &'static str {
        if self.revoked {
            "revoked"
        } else if self.expires_ms <= now {
            "expired"
        } else {
            "valid"
        }
    }

    /// What a person should know of a new key: `API key 5f… (ci): read-only, of all networks, expires in 90 d`.
    pub(crate) fn terms(&self, now: u64) -> String {
        let scope = self
            .network
            .as_ref()
            .map_or_else(|| "all networks".to_owned(), |network| format!("the network {network} alone"));
        let expiry = moment(self.expires_ms, now);
        format!("API key {} ({}): {}, of {scope}, expires {expiry}", self.id, self.name, self.role)
    }
}

/// A new key, the only place where its secret is seen: `schemas/key-created.json`.
#[derive(Serialize)]
pub(crate) struct Created {
    pub(crate) key: Key,
    #[serde(serialize_with = "reveal")]
    pub(crate) secret: Zeroizing<String>,
}

/// Writes a secret into the result that exists to hand it over.
fn reveal<S: Serializer>(secret: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret)
}

impl From<admin::CreateApiKeyResponse> for Created {
    fn from(response: admin::CreateApiKeyResponse) -> Self {
        Self { secret: Zeroizing::new(response.secret), key: Key::from(response.key.unwrap_or_default()) }
    }
}

impl Document for Created {
    fn text(&self, _: u64) -> String {
        format!("{}\n", self.secret.as_str())
    }
}

/// All keys of a coordinator: `schemas/keys.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Keys {
    pub(crate) keys: Vec<Key>,
}

impl From<admin::ListApiKeysResponse> for Keys {
    fn from(response: admin::ListApiKeysResponse) -> Self {
        let mut keys: Vec<Key> = response.keys.into_iter().map(Key::from).collect();
        keys.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        Self { keys }
    }
}

impl Document for Keys {
    fn text(&self, now: u64) -> String {
        if self.keys.is_empty() {
            return "no API key; make one with: meshctl key create --name NAME\n".to_owned();
        }
        let mut table = Columns::new([
            "KEY",
            "NAME",
            "ROLE",
            "NETWORK",
            "STATE",
            "EXPIRES",
            "LAST USED",
            "CREATED",
            "BY",
        ]);
        for key in &self.keys {
            table.row([
                key.id.clone(),
                key.name.clone(),
                key.role.to_owned(),
                key.network.clone().unwrap_or_else(|| "*".to_owned()),
                key.state(now).to_owned(),
                moment(key.expires_ms, now),
                moment(key.last_used_ms.unwrap_or_default(), now),
                moment(key.created_ms, now),
                key.created_by.clone(),
            ]);
        }
        table.text()
    }
}

/// The key that was revoked: `schemas/key-revoked.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Revoked {
    pub(crate) key: Key,
}

impl From<admin::RevokeApiKeyResponse> for Revoked {
    fn from(response: admin::RevokeApiKeyResponse) -> Self {
        Self { key: Key::from(response.key.unwrap_or_default()) }
    }
}

impl Document for Revoked {
    fn text(&self, _: u64) -> String {
        format!("revoked API key {} ({})\n", self.key.id, self.key.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::conforms;

    const NOW: u64 = 1_790_000_000_000;
    const DAY: u64 = 24 * 3_600_000;

    fn key(number: u8) -> admin::ApiKey {
        admin::ApiKey {
            id: format!("00000000000000{number:02x}"),
            name: format!("ci-{number}"),
            role: ApiKeyRole::ReadOnly.into(),
            network: String::new(),
            created_ms: NOW - 3_600_000 * u64::from(number),
            expires_ms: NOW + 90 * DAY,
            revoked: false,
            created_by: "root".to_owned(),
            last_used_ms: 0,
        }
    }

    fn keys() -> admin::ListApiKeysResponse {
        let keys = vec![
            key(1),
            admin::ApiKey { role: ApiKeyRole::Operator.into(), last_used_ms: NOW - 5_000, ..key(2) },
            admin::ApiKey { expires_ms: NOW, network: "lab".to_owned(), ..key(3) },
            admin::ApiKey { revoked: true, created_by: "terraform".to_owned(), ..key(4) },
            admin::ApiKey { role: 99, ..key(5) },
        ];
        admin::ListApiKeysResponse { keys }
    }

    #[test]
    fn keys_of_every_state() {
        insta::assert_snapshot!(Keys::from(keys()).text(NOW));
    }

    #[test]
    fn the_forms_for_programs_are_as_described() {
        conforms("keys", &Keys::from(keys()));
        conforms("keys", &Keys { keys: Vec::new() });
        conforms("key-revoked", &Revoked::from(admin::RevokeApiKeyResponse { key: Some(key(1)) }));
        let secret = format!("meshkey1_{}", "A".repeat(54));
        let created =
            Created::from(admin::CreateApiKeyResponse { key: Some(key(1)), secret: secret.clone() });
        conforms("key-created", &created);
        assert_eq!(created.text(NOW), format!("{secret}\n"), "what a script wants");
    }

    #[test]
    fn a_person_is_told_what_a_new_key_may_do() {
        assert_eq!(
            Key::from(key(1)).terms(NOW),
            "API key 0000000000000001 (ci-1): read-only, of all networks, expires in 90 d"
        );
        let of_lab = admin::ApiKey { network: "lab".to_owned(), ..key(2) };
        assert!(Key::from(of_lab).terms(NOW).contains(", of the network lab alone, "));
        assert_eq!(
            Keys { keys: Vec::new() }.text(NOW),
            "no API key; make one with: meshctl key create --name NAME\n"
        );
    }
}
