//! The policy file: who may open a flow to whom, and extra names, as people write them.
//!
//! ```text
//! text ──read──▶ PolicyFile ──compile(Roster)──▶ Compiled: leaves, groups of members, warnings
//!                                                   │  tests of the file: judged by the nodes' own Filter
//!                                                   └▶ compare(before, after): what may be opened that could not, and the reverse
//! ```
//!
//! Nothing here reads a clock or a file. What is wrong with a file is said all at once, each thing with its line and column, its
//! cause and its cure; a file with an error compiles to nothing, so what was in force before stays.
//!
//! A file names members by their names, and compiling binds the names to the ids of nodes: a node that later gets the name of one
//! that is gone inherits nothing.

mod compare;
mod compile;
mod describe;
mod judge;
mod problem;
mod roster;
mod text;
mod warn;

#[cfg(test)]
mod tests;

pub use self::{
    compare::{Allowances, Change, Plan, Service, compare},
    compile::{Compiled, check},
    describe::{describe, ports_text, selectors_text},
    judge::OPENINGS_MAX,
    problem::{PROBLEMS_MAX, Problem},
    roster::Roster,
    text::{PolicyFile, TEXT_MAX},
};

/// What the policy that a network is made with says, as a file: nobody wrote it, so this is what there is to show and go back to.
pub const FIRST: &str =
    "# What a network begins with: all members reach each other.\n[[allow]]\nfrom = \"*\"\nto = \"*\"\n";
