//! A machine that forbids io_uring: the portable back end is chosen, and the reason is told.

use std::io;

use ringmesh_io::{
    BackEnd, Choice, KernelIo, MemoryIo, Offloads, PacketIo, Parts, SocketBuffers, Tun, Udp, Waker, probe,
};

use crate::namespace;

/// Makes `io_uring_setup` fail with `code` for the calling thread, as a container's seccomp filter does.
fn forbid_io_uring(code: u16) {
    let number = u32::try_from(libc::SYS_io_uring_setup).expect("a system call number");
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The first word of seccomp_data is the system call's number.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | u32::from(code)),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no pointers are passed.
    namespace::check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
        .expect("no new privileges");
    // SAFETY: the program and what it points to live through the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    namespace::check(set).expect("a filter");
}

fn parts() -> Parts {
    Parts {
        tun: Tun::create("mesh%d").expect("TUN is available: these tests need it"),
        udp: Udp::bind(0, SocketBuffers::default()).expect("a free port"),
        waker: Waker::new().expect("a waker"),
        mtu: 1408,
        offloads: Offloads::ALL,
        spin: std::time::Duration::ZERO,
    }
}

#[test]
fn forbidden_io_uring_falls_back_to_poll_and_says_why() {
    namespace::enter(concat!(module_path!(), "::forbidden_io_uring_falls_back_to_poll_and_says_why"), || {
        assert_eq!(probe(Choice::Auto).expect("a back end").back_end, BackEnd::Uring, "allowed at first");
        forbid_io_uring(libc::EPERM as u16);
        let probed = probe(Choice::Auto).expect("a back end");
        assert_eq!(probed.back_end, BackEnd::Poll);
        assert!(probed.reason.contains("likely kernel.io_uring_disabled or seccomp"), "{}", probed.reason);
        assert!(probed.reason.ends_with("using poll"), "{}", probed.reason);
        let (mut io, chosen) = KernelIo::open(Choice::Auto, parts()).expect("a back end");
        assert_eq!(chosen, probed, "probing and opening agree");
        io.flush().expect("it works");
    });
}

#[test]
fn a_kernel_without_io_uring_falls_back_as_well() {
    namespace::enter(concat!(module_path!(), "::a_kernel_without_io_uring_falls_back_as_well"), || {
        forbid_io_uring(libc::ENOSYS as u16);
        assert_eq!(probe(Choice::Auto).expect("a back end").back_end, BackEnd::Poll);
    });
}

#[test]
fn who_insists_on_io_uring_is_refused() {
    namespace::enter(concat!(module_path!(), "::who_insists_on_io_uring_is_refused"), || {
        forbid_io_uring(libc::EPERM as u16);
        let refused = KernelIo::open(Choice::Uring, parts()).expect_err("no ring");
        assert!(refused.to_string().contains("choose `auto` or `poll`"), "{refused}");
        assert_eq!(refused.source.kind(), io::ErrorKind::PermissionDenied);
        assert!(probe(Choice::Uring).is_err());
    });
}

#[test]
fn a_process_that_may_not_make_interfaces_is_told_the_cure() {
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        // SAFETY: no pointers are passed; only this thread loses its rights.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
    }
    let error = Tun::create("mesh%d").expect_err("not permitted").to_string();
    assert!(error.contains("CAP_NET_ADMIN") && error.contains("sudo setcap cap_net_admin+ep /"), "{error}");
}

#[test]
fn the_twin_needs_no_permission() {
    assert_eq!(MemoryIo::new(1408).expect("a waker").counters().turns, 0);
}
