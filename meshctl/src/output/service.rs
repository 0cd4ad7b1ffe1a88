//! `meshctl service`.

use std::path::PathBuf;

use serde::Serialize;

use super::{Document, printable, table::Columns};

/// A unit, as systemd knows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Service {
    pub(crate) unit: &'static str,
    pub(crate) installed: bool,
    /// `active`, `inactive`, `failed`, `activating`, ...
    pub(crate) active: String,
    /// `running`, `dead`, `auto-restart`, ...
    pub(crate) sub: String,
    /// Whether it starts with the machine.
    pub(crate) enabled: bool,
    pub(crate) pid: Option<u32>,
    /// How often systemd started it again since it was started.
    pub(crate) restarts: u32,
    /// What the daemon says of itself.
    pub(crate) status: String,
}

/// The units that were asked about: `schemas/services.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Services {
    pub(crate) services: Vec<Service>,
}

/// A unit that was installed: `schemas/service-installed.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Installed {
    pub(crate) service: Service,
    pub(crate) file: PathBuf,
    pub(crate) user: &'static str,
    pub(crate) state_dir: PathBuf,
    /// Files that were written.
    pub(crate) changed: Vec<PathBuf>,
}

/// A unit that was removed: `schemas/service-uninstalled.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Uninstalled {
    pub(crate) unit: &'static str,
    pub(crate) removed: Vec<PathBuf>,
    /// What stays.
    pub(crate) state_dir: PathBuf,
}

impl Service {
    fn start(&self) -> &'static str {
        match (self.installed, self.enabled) {
            (false, _) => "not installed",
            (true, true) => "with the machine",
            (true, false) => "by hand",
        }
    }
}

impl Document for Services {
    fn text(&self, _: u64) -> String {
        if self.services.is_empty() {
            return "no unit of Ringmesh is installed\n".to_owned();
        }
        let mut columns = Columns::new(["UNIT", "STATE", "STARTS", "RESTARTS", "SAYS"]);
        for service in &self.services {
            columns.row([
                service.unit.to_owned(),
                format!("{} ({})", printable(&service.active), printable(&service.sub)),
                service.start().to_owned(),
                service.restarts.to_string(),
                printable(&service.status),
            ]);
        }
        columns.text()
    }
}

impl Document for Installed {
    fn text(&self, _: u64) -> String {
        let Service { unit, active, .. } = &self.service;
        let (file, state) = (self.file.display(), self.state_dir.display());
        format!(
            "{unit} is {}\nunit       {file}\nstarts     {}\nuser       {}\nstate      {state}\nlog        journalctl -u {unit}\n",
            printable(active),
            self.service.start(),
            self.user,
        )
    }
}

impl Document for Uninstalled {
    fn text(&self, _: u64) -> String {
        let mut text: String =
            self.removed.iter().map(|path| format!("removed    {}\n", path.display())).collect();
        if self.removed.is_empty() {
            text = format!("{} was not installed by meshctl\n", self.unit);
        }
        text + &format!("kept       {}, with keys and membership\n", self.state_dir.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::conforms;

    fn service() -> Service {
        Service {
            unit: "meshd.service",
            installed: true,
            active: "active".to_owned(),
            sub: "running".to_owned(),
            enabled: true,
            pid: Some(7),
            restarts: 1,
            status: "running in network mesh, revision 7, 3 peers".to_owned(),
        }
    }

    #[test]
    fn units_are_shown_with_what_they_say_of_themselves() {
        let none = Services { services: Vec::new() };
        conforms("services", &none);
        assert_eq!(none.text(0), "no unit of Ringmesh is installed\n");
        let dead = Service {
            unit: "mesh-relay.service",
            installed: false,
            active: "inactive".to_owned(),
            sub: "dead".to_owned(),
            enabled: false,
            pid: None,
            restarts: 0,
            status: String::new(),
        };
        let services = Services { services: vec![service(), dead] };
        conforms("services", &services);
        let text = services.text(0);
        assert!(text.contains("active (running)") && text.contains("3 peers"), "{text}");
        assert!(text.contains("not installed"), "{text}");
    }

    #[test]
    fn what_was_installed_and_what_stays_is_told() {
        let installed = Installed {
            service: service(),
            file: "/etc/systemd/system/meshd.service".into(),
            user: "mesh",
            state_dir: "/var/lib/mesh".into(),
            changed: vec!["/etc/systemd/system/meshd.service".into()],
        };
        conforms("service-installed", &installed);
        assert!(installed.text(0).starts_with("meshd.service is active\n"), "{}", installed.text(0));
        let mut removed = Uninstalled {
            unit: "meshd.service",
            removed: vec!["/etc/systemd/system/meshd.service".into()],
            state_dir: "/var/lib/mesh".into(),
        };
        conforms("service-uninstalled", &removed);
        assert!(removed.text(0).contains("removed    /etc/systemd"), "{}", removed.text(0));
        removed.removed.clear();
        assert!(removed.text(0).contains("was not installed"), "{}", removed.text(0));
        assert!(removed.text(0).contains("kept       /var/lib/mesh"), "{}", removed.text(0));
    }
}
