//! Counting requests by method and by how they ended, in front of all services.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use ringmesh_proto::access;
use tonic::{
    Code, Status,
    body::Body,
    service::{AxumRouter, Routes},
};
use tower::{Service, ServiceExt as _};

use crate::error::code_name;

/// What a method is called that is not ours.
const OTHER: &str = "other";

/// Requests by method and code. As many rows as there are methods of ours, times the codes there are; all else is one method.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(Arc<Mutex<BTreeMap<(&'static str, &'static str), u64>>>);

impl Requests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(&'static str, &'static str), u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, method: &'static str, code: Code) {
        *self.lock().entry((method, code_name(code))).or_default() += 1;
    }

    /// Method, code and how many.
    pub(super) fn rows(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.lock().iter().map(|((method, code), count)| (*method, *code, *count)).collect()
    }
}

/// `Service/Method` of a path of ours, which is what its label says.
fn method(path: &str) -> &'static str {
    let known = access::METHODS.iter().map(|method| method.path).find(|known| *known == path);
    let short = known.and_then(|path| path.split('/').next_back().zip(path.rsplit('.').next()));
    short.map_or(OTHER, |(_, short)| short)
}

/// The services behind it, whose requests are counted.
#[derive(Debug, Clone)]
pub(crate) struct Counting<S> {
    services: S,
    requests: Requests,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl Counting<Routes> {
    /// `services` with the counting in front: nothing leads past it.
    pub(crate) fn before(services: Routes, requests: &Requests) -> Routes {
        let counting = Self { services, requests: requests.clone() };
        AxumRouter::new()
            .fallback_service(counting.map_request(|request: Request<_>| request.map(Body::new)))
            .into()
    }
}

impl<S> Service<Request<Body>> for Counting<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S::Error> {
        // Dropped before there is an answer, it counts as cancelled.
        let mut open =
            Open { requests: self.requests.clone(), method: method(request.uri().path()), code: None };
        let answer = self.services.call(request);
        Box::pin(async move {
            let response = answer.await?;
            open.code = ended(response.headers()).or_else(|| of_http(response.status()));
            Ok(response.map(|body| Body::new(Counted { body, open })))
        })
    }
}

/// The code that headers or trailers say a request ended with.
fn ended(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// What an answer without a gRPC status means; `None`: its trailers will tell.
fn of_http(status: StatusCode) -> Option<Code> {
    match status {
        StatusCode::OK => None,
        StatusCode::NOT_FOUND => Some(Code::Unimplemented),
        _ => Some(Code::Unknown),
    }
}

/// A request whose end is awaited.
#[derive(Debug)]
struct Open {
    requests: Requests,
    method: &'static str,
    code: Option<Code>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.requests.count(self.method, self.code.unwrap_or(Code::Cancelled));
    }
}

/// The body of an answer, in whose trailers the code may be. What maps frames for anybody (`http_body_util`) would hide how long it is.
#[derive(Debug)]
struct Counted {
    body: Body,
    open: Open,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.open.code = self.open.code.or_else(|| ended(trailers));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_of_ours_is_named_and_any_other_is_not() {
        assert_eq!(method("/ringmesh.control.v1.ControlService/Sync"), "ControlService/Sync");
        assert_eq!(method("/grpc.health.v1.Health/Check"), OTHER);
        assert_eq!(method("/ringmesh.control.v1.ControlService/Sync2"), OTHER);
        assert_eq!(method(""), OTHER);
        let mut names: Vec<_> = access::METHODS.iter().map(|known| method(known.path)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), access::METHODS.len(), "each has a label of its own");
        assert!(!names.contains(&OTHER));
    }

    fn answered(requests: &Requests, response: Response<Body>) -> Response<Body> {
        let mut response = Some(response);
        let services = tower::service_fn(move |_: Request<Body>| {
            let response = response.take().unwrap();
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let request = Request::get("/ringmesh.control.v1.ControlService/Sync").body(Body::empty()).unwrap();
        let mut counting = Counting { services, requests: requests.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(counting.call(request)).unwrap()
    }

    /// A body of these frames.
    struct Frames(std::collections::VecDeque<Frame<Bytes>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    #[test]
    fn a_request_counts_once_when_its_answer_ends() {
        let requests = Requests::default();
        let mut frames = vec![Frame::data(Bytes::from_static(b"x"))];
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, "0".parse().unwrap());
        frames.push(Frame::trailers(trailers));
        let mut response = answered(&requests, Response::new(Body::new(Frames(frames.into()))));
        assert_eq!(requests.rows(), []);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let next = |body: &mut Body| {
            let frame = runtime
                .block_on(std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)));
            frame.is_some()
        };
        while next(response.body_mut()) {}
        drop(response);
        assert_eq!(requests.rows(), [("ControlService/Sync", "ok", 1)]);

        // An answer that ends with its headers has ended.
        let requests = Requests::default();
        drop(answered(&requests, Status::permission_denied("no").into_http()));
        assert_eq!(requests.rows(), [("ControlService/Sync", "permission_denied", 1)]);
        drop(answered(&requests, Response::new(Body::empty())));
        assert!(requests.rows().contains(&("ControlService/Sync", "cancelled", 1)), "no status was said");
    }
}
