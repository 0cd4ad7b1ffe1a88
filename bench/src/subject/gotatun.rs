//! `gotatun-cli`, Mullvad's user-space WireGuard, which descends from boringtun.

use std::path::Path;

use anyhow::Result;

use super::{Daemons, Up, wireguard};
use crate::ground::Laid;

pub(super) fn set_up(laid: &Laid, program: &Path, daemons: &mut Daemons) -> Result<Up> {
    wireguard::set_up(laid, wireguard::version(program)?, daemons, |host| {
        let mut daemon = host.command(program)?;
        daemon.args(["--foreground", "--disable-drop-privileges", wireguard::INTERFACE]);
        Ok(daemon)
    })
}
