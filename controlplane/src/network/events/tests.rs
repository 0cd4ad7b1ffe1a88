//! Facts about events.
