//! What the log says of requests that were refused: enough to see who knocks, and never so much that strangers fill it.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{Extensions, HeaderMap};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    auth::Pass,
    server::{self, Connection},
};

/// Lines in a window, of strangers all together, and of those who are known all together.
const MAX_LINES: u32 = 30;
/// How long lines count.
const WINDOW: Duration = Duration::from_secs(60);

/// Who sent a request, as far as the log is concerned.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    peer: Option<SocketAddr>,
    /// Who he proved to be.
    name: Option<String>,
}

impl Asker {
    /// By what the listener put into the request.
    pub(super) fn of(extensions: &Extensions) -> Self {
        Self {
            peer: extensions.get::<Connection>().map(Connection::peer),
            name: extensions.get::<server::Caller>().map(|user| format!("uid {}", user.uid)),
        }
    }

    /// He has proved himself.
    pub(super) fn is(&mut self, pass: &Pass) {
        self.name = Some(pass.to_string());
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or("a stranger"))
    }
}

#[derive(Debug)]
struct Window {
    start: Instant,
    lines: u32,
    /// Refusals since the start that got no line.
    silent: u64,
}

impl Window {
    fn starting(now: Instant) -> Self {
        Self { start: now, lines: 0, silent: 0 }
    }
}

/// The refusals of the last minute.
#[derive(Debug)]
pub(super) struct Refusals {
    strangers: Mutex<Window>,
    known: Mutex<Window>,
}

impl Default for Refusals {
    fn default() -> Self {
        let window = || Mutex::new(Window::starting(Instant::now()));
        Self { strangers: window(), known: window() }
    }
}

/// What is to be written about a refusal.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    /// Refusals of the window before that got none.
    silent: u64,
}

impl Refusals {
    /// Writes down that a request was refused.
    pub(super) fn note(&self, method: &'static str, asker: &Asker, refused: &Status) {
        if !matches!(refused.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented) {
            return;
        }
        let window = if asker.name.is_some() { &self.known } else { &self.strangers };
        let Some(Line { silent }) = line(window, Instant::now()) else { return };
        if silent > 0 {
            tracing::warn!(
                event = "request_refused",
                requests = silent,
                "refused more requests than are told one by one"
            );
        }
        let reason = refused.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        let peer = asker.peer.map(tracing::field::display);
        tracing::warn!(event = "request_refused", method, caller = %asker, peer, code = ?refused.code(), reason, "refused a request");
    }

    /// As [`note`](Self::note), if the answer of a service is a refusal.
    pub(super) fn note_answer(&self, method: &'static str, asker: &Asker, headers: &HeaderMap) {
        // Without looking further at what went well.
        if headers.contains_key("grpc-status")
            && let Some(status) = Status::from_header_map(headers)
        {
            self.note(method, asker, &status);
        }
    }
}

fn line(window: &Mutex<Window>, now: Instant) -> Option<Line> {
    let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
    let mut silent = 0;
    if now.saturating_duration_since(window.start) >= WINDOW {
        silent = window.silent;
        *window = Window::starting(now);
    }
    if window.lines >= MAX_LINES {
        window.silent = window.silent.saturating_add(1);
        return None;
    }
    window.lines = window.lines.saturating_add(1);
    Some(Line { silent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_gets_a_bounded_number_of_lines_and_is_counted() {
        let start = Instant::now();
        let window = Mutex::new(Window::starting(start));
        let told = (0..1000).filter_map(|_| line(&window, start)).count();
        assert_eq!(told, MAX_LINES as usize);
        let later = start + WINDOW;
        assert_eq!(line(&window, later - Duration::from_millis(1)), None);
        assert_eq!(line(&window, later), Some(Line { silent: 1001 - u64::from(MAX_LINES) }));
        assert_eq!(line(&window, later), Some(Line { silent: 0 }));
    }
}
