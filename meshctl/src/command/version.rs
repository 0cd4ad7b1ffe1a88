//! `meshctl version`.

use std::env::consts::{ARCH, OS};

use super::status::{self, Args};
use crate::{
    failure::Failure,
    output::{self, Format, version::Version},
};

/// `meshctl version`. A daemon that is not running or not to be asked is no failure.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let daemon = match args.socket.connect().await {
        Ok(connection) => status::ask(&connection).await.ok().map(|status| status.version),
        Err(_) => None,
    };
    output::result(
        format,
        &Version { version: env!("CARGO_PKG_VERSION"), target: format!("{OS} {ARCH}"), daemon },
    )
}
