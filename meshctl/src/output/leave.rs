//! `meshctl leave`.

use serde::Serialize;

use super::Document;

/// That the node has left: `schemas/leave.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Left {
    /// Whether a coordinator knows, so that peers will drop the node.
    pub(crate) coordinator_told: bool,
}

impl Document for Left {
    fn text(&self, _: u64) -> String {
        let told = if self.coordinator_told { ", and the coordinator knows" } else { "" };
        format!("left the network; its keys are gone from this machine{told}\n")
    }
}
