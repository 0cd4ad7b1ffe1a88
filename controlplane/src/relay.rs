//! The relay that this coordinator runs.
mod floors;
mod places;
