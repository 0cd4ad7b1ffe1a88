//! Machines to run `meshctl` on, and what came of it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ringmesh_lab::{Host, Lab, Switch};
use ringmesh_tunnel::{
    enroll::{JoinToken, TokenSecret},
    key::{IdentitySecret, TokenId},
};
use serde_json::Value;

/// The executable under test.
pub(crate) const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");

/// A finished run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Takes it for a success, and gives what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Takes it for a failure with this exit code that printed no result, and gives its message.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "a failure has no result");
        assert!(self.stderr.contains("error: "), "{self:?}");
        self.stderr
    }

    /// The JSON printed, checked against `schemas/<schema>.json`.
    #[track_caller]
    pub(crate) fn json(&self, schema: &str) -> Value {
        let value: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        conforms(schema, &value);
        value
    }
}

/// Checks a document against its schema, and that the schema would notice if it did not hold.
#[track_caller]
pub(crate) fn conforms(schema: &str, value: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/{schema}.json"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?} in {value:#}");
    assert_eq!(value["v"], 1);
    for field in schema["required"].as_array().unwrap() {
        let mut without = value.clone();
        without.as_object_mut().unwrap().remove(field.as_str().unwrap());
        assert!(!validator.is_valid(&without), "{field} is not missed");
    }
}

/// Runs `command` with these arguments, nothing of the tester's environment that could change the outcome, and `input`.
pub(crate) fn run_with(mut command: Command, input: &[u8]) -> Ran {
    let given: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"MESH_")) {
        if !given.contains(&name) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that does not read its input may have ended by now.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `meshctl` here, without any daemon in reach.
pub(crate) fn meshctl(arguments: &[&str]) -> Ran {
    let mut command = Command::new(MESHCTL);
    command.args(arguments);
    run_with(command, b"")
}

/// Machines on one switch. Root is needed, as for any lab.
pub(crate) struct Site {
    switch: Switch,
    _lab: Lab,
}

/// A machine with its own network, host name, `/run` and `/var/lib`; all it runs ends with the site.
pub(crate) struct Machine {
    pub(crate) host: Host,
}

impl Site {
    pub(crate) fn new() -> Self {
        let lab = Lab::new().unwrap();
        Self { switch: lab.switch().unwrap(), _lab: lab }
    }

    pub(crate) fn machine(&self, name: &str) -> Machine {
        Machine { host: self.switch.host(name).unwrap() }
    }

    /// A machine with a running coordinator.
    pub(crate) fn coordinator(&self) -> Machine {
        let machine = self.machine("coordinator");
        machine.run(&["coordinator", "up"]).ok();
        machine
    }
}

/// A coordinator and two nodes that joined by token with these flags: `alice` and `web`.
pub(crate) fn mesh(flags: &[&str]) -> (Site, Machine, Machine, Machine) {
    let site = Site::new();
    let coordinator = site.coordinator();
    let (alice, web) = (site.machine("alice"), site.machine("web"));
    for node in [&alice, &web] {
        node.run(&[&["join", "--token", &coordinator.token()], flags].concat()).ok();
    }
    (site, coordinator, alice, web)
}

impl Machine {
    /// `meshctl` with these arguments on this machine, not started yet.
    pub(crate) fn meshctl(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(MESHCTL).unwrap();
        command.args(arguments);
        command
    }

    /// Runs `meshctl` on this machine.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        run_with(self.meshctl(arguments), b"")
    }

    /// Runs `meshctl` with `-o json`, and gives the document.
    #[track_caller]
    pub(crate) fn json(&self, schema: &str, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json(schema)
    }

    /// A new token, on a coordinator's machine.
    pub(crate) fn token(&self) -> String {
        self.run(&["token", "create"]).ok().trim().to_owned()
    }

    /// The members but for the coordinator's own relay, in the order of their names; on a coordinator's machine.
    #[track_caller]
    pub(crate) fn members(&self) -> Vec<Value> {
        let nodes = self.json("nodes", &["nodes", "list"]);
        nodes["nodes"].as_array().unwrap().iter().filter(|node| node["relay"] == false).cloned().collect()
    }

    /// Joins this machine by a token of `coordinator`.
    pub(crate) fn join(&self, coordinator: &Self) -> String {
        self.run(&["join", "--token", &coordinator.token()]).ok()
    }

    /// A file's content as this machine sees it.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        self.host.enter(|| fs::read_to_string(path).ok()).unwrap()
    }

    /// Writes a file as this machine sees it, with the directories above it.
    pub(crate) fn write(&self, path: &str, content: &[u8]) {
        self.host
            .enter(|| {
                fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            })
            .unwrap();
    }

    /// All files and directories below `/run` and `/var/lib` of this machine.
    pub(crate) fn traces(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                found.push(entry.path());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    walk(&entry.path(), found);
                }
            }
        }
        let mut found = self
            .host
            .enter(|| {
                let mut found = Vec::new();
                walk(Path::new("/run"), &mut found);
                walk(Path::new("/var/lib"), &mut found);
                found
            })
            .unwrap();
        found.sort();
        found
    }

    /// Processes of this machine: id, arguments, environment.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let network = self.host.enter(|| fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        let folders = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        folders
            .filter(|folder| fs::read_link(folder.join("ns/net")).is_ok_and(|found| found == network))
            .filter_map(|folder| {
                Some(Process {
                    id: folder.file_name()?.to_str()?.parse().ok()?,
                    arguments: fs::read(folder.join("cmdline")).ok()?,
                    environment: fs::read(folder.join("environ")).ok()?,
                })
            })
            // The test itself enters the machine with a thread at times, never as a whole.
            .filter(|process| !process.arguments.is_empty() && process.id != std::process::id())
            .collect()
    }
}

/// A process, as `/proc` shows it.
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) arguments: Vec<u8>,
    pub(crate) environment: Vec<u8>,
}

/// A well-formed token of a network that nobody serves, for `coordinator` (`host:port`).
pub(crate) fn foreign_token(coordinator: &str) -> String {
    let root = foreign_root().public_key();
    let coordinators = vec![coordinator.to_owned()];
    let token = JoinToken::new(root, TokenId::from_bytes([9; 8]), TokenSecret::generate(), coordinators);
    token.unwrap().reveal().to_string()
}

/// The root key of that network.
pub(crate) fn foreign_root() -> IdentitySecret {
    IdentitySecret::from_seed([7; 32])
}

/// Whether `text` holds a token's secret: all but the common beginning.
pub(crate) fn shows(text: &[u8], token: &str) -> bool {
    let (_, secret) = token.split_once("1_").unwrap();
    // Any long enough piece of it betrays it.
    secret.as_bytes().windows(24).any(|piece| text.windows(24).any(|found| found == piece))
}
