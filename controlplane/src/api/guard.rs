//! The one place where it is decided whether a request goes through: in front of all services of a listener, before any of the
//! request's body is read, by the rule of the method and what the caller proves.
//!
//! | listener | who asks | may call |
//! |---|---|---|
//! | unix socket | root and the coordinator's own user, by the kernel | everything that is served there |
//! | TCP | anybody | what is for anybody; what is for nodes, which checks the proof in the request itself |
//! | | whoever holds an API key | besides, what its role allows |
//!
//! A method without a rule is refused, whoever asks. What goes through to a service for operators carries a [`Pass`], of which
//! handlers make their proofs. While a request with a good API key is open, its connection is no stranger's; when the key ends, its
//! streams do.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use ringmesh_proto::access::{self, Access};
use tonic::{
    Status,
    body::Body,
    service::{AxumRouter, Routes},
};
use tower::{Service, ServiceExt as _};

use super::{
    granted::{Grant, Granted, watch},
    refusals::{Asker, Refusals},
};
use crate::{
    auth::{Pass, pass_of},
    coordinator::Coordinator,
    error::Refused,
    server::{self, Admission, Connection, REQUEST_TIMEOUT},
};

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
    coordinator: Coordinator,
    services: Routes,
    refusals: Arc<Refusals>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// How a request goes through.
enum Entry {
    /// Without having proved anything here.
    Open,
    /// As somebody of this machine.
    User(Pass),
    /// By an API key, which lifts the bounds for strangers from the connection.
    Key(Pass, Admission),
}

impl Guard {
    /// `services` with the guard in front: nothing leads past it.
    pub(super) fn before(services: Routes, coordinator: &Coordinator) -> Routes {
        let guard = Self { coordinator: coordinator.clone(), services, refusals: Arc::default() };
        AxumRouter::new()
            .fallback_service(guard.map_request(|request: Request<_>| request.map(Body::new)))
            .into()
    }

    /// Decides, and leaves in the request what handlers make their proofs of. Tells `asker` who he is as soon as that is known.
    fn admit(&self, request: &mut Request<Body>, asker: &mut Asker) -> Result<Entry, Status> {
        let entry = if let Some(user) = request.extensions().get::<server::Caller>() {
            Entry::User(Pass::of_user(user)?)
        } else if let Some(connection) = request.extensions().get::<Connection>().cloned() {
            self.admit_remote(&connection, request, asker)?
        } else {
            return Err(Refused::NotPermitted.into());
        };
        match &entry {
            // Its operators may call everything, and what there is no rule for is nothing.
            Entry::User(_) => drop(rule(request.uri().path()).ok_or_else(no_such_method)?),
            Entry::Open | Entry::Key(..) => {}
        }
        if let Entry::User(pass) | Entry::Key(pass, _) = &entry {
            request.extensions_mut().insert(pass.clone());
        }
        Ok(entry)
    }

    fn admit_remote(
        &self,
        connection: &Connection,
        request: &mut Request<Body>,
        asker: &mut Asker,
    ) -> Result<Entry, Status> {
        let access = rule(request.uri().path()).ok_or_else(no_such_method)?;
        let changes = match access {
            Access::Anybody | Access::Node => return Ok(Entry::Open),
            Access::ReadOnly => false,
            Access::Operator => true,
            // No method builds with it.
            Access::Unspecified => return Err(Refused::NotPermitted.into()),
        };
        let pass = pass_of(&self.coordinator, connection, request.headers_mut())?;
        asker.is(&pass);
        if changes && !pass.may_change() {
            return Err(Refused::ReadOnly.into());
        }
        let admission = connection.admit(pass.api_key()).ok_or(Refused::ConnectionEnds)?;
        Ok(Entry::Key(pass, admission))
    }
}

fn no_such_method() -> Status {
    Status::unimplemented("this coordinator has no such method here")
}

