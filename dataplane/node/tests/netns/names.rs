//! Programs on a machine find nodes by name, whatever keeps the machine's names, and what it was told is taken back.

use std::{
    fs,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use ringmesh_io::Choice;
use ringmesh_lab::{Capture, in_sandbox};
use ringmesh_node::Config;
use ringmesh_proto::local::{DnsQueryRequest, DnsQueryResponse, DnsStatusRequest, DnsStatusResponse};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};

use crate::{
    debian::{Debian, Keeper, terminate},
    support::{
        block_on,
        daemon::{Node, Place},
        process::Process,
    },
    world::{Machine, Member, World, within},
};

/// Tells this test program, run again, to clean up after the daemon of that configuration.
pub const BE_CLEANUP: &str = "RINGMESH_NODE_TEST_CLEANUP";
/// A name that is not the mesh's, and what the server in place says of it.
const OUTSIDE: &str = "outside.example";
const OUTSIDE_ADDRESS: &str = "192.0.2.80";
/// Within this a node that has just joined is found by its name.
const FOUND: Duration = Duration::from_secs(1);

/// Cleans up, if this process was started for it.
pub fn be_cleanup(config: &str) {
    match ringmesh_node::cleanup(&Config::load(config.as_ref()).unwrap()) {
        Ok(done) => println!("cleanup: {}", done.join(" and ")),
        Err(failure) => println!("refused: {failure}"),
    }
}

async fn dns_status(node: &mut Node) -> DnsStatusResponse {
    node.client.dns_status(DnsStatusRequest {}).await.unwrap().into_inner()
}

async fn dns_query(node: &mut Node, name: &str, kind: &str) -> DnsQueryResponse {
    let request = DnsQueryRequest { name: name.to_owned(), r#type: kind.to_owned() };
    node.client.dns_query(request).await.unwrap().into_inner()
}

async fn until_told(node: &mut Node, mode: &str) -> DnsStatusResponse {
    let began = Instant::now();
    loop {
        let status = dns_status(node).await;
        if status.mode == mode {
            return status;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "never {mode}: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A DNS server that knows one address of one name, and counts what it is asked.
async fn serve_outside(on: &mut Machine) {
    let address = on.host.ipv4();
    let socket = on.run(async move { UdpSocket::bind((address, 53)).await.unwrap() }).await;
    on.handle().spawn(async move {
        let mut query = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut query).await {
            let Some(question) = query.get(12..len) else { continue };
            let end = question.iter().position(|byte| *byte == 0).unwrap() + 5;
            let is_ours = question.starts_with(b"\x07outside\x07example\0\0\x01");
            // Its id and its question, and one record that points to its name.
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, is_ours.into(), 0, 0, 0, 0]);
            answer.extend_from_slice(&question[..end]);
            if is_ours {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]);
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
}

/// A web server that says whose it is.
async fn serve_web(on: &mut Machine, words: &'static str) {
    let listener = on.run(async { TcpListener::bind("[::]:80").await.unwrap() }).await;
    on.handle().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", words.len());
            let _ = stream.write_all((head + words).as_bytes()).await;
        }
    });
}

/// A Debian on a machine called alpha, which has joined, and a node beta with a web server.
struct Scene {
    world: World,
    debian: Debian,
    daemon: Process,
    beta: Member,
    own: [IpAddr; 2],
    before: String,
}

impl Scene {
    async fn new(keeper: Keeper) -> Self {
        let mut world = World::new().await;
        serve_outside(&mut world.head).await;
        let mut beta = world.node("beta", Choice::Auto).await;
        serve_web(&mut beta.machine, "beta greets").await;
        let server = world.head.host.ipv4().to_string();
        let booted = Instant::now();
        let debian = Debian::boot(&world.switch.host("alpha").unwrap(), keeper, &server);
        println!("{keeper:?}: booted in {:?}", booted.elapsed());
        let before = debian.files();
        let mut daemon = debian.start().await;
        let status = daemon.node.join(&world.token().await, "alpha").await.unwrap();
        let own = status.network.unwrap().self_.unwrap();
        let own = [own.ipv4.parse().unwrap(), own.ipv6.parse().unwrap()];
        Self { world, debian, daemon, beta, own, before }
    }

