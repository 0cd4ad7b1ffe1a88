//! The page of `/metrics`: measured once for everybody who waits for it.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{encoding::text, registry::Registry};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{PREFIX, Series, Subject, process};

/// How long a daemon may take to measure itself. Prometheus gives up after 10 s.
pub(crate) const MEASURING: Duration = Duration::from_secs(5);

/// The pages of one daemon.
pub(crate) struct Scrapes {
    subject: Arc<dyn Subject>,
    /// The newest, and when its measuring began. Held while one measures: the others wait.
    newest: Mutex<Option<(Instant, Arc<str>)>>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The daemon did not tell its numbers in time.
    #[error("measuring took more than {} s", MEASURING.as_secs())]
    Slow,
    /// A metric could not be written.
    #[error("a metric cannot be written")]
    Unwritable(#[from] fmt::Error),
}

impl Scrapes {
    pub(crate) fn new(subject: Arc<dyn Subject>) -> Self {
        Self { subject, newest: Mutex::new(None) }
    }

    /// A page that is not older than this call, as OpenMetrics. Whoever asks while another is measured for shares the next one.
    pub(crate) async fn page(&self) -> Result<Arc<str>, Failure> {
        let asked = Instant::now();
        let mut newest = self.newest.lock().await;
        if let Some((_, page)) = newest.as_ref().filter(|(began, _)| *began >= asked) {
            return Ok(Arc::clone(page));
        }
        let began = Instant::now();
        let page: Arc<str> = self.measure().await?.into();
        *newest = Some((began, Arc::clone(&page)));
        Ok(page)
    }

    async fn measure(&self) -> Result<String, Failure> {
        let mut ours = Registry::with_prefix(PREFIX);
        let measured = async {
            self.subject.measure(&mut ours).await;
            self.subject.ready().await
        };
        let checks = timeout(MEASURING, measured).await.map_err(|_| Failure::Slow)?;
        let ready = checks
            .iter()
            .fold(Series::gauge(), |ready, check| ready.count([("check", check.name)], u64::from(check.ok)));
        ours.register("ready", "Whether each check of /readyz holds, 1 or 0", ready);
        let version = self.subject.version();
        ours.register(
            "build",
            "What program this is",
            Series::info().count(
                [
                    ("daemon", version.daemon),
                    ("version", &version.version),
                    ("commit", &version.commit),
                    ("backend", &version.backend),
                ],
                1,
            ),
        );
        let mut of_process = Registry::default();
        process::measure(&mut of_process);
        let mut page = String::new();
        text::encode_registry(&mut page, &ours)?;
        text::encode(&mut page, &of_process)?;
        Ok(page)
    }
}
