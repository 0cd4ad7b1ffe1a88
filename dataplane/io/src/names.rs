//! Where the names of hosts and users are looked up by a static executable.
//!
//! The C library asks the services that `/etc/nsswitch.conf` names. Most of them are shared objects of the machine's own C library, which
//! a static executable would have to load beside another version of the same library: it works, fails or crashes, as the two
//! versions are. The services `files` and `dns` are built in (since glibc 2.34), so a static executable is told to ask no others:
//! `/etc/hosts` and the servers of `/etc/resolv.conf`, which on a machine with systemd-resolved lead to it; `/etc/passwd` and
//! `/etc/group`. What only `resolve`, `mymachines`, `mdns` or `sss` knows is not found.

/// The databases that are asked, and the services that are built in for each.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
const BUILT_IN: [(&std::ffi::CStr, &std::ffi::CStr); 3] =
    [(c"hosts", c"files dns"), (c"passwd", c"files"), (c"group", c"files")];

/// Keeps a static executable to what is built into it for looking up names; answers whether this is one. To be called first in
/// `main`: it has no effect on a database that was asked before.
#[must_use]
pub fn keep_to_built_in() -> bool {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        use std::ffi::{c_char, c_int};
        unsafe extern "C" {
            // <nss.h>; copies what it is given, under glibc's own lock.
            fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
        }
        for (database, services) in BUILT_IN {
            // SAFETY: both are C strings that outlive the call.
            let refused = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
            assert_eq!(refused, 0, "invariant: glibc knows {database:?} and can read {services:?}");
        }
        true
    }
    #[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
    false
}