    /// Names of nodes and of others lead where they should, by whatever programs ask with.
    fn names_work(&self, by_dns: bool) {
        let (debian, beta) = (&self.debian, &self.beta);
        let (ipv4, ipv6) = (beta.ipv4.to_string(), beta.ipv6.to_string());
        for name in ["beta.mesh", "beta"] {
            let of = |family: &str| debian.sh(&format!("getent {family} {name}"));
            assert!(of("ahostsv4").starts_with(&ipv4), "{name}: {}", of("ahostsv4"));
            assert!(of("ahostsv6").starts_with(&ipv6), "{name}: {}", of("ahostsv6"));
            for family in ["-4", "-6"] {
                let page = debian.sh(&format!("curl -sS -m 10 {family} http://{name}/"));
                assert_eq!(page, "beta greets", "{family} {name}");
            }
        }
        for address in [&ipv4, &ipv6] {
            let of = debian.sh(&format!("getent hosts {address}"));
            assert_eq!(of.split_whitespace().nth(1), Some("beta.mesh"), "{of}");
        }
        assert!(!debian.works("getent hosts nobody.mesh"));
        assert!(debian.sh(&format!("getent ahostsv4 {OUTSIDE}")).starts_with(OUTSIDE_ADDRESS));
        // The hosts file is nothing that dig would look at: it asks this node itself then.
        let at = if by_dns { String::new() } else { format!("@{}", self.own[0]) };
        let dig = |what: &str| debian.sh(&format!("dig +short +time=3 +tries=2 {at} {what}"));
        assert_eq!(dig("beta.mesh A"), format!("{ipv4}\n"));
        assert_eq!(dig("beta.mesh AAAA"), format!("{ipv6}\n"));
        assert_eq!(dig("+tcp beta.mesh A"), format!("{ipv4}\n"));
        assert_eq!(dig(&format!("-x {ipv4}")), "beta.mesh.\n");
        assert_eq!(dig(&format!("-x {ipv6}")), "beta.mesh.\n");
        assert_eq!(dig("nobody.mesh A"), "");
        assert_eq!(dig(&format!("{OUTSIDE} A")), format!("{OUTSIDE_ADDRESS}\n"));
    }

    /// A node that joins is found by its name, which was asked for just before in vain.
    async fn a_newcomer_is_found(&self) {
        let found = |name: &str| self.debian.works(&format!("getent hosts {name}.mesh"));
        assert!(!found("gamma"));
        let gamma = self.world.node("gamma", Choice::Auto).await;
        let took = within(FOUND, "gamma is found by its name", || found("gamma"));
        println!("gamma was found {took:?} after it had joined");
        gamma.node.stop().await.unwrap();
    }

    fn clean_up(&self) -> String {
        let mut command = self.debian.this_program();
        command.args(["be_a_cleanup", "--exact", "--nocapture"]);
        command.env(BE_CLEANUP, self.debian.place.directory.path().join("node.toml"));
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        text.lines().find(|line| line.contains("cleanup: ") || line.contains("refused: ")).unwrap().to_owned()
    }

    #[track_caller]
    fn files_are_as_before(&self, when: &str) {
        let now = self.debian.files();
        if now != self.before {
            let news: Vec<_> = now.lines().filter(|line| !self.before.contains(line)).collect();
            let gone: Vec<_> = self.before.lines().filter(|line| !now.contains(line)).collect();
            panic!("{when}: {news:#?} instead of {gone:#?}");
        }
    }

