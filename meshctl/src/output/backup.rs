//! `meshctl coordinator backup`.

use serde::Serialize;

use super::Document;

/// A backup that was made: `schemas/backup.json`.
#[derive(Debug, Serialize)]
pub(crate) struct BackedUp {
    /// The directory that was made.
    pub(crate) path: String,
    /// The revision that it stands at.
    pub(crate) revision: u64,
}

impl Document for BackedUp {
    fn text(&self, _: u64) -> String {
        format!("r{} is in {}\n", self.revision, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::conforms;

    #[test]
    fn a_backup_tells_where_it_is_and_how_new() {
        let made = BackedUp { path: "/root/monday".to_owned(), revision: 812 };
        conforms("backup", &made);
        assert_eq!(made.text(0), "r812 is in /root/monday\n");
    }
}
