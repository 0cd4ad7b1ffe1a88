//! `boringtun-cli`, Cloudflare's user-space WireGuard.

use std::path::Path;

use anyhow::Result;

use super::{Daemons, Up, wireguard};
use crate::ground::Laid;

pub(super) fn set_up(laid: &Laid, program: &Path, daemons: &mut Daemons) -> Result<Up> {
    wireguard::set_up(laid, wireguard::version(program)?, daemons, |host| {
        let mut daemon = host.command(program)?;
        // It may not give up rights that a sandbox does not have twice.
        daemon.args(["--foreground", "--disable-drop-privileges", wireguard::INTERFACE]);
        Ok(daemon)
    })
}
