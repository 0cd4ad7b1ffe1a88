//! Cutting and merging against the kernel: its own segmenter on the same super-packets, its sockets behind what we merge.
//!
//! What is tested is no part of the crate's interface, so its files are compiled into this program. Each test runs in a
//! network namespace of its own: run them as root, or where user namespaces are allowed.

#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../contract/namespace.rs"]
mod namespace;
#[allow(dead_code, unreachable_pub, reason = "the crate uses more of it than these tests")]
mod offload;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../../src/offload/tests/packet.rs"]
mod packet;

/// Runs each test of the module it is used in in a namespace of its own.
macro_rules! in_namespaces {
    ($($test:ident),* $(,)?) => {
        mod netns {
            $(#[test]
            fn $test() {
                crate::namespace::enter(concat!(module_path!(), "::", stringify!($test)), super::$test);
            })*
        }
    };
}

mod device;
mod forward;
mod receive;
mod send;