impl Service<Request<Body>> for Guard {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.services, cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        let method = access::METHODS.iter().find(|method| method.path == request.uri().path());
        let method = method.map_or("other", |method| method.path);
        let mut asker = Asker::of(request.extensions());
        let refusals = self.refusals.clone();
        let entry = match self.admit(&mut request, &mut asker) {
            Ok(entry) => entry,
            Err(refused) => {
                refusals.note(method, &asker, &refused);
                return Box::pin(async move { Ok(refused.into_http()) });
            }
        };
        let limit = limit(request.headers());
        let answer = tokio::time::timeout(limit, self.services.call(request));
        let coordinator = self.coordinator.clone();
        Box::pin(async move {
            let Ok(answered) = answer.await else {
                return Ok(Status::from(Refused::TooLong).into_http());
            };
            let response = answered?;
            refusals.note_answer(method, &asker, response.headers());
            Ok(match entry {
                Entry::Key(pass, admission) => response.map(|body| {
                    let Some(key) = pass.api_key() else { return body };
                    let (end, taking) = watch(coordinator.api_key_end(key), admission);
                    Body::new(Granted { body, messages: 0, grant: Grant::Holds(end), taking })
                }),
                Entry::Open | Entry::User(_) => response,
            })
        })
    }
}

/// How long a request may take until its answer begins: what the caller says, and no longer than is good for the coordinator.
pub(crate) fn limit(headers: &HeaderMap) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.as_bytes()));
    asked.map_or(REQUEST_TIMEOUT, |asked| asked.min(REQUEST_TIMEOUT))
}

/// Reads a timeout as gRPC has it: at most eight digits and a unit.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number.saturating_mul(3600))),
        b'M' => Some(Duration::from_secs(number.saturating_mul(60))),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;
    use tonic::Code;

    use super::*;
    use crate::{
        auth::{Authed, Steward},
        coordinator::tests::coordinator,
        network::api_keys::{Role, Wish},
    };

    const LIST: &str = "/ringmesh.admin.v1.NodeService/ListNodes";
    const ROOT: server::Caller = server::Caller { uid: 0, pid: None };

    /// A guard before services that answer whatever is asked.
    struct World {
        guard: Routes,
        key: String,
        _directory: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let coordinator = coordinator(directory.path(), false).await;
            let mut by_root = tonic::Request::new(());
            by_root.extensions_mut().insert(Pass::of_user(&ROOT).unwrap());
            let steward = Authed::<Steward>::of(&by_root).unwrap();
            let wish = Wish { name: "ci".into(), role: Role::Operator, network: None, life: Duration::ZERO };
            let made = coordinator.create_api_key(&steward, &wish, None).await.unwrap().value;
            let key = made.text.reveal().to_owned();
            let served = AxumRouter::new().fallback(|| async { Response::new(Body::empty()) });
            let guard = Guard::before(served.into(), &coordinator);
            Self { guard, key, _directory: directory }
        }

        async fn ask(&self, path: &str, by: Asks) -> Response<Body> {
            let mut request = Request::post(path).body(Body::empty()).unwrap();
            match by {
                Asks::User => drop(request.extensions_mut().insert(ROOT)),
                Asks::Stranger | Asks::Key => {
                    drop(request.extensions_mut().insert(Connection::of_stranger()));
                }
            }
            if by == Asks::Key {
                let bearer = format!("Bearer {}", self.key).parse().unwrap();
                request.headers_mut().insert(AUTHORIZATION, bearer);
            }
            self.guard.clone().oneshot(request).await.unwrap()
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Asks {
        User,
        Stranger,
        Key,
    }

    fn refused(headers: &HeaderMap) -> Option<Code> {
        Status::from_header_map(headers).map(|status| status.code())
    }

    #[tokio::test]
    async fn what_is_served_without_a_rule_is_reached_by_nobody() {
        let world = World::new().await;
        for by in [Asks::User, Asks::Stranger, Asks::Key] {
            for path in ["/", "/ringmesh.admin.v1.NodeService/Later", "/grpc.health.v2.Health/Check"] {
                let answer = world.ask(path, by).await;
                assert_eq!(refused(answer.headers()), Some(Code::Unimplemented), "{path} {by:?}");
            }
        }
        for (by, expected) in
            [(Asks::User, None), (Asks::Stranger, Some(Code::Unauthenticated)), (Asks::Key, None)]
        {
            assert_eq!(refused(world.ask(LIST, by).await.headers()), expected, "{by:?}");
        }
    }
}
