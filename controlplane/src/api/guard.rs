//! The one place where it is decided whether a request goes through: in front of all services of a listener, before any of the
//! request's body is read, by the rule of the method and what the caller proves.
//!
//! | listener | who asks | may call |
//! |---|---|---|
//! | unix socket | root and the coordinator's own user, by the kernel | everything that is served there |
//!
//! A method without a rule is refused, whoever asks. What goes through carries a [`Pass`], of which handlers make their proofs.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use ringmesh_proto::access::{self, Access};
use tonic::{
    Status,
    body::Body,
    service::{AxumRouter, Routes},
};
use tower::{Service, ServiceExt as _};

use crate::{auth::Pass, error::Refused, server::Caller};

/// Methods of others that we serve, by the beginning of their paths.
const FOREIGN: [(&str, Access); 3] = [
    ("/grpc.health.v1.Health/", Access::Anybody),
    ("/grpc.reflection.v1.ServerReflection/", Access::ReadOnly),
    ("/grpc.reflection.v1alpha.ServerReflection/", Access::ReadOnly),
];

/// Who may call a method; `None`: nobody, for it has no rule.
fn rule(path: &str) -> Option<Access> {
    let foreign = || FOREIGN.iter().find(|(service, _)| path.starts_with(service)).map(|(_, access)| *access);
    access::of(path).or_else(foreign)
}

/// The services behind it, for those who may call them.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    services: Routes,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Guard {
    /// `services` with the guard in front: nothing leads past it.
    pub(super) fn before(services: Routes) -> Routes {
        let guard = Self { services };
        AxumRouter::new()
            .fallback_service(guard.map_request(|request: Request<_>| request.map(Body::new)))
            .into()
    }

    fn check(request: &mut Request<Body>) -> Result<(), Status> {
        let pass = match request.extensions().get::<Caller>() {
            Some(caller) => Pass::of_user(caller)?,
            None => return Err(Refused::NotPermitted.into()),
        };
        rule(request.uri().path()).ok_or_else(|| Status::unimplemented("there is no such method here"))?;
        request.extensions_mut().insert(pass);
        Ok(())
    }
}

impl Service<Request<Body>> for Guard {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.services, cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        match Self::check(&mut request) {
            Ok(()) => Box::pin(self.services.call(request)),
            Err(refused) => Box::pin(async move { Ok(refused.into_http()) }),
        }
    }
}
