//! `wireguard-go`: the one in PATH, or a newer one.

use std::path::Path;

use anyhow::Result;

use super::{Daemons, Up, wireguard};
use crate::ground::Laid;

pub(super) fn set_up(laid: &Laid, program: &Path, daemons: &mut Daemons) -> Result<Up> {
    wireguard::set_up(laid, wireguard::version(program)?, daemons, |host| {
        let mut daemon = host.command(program)?;
        // In the foreground, without the banner that recommends the kernel module.
        daemon.arg(wireguard::INTERFACE).env("WG_PROCESS_FOREGROUND", "1").env("LOG_LEVEL", "error");
        Ok(daemon)
    })
}
