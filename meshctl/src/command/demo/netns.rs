//! That the demo sees what it claims to see, on a switch without a mesh: also when something is wrong.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ringmesh_lab::{Host, Lab, in_sandbox};

use super::{
    echo::Echo,
    story::{CUT_OFF, last_reply},
    transfer,
};

const SOON: Duration = Duration::from_millis(500);

fn two_hosts(test: impl FnOnce(&Host, &Host)) {
    let lab = Lab::new().unwrap();
    let switch = lab.switch().unwrap();
    test(&switch.host("alice").unwrap(), &switch.host("bob").unwrap());
}

fn echo(from: &Host, to: IpAddr) -> Echo {
    from.enter(|| Echo::new(to)).unwrap().unwrap()
}

#[test]
fn echoes_come_back_over_both_families() {
    in_sandbox(|| {
        two_hosts(|alice, bob| {
            for address in [IpAddr::from(bob.ipv4()), IpAddr::from(bob.ipv6())] {
                let mut echo = echo(alice, address);
                assert!(echo.ask(SOON).is_some());
                assert!(echo.ask(SOON).is_some());
                assert!(echo.until_reply(SOON).is_some());
            }
        });
    });
}

#[test]
fn a_host_that_is_not_there_does_not_answer() {
    in_sandbox(|| {
        two_hosts(|alice, _| {
            for address in ["10.1.0.99", "10.99.0.1", "fd10:0:0:1::99", "2001:db8::1"] {
                let mut echo = echo(alice, address.parse().unwrap());
                assert_eq!(echo.ask(SOON), None);
                assert_eq!(echo.until_reply(SOON), None);
            }
        });
    });
}

#[test]
fn a_transfer_arrives_as_it_was_sent() {
    in_sandbox(|| {
        two_hosts(|alice, bob| {
            let transfer = transfer::run(alice, bob, bob.ipv6().into(), transfer::ROUND).unwrap();
            assert_eq!(transfer.sent, transfer.received);
            assert!(transfer.bytes > 0 && transfer.rate() > 0.0);
        });
    });
}

#[test]
fn a_transfer_to_nobody_fails() {
    in_sandbox(|| {
        two_hosts(|alice, bob| {
            bob.interfaces()[0].unplug().unwrap();
            alice.link_down("eth0").unwrap();
            let failure = transfer::run(alice, bob, bob.ipv4().into(), transfer::ROUND).unwrap_err();
            assert!(failure.to_string().contains("the sender cannot connect"), "{failure}");
        });
    });
}

#[test]
fn a_host_that_falls_silent_is_cut_off_and_one_that_goes_on_is_not() {
    in_sandbox(|| {
        two_hosts(|alice, bob| {
            let answering = echo(alice, bob.ipv4().into());
            assert_eq!(last_reply(Instant::now(), answering), None);
            let mut falling = echo(alice, bob.ipv4().into());
            assert!(falling.ask(SOON).is_some());
            bob.interfaces()[0].unplug().unwrap();
            assert!(last_reply(Instant::now(), falling).is_some_and(|last| last < CUT_OFF));
        });
    });
}
