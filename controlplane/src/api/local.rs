//! Keeps everybody but operators from every service of the unix socket, health and reflection included.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use crate::{error::Refused, server::Caller};

/// A service for operators. The methods of `admin.v1` check again, by the type of what they call.
#[derive(Debug, Clone)]
pub(super) struct OperatorsOnly<S>(pub(super) S);

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for OperatorsOnly<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let refused = match request.extensions().get::<Caller>() {
            Some(caller) if caller.is_operator() => return Box::pin(self.0.call(request)),
            Some(caller) => Refused::NotOperator { uid: caller.uid },
            None => Refused::NotPermitted,
        };
        tracing::warn!(reason = %refused, "refused a local request");
        Box::pin(async { Ok(Status::from(refused).into_http()) })
    }
}

impl<S: NamedService> NamedService for OperatorsOnly<S> {
    const NAME: &'static str = S::NAME;
}
