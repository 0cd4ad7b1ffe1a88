//! What the kernel does for several workers: which queue of an interface a packet is read from, and what they share.
//!
//! Each test runs in a network namespace of its own: run them as root, or where user namespaces are allowed.

#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../contract/namespace.rs"]
mod namespace;

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

/// Runs each test of the module it is used in with either back end, in a namespace of its own.
macro_rules! with_either_choice {
    ($($test:ident),* $(,)?) => {
        mod uring {
            $(#[test]
            fn $test() {
                let name = concat!(module_path!(), "::", stringify!($test));
                crate::namespace::enter(name, || super::$test(ringmesh_io::Choice::Uring));
            })*
        }

        mod poll {
            $(#[test]
            fn $test() {
                let name = concat!(module_path!(), "::", stringify!($test));
                crate::namespace::enter(name, || super::$test(ringmesh_io::Choice::Poll));
            })*
        }
    };
}

mod allocation;
mod interface;
mod lifetime;
mod queues;
mod together;
