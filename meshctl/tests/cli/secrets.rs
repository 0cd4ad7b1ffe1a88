//! A secret is in no argument or environment of a daemon, in no log however talkative, and not in the coordinator's files.

use std::fs;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ringmesh_lab::in_sandbox;
use ringmesh_tunnel::{
    enroll::seal::{Context, Purpose, open_secret},
    key::IdentitySecret,
};
use serde_json::Value;

use crate::support::{Machine, Site, foreign_token, run_with, shows};

/// A secret of 32 bytes, and what to call it.
struct Canary {
    name: &'static str,
    bytes: [u8; 32],
}

impl Canary {
    /// Whether it is in `text` in a form that programs write bytes in: raw, hex, base64, or as a debugger lists them.
    fn is_in(&self, text: &[u8]) -> bool {
        // Half of it would be too much already, and base64 falls differently behind other bytes.
        let half = &self.bytes[..16];
        let hex: String = half.iter().map(|byte| format!("{byte:02x}")).collect();
        let listed = format!("{:?}", &self.bytes[..8]);
        let mut forms = vec![half.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
        forms.push(listed.trim_matches(['[', ']']).as_bytes().to_vec());
        for shift in 0..3 {
            // Whole groups of three bytes, whatever stands before them.
            let groups = &self.bytes[shift..shift + 15];
            forms.extend([STANDARD.encode(groups).into_bytes(), URL_SAFE_NO_PAD.encode(groups).into_bytes()]);
        }
        forms.iter().any(|form| text.windows(form.len()).any(|found| found == form))
    }
}

/// The seed in a token's text: behind its form, the root key and the token's id.
fn token_seed(token: &str) -> Canary {
    let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix("mesh1_").unwrap()).unwrap();
    Canary { name: "token seed", bytes: bytes[41..73].try_into().unwrap() }
}

/// The secrets of a node that has joined: its identity seed, its noise key, the secret of its network.
fn node_secrets(machine: &Machine) -> [Canary; 3] {
    let pem = machine.read("/var/lib/mesh/identity").unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = STANDARD.decode(body).unwrap();
    // The private half is the one string of 64 bytes: seed and public key.
    let place = key.windows(4).position(|length| length == [0, 0, 0, 64]).unwrap() + 4;
    let seed: [u8; 32] = key[place..place + 32].try_into().unwrap();
    let identity = IdentitySecret::from_seed(seed);
    let status = machine.json("status", &["status"]);
    let fingerprint = &status["network"]["self"]["identity_fingerprint"];
    assert_eq!(*fingerprint, identity.public_key().fingerprint(), "it is the key in use");

    let secrets: Value = serde_json::from_str(&machine.read("/var/lib/mesh/secrets").unwrap()).unwrap();
    let network = status["network"]["id"].as_str().unwrap().parse().unwrap();
    let context =
        Context { network, epoch: secrets["epochs"][0][0].as_u64().unwrap(), purpose: Purpose::Network };
    let sealed = STANDARD.decode(secrets["epochs"][0][1].as_str().unwrap()).unwrap();
    let noise = identity.noise_secret();
    let opened = open_secret(&noise, context, &sealed).unwrap();
    [
        Canary { name: "identity seed", bytes: seed },
        Canary { name: "noise key", bytes: *noise.expose() },
        Canary { name: "network secret", bytes: *opened },
    ]
}

/// Looks for the canaries wherever others could: the daemon's arguments and environment, and its log.
#[track_caller]
fn is_clean(machine: &Machine, log: &str, canaries: &[&Canary]) {
    let daemons = machine.processes();
    assert_eq!(daemons.len(), 1);
    let log = machine.read(log).unwrap();
    assert!(log.contains("TRACE"), "the log is at its most talkative");
    for canary in canaries {
        assert!(!canary.is_in(&daemons[0].arguments), "{} in argv", canary.name);
        assert!(!canary.is_in(&daemons[0].environment), "{} in environ", canary.name);
        assert!(!canary.is_in(log.as_bytes()), "{} in the log", canary.name);
    }
}

