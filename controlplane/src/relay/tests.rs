//! What the relay is told, and what becomes of it when it ends by itself.

use ringmesh_relay::Rates;

use super::server_config;
use crate::config::RelayConfig;

#[test]
fn limits_are_in_force_unless_they_are_lifted_expressly() {
    let rates = |config: &RelayConfig| server_config(config, ([127, 0, 0, 1], 1).into()).rates;
    assert_eq!(rates(&RelayConfig::default()), Rates { client: 125_000_000, total: Some(250_000_000) });
    let told = RelayConfig { client_rate_mbit: 8, total_rate_mbit: 80, ..RelayConfig::default() };
    assert_eq!(rates(&told), Rates { client: 1_000_000, total: Some(10_000_000) });
    let lifted = RelayConfig { client_rate_mbit: 0, total_rate_mbit: 0, ..RelayConfig::default() };
    assert_eq!(rates(&lifted).total, None);
}
