//! What the machine may refuse, or hold already.

use std::{fs, net::UdpSocket, os::unix::fs::PermissionsExt as _, process::Command};

use ringmesh_lab::in_sandbox;
use ringmesh_proto::control::Reason;
use tonic::Code;

use super::{has_interface, reason};
use crate::support::{
    again::{ROLE, again_as_nobody},
    block_on,
    coordinator::TestCoordinator,
    daemon::{Place, connect},
};

#[test]
fn a_fixed_port_that_is_taken_is_an_error_that_names_it() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let _taken = UdpSocket::bind("0.0.0.0:40000").unwrap();
            let mut place = Place::new();
            place.config.listen_port = Some(40000);
            let mut node = place.start().await.unwrap();
            let refused = node.join(&coordinator.token(), "").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::Conflict);
            assert!(refused.message().contains("40000"), "{refused}");
            assert!(coordinator.shared.enrolled.lock().unwrap().is_empty(), "the token was not spent");
            assert!(!has_interface("mesh0"));
            assert!(!place.state("identity").exists());
        });
    });
}

#[test]
fn without_a_fixed_port_the_next_free_one_is_taken() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let _taken = UdpSocket::bind("0.0.0.0:51820").unwrap();
            let _taken_too = UdpSocket::bind("[::]:51821").unwrap();
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let status = node.join(&coordinator.token(), "").await.unwrap();
            assert_eq!(status.data_plane.unwrap().listen_port, 51822);
        });
    });
}

#[test]
fn a_pool_that_collides_is_refused_with_names_and_nothing_is_changed() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            sh(
                "ip link add other0 type veth peer name other1; ip link set other0 up; ip link set other1 up; ip route add 100.100.0.0/16 dev other0",
            );
            let before = sh("ip address; ip route; ip -6 route");
            let refused = node.join(&coordinator.token(), "").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::Conflict);
            for word in ["100.64.0.0/10", "100.100.0.0/16", "other0", "ip route del"] {
                assert!(refused.message().contains(word), "{word}: {refused}");
            }
            assert!(!has_interface("mesh0"));
            assert_eq!(sh("ip address; ip route; ip -6 route"), before);

            sh("ip route del 100.100.0.0/16; ip address add 100.70.0.1/32 dev other0");
            let refused = node.join(&coordinator.token(), "").await.unwrap_err();
            assert!(refused.message().contains("100.70.0.1/32 of other0"), "{refused}");

            sh("ip link del other0");
            node.join(&coordinator.token(), "").await.unwrap();
        });
    });
}

#[test]
fn a_name_that_is_taken_is_not_taken_over() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            sh("ip link add mesh0 type veth peer name other1");
            let refused = node.join(&coordinator.token(), "").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::Conflict);
            assert!(refused.message().contains("mesh0"), "{refused}");
            assert!(has_interface("mesh0"), "the other's interface is still there");
        });
    });
}

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-e", "-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_daemon_without_rights_names_the_command_that_gives_them() {
    if let Ok(token) = std::env::var(ROLE) {
        block_on(async move {
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let refused = node.join(&token, "").await.unwrap_err();
            assert_eq!((reason(&refused), refused.code()), (Reason::Host, Code::PermissionDenied));
            assert!(refused.message().contains("setcap cap_net_admin+ep"), "{refused}");
            assert_eq!(node.status().await.state, "not-joined");
        });
        return;
    }
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let test = "host::a_daemon_without_rights_names_the_command_that_gives_them";
            let (passed, text) = again_as_nobody(test, &coordinator.token());
            assert!(passed, "{text}");
            assert!(coordinator.shared.enrolled.lock().unwrap().is_empty(), "the token was not spent");
        });
    });
}

