//! Who may look, and who may change: what the layer in front of all services finds out about a caller, and the proofs that
//! handlers make of it.

use std::{fmt, sync::Arc};

use ringmesh_tunnel::key::{NetworkId, NodeId};

use super::{Authed, MayRemove};
use crate::{
    error::Refused,
    network::{
        api_keys::{ApiKey, ApiKeyId, Role},
        events::Actor,
    },
    server::Caller,
};

/// What the layer in front of all services found out about a caller. It lies in the extensions of every request that it lets
/// through to a service for operators, and only this module makes one.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    who: Who,
    may_change: bool,
    scope: Scope,
}

#[derive(Debug, Clone)]
enum Who {
    /// Of this machine, by the kernel.
    User { uid: u32 },
    /// Whoever holds an API key.
    Key { id: ApiKeyId, name: Arc<str> },
}

/// What of a coordinator is there for a caller. The rest does not exist for him.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All networks, and what belongs to none.
    Everything,
    /// One network.
    Network(NetworkId),
}

impl Scope {
    /// Whether a network is there for the caller.
    pub(crate) fn has(self, network: NetworkId) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(own) => own == network,
        }
    }
}

impl Pass {
    /// By what the kernel says of the program at the other end of the unix socket.
    pub(crate) fn of_user(caller: &Caller) -> Result<Self, Refused> {
        if !caller.is_operator() {
            return Err(Refused::NotOperator { uid: caller.uid });
        }
        Ok(Self { who: Who::User { uid: caller.uid }, may_change: true, scope: Scope::Everything })
    }

    /// By an API key that was found to be the caller's, and to be good.
    pub(super) fn of_key(id: ApiKeyId, key: &ApiKey) -> Self {
        let scope = key.network.map_or(Scope::Everything, Scope::Network);
        let who = Who::Key { id, name: key.row.name.as_str().into() };
        Self { who, may_change: key.row.role == Role::Operator, scope }
    }

    /// Whether the caller may call a method that is for those who change something.
    pub(crate) const fn may_change(&self) -> bool {
        self.may_change
    }

    /// The API key by which he proved himself.
    pub(crate) const fn api_key(&self) -> Option<ApiKeyId> {
        match &self.who {
            Who::Key { id, .. } => Some(*id),
            Who::User { .. } => None,
        }
    }

    fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Refused> {
        request.extensions().get().ok_or(Refused::NotPermitted)
    }

    async fn actor(&self) -> Actor {
        match &self.who {
            Who::Key { id, name } => Actor::api_key(id, &**name),
            Who::User { uid } => {
                let uid = *uid;
                // A directory service may take its time.
                let asked = tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(uid.into()));
                let user = asked.await.ok().and_then(Result::ok).flatten();
                Actor::user(user.map_or_else(|| format!("uid {uid}"), |user| user.name))
            }
        }
    }
}

/// For the log: `uid 1000`, `API key 00ff0123456789ab (terraform)`.
impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::User { uid } => write!(f, "uid {uid}"),
            Who::Key { id, name } => write!(f, "API key {id} ({name})"),
        }
    }
}

/// Somebody who may look: a user who is an operator, or whoever holds an API key.
#[derive(Debug, Clone)]
pub(crate) struct Reader(Pass);

/// Somebody who may change what he sees.
#[derive(Debug, Clone)]
pub(crate) struct Operator(Pass);

/// An operator of all networks, who may change what belongs to none, too.
#[derive(Debug, Clone)]
pub(crate) struct Steward(Pass);

/// Who may look at what is in his scope.
pub(crate) trait MayLook: Sync {
    /// What is there for him.
    fn scope(&self) -> Scope;

    /// Who he is, for the history. May ask a directory service for a user's name, and so take its time.
    fn actor(&self) -> impl Future<Output = Actor> + Send;
}

macro_rules! may_look {
    ($($proof:ty),+) => {$(
        impl MayLook for $proof {
            fn scope(&self) -> Scope {
                self.0.scope
            }

            async fn actor(&self) -> Actor {
                self.0.actor().await
            }
        }
    )+};
}
may_look!(Reader, Operator, Steward);

impl MayRemove for Operator {
    fn may_remove(&self, network: NetworkId, _: NodeId) -> bool {
        self.scope().has(network)
    }
}

impl Authed<Reader> {
    /// By what the layer in front of all services put into the request.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refused> {
        Pass::of(request).map(|pass| Self { who: Reader(pass.clone()) })
    }
}

impl Authed<Operator> {
    /// By what the layer in front of all services put into the request.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refused> {
        Pass::of(request)?.clone().try_into()
    }
}

impl TryFrom<Pass> for Authed<Operator> {
    type Error = Refused;

    fn try_from(pass: Pass) -> Result<Self, Refused> {
        if pass.may_change { Ok(Self { who: Operator(pass) }) } else { Err(Refused::ReadOnly) }
    }
}

impl Authed<Steward> {
    /// By what the layer in front of all services put into the request.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refused> {
        let Authed { who: Operator(pass) } = Authed::<Operator>::of(request)?;
        match pass.scope {
            Scope::Everything => Ok(Self { who: Steward(pass) }),
            Scope::Network(_) => Err(Refused::NotOfOneNetwork),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NetworkId = NetworkId::from_bytes([1; 16]);

    fn request(may_change: bool, scope: Scope) -> tonic::Request<()> {
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(Pass { who: Who::User { uid: 0 }, may_change, scope });
        request
    }

    #[test]
    fn a_pass_makes_no_proof_of_more_than_it_says() {
        let nothing = tonic::Request::new(());
        assert!(matches!(Authed::<Reader>::of(&nothing), Err(Refused::NotPermitted)));
        for scope in [Scope::Everything, Scope::Network(OWN)] {
            let looking = request(false, scope);
            assert_eq!(Authed::<Reader>::of(&looking).unwrap().who().scope(), scope);
            assert!(matches!(Authed::<Operator>::of(&looking), Err(Refused::ReadOnly)));
            assert!(matches!(Authed::<Steward>::of(&looking), Err(Refused::ReadOnly)));
        }
        let of_one = request(true, Scope::Network(OWN));
        assert!(matches!(Authed::<Steward>::of(&of_one), Err(Refused::NotOfOneNetwork)));
        let (operator, node) = (Authed::<Operator>::of(&of_one).unwrap(), NodeId::from_bytes([3; 8]));
        assert!(operator.who().may_remove(OWN, node));
        assert!(!operator.who().may_remove(NetworkId::from_bytes([2; 16]), node));
        Authed::<Steward>::of(&request(true, Scope::Everything)).unwrap();
    }
}
