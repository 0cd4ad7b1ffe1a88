//! API keys from their making to their end. That they open something, and how much, is told in [`remote`](crate::remote).

use ringmesh_lab::in_sandbox;

use crate::support::{Site, shows};

#[test]
fn keys_are_made_listed_and_revoked() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.coordinator();
        assert!(machine.run(&["key", "list"]).ok().contains("meshctl key create"));
        let create = ["key", "create", "--name", "ci", "--role", "operator", "--ttl", "15m", "-n", "mesh"];
        let created = machine.json("key-created", &create);
        let key = &created["key"];
        assert_eq!((&key["role"], &key["network"]), (&"operator".into(), &"mesh".into()));
        assert_eq!(key["expires_ms"].as_u64().unwrap() - key["created_ms"].as_u64().unwrap(), 900_000);
        let id = key["id"].as_str().unwrap();

        let listed = machine.run(&["key", "list"]).ok();
        assert!(listed.lines().any(|line| line.starts_with(id) && line.contains(" valid ")), "{listed}");
        assert!(!shows(listed.as_bytes(), created["secret"].as_str().unwrap()));
        let keys = machine.json("keys", &["key", "list"]);
        assert_eq!(keys["keys"][0], *key);

        let revoked = machine.json("key-revoked", &["key", "revoke", id]);
        assert_eq!(revoked["key"]["revoked"], true);
        let listed = machine.run(&["key", "list"]).ok();
        assert!(listed.lines().any(|line| line.starts_with(id) && line.contains(" revoked ")), "{listed}");

        let unknown = machine.run(&["key", "revoke", "00000000000000ff"]).failed(2);
        assert!(unknown.contains("meshctl key list"), "{unknown}");
        let pasted = machine.run(&["key", "revoke", created["secret"].as_str().unwrap()]).failed(2);
        assert!(!shows(pasted.as_bytes(), created["secret"].as_str().unwrap()), "{pasted}");
    });
}

#[test]
fn by_default_a_key_may_look_at_everything_for_90_days_and_a_script_gets_it_alone() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.coordinator();
        let ran = machine.run(&["key", "create", "--name", "watch"]);
        assert!(ran.stderr.contains("(watch): read-only, of all networks, expires in 90 d"), "{ran:?}");
        let secret = ran.ok();
        assert!(secret.starts_with("meshkey1_") && secret.trim_end().len() == 63, "{secret}");
        let key = &machine.json("keys", &["key", "list"])["keys"][0];
        assert_eq!((&key["name"], &key["role"]), (&"watch".into(), &"read-only".into()));
        assert_eq!(key["network"], serde_json::Value::Null);
        for wrong in [
            ["key", "create", "--name", "a b"].as_slice(),
            &["key", "create"],
            &["key", "create", "--name", "a", "--ttl", "367d"],
            &["key", "create", "--name", "a", "--role", "root"],
        ] {
            machine.run(wrong).failed(2);
        }
        machine.run(&["key", "create", "--name", "a", "-n", "nowhere"]).failed(7);
    });
}