    /// What outlives the daemon is taken back however it ends.
    async fn all_is_taken_back(mut self, mode: &str) {
        assert_ne!(self.debian.files(), self.before, "something was changed");
        assert!(self.clean_up().contains("another daemon uses the state directory"), "{}", self.clean_up());

        self.daemon.kill();
        assert_ne!(self.debian.files(), self.before, "a killed daemon takes nothing back");
        let done = self.clean_up();
        assert!(done.contains("cleanup: ") && done.contains("mesh0"), "{done}");
        self.files_are_as_before("killed, then cleaned up");
        assert!(self.clean_up().ends_with("cleanup: "), "nothing is left to be done");

        self.daemon = self.debian.start().await;
        until_told(&mut self.daemon.node, mode).await;
        self.daemon.kill();
        assert_ne!(self.debian.files(), self.before);
        self.daemon = self.debian.start().await;
        until_told(&mut self.daemon.node, mode).await;
        assert!(self.debian.sh("getent ahostsv4 beta.mesh").starts_with(&self.beta.ipv4.to_string()));
        let Self { debian, daemon, before, beta, world, own } = self;
        terminate(daemon);
        assert_eq!(debian.files(), before, "killed, started, stopped");
        drop((beta, world, own));
    }
}

#[test]
fn names_resolve_through_systemd_resolved_and_go_with_the_link() {
    in_sandbox(|| {
        block_on(async {
            let mut scene = Scene::new(Keeper::Resolved).await;
            let status = until_told(&mut scene.daemon.node, "resolved").await;
            assert_eq!(status.upstreams, ["127.0.0.53:53"]);
            assert_eq!(status.listen.len(), 2, "{status:?}");
            scene.names_work(true);
            let link = scene.debian.sh("resolvectl status mesh0");
            for words in
                ["-DefaultRoute", "-LLMNR", "-mDNS", "DNSSEC=no", "DNS Domain: mesh", "~64.100.in-addr.arpa"]
            {
                assert!(link.contains(words), "{words}: {link}");
            }
            assert_eq!(scene.debian.files(), scene.before, "no file is changed");
            // Names of others are none of this node's business.
            let asked = dns_status(&mut scene.daemon.node).await.answers;
            assert!(!scene.debian.works("getent hosts nothing.example"));
            assert_eq!(dns_status(&mut scene.daemon.node).await.answers, asked);
            scene.debian.sh("dig +short @127.0.0.53 nobody.mesh");
            assert_ne!(dns_status(&mut scene.daemon.node).await.answers, asked, "its own are");
            scene.a_newcomer_is_found().await;

            scene.debian.sh("systemctl restart systemd-resolved");
            let found = || scene.debian.works("getent ahostsv4 beta.mesh");
            let took = within(Duration::from_secs(5), "resolved is told again after its restart", found);
            println!("resolved was told again {took:?} after its restart");
            scene.names_work(true);

            scene.daemon.kill();
            // What resolved was told went with the link.
            let told =
                || scene.debian.works("test -e /sys/class/net/mesh0 || resolvectl domain | grep -q mesh");
            let took = within(Duration::from_secs(3), "the link goes", || !told());
            println!("the link went {took:?} after its daemon was killed");
            assert!(!scene.debian.works("getent hosts beta.mesh"));
            assert!(scene.debian.sh(&format!("getent ahostsv4 {OUTSIDE}")).starts_with(OUTSIDE_ADDRESS));
            assert_eq!(scene.debian.files(), scene.before);

            // Where port 53 is somebody else's, another one does.
            scene.debian.place.config.dns.port = 5300;
            scene.daemon = scene.debian.start().await;
            let status = until_told(&mut scene.daemon.node, "resolved").await;
            assert!(status.listen.iter().all(|at| at.ends_with(":5300")), "{status:?}");
            scene.names_work(true);
            terminate(scene.daemon);
            assert!(!scene.debian.works("getent hosts beta.mesh"));
            assert_eq!(scene.debian.files(), scene.before);
        });
    });
}

