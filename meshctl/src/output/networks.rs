//! `meshctl network list`.

use ringmesh_proto::admin;
use serde::Serialize;

use super::{Document, table::Columns};

/// A network that the coordinator serves.
#[derive(Debug, Serialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) root_key: String,
    pub(crate) ipv4_pool: String,
    pub(crate) ipv6_pool: String,
    pub(crate) zone: String,
    pub(crate) revision: u64,
    pub(crate) epoch: u64,
}

/// All of them: `schemas/networks.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Networks {
    pub(crate) networks: Vec<Network>,
}

impl From<admin::ListNetworksResponse> for Networks {
    fn from(response: admin::ListNetworksResponse) -> Self {
        let networks = response
            .networks
            .into_iter()
            .map(|network| Network {
                name: network.name,
                id: network.id,
                root_key: network.root_key,
                ipv4_pool: network.ipv4_pool,
                ipv6_pool: network.ipv6_pool,
                zone: network.zone,
                revision: network.revision,
                epoch: network.epoch,
            })
            .collect();
        Self { networks }
    }
}

impl Document for Networks {
    fn text(&self, _: u64) -> String {
        let mut table = Columns::new(["NETWORK", "ID", "IPV4", "IPV6", "ZONE", "REVISION", "EPOCH"]);
        for network in &self.networks {
            table.row([
                network.name.clone(),
                network.id.clone(),
                network.ipv4_pool.clone(),
                network.ipv6_pool.clone(),
                network.zone.clone(),
                network.revision.to_string(),
                network.epoch.to_string(),
            ]);
        }
        table.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_in_a_table() {
        let networks = Networks::from(admin::ListNetworksResponse {
            networks: vec![admin::Network {
                name: "mesh".to_owned(),
                id: "0123456789abcdef0123456789abcdef".to_owned(),
                root_key: "cm9vdCBrZXkgb2YgdGhlIG5ldHdvcmssIDMyIGJ5dGU=".to_owned(),
                ipv4_pool: "100.64.0.0/10".to_owned(),
                ipv6_pool: "fd12:3456:789a::/48".to_owned(),
                zone: "mesh".to_owned(),
                revision: 14,
                epoch: 2,
            }],
        });
        insta::assert_snapshot!(networks.text(0));
    }
}
