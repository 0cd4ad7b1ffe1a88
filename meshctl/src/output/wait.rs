//! `meshctl wait`.

use serde::Serialize;

use super::{Document, printable};

/// What was waited for has come: `schemas/wait.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Waited {
    /// As it was asked for: `online`, `peer web`.
    pub(crate) reached: String,
    /// In milliseconds.
    pub(crate) waited_ms: u64,
}

impl Document for Waited {
    fn text(&self, _: u64) -> String {
        format!("{} after {:.1} s\n", printable(&self.reached), self.waited_ms as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::conforms;

    #[test]
    fn what_came_is_told_with_the_time_it_took() {
        let waited = Waited { reached: "peer web".to_owned(), waited_ms: 1_240 };
        conforms("wait", &waited);
        assert_eq!(waited.text(0), "peer web after 1.2 s\n");
    }
}
