//! Requests that change something, and may be named by their callers so that a repeat does nothing more.

use prost::Message;
use ringmesh_proto::admin as proto;
use sha2::{Digest as _, Sha256};

use crate::{
    error::Refused,
    network::requests::{Request, check_id},
};

/// A request that changes something.
pub(super) trait Changing: Message + Clone {
    /// As `/package.Service/Method`.
    const METHOD: &'static str;

    /// The id that the caller chose; empty: none.
    fn id(&mut self) -> &mut String;
}

macro_rules! changing {
    ($($request:ident: $service:literal / $method:literal),+ $(,)?) => {$(
        impl Changing for proto::$request {
            const METHOD: &'static str = concat!("/ringmesh.admin.v1.", $service, "/", $method);

            fn id(&mut self) -> &mut String {
                &mut self.request_id
            }
        }
    )+

        /// All of them.
        #[cfg(test)]
        const METHODS: &[&str] = &[$(proto::$request::METHOD),+];
    };
}

changing! {
    CreateNetworkRequest: "NetworkService" / "CreateNetwork",
    RemoveNodeRequest: "NodeService" / "RemoveNode",
    AddStockDeviceRequest: "NodeService" / "AddStockDevice",
    CreateTokenRequest: "TokenService" / "CreateToken",
    RevokeTokenRequest: "TokenService" / "RevokeToken",
    CreateApiKeyRequest: "ApiKeyService" / "CreateApiKey",
    RevokeApiKeyRequest: "ApiKeyService" / "RevokeApiKey",
    ApplyPolicyRequest: "PolicyService" / "ApplyPolicy",
    RollbackPolicyRequest: "PolicyService" / "RollbackPolicy",
}

/// The name of a request, if its caller gave it one, with what tells it from another request.
pub(super) fn named<R: Changing>(request: &R) -> Result<Option<Request>, Refused> {
    let mut content = request.clone();
    let id = std::mem::take(content.id());
    if id.is_empty() {
        return Ok(None);
    }
    check_id(&id).map_err(Refused::field("request_id"))?;
    Ok(Some(Request { id, method: R::METHOD, content: Sha256::digest(content.encode_to_vec()).into() }))
}

#[cfg(test)]
mod tests {
    use ringmesh_proto::access::{self, Access};

    use super::*;

    #[test]
    fn every_method_that_an_operator_alone_may_call_can_be_repeated_but_those_that_only_look() {
        let looking = ["/ringmesh.admin.v1.ApiKeyService/ListApiKeys"];
        let ours = access::METHODS.iter().filter(|method| method.path.starts_with("/ringmesh.admin.v1."));
        let mut changing: Vec<&str> =
            ours.filter(|method| method.access == Access::Operator).map(|method| method.path).collect();
        changing.retain(|path| !looking.contains(path));
        let mut known = METHODS.to_vec();
        known.sort_unstable();
        changing.sort_unstable();
        assert_eq!(changing, known);
    }

    #[test]
    fn a_request_is_told_from_others_by_its_content_and_not_by_its_id() {
        let request = |id: &str, most| {
            let request =
                proto::CreateTokenRequest { max_uses: most, request_id: id.into(), ..Default::default() };
            named(&request).unwrap()
        };
        assert_eq!(request("", 1), None);
        let first = request("a", 1).unwrap();
        assert_eq!((first.id.as_str(), first.content), ("a", request("b", 1).unwrap().content));
        assert_ne!(first.content, request("a", 2).unwrap().content);
        assert_eq!(first.method, "/ringmesh.admin.v1.TokenService/CreateToken");
    }

    #[test]
    fn an_id_is_short_and_plain() {
        let of = |id: String| named(&proto::RevokeTokenRequest { request_id: id, ..Default::default() });
        assert!(of("x".repeat(64)).is_ok() && of("2026-11-20_ci.Run-7".into()).is_ok());
        for bad in ["x".repeat(65), "a b".into(), "a/b".into(), "ä".into(), "a\n".into()] {
            let refused = of(bad).unwrap_err();
            assert!(matches!(refused, Refused::Field { field: "request_id", .. }), "{refused:?}");
        }
    }
}
