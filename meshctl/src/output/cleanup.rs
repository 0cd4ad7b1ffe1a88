//! `meshctl cleanup`.

use serde::Serialize;

use super::{Document, printable};

/// What was taken back: `schemas/cleanup.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Cleaned {
    /// In words, a line each.
    pub(crate) undone: Vec<String>,
}

impl Document for Cleaned {
    fn text(&self, _: u64) -> String {
        if self.undone.is_empty() {
            return "nothing was left on this machine\n".to_owned();
        }
        self.undone.iter().map(|line| format!("{}\n", printable(line).replace('\n', " "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::conforms;

    #[test]
    fn what_was_taken_back_is_told_line_by_line() {
        let nothing = Cleaned { undone: vec![] };
        conforms("cleanup", &nothing);
        assert_eq!(nothing.text(0), "nothing was left on this machine\n");
        let undone = Cleaned {
            undone: vec!["removed the block of mesh0 from /etc/hosts".to_owned(), "b\nc".to_owned()],
        };
        conforms("cleanup", &undone);
        assert_eq!(undone.text(0), "removed the block of mesh0 from /etc/hosts\nb c\n");
    }
}
