//! The proof by an API key: `authorization: Bearer meshkey1_...` (RFC 6750).

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use http::{HeaderMap, header::AUTHORIZATION};

use super::Pass;
use crate::{
    coordinator::Coordinator,
    error::Refused,
    network::api_keys::{Credential, Denied},
    server::Connection,
};

/// Finds out who sent a request by the API key in its headers. Takes the key out of them: nobody behind this needs it.
pub(crate) fn pass_of(
    coordinator: &Coordinator,
    connection: &Connection,
    headers: &mut HeaderMap,
) -> Result<Pass, Refused> {
    let credential = credential(headers);
    headers.remove(AUTHORIZATION);
    let now = coordinator.now();
    coordinator.watched(connection, || {
        let credential = credential?;
        let pass = coordinator.with_registry(|registry| {
            let key = registry.api_key(&credential, now)?;
            Ok::<_, Denied>(Pass::of_key(credential.id(), key))
        })?;
        coordinator.note_use(credential.id(), now);
        Ok(pass)
    })
}

/// What the caller sent as his credential. Something else than an API key is refused as a wrong one is.
fn credential(headers: &HeaderMap) -> Result<Credential, Refused> {
    let mut values = headers.get_all(AUTHORIZATION).into_iter();
    match (values.next(), values.next()) {
        (None, _) => Err(Refused::CredentialMissing),
        (Some(only), None) => {
            bearer(only.as_bytes()).and_then(Credential::parse).ok_or(Refused::Credential(Denied::Invalid))
        }
        (Some(_), Some(_)) => Err(Refused::Credential(Denied::Invalid)),
    }
}

/// The credential of an `authorization` of the scheme `Bearer`, which is written in any case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, credential) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| credential.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Credential, Refused> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        credential(&headers)
    }

    #[test]
    fn a_bearer_credential_is_read_in_any_case_and_nothing_else_is() {
        let made = Credential::generate();
        let text = made.reveal();
        for scheme in ["Bearer ", "bearer ", "BEARER ", "Bearer   "] {
            assert_eq!(read(&[&format!("{scheme}{}", *text)]).unwrap().id(), made.id(), "{scheme}");
        }
        assert!(matches!(read(&[]), Err(Refused::CredentialMissing)));
        let good = format!("Bearer {}", *text);
        let short = &good[..good.len() - 1];
        let long = format!("{good}A");
        let two = format!("{good}, {good}");
        for bad in ["", "Bearer", "Bearer ", text.as_str(), "Basic dXNlcjpwYXNz", short, &long, &two] {
            assert!(matches!(read(&[bad]), Err(Refused::Credential(Denied::Invalid))), "{bad}");
        }
        assert!(matches!(read(&[&good, &good]), Err(Refused::Credential(Denied::Invalid))), "twice");
    }
}
