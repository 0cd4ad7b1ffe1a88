//! What `dig` makes of it, the program that everybody looks at DNS with.

use std::process::Command;

use super::*;
use crate::dns::{Server, forward::Upstreams};

/// Runs dig with some words, one answer and no second try.
async fn dig(server: SocketAddr, words: &str) -> String {
    let mut command = Command::new("dig");
    command.args([&format!("@{}", server.ip()), "-p", &server.port().to_string()]);
    command.args(["+time=5", "+tries=1", "+noall", "+comments", "+answer", "+authority"]);
    command.args(words.split_whitespace());
    let output =
        tokio::task::spawn_blocking(move || command.output().expect("dig is installed")).await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{words}: {said}");
    // Dig tells so of whatever it finds wrong with a message.
    assert!(
        !said.contains("WARNING") && !said.contains("Warning") && !said.contains("malformed"),
        "{words}: {said}"
    );
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_is_content_with_every_answer() {
    let server = Server::start(&loopback(), published(), Upstreams::none()).unwrap();
    let soa = "0 IN SOA alice.mesh. hostmaster.mesh. 7 3600 600 86400 0";
    for (words, expected) in [
        (
            "bob.mesh A",
            vec!["status: NOERROR", "flags: qr aa rd ra;", "bob.mesh. 10 IN A 100.64.0.2", "udp: 1232"],
        ),
        ("+tcp BOB.mesh AAAA", vec!["status: NOERROR", "BOB.mesh. 10 IN AAAA fd00:1::2"]),
        ("+noedns +norecurse bob.mesh A", vec!["flags: qr aa ra;", "100.64.0.2"]),
        ("+dnssec bob.mesh A", vec!["flags: do; udp: 1232", "100.64.0.2"]),
        ("-x 100.64.0.2", vec!["2.0.64.100.in-addr.arpa. 10 IN PTR bob.mesh."]),
        ("-x fd00:1::2", vec!["ip6.arpa. 10 IN PTR bob.mesh."]),
        ("six.mesh A", vec!["status: NOERROR", "ANSWER: 0, AUTHORITY: 1", &format!("mesh. {soa}")]),
        ("eu.mesh A", vec!["status: NOERROR", "ANSWER: 0, AUTHORITY: 1"]),
        ("nobody.mesh A", vec!["status: NXDOMAIN", "ANSWER: 0, AUTHORITY: 1", &format!("mesh. {soa}")]),
        ("-x 100.64.0.3", vec!["status: NXDOMAIN", &format!("64.100.in-addr.arpa. {soa}")]),
        ("+notcp bob.mesh ANY", vec!["status: NOERROR", "bob.mesh. 10 IN HINFO \"RFC8482\" \"\""]),
        ("mesh SOA", vec!["mesh. 10 IN SOA alice.mesh."]),
        ("mesh NS", vec!["mesh. 10 IN NS alice.mesh."]),
        ("+ednsopt=65001:abcd +padding=64 +cookie bob.mesh A", vec!["status: NOERROR", "100.64.0.2"]),
        ("+edns=7 +noednsnegotiation bob.mesh A", vec!["status: BADVERS", "EDNS: version: 0"]),
        ("+noedns +opcode=NOTIFY bob.mesh SOA", vec!["status: NOTIMP"]),
        ("+noedns +header-only", vec!["status: FORMERR"]),
        ("version.bind CH TXT", vec!["status: REFUSED"]),
        ("www.example.com A", vec!["status: REFUSED"]),
        ("localhost AAAA", vec!["localhost. 10 IN AAAA ::1"]),
        ("printer.onion A", vec!["status: NXDOMAIN"]),
    ] {
        for at in server.bound() {
            let said = dig(*at, words).await;
            for part in &expected {
                assert!(said.contains(part), "{words}: no `{part}` in {said}");
            }
        }
    }
    let transfer = Command::new("dig")
        .args([
            "@127.0.0.1",
            "-p",
            &server.bound()[0].port().to_string(),
            "+time=5",
            "+tries=1",
            "mesh",
            "AXFR",
        ])
        .output();
    let transfer = tokio::task::spawn_blocking(move || transfer.unwrap()).await.unwrap();
    assert!(String::from_utf8_lossy(&transfer.stdout).contains("Transfer failed"), "{transfer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_asks_again_by_tcp_when_an_answer_is_cut_short() {
    let label = "a".repeat(60);
    let many: Vec<String> = (1..=16).map(|host| format!("fd00:9::{host:x}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let zone = Zone::new(Contents {
        zone: "mesh",
        pools: &[],
        own: None,
        serial: 1,
        members: std::iter::once((label.as_str(), addresses(&many))),
        records: std::iter::empty(),
    });
    let server = Server::start(&loopback(), watch::channel(Arc::new(zone)).1, Upstreams::none()).unwrap();
    for at in server.bound() {
        let said = dig(*at, &format!("+noedns {label}.mesh AAAA")).await;
        assert!(said.contains("Truncated, retrying in TCP mode") && said.contains("ANSWER: 16"), "{said}");
        let said = dig(*at, &format!("{label}.mesh AAAA")).await;
        assert!(!said.contains("Truncated") && said.contains("ANSWER: 16"), "{said}");
    }
}
