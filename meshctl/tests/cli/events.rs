//! What happened, on the command line: listed, followed over a restart of the coordinator, read by programs.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use ringmesh_lab::in_sandbox;
use serde_json::Value;

use crate::support::{Machine, Site, conforms};

/// The lines of JSON, each checked against the schema.
fn lines(text: &str) -> Vec<Value> {
    let parsed = text.lines().map(|line| serde_json::from_str(line).unwrap());
    parsed.inspect(|event| conforms("event", event)).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["name"].as_str().unwrap()).collect()
}

/// A `meshctl events --follow` that runs; killed with the test.
struct Follower {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Follower {
    fn on(machine: &Machine, after: &str) -> Self {
        let mut command = machine.meshctl(&["events", "--follow", "--after", after, "-o", "json"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        conforms("event", &event);
        event
    }

    /// The next one that is kept.
    fn next_kept(&mut self) -> Value {
        loop {
            let event = self.next();
            if event["revision"] != 0 {
                return event;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_are_listed_filtered_and_followed_over_a_restart() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let begun = lines(&coordinator.run(&["events", "-o", "json"]).ok());
        assert_eq!(names(&begun), ["network_created", "relay_added", "token_created"]);
        let place = format!("r{}", begun[2]["revision"]);
        let mut follower = Follower::on(&coordinator, &place);
        let web = site.machine("web");
        web.join(&coordinator);
        let created = follower.next_kept();
        assert_eq!((&created["name"], &created["actor"]["kind"]), (&"token_created".into(), &"user".into()));
        let joined = follower.next_kept();
        assert_eq!((&joined["name"], &joined["subject"]["name"]), (&"node_joined".into(), &"web".into()));
        assert_eq!(joined["details"]["token"], created["subject"]["id"]);
        loop {
            // What is not kept is told as well.
            let event = follower.next();
            if event["name"] == "node_online" {
                assert_eq!((&event["subject"], &event["revision"]), (&joined["subject"], &0.into()));
                break;
            }
        }
        coordinator.run(&["coordinator", "down"]).ok();
        coordinator.run(&["coordinator", "up"]).ok();
        let after = follower.next_kept();
        assert_eq!(
            (&after["name"], after["revision"].as_u64() > joined["revision"].as_u64()),
            (&"token_created".into(), true)
        );
        drop(follower);

        let all = lines(&coordinator.run(&["events", "-o", "json"]).ok());
        assert_eq!(names(&all)[3..], ["token_created", "node_joined", "token_created"]);
        let some = coordinator.run(&["events", "--name", "node_joined,relay_added", "-o", "json"]).ok();
        assert_eq!(names(&lines(&some)), ["relay_added", "node_joined"]);
        let later = coordinator.run(&["events", "--after", &place, "-o", "json"]).ok();
        assert_eq!(lines(&later), all[3..]);
        let text = coordinator.run(&["events", "--name", "node_joined"]).ok();
        assert_eq!(text.lines().count(), 1);
        let id = joined["subject"]["id"].as_str().unwrap();
        assert!(text.contains(&format!("  node_joined         web ({id})  by node web  ")), "{text}");
        assert!(text.contains(&format!("  r{}", joined["revision"])), "{text}");

        let message = coordinator.run(&["events", "--after", "r99999999"]).failed(2);
        assert!(message.contains("yet to come"), "{message}");
        let message = coordinator.run(&["events", "--name", "node_jioned"]).failed(2);
        assert!(message.contains("'node_joined'"), "{message}");
        coordinator.run(&["events", "-n", "nowhere"]).failed(7);
    });
}
