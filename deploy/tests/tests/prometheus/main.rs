//! What `deploy/prometheus` and `deploy/grafana` ship, judged by Debian's Prometheus and by real daemons.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail as tests do, and say where the time went"
)]

mod alerts;
mod expression;
mod files;
mod scraped;
mod world;
