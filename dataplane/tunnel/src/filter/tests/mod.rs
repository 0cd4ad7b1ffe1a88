//! The filter as a whole, without a tunnel around it.
