//! The signed records of a network, and the map made of them.
