//! What a packet back end promises, checked on each: real TUN devices and sockets for the kernel's, vectors for the
//! twin.
//!
//! The worker's loop stands on these promises and cannot tell which back end it has. Each test runs in a network
//! namespace of its own: run them as root, or where user namespaces are allowed.

/// Checks the promises of the module it is used in on both of the kernel's back ends, each in a namespace and with an
/// interface of its own.
macro_rules! on_kernel_back_ends {
    ($($test:ident),* $(,)?) => {
        mod uring {
            $(#[test]
            fn $test() {
                crate::namespace::enter(concat!(module_path!(), "::", stringify!($test)), || {
                    super::$test(&mut crate::world::KernelWorld::new(ringmesh_io::Choice::Uring));
                });
            })*
        }

        mod poll {
            $(#[test]
            fn $test() {
                crate::namespace::enter(concat!(module_path!(), "::", stringify!($test)), || {
                    super::$test(&mut crate::world::KernelWorld::new(ringmesh_io::Choice::Poll));
                });
            })*
        }
    };
}

/// As [`on_kernel_back_ends`], and on the in-memory twin.
macro_rules! on_every_back_end {
    ($($test:ident),* $(,)?) => {
        on_kernel_back_ends! { $($test),* }

        mod memory {
            $(#[test]
            fn $test() {
                super::$test(&mut crate::world::MemoryWorld::new());
            })*
        }
    };
}

/// Checks the promises of the module it is used in with either choice, each in a namespace of its own.
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
mod fallbacks;
mod kernel;
mod namespace;
mod promises;
mod refusal;
mod set_up;
mod trains;
mod world;