#[test]
fn no_secret_is_in_argv_environment_trace_log_or_the_coordinators_files() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.machine("coordinator");
        let up = coordinator.run(&["coordinator", "up", "--log", "trace"]);
        let first = up.stdout.trim().strip_prefix("meshctl join --token ").unwrap().to_owned();
        assert!(!shows(up.stderr.as_bytes(), &first), "{up:?}");
        let second = coordinator.token();

        let by_flag = site.machine("flag");
        let joined = by_flag.run(&["join", "--log", "trace", "--token", &first]);
        assert!(!shows(format!("{joined:?}").as_bytes(), &first), "{joined:?}");
        let by_variable = site.machine("variable");
        let mut join = by_variable.meshctl(&["join", "--log", "trace"]);
        join.env("MESH_TOKEN", &second);
        run_with(join, b"").ok();

        let tokens = [token_seed(&first), token_seed(&second)];
        let secrets = [node_secrets(&by_flag), node_secrets(&by_variable)];
        assert_eq!(secrets[0][2].bytes, secrets[1][2].bytes, "one network, one secret");
        let all: Vec<&Canary> = tokens.iter().chain(secrets.iter().flatten()).collect();
        is_clean(&by_flag, "/var/lib/mesh/meshd.log", &all);
        is_clean(&by_variable, "/var/lib/mesh/meshd.log", &all);
        is_clean(&coordinator, "/var/lib/mesh-coordinator/coordinator.log", &all);

        // Stopped, so that nothing waits to be written.
        coordinator.run(&["coordinator", "down"]).ok();
        let files: Vec<_> =
            coordinator.traces().into_iter().filter(|path| path.extension().is_some()).collect();
        assert!(files.iter().any(|path| path.ends_with("coordinator.db")), "{files:?}");
        for path in files {
            let content = coordinator.host.enter(|| fs::read(&path).unwrap_or_default()).unwrap();
            for canary in &all {
                assert!(!canary.is_in(&content), "{} in {}", canary.name, path.display());
            }
        }
    });
}

#[test]
fn a_daemon_inherits_no_secret_and_is_none_with_one() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("operator");
        let key = "meshkey1_c2VjcmV0IG9mIHRoZSBvcGVyYXRvcg".to_owned();
        let token = foreign_token("192.0.2.1:443");
        let with_both = |words: &[&str]| {
            let mut command = machine.meshctl(words);
            command.env("MESH_API_KEY", &key).env("MESH_TOKEN", &token).env("MESH_LOG", "info");
            run_with(command, b"")
        };
        with_both(&["coordinator", "up"]).ok();
        with_both(&["node", "up"]).ok();
        let daemons = machine.processes();
        assert_eq!(daemons.len(), 2);
        for daemon in daemons {
            assert!(shows_name(&daemon.environment, "MESH_LOG"), "the rest is passed on");
            for name in ["MESH_API_KEY", "MESH_TOKEN"] {
                assert!(!shows_name(&daemon.environment, name), "{name} of {}", daemon.id);
            }
            assert!(!shows(&daemon.environment, &key) && !shows(&daemon.environment, &token));
        }

        let mut foreground = site.machine("other").meshctl(&["node", "run"]);
        foreground.env("MESH_API_KEY", &key);
        let refused = run_with(foreground, b"").failed(2);
        assert!(refused.contains("unset MESH_API_KEY") && !shows(refused.as_bytes(), &key), "{refused}");
    });
}

/// Whether an environment as `/proc` shows it has a variable of that name.
fn shows_name(environment: &[u8], name: &str) -> bool {
    environment.split(|byte| *byte == 0).any(|line| line.starts_with(format!("{name}=").as_bytes()))
}

#[test]
fn a_canary_would_be_noticed_in_any_form() {
    let token = foreign_token("192.0.2.1:443");
    let seed = token_seed(&token);
    assert!(seed.is_in(token.as_bytes()), "in the token itself");
    assert!(shows(format!("token={token}").as_bytes(), &token) && shows(&token.as_bytes()[30..60], &token));
    assert!(!shows(b"mesh1_...", &token));
    let hex: String = seed.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let behind = |text: &[u8]| [b"one two thre".as_slice(), text, b"end"].concat();
    for text in [
        seed.bytes.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        format!("{:?}", seed.bytes).into_bytes(),
        STANDARD.encode(behind(&seed.bytes)).into_bytes(),
        STANDARD.encode(&behind(&seed.bytes)[1..]).into_bytes(),
        STANDARD.encode(&behind(&seed.bytes)[2..]).into_bytes(),
    ] {
        assert!(seed.is_in(&behind(&text)), "{text:?}");
    }
    assert!(!seed.is_in(&behind(&[7; 64])));
}
