//! `meshctl relay clients`, and what `meshctl status` shows on a relay: whom it serves, and what passed.

use std::collections::BTreeMap;

use ringmesh_proto::{admin, local};
use serde::Serialize;

use super::{
    Document,
    path::named,
    table::{Columns, bytes},
};

/// The clients of a coordinator's relay: `schemas/relay-clients.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Clients {
    pub(crate) clients: Vec<Client>,
    pub(crate) relayed_datagrams: u64,
    pub(crate) relayed_bytes: u64,
    pub(crate) drops: BTreeMap<String, u64>,
}

/// A node that the relay serves.
#[derive(Debug, Serialize)]
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) endpoint: String,
    pub(crate) channels: u32,
    pub(crate) from_datagrams: u64,
    pub(crate) from_bytes: u64,
    pub(crate) to_datagrams: u64,
    pub(crate) to_bytes: u64,
    pub(crate) dropped: u64,
    pub(crate) state: String,
}

impl From<admin::ListRelayClientsResponse> for Clients {
    fn from(response: admin::ListRelayClientsResponse) -> Self {
        let mut clients: Vec<Client> = response.clients.into_iter().map(Client::from).collect();
        clients.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Self {
            clients,
            relayed_datagrams: response.relayed_datagrams,
            relayed_bytes: response.relayed_bytes,
            drops: response.drops.into_iter().collect(),
        }
    }
}

impl From<admin::RelayClient> for Client {
    fn from(client: admin::RelayClient) -> Self {
        Self {
            id: client.id,
            name: client.name,
            path: client.path,
            endpoint: client.endpoint,
            channels: client.channels,
            from_datagrams: client.from_datagrams,
            from_bytes: client.from_bytes,
            to_datagrams: client.to_datagrams,
            to_bytes: client.to_bytes,
            dropped: client.dropped,
            state: client.state,
        }
    }
}

impl Document for Clients {
    fn text(&self, _: u64) -> String {
        let mut text = if self.clients.is_empty() { "no client\n".to_owned() } else { self.table() };
        let passed = passed_on(self.relayed_datagrams, self.relayed_bytes, &self.drops);
        text.push_str(&format!("\nrelayed {passed} since it started\n"));
        text
    }
}

/// `34000 datagrams (40.6 MiB), dropped rate 7, unbound 3`.
fn passed_on(datagrams: u64, size: u64, drops: &BTreeMap<String, u64>) -> String {
    let drops = drops.iter().filter(|(_, count)| **count > 0);
    let drops: Vec<String> = drops.map(|(why, count)| format!("{why} {count}")).collect();
    let dropped = if drops.is_empty() { String::new() } else { format!(", dropped {}", drops.join(", ")) };
    format!("{datagrams} datagrams ({}){dropped}", bytes(size))
}

/// What a node that is a relay does: a part of `schemas/status.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Service {
    pub(crate) listen_port: u32,
    pub(crate) websocket_urls: Vec<String>,
    pub(crate) websockets: u32,
    pub(crate) unproven: u32,
    pub(crate) passed_on_datagrams: u64,
    pub(crate) passed_on_bytes: u64,
    pub(crate) drops: BTreeMap<String, u64>,
    pub(crate) pairs: u32,
    pub(crate) clients: Vec<Served>,
}

/// A node that this one serves.
#[derive(Debug, Serialize)]
pub(crate) struct Served {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) path: String,
    pub(crate) endpoint: String,
    pub(crate) channels: u32,
    pub(crate) from_bytes: u64,
    pub(crate) to_bytes: u64,
    pub(crate) dropped: u64,
}

impl From<local::RelayService> for Service {
    fn from(service: local::RelayService) -> Self {
        let mut clients: Vec<Served> = service.clients.into_iter().map(Served::from).collect();
        clients.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Self {
            listen_port: service.listen_port,
            websocket_urls: service.websocket_urls,
            websockets: service.websockets,
            unproven: service.unproven,
            passed_on_datagrams: service.passed_on_datagrams,
            passed_on_bytes: service.passed_on_bytes,
            drops: service.drops.into_iter().collect(),
            pairs: service.pairs,
            clients,
        }
    }
}