#[test]
fn names_resolve_through_openresolv_and_a_kill_is_cleaned_up() {
    in_sandbox(|| block_on(through_resolvconf(Keeper::Openresolv)));
}

#[test]
fn names_resolve_through_debians_resolvconf_and_a_kill_is_cleaned_up() {
    in_sandbox(|| block_on(through_resolvconf(Keeper::Resolvconf)));
}

async fn through_resolvconf(keeper: Keeper) {
    let mut scene = Scene::new(keeper).await;
    let status = until_told(&mut scene.daemon.node, "resolvconf").await;
    let server = format!("{}:53", scene.world.head.host.ipv4());
    assert_eq!(status.upstreams, [server.as_str()], "those in place, and not ourselves");
    let file = String::from_utf8(scene.debian.read("/etc/resolv.conf")).unwrap();
    let first = file.lines().find(|line| line.starts_with("nameserver")).unwrap();
    assert_eq!(first, format!("nameserver {}", scene.own[0]), "{file}");
    scene.names_work(true);
    scene.a_newcomer_is_found().await;
    // The names of others go through this node, which asks whoever is in place now.
    let record = if keeper == Keeper::Openresolv { "eth0.dhcp" } else { "eth0.dhclient" };
    let lease = |server: &str| {
        scene
            .debian
            .sh(&format!("printf 'nameserver {server}\\nsearch office.example\\n' | resolvconf -a {record}"));
    };
    lease("192.0.2.253");
    let began = Instant::now();
    while dns_status(&mut scene.daemon.node).await.upstreams != ["192.0.2.253:53"] {
        assert!(began.elapsed() < Duration::from_secs(5), "another server is followed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lease(server.strip_suffix(":53").unwrap());
    scene.all_is_taken_back("resolvconf").await;
}

#[test]
fn names_resolve_through_the_hosts_file_and_a_kill_is_cleaned_up() {
    in_sandbox(|| {
        block_on(async {
            let mut scene = Scene::new(Keeper::Nobody).await;
            let status = until_told(&mut scene.daemon.node, "hosts").await;
            assert!(status.reason.contains("does not lead to systemd-resolved"), "{}", status.reason);
            scene.names_work(false);
            scene.a_newcomer_is_found().await;
            // What others write meanwhile stays; it is taken out again, for the comparison.
            scene.debian.sh("sed -i 's/^127.0.0.1.*/&\\n192.0.2.9 by-hand/' /etc/hosts");
            assert!(scene.debian.works("getent hosts by-hand && getent hosts beta.mesh"));
            scene.debian.sh("sed -i '/by-hand/d' /etc/hosts");
            scene.all_is_taken_back("hosts").await;
        });
    });
}

#[test]
fn a_bind_mounted_hosts_file_is_written_in_place_and_a_stopped_daemon_leaves_its_bytes() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            // The lab's hosts have one, as containers do.
            let machine = Machine::new(&world.switch, "alpha");
            machine.sh("printf '127.0.0.1 localhost' > /etc/hosts");
            let before = machine.sh("stat -c '%i %a %u %g' /etc/hosts; cat /etc/hosts");
            let mut alpha = world.member(machine, Place::new(), "alpha").await;
            until_told(&mut alpha.node, "hosts").await;
            let beta = world.node("beta", Choice::Auto).await;
            let finds = |name: &str| alpha.machine.shell(&format!("getent hosts {name}")).status.success();
            within(FOUND, "beta is found by its name", || finds("beta.mesh") && finds("beta"));
            let hosts = alpha.machine.sh("cat /etc/hosts");
            assert!(hosts.starts_with("127.0.0.1 localhost\n# BEGIN ringmesh mesh0 "), "{hosts}");
            for (name, kind, data) in
                [("beta", "A", beta.ipv4.to_string()), ("beta.mesh", "AAAA", beta.ipv6.to_string())]
            {
                let answer = dns_query(&mut alpha.node, name, kind).await;
                assert_eq!((answer.code.as_str(), answer.source.as_str()), ("NOERROR", "zone"));
                assert_eq!(answer.records.iter().map(|it| it.data.as_str()).collect::<Vec<_>>(), [data]);
            }
            let both = dns_query(&mut alpha.node, "beta", "").await;
            assert_eq!(both.records.len(), 2, "{both:?}");
            let pointer = dns_query(&mut alpha.node, &beta.ipv4.to_string(), "").await;
            assert_eq!(pointer.records[0].data, "beta.mesh.");
            assert_eq!(dns_query(&mut alpha.node, "nobody", "").await.code, "NXDOMAIN");
            assert_eq!(dns_status(&mut alpha.node).await.names, 3, "the coordinator's relay has one as well");
            alpha.node.stop().await.unwrap();
            let after = alpha.machine.sh("stat -c '%i %a %u %g' /etc/hosts; cat /etc/hosts");
            assert_eq!(after, before);
            beta.node.stop().await.unwrap();
        });
    });
}