#[test]
fn another_user_may_look_but_not_touch() {
    if let Ok(socket) = std::env::var(ROLE) {
        block_on(async move {
            let mut client = connect(socket.into()).await;
            let status = client.status(ringmesh_proto::local::StatusRequest {}).await.unwrap().into_inner();
            assert_eq!(status.state, "running");
            let refused = client.leave(ringmesh_proto::local::LeaveRequest {}).await.unwrap_err();
            assert_eq!(reason(&refused), Reason::NotPermitted);
            assert!(refused.message().contains("sudo"), "{refused}");
            let join = ringmesh_proto::local::JoinRequest::default();
            assert_eq!(reason(&client.join(join).await.unwrap_err()), Reason::NotPermitted);
            let deny = ringmesh_proto::local::AddDenialRequest::default();
            assert_eq!(reason(&client.add_denial(deny).await.unwrap_err()), Reason::NotPermitted);
            let allow = ringmesh_proto::local::RemoveDenialRequest { id: 1 };
            assert_eq!(reason(&client.remove_denial(allow).await.unwrap_err()), Reason::NotPermitted);
            let told = client.filter(ringmesh_proto::local::FilterRequest {}).await.unwrap().into_inner();
            assert_eq!(told.denials.len(), 1, "it may look");
        });
        return;
    }
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "").await.unwrap();
            node.deny(ringmesh_proto::local::AddDenialRequest::default()).await.unwrap();
            // As if that user were in the socket's group.
            fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(&place.config.socket, fs::Permissions::from_mode(0o666)).unwrap();
            let test = "host::another_user_may_look_but_not_touch";
            let (passed, text) = again_as_nobody(test, place.config.socket.to_str().unwrap());
            assert!(passed, "{text}");
            assert_eq!(node.status().await.state, "running");
            assert_eq!(node.filter().await.denials.len(), 1);
        });
    });
}

#[test]
fn corrupt_state_stops_the_daemon_with_file_and_cure_and_loses_nothing() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "").await.unwrap();
            node.stop().await.unwrap();
            for file in ["identity", "network.json"] {
                let good = fs::read(place.state(file)).unwrap();
                let broken = &good[..good.len() / 2];
                fs::write(place.state(file), broken).unwrap();
                let failure =
                    place.start().await.err().unwrap_or_else(|| panic!("{file}: the daemon started"));
                assert_eq!(failure.code(), Code::DataLoss);
                assert!(failure.to_string().contains(place.state(file).to_str().unwrap()), "{failure}");
                assert!(failure.to_string().contains("mv "), "{failure}");
                assert_eq!(fs::read(place.state(file)).unwrap(), broken);
                assert!(!place.config.socket.exists() && !has_interface("mesh0"));
                fs::write(place.state(file), good).unwrap();
            }
            fs::remove_file(place.state("identity")).unwrap();
            let failure = place.start().await.err().expect("a member without a key cannot start");
            assert!(failure.to_string().contains("missing"), "{failure}");
        });
    });
}

#[test]
fn a_corrupt_map_is_set_aside_and_asked_for_again() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "").await.unwrap();
            node.stop().await.unwrap();
            let mut map = fs::read(place.state("map")).unwrap();
            let middle = map.len() / 2;
            map[middle] ^= 1;
            fs::write(place.state("map"), &map).unwrap();

            let mut node = place.start().await.unwrap();
            node.until("a map comes from the coordinator", |status| status.state == "running").await;
            let kept = fs::read_dir(&place.config.state_dir)
                .unwrap()
                .flatten()
                .find(|entry| entry.file_name().to_string_lossy().starts_with("map.corrupt-"))
                .expect("the damaged map is kept");
            assert_eq!(fs::read(kept.path()).unwrap(), map);
        });
    });
}

#[test]
fn a_device_that_somebody_removes_ends_the_daemon_with_its_name() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "").await.unwrap();
            sh("ip link del mesh0");
            let failure = node.ended().await.unwrap_err();
            assert!(failure.to_string().contains("mesh0"), "{failure}");
            assert!(!place.config.socket.exists());
            // As a service manager would.
            let mut node = place.start().await.unwrap();
            node.until("it runs again", |status| status.state == "running").await;
        });
    });
}

/// The processors that the worker thread of this process may run on, as the kernel lists them.
fn processors_of_the_worker() -> String {
    let mut workers =
        fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()).filter(|task| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == "mesh-worker-0")
        });
    let worker = workers.next().expect("a worker");
    assert_eq!(workers.next(), None, "one worker");
    let status = fs::read_to_string(worker.join("status")).unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    list.trim().to_owned()
}

#[test]
fn the_worker_runs_on_the_processor_asked_for_or_on_one_of_those_allowed() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let allowed = ringmesh_io::affinity::allowed().unwrap();
            for cpu in [allowed.first().copied(), allowed.last().copied(), None] {
                let mut place = Place::new();
                place.config.cpu = cpu;
                let mut node = place.start().await.unwrap();
                node.join(&coordinator.token(), "").await.unwrap();
                let found: usize = processors_of_the_worker().parse().expect("one processor");
                match cpu {
                    Some(cpu) => assert_eq!(found, cpu),
                    None => assert!(allowed.contains(&found), "{found}"),
                }
                node.stop().await.unwrap();
            }
        });
    });
}
