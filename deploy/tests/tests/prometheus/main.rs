//! What `deploy/prometheus` and `deploy/grafana` ship, judged by Debian's Prometheus and by real daemons.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod alerts;
mod expression;
mod files;
mod scraped;
mod world;
