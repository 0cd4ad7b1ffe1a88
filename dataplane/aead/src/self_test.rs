//! Tests the kernel against the library at start.
