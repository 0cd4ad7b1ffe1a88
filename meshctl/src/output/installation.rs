//! How far a change has got: on which nodes it is in the data plane, and who is behind.

use ringmesh_proto::admin;
use serde::Serialize;

/// Names told in a line; the rest is a number. JSON has all.
const NAMES: usize = 10;

/// A node that does not have a revision installed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Behind {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) online: bool,
}

impl From<admin::BehindNode> for Behind {
    fn from(node: admin::BehindNode) -> Self {
        Self { id: node.id, name: node.name, online: node.online }
    }
}

/// Who has a revision in the data plane: part of `schemas/policy-applied.json` and `schemas/node-removed.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Installation {
    pub(crate) revision: u64,
    /// Sorted.
    pub(crate) installed: Vec<String>,
    /// By name.
    pub(crate) behind: Vec<Behind>,
    /// How long it took, or was waited in vain.
    pub(crate) waited_ms: u64,
}

impl From<admin::WaitInstalledResponse> for Installation {
    fn from(response: admin::WaitInstalledResponse) -> Self {
        let admin::WaitInstalledResponse { revision, installed, behind, waited_ms } = response;
        Self::new(revision, installed, behind, waited_ms)
    }
}

impl Installation {
    pub(crate) fn new(
        revision: u64,
        mut installed: Vec<String>,
        behind: Vec<admin::BehindNode>,
        waited_ms: u32,
    ) -> Self {
        installed.sort_unstable();
        let mut behind: Vec<Behind> = behind.into_iter().map(Behind::from).collect();
        behind.sort_unstable_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Self { revision, installed, behind, waited_ms: waited_ms.into() }
    }

    /// Names of those that are online and do not have it.
    pub(crate) fn late(&self) -> Vec<&str> {
        self.names(true)
    }

    fn names(&self, online: bool) -> Vec<&str> {
        let behind = self.behind.iter().filter(|node| node.online == online);
        behind.map(|node| node.name.as_str()).collect()
    }

    /// In a line: `r812 installed on 49 of 50 nodes in 640 ms; 1 behind: 1 offline (nas)`.
    pub(crate) fn text(&self) -> String {
        let Self { revision, installed, behind, waited_ms } = self;
        let all = installed.len() + behind.len();
        if all == 0 {
            return format!("r{revision}: there is no node to install it on");
        }
        let nodes = if all == 1 { "node" } else { "nodes" };
        let (offline, online) = (self.names(false), self.names(true));
        let time = if online.is_empty() { "in" } else { "after" };
        let told = format!(
            "r{revision} installed on {} of {all} {nodes} {time} {}",
            installed.len(),
            span(*waited_ms)
        );
        if behind.is_empty() {
            return told;
        }
        let groups = [("online", online), ("offline", offline)];
        let groups = groups.into_iter().filter(|(_, names)| !names.is_empty());
        let groups: Vec<String> =
            groups.map(|(state, names)| format!("{} {state} ({})", names.len(), listed(&names))).collect();
        format!("{told}; {} behind: {}", behind.len(), groups.join(", "))
    }
}

/// The first names, and how many there are besides.
pub(crate) fn listed(names: &[&str]) -> String {
    let mut text = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(NAMES).filter(|more| *more > 0) {
        text += &format!(" and {more} more");
    }
    text
}

/// `640 ms`, `12.4 s`.
fn span(ms: u64) -> String {
    if ms < 10_000 { format!("{ms} ms") } else { format!("{}.{} s", ms / 1000, ms % 1000 / 100) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn behind(name: &str, online: bool) -> admin::BehindNode {
        admin::BehindNode { id: "00000000000000ff".to_owned(), name: name.to_owned(), online }
    }

    fn text(installed: &[&str], behind: Vec<admin::BehindNode>, waited_ms: u32) -> String {
        let installed = installed.iter().map(|name| (*name).to_owned()).collect();
        Installation::new(812, installed, behind, waited_ms).text()
    }

    #[test]
    fn who_is_behind_is_told_by_whether_that_is_a_fault() {
        assert_eq!(text(&[], vec![], 0), "r812: there is no node to install it on");
        assert_eq!(text(&["a"], vec![], 3), "r812 installed on 1 of 1 node in 3 ms");
        assert_eq!(
            text(&["a", "b"], vec![behind("nas", false)], 640),
            "r812 installed on 2 of 3 nodes in 640 ms; 1 behind: 1 offline (nas)"
        );
        assert_eq!(
            text(&["a"], vec![behind("nas", false), behind("web", true), behind("db", true)], 10_040),
            "r812 installed on 1 of 4 nodes after 10.0 s; 3 behind: 2 online (db, web), 1 offline (nas)"
        );
    }

    #[test]
    fn a_long_list_of_names_is_cut_in_text() {
        let names: Vec<String> = (0..13).map(|number| format!("n{number:02}")).collect();
        let many = names.iter().map(|name| behind(name, false)).collect();
        let text = text(&["a"], many, 5);
        assert!(
            text.ends_with(
                "13 behind: 13 offline (n00, n01, n02, n03, n04, n05, n06, n07, n08, n09 and 3 more)"
            ),
            "{text}"
        );
    }
}