impl From<local::RelayClient> for Served {
    fn from(client: local::RelayClient) -> Self {
        Self {
            id: client.id,
            name: client.name,
            state: client.state,
            path: client.path,
            endpoint: client.endpoint,
            channels: client.channels,
            from_bytes: client.from_bytes,
            to_bytes: client.to_bytes,
            dropped: client.dropped,
        }
    }
}

impl Service {
    /// The lines among a relay's facts.
    pub(crate) fn rows(&self, facts: &mut Columns) {
        let pairs = format!("udp port {}, pairs of nodes with a channel: {}", self.listen_port, self.pairs);
        facts.row(["relay".to_owned(), pairs]);
        let urls = match self.websocket_urls.join(", ") {
            urls if urls.is_empty() => "nowhere".to_owned(),
            urls => urls,
        };
        let open = format!("{urls}; {} open, {} unproven", self.websockets, self.unproven);
        facts.row(["websocket".to_owned(), open]);
        let passed = passed_on(self.passed_on_datagrams, self.passed_on_bytes, &self.drops);
        facts.row(["passed on".to_owned(), passed]);
    }

    /// A line for each client.
    pub(crate) fn client_table(&self) -> String {
        let mut table =
            Columns::new(["CLIENT", "ID", "STATE", "PATH", "CHANNELS", "FROM IT", "TO IT", "DROPPED"]);
        for client in &self.clients {
            table.row([
                client.name.clone(),
                client.id.clone(),
                client.state.clone(),
                named(&client.path, "", &client.endpoint),
                client.channels.to_string(),
                bytes(client.from_bytes),
                bytes(client.to_bytes),
                client.dropped.to_string(),
            ]);
        }
        table.text()
    }
}

impl Clients {
    fn table(&self) -> String {
        let mut table =
            Columns::new(["CLIENT", "ID", "STATE", "PATH", "CHANNELS", "FROM IT", "TO IT", "DROPPED"]);
        for client in &self.clients {
            table.row([
                client.name.clone(),
                client.id.clone(),
                client.state.clone(),
                named(&client.path, "", &client.endpoint),
                client.channels.to_string(),
                bytes(client.from_bytes),
                bytes(client.to_bytes),
                client.dropped.to_string(),
            ]);
        }
        table.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{json, tests::conforms};

    fn served() -> admin::ListRelayClientsResponse {
        let client = admin::RelayClient {
            id: "0000000000000001".to_owned(),
            name: "web1".to_owned(),
            path: "udp".to_owned(),
            endpoint: "203.0.113.1:51820".to_owned(),
            channels: 2,
            from_datagrams: 4_000,
            from_bytes: 3_885_116,
            to_datagrams: 30_000,
            to_bytes: 38_759_812,
            dropped: 0,
            state: "here".to_owned(),
        };
        admin::ListRelayClientsResponse {
            // Out of order on purpose: the table sorts by name.
            clients: vec![
                client.clone(),
                admin::RelayClient {
                    id: "0000000000000002".to_owned(),
                    name: "nas".to_owned(),
                    path: "websocket".to_owned(),
                    endpoint: "198.51.100.9:40404".to_owned(),
                    channels: 0,
                    from_datagrams: 30_007,
                    dropped: 7,
                    state: "away".to_owned(),
                    ..client
                },
            ],
            relayed_datagrams: 34_000,
            relayed_bytes: 42_644_928,
            drops: [("unbound".to_owned(), 3), ("rate".to_owned(), 7), ("malformed".to_owned(), 0)].into(),
        }
    }

    #[test]
    fn clients_in_a_table() {
        insta::assert_snapshot!(Clients::from(served()).text(0));
    }

    #[test]
    fn clients_as_json() {
        conforms("relay-clients", &Clients::from(served()));
        insta::assert_snapshot!(json(&Clients::from(served())).unwrap());
    }

    #[test]
    fn a_relay_that_nobody_uses_says_so() {
        let text = Clients::from(admin::ListRelayClientsResponse::default()).text(0);
        assert_eq!(text, "no client\n\nrelayed 0 datagrams (0 B) since it started\n");
    }
}