#[test]
fn a_node_that_is_removed_or_leaves_tells_the_machine_no_names() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alpha = world.node("alpha", Choice::Auto).await;
            let mut beta = world.node("beta", Choice::Auto).await;
            let hosts = |member: &Member| member.machine.sh("cat /etc/hosts");
            for member in [&mut alpha, &mut beta] {
                until_told(&mut member.node, "hosts").await;
            }
            assert!(hosts(&alpha).contains("\tbeta.mesh beta\n"), "{}", hosts(&alpha));
            beta.until_connected().await;
            world.remove("beta").await;
            until_told(&mut beta.node, "off").await;
            assert!(!hosts(&beta).contains("ringmesh"), "{}", hosts(&beta));
            within(FOUND, "nobody finds it any more", || !hosts(&alpha).contains("beta"));
            alpha.node.leave().await.unwrap();
            assert!(!hosts(&alpha).contains("ringmesh"), "{}", hosts(&alpha));
            for member in [alpha, beta] {
                member.node.stop().await.unwrap();
            }
        });
    });
}

#[test]
fn a_machine_that_cannot_be_told_is_gone_on_without_and_says_why() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let machine = Machine::new(&world.switch, "alpha");
            machine.sh("mount -o remount,bind,ro /etc/hosts");
            let mut alpha = world.member(machine, Place::new(), "alpha").await;
            let began = Instant::now();
            while !dns_status(&mut alpha.node).await.reason.contains("Read-only file system") {
                assert!(began.elapsed() < Duration::from_secs(5), "{:?}", dns_status(&mut alpha.node).await);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(dns_status(&mut alpha.node).await.mode, "off");
            // It answers all the same.
            assert_eq!(
                dns_query(&mut alpha.node, "alpha", "AAAA").await.records[0].data,
                alpha.ipv6.to_string()
            );
            assert!(!alpha.place.state("undo.json").exists(), "nothing is to be taken back");
            alpha.node.stop().await.unwrap();
        });
    });
}

