//! Cutting and merging against plain references.
