//! Waiting until a change is in the data plane of every node that is online, and what becomes of the exit code if it is not.

use std::time::{Duration, Instant};

use ringmesh_proto::admin::WaitInstalledRequest;

use crate::{
    connect::Connection,
    failure::{Exit, Failure},
    output::installation::{Installation, listed},
};

/// For how long a coordinator lets one call wait.
const ONE_CALL: Duration = Duration::from_secs(8);
/// What can be asked for.
const LONGEST: Duration = Duration::from_secs(3600);
/// Before a coordinator that answers too early is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// A time to wait on the command line: `10s`, `500ms`, `2m`; a bare number is seconds, 0 is not to wait.
pub(crate) fn wait(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is not a time to wait: expected one up to 1h, as 10s, 500ms or 0");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    let wait = number.checked_mul(factor).map(Duration::from_millis);
    wait.filter(|wait| *wait <= LONGEST).ok_or_else(expected)
}

/// What the call that makes the change is told to wait, of `wait` in all; milliseconds.
pub(crate) fn first(wait: Duration) -> u32 {
    u32::try_from(wait.min(ONE_CALL).as_millis()).unwrap_or(u32::MAX)
}

/// Goes on waiting for what `so_far` tells of, until every node that is online has it or `wait` is over; `so_far` is then how
/// far it got, also if a later question failed.
pub(crate) async fn rest(
    coordinator: &Connection,
    network: &str,
    wait: Duration,
    so_far: &mut Installation,
) -> Result<(), Failure> {
    let left = wait.saturating_sub(Duration::from_millis(so_far.waited_ms));
    let Some(deadline) = Instant::now().checked_add(left) else { return Ok(()) };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if so_far.late().is_empty() || left < Duration::from_millis(1) {
            return Ok(());
        }
        let began = Instant::now();
        let request = WaitInstalledRequest {
            network: network.to_owned(),
            revision: so_far.revision,
            wait_ms: first(left),
        };
        let mut nodes = coordinator.nodes();
        let doing = format!("wait until r{} is installed", so_far.revision);
        let now = Installation::from(coordinator.call(&doing, nodes.wait_installed(request)).await?);
        *so_far = Installation { waited_ms: so_far.waited_ms + now.waited_ms, ..now };
        // A node that came online in the last moment ends a wait early, and is behind.
        if !so_far.late().is_empty() && began.elapsed() < PAUSE {
            tokio::time::sleep(PAUSE.min(left)).await;
        }
    }
}

/// Success if every node that is online has it, or nobody waited for that. `change` completes "..., but nodes that are online
/// have not installed it yet".
pub(crate) fn verdict(change: &str, wait: Duration, installation: &Installation) -> Result<(), Failure> {
    let late = installation.late();
    if late.is_empty() || wait.is_zero() {
        return Ok(());
    }
    let error = format!("{change}, but nodes that are online have not installed it yet");
    let cause = format!("after {} ms still behind: {}", installation.waited_ms, listed(&late));
    Err(Failure::new(Exit::Timeout, error)
        .cause(cause)
        .attempt("meshctl nodes list, which shows when they have; or look at their logs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::installation::tests::behind;

    #[test]
    fn a_wait_has_a_unit_or_is_in_seconds() {
        for (text, ms) in
            [("0", 0), ("0s", 0), ("5", 5_000), ("500ms", 500), ("10s", 10_000), ("2m", 120_000)]
        {
            assert_eq!(wait(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(wait("1h"), Ok(LONGEST));
        for text in ["", "s", "-1", "1.5s", "61m", "3601", "2d", "99999999999999999999"] {
            assert!(wait(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_call_waits_no_longer_than_it_may() {
        assert_eq!(first(Duration::ZERO), 0);
        assert_eq!(first(Duration::from_millis(640)), 640);
        assert_eq!(first(Duration::from_secs(60)), 8_000);
    }

    #[test]
    fn only_a_node_that_is_online_makes_a_change_late() {
        let waited = Duration::from_secs(5);
        let verdict = |behind| {
            let installation = Installation::new(7, vec![], behind, 40);
            assert_eq!(verdict("carol is removed", Duration::ZERO, &installation), Ok(()));
            verdict("carol is removed", waited, &installation)
        };
        assert_eq!(verdict(vec![]), Ok(()));
        assert_eq!(verdict(vec![behind("nas", false)]), Ok(()));
        let late = verdict(vec![behind("nas", false), behind("dan", true)]).unwrap_err();
        assert_eq!(late.exit(), Exit::Timeout);
        let text = late.to_string();
        assert!(text.contains("after 40 ms still behind: dan\n") && !text.contains("nas"), "{text}");
    }
}