#[test]
fn nobody_else_gets_an_answer_or_hears_that_there_is_a_server() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alpha = world.node("alpha", Choice::Auto).await;
            let mut beta = world.node("beta", Choice::Auto).await;
            until_told(&mut alpha.node, "hosts").await;
            alpha.until_peers(1).await;
            beta.echo("alpha").await;
            let (v4, v6) = (alpha.ipv4, alpha.ipv6);
            // A stranger on the same wire, who knows where the mesh's addresses are.
            let stranger = Machine::new(&world.switch, "stranger");
            let via = [alpha.machine.host.ipv4().into(), alpha.machine.host.ipv6().into()];
            for (to, via) in [v4, v6].into_iter().zip(via) {
                let len = if to.is_ipv4() { 32 } else { 128 };
                stranger.host.add_route((to, len), "eth0", Some(via)).unwrap();
            }
            let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04beta\x04mesh\0\0\x01\0\x01";
            let ask = |machine: &Machine, to: IpAddr| {
                let asked = machine.host.enter(|| {
                    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                    let socket = std::net::UdpSocket::bind((any, 0)).unwrap();
                    socket.connect((to, 53)).unwrap();
                    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                    socket.send(query).unwrap();
                    let answered = socket.recv(&mut [0; 512]).is_ok();
                    let tcp =
                        std::net::TcpStream::connect_timeout(&(to, 53).into(), Duration::from_millis(300));
                    (answered, tcp.is_ok())
                });
                asked.unwrap()
            };
            for to in [v4, v6] {
                assert_eq!(ask(&alpha.machine, to), (true, true), "this machine is answered at {to}");
            }
            let capture = Capture::start(&stranger.host, "eth0").unwrap();
            for to in [v4, v6] {
                assert_eq!(ask(&stranger, to), (false, false), "from the wire, at {to}");
                assert_eq!(ask(&beta.machine, to), (false, false), "from a peer, at {to}");
            }
            let captured = capture.stop().unwrap();
            assert!(captured.count(query) >= 2, "the stranger did ask");
            let from = |address: IpAddr| match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            for address in [v4, v6] {
                let own = from(address);
                // In IPv4 the source stands at 26, in IPv6 at 22.
                let sent = captured.frames().filter(|frame| {
                    let at = if own.len() == 4 { 26 } else { 22 };
                    frame.get(at..at + own.len()) == Some(own.as_slice())
                });
                assert_eq!(sent.count(), 0, "nothing came back from {address}");
            }
            assert_eq!(captured.dropped(), 0);
            for member in [alpha, beta] {
                member.node.stop().await.unwrap();
            }
        });
    });
}

#[test]
fn a_port_that_is_taken_is_told_and_used_when_it_is_free() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut machine = Machine::new(&world.switch, "alpha");
            let taken = machine.run(async { UdpSocket::bind("0.0.0.0:53").await.unwrap() }).await;
            let mut alpha = world.member(machine, Place::new(), "alpha").await;
            let status = until_told(&mut alpha.node, "hosts").await;
            assert!(status.reason.contains("another DNS server has port 53"), "{}", status.reason);
            assert!(status.listen.is_empty());
            assert!(
                alpha.machine.shell("getent hosts alpha.mesh").status.success(),
                "names are there all the same"
            );
            drop(taken);
            let began = Instant::now();
            // It is taken, and a moment later the machine told, and with it what there is to say.
            loop {
                let status = dns_status(&mut alpha.node).await;
                if !status.listen.is_empty() && !status.reason.contains("another DNS server") {
                    break;
                }
                assert!(
                    began.elapsed() < Duration::from_secs(10),
                    "the free port is taken: {}",
                    status.reason
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            alpha.node.stop().await.unwrap();
        });
    });
}

#[test]
fn a_cleanup_where_nothing_was_left_changes_nothing() {
    in_sandbox(|| {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        let before = fs::read("/etc/hosts").unwrap();
        let config = Config { state_dir: state_dir.clone(), ..Config::default() };
        assert!(ringmesh_node::cleanup(&config).unwrap().is_empty());
        assert!(!state_dir.exists(), "nor makes it anything");
        assert_eq!(fs::read("/etc/hosts").unwrap(), before);
        // The state directory is gone, and with it what was noted there.
        fs::write(
            "/etc/hosts",
            [&before[..], b"# BEGIN ringmesh mesh0\n1.2.3.4 a.mesh\n# END ringmesh mesh0\n"].concat(),
        )
        .unwrap();
        assert_eq!(ringmesh_node::cleanup(&config).unwrap().len(), 1);
        assert_eq!(fs::read("/etc/hosts").unwrap(), before);
        let status = Command::new("getent").args(["hosts", "a.mesh"]).status().unwrap();
        assert!(!status.success());
    });
}
