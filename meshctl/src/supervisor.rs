//! What systemd hears of a daemon that it runs (sd_notify(3)): that it is ready, how it is, that it lives, that it ends.
//!
//! Where nobody asked for it (`NOTIFY_SOCKET` is not set) all of it is nothing.

use std::{sync::Arc, time::Duration};

use ringmesh_monitor::{Check, Subject};
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How often the line that `systemctl status` shows is made anew.
const LOOK: Duration = Duration::from_secs(15);

/// The daemon's socket answers.
pub(crate) fn tell_ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon was asked to end.
pub(crate) fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}

/// Tells systemd, for as long as it is polled, how the daemon is in a line of `describe`, and that `subject` lives while it does:
/// systemd restarts one of which it does not hear that (`WatchdogSec=`).
pub(crate) async fn keep_told<D: Future<Output = Option<String>>>(
    subject: Arc<dyn Subject>,
    describe: impl Fn() -> D,
) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let described = async {
        let mut told = String::new();
        loop {
            if let Some(line) = describe().await
                && line != told
            {
                tell(&[NotifyState::Status(&line)]);
                told = line;
            }
            sleep(LOOK).await;
        }
    };
    let watched = async {
        match sd_notify::watchdog_enabled() {
            Some(limit) => watch(&*subject, limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(described, watched);
}

/// Asks twice within `limit`, so that one late answer is none too many.
async fn watch(subject: &dyn Subject, limit: Duration) {
    let every = limit / 2;
    let mut turn = interval(every);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut well = true;
    loop {
        turn.tick().await;
        let found = timeout(every, subject.live()).await;
        let trouble = match &found {
            Ok(checks) => troubles(checks),
            Err(_) => format!("no answer within {} ms", every.as_millis()),
        };
        if trouble.is_empty() {
            tell(&[NotifyState::Watchdog]);
        } else if well {
            tracing::error!(
                event = "not_live",
                trouble,
                "this daemon does not go on by itself; systemd restarts it"
            );
        }
        well = trouble.is_empty();
    }
}

/// What does not hold, in words.
fn troubles(checks: &[Check]) -> String {
    let words =
        checks.iter().filter(|check| !check.ok).map(|check| format!("{}: {}", check.name, check.detail));
    words.collect::<Vec<_>>().join("; ")
}
