//! How long an interface with several queues lives.

use ringmesh_io::{Tun, TunError};

use crate::interface::{Interface, Version};
use crate::namespace::interface_index;

fn an_interface_goes_away_with_its_last_queue_whichever_that_is() {
    for last in 0..3 {
        let mut tuns = Tun::create_queues("mesh-three", 3).expect("TUN is available: these tests need it");
        assert!(tuns.iter().all(|tun| tun.name() == "mesh-three"));
        let kept = tuns.remove(last);
        for tun in tuns {
            drop(tun);
            interface_index("mesh-three").expect("it has a queue");
        }
        assert!(matches!(Tun::create("mesh-three"), Err(TunError::NameTaken { .. })));
        drop(kept);
        assert!(interface_index("mesh-three").is_err(), "it had no queue");
    }
}

fn flows_of_a_closed_queue_come_from_those_that_are_left() {
    let mut interface = Interface::new(4);
    let sockets: Vec<_> = (0..64).map(|flow| Interface::socket(Version::V4, 5000 + flow)).collect();
    while !interface.queues.is_empty() {
        for socket in &sockets {
            socket.send(b"there").expect("sent");
        }
        assert_eq!(interface.read(sockets.len()).len(), 64, "{} queues", interface.queues.len());
        interface.queues.remove(0);
    }
    assert!(sockets[0].send(b"nobody").is_err(), "the address went with the interface");
}

fn too_many_queues_are_refused_and_leave_nothing_behind() {
    let error = Tun::create_queues("mesh-many", 257).expect_err("the kernel has 256");
    assert!(error.to_string().contains("mesh-many"), "{error}");
    assert!(interface_index("mesh-many").is_err());
    assert_eq!(Tun::create_queues("mesh-many", 256).expect("as many as there are").len(), 256);
    for few in [0, 1] {
        assert_eq!(Tun::create_queues("mesh-many", few).expect("the name is free").len(), 1);
    }
}

fn an_interface_in_use_gives_no_queues_to_another() {
    let _mine = Tun::create_queues("mesh-mine", 2).expect("TUN is available: these tests need it");
    assert!(matches!(Tun::create_queues("mesh-mine", 2), Err(TunError::NameTaken { .. })));
}

in_namespaces! {
    an_interface_goes_away_with_its_last_queue_whichever_that_is,
    flows_of_a_closed_queue_come_from_those_that_are_left,
    too_many_queues_are_refused_and_leave_nothing_behind,
    an_interface_in_use_gives_no_queues_to_another,
}
