//! `network.json`: which network this node belongs to. Readable by people, because they will have to judge it.

use ringmesh_tunnel::{
    ip::Prefix,
    key::{IdentityKey, NetworkId, NodeId},
};
use serde::{Deserialize, Serialize};

use super::directory::{StateDir, StateFile};
use crate::error::Failure;

/// The format written today; a greater one is of a newer program.
const VERSION: u32 = 1;

/// How the node stands to its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Standing {
    /// It belongs to it.
    Member,
    /// A coordinator said that it was removed; it keeps quiet until `leave`.
    Removed,
}

/// What enrolment gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The network.
    pub(crate) network: NetworkId,
    /// The key that vouches for everything in it.
    pub(crate) root: IdentityKey,
    /// This node.
    pub(crate) node: NodeId,
    /// The network's name, for people.
    pub(crate) network_name: String,
    /// The DNS zone of node names.
    pub(crate) zone: String,
    /// The pool that holds every node's IPv4 address, if the network has one.
    pub(crate) ipv4_pool: Option<Prefix>,
    /// Where coordinators can be reached, `host:port`, best first.
    pub(crate) coordinators: Vec<String>,
    /// Member, or removed.
    pub(crate) standing: Standing,
}

/// The same, as written.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    v: u32,
    standing: Standing,
    network: String,
    root: String,
    node: String,
    network_name: String,
    zone: String,
    ipv4_pool: Option<String>,
    coordinators: Vec<String>,
}

impl Membership {
    /// Reads the membership; `None` if the node has not joined.
    ///
    /// # Errors
    /// The file is corrupt or of a newer version; it is left as it is.
    pub(crate) fn load(state: &StateDir) -> Result<Option<Self>, Failure> {
        let Some(content) = state.read(StateFile::Network)? else { return Ok(None) };
        Self::parse(&content).map(Some).map_err(|why| {
            let path = state.path_of(StateFile::Network);
            let path = path.display();
            Failure::corrupt(format!(
                "the membership in {path} cannot be used ({why}); restore it from a backup, or give the membership up: \
                 `mv {path} {path}.broken`, then join again"
            ))
        })
    }

    /// Writes the membership.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn save(&self, state: &StateDir) -> Result<(), Failure> {
        state.write(StateFile::Network, self.emit().as_bytes())
    }

    fn emit(&self) -> String {
        let file = File {
            v: VERSION,
            standing: self.standing,
            network: self.network.to_string(),
            root: hex(self.root.as_bytes()),
            node: self.node.to_string(),
            network_name: self.network_name.clone(),
            zone: self.zone.clone(),
            ipv4_pool: self.ipv4_pool.map(|pool| pool.to_string()),
            coordinators: self.coordinators.clone(),
        };
        serde_json::to_string_pretty(&file).expect("invariant: strings and numbers are always JSON")
    }

    fn parse(content: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if file.v != VERSION {
            return Err(format!("its version is {}, this program knows {VERSION}", file.v));
        }
        let root = unhex(&file.root).ok_or("`root` is not 64 hex digits")?;
        let root = IdentityKey::from_bytes(root).map_err(|error| format!("`root`: {error}"))?;
        let network: NetworkId = file.network.parse().map_err(|error| format!("`network`: {error}"))?;
        if network != NetworkId::of_root(&root) {
            return Err("`network` does not belong to `root`".to_owned());
        }
        let ipv4_pool = file.ipv4_pool.map(|pool| pool.parse::<Prefix>()).transpose();
        Ok(Self {
            network,
            root,
            node: file.node.parse().map_err(|error| format!("`node`: {error}"))?,
            network_name: file.network_name,
            zone: file.zone,
            ipv4_pool: ipv4_pool.map_err(|error| format!("`ipv4_pool`: {error}"))?,
            coordinators: file.coordinators,
            standing: file.standing,
        })
    }

    /// The pools that the host routes into the tunnel. The one for IPv6 follows from the network's id, which nobody else can
    /// choose.
    pub(crate) fn pools(&self) -> impl Iterator<Item = Prefix> {
        self.ipv4_pool.into_iter().chain([self.network.ula()])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use ringmesh_tunnel::key::IdentitySecret;

    use super::*;

    pub(crate) fn example() -> Membership {
        let root = IdentitySecret::from_seed([7; 32]).public_key();
        Membership {
            network: NetworkId::of_root(&root),
            root,
            node: NodeId::from_bytes([1, 2, 3, 4, 5, 6, 7, 8]),
            network_name: "lab".to_owned(),
            zone: "mesh".to_owned(),
            ipv4_pool: Some("100.64.0.0/10".parse().unwrap()),
            coordinators: vec!["192.0.2.1:443".to_owned()],
            standing: Standing::Member,
        }
    }

    #[test]
    fn a_membership_survives_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        assert!(Membership::load(&state).unwrap().is_none());
        let membership = example();
        membership.save(&state).unwrap();
        assert_eq!(Membership::load(&state).unwrap().unwrap(), membership);
    }

    #[test]
    fn a_corrupt_membership_is_named_with_its_cure_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let good = example().emit();
        for (broken, why) in [
            (good[..good.len() / 2].to_owned(), "EOF"),
            (good.replace("\"v\": 1", "\"v\": 9"), "version is 9"),
            (good.replace("\"root\": \"", "\"root\": \"zz"), "64 hex digits"),
            (good.replace("\"network\": \"", "\"network\": \"0"), "network"),
            (good.replace("100.64.0.0/10", "100.64.0.0/99"), "ipv4_pool"),
            (String::new(), "EOF"),
        ] {
            state.write(StateFile::Network, broken.as_bytes()).unwrap();
            let failure = Membership::load(&state).unwrap_err();
            let text = failure.to_string();
            assert!(
                text.contains("network.json") && text.contains("mv ") && text.contains(why),
                "{why}: {text}"
            );
            assert_eq!(failure.code(), tonic::Code::DataLoss);
            assert_eq!(state.read(StateFile::Network).unwrap().unwrap().as_slice(), broken.as_bytes());
        }
    }

    #[test]
    fn the_ipv6_pool_is_the_networks_own_whatever_the_file_says() {
        let membership = example();
        let text = membership.emit().replace("{\n", "{\n  \"ipv6_pool\": \"2000::/3\",\n");
        let read = Membership::parse(text.as_bytes()).unwrap();
        let pools: Vec<_> = read.pools().collect();
        assert_eq!(pools, ["100.64.0.0/10".parse().unwrap(), membership.network.ula()]);
    }

    #[test]
    fn another_networks_id_is_noticed() {
        let mut membership = example();
        membership.network = NetworkId::from_bytes([9; 16]);
        let why = Membership::parse(membership.emit().as_bytes()).unwrap_err();
        assert!(why.contains("does not belong"), "{why}");
    }
}
