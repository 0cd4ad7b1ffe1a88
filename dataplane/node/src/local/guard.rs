//! Who may call what of the local API: by the rule of each method, which stands in its description, and before anything of a request
//! is read.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use ringmesh_proto::{
    access::{self, Access},
    control::Reason,
};
use tonic::{Status, body::Body, transport::server::UdsConnectInfo};
use tower::Service;

use crate::error::Failure;

/// Services behind it, for those who may call them.
#[derive(Debug, Clone)]
pub(super) struct Guard<S> {
    services: S,
}

impl<S> Guard<S> {
    pub(super) const fn before(services: S) -> Self {
        Self { services }
    }
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let caller = credentials.map(|credentials| credentials.uid());
        match decide(request.uri().path(), caller, rustix::process::geteuid().as_raw()) {
            Ok(()) => Box::pin(self.services.call(request)),
            Err(refused) => Box::pin(async move { Ok(refused.into_http()) }),
        }
    }
}

/// Whether `caller` may call the method at `path` of the daemon of user `own`. Whoever may open the socket may look.
fn decide(path: &str, caller: Option<u32>, own: u32) -> Result<(), Status> {
    let no_such_method = || Status::unimplemented("meshd has no such method");
    let changes = match access::of(path).ok_or_else(no_such_method)? {
        Access::Anybody | Access::ReadOnly => false,
        // Of the coordinator alone, where a node proves itself; no method builds without a rule.
        Access::Node | Access::Unspecified => return Err(no_such_method()),
        Access::Operator => true,
    };
    let method = path.rsplit('/').next().unwrap_or_default();
    let refused = match caller {
        _ if !changes => return Ok(()),
        Some(uid) if uid == 0 || uid == own => return Ok(()),
        Some(uid) => format!(
            "user {uid} may look here but not change anything ({method}): that is for root and for the daemon's user ({own}); \
             use sudo"
        ),
        None => format!("the system does not say who asks for {method}, so it is refused"),
    };
    Err(Failure::new(Reason::NotPermitted, refused).to_status())
}

#[cfg(test)]
mod tests {
    use ringmesh_proto::access::METHODS;
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    const OWN: u32 = 998;

    #[test]
    fn only_root_and_the_daemons_user_may_change_and_whoever_has_the_socket_may_look() {
        let mut changing = 0;
        for method in METHODS.iter().filter(|method| method.path.starts_with("/ringmesh.local.")) {
            for caller in [Some(0), Some(OWN)] {
                decide(method.path, caller, OWN).unwrap();
            }
            for caller in [Some(1000), None] {
                let decided = decide(method.path, caller, OWN);
                if method.access == Access::ReadOnly {
                    decided.unwrap();
                    continue;
                }
                let refused = decided.unwrap_err();
                assert_eq!(refused.code(), Code::PermissionDenied, "{}", method.path);
                let reason = refused.get_details_error_info().unwrap().reason;
                assert_eq!(reason, Reason::NotPermitted.as_str_name());
                changing += 1;
            }
        }
        assert_eq!(changing, 2 * 4, "joining, leaving, denying and taking that back");
    }

    #[test]
    fn what_has_no_rule_is_refused_whoever_asks() {
        let service = "ringmesh.local.v1.LocalService";
        for path in [&format!("/{service}/Reboot"), &format!("//{service}/Status"), "", "/", "/x/y"] {
            assert_eq!(decide(path, Some(0), OWN).unwrap_err().code(), Code::Unimplemented, "{path}");
        }
        let of_nodes = "/ringmesh.control.v1.ControlService/Enroll";
        assert_eq!(decide(of_nodes, Some(0), OWN).unwrap_err().code(), Code::Unimplemented);
    }
}
