//! `meshctl reference`: the command line as a page of documentation, made of the grammar itself.

use std::fmt::Write as _;

use crate::{cli::Cli, failure::Failure, output};

/// How wide the texts are, in columns.
const WIDTH: usize = 110;
const HEAD: &str = "# Reference\n\n\
    Every command with its arguments, flags, variables and defaults, as `meshctl COMMAND --help` prints them: made by `meshctl reference`,\n\
    not written. [cli.md](cli.md) tells what they are for, and the keys of the configuration files.\n";

/// Prints the page.
pub(crate) fn run() -> Result<(), Failure> {
    output::write_result(&page())
}

/// The page `docs/reference.md`.
fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut grammar = without_values(Cli::grammar()).term_width(WIDTH);
    grammar.build();
    section(&mut page, &mut grammar);
    page
}

/// Has a command's help name its variables without what they hold here.
fn without_values(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| argument.hide_env_values(true)).mut_subcommands(without_values)
}

/// Appends a command's help, and after it those of the commands below it.
fn section(page: &mut String, command: &mut clap::Command) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    // Writing to a string does not fail.
    let _ = write!(page, "\n## {name}\n\n```text\n");
    for line in help.trim_end().lines() {
        let _ = writeln!(page, "{}", line.trim_end());
    }
    page.push_str("```\n");
    for below in command.get_subcommands_mut() {
        if below.get_name() != "help" && !below.is_hide_set() {
            section(page, below);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Says how to make the page anew.
    const CURE: &str = "cargo run -p meshctl -- reference >docs/reference.md";

    #[test]
    fn the_reference_is_what_the_command_line_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
        let written = fs::read_to_string(path).unwrap();
        let made = page();
        let differs = written.lines().zip(made.lines()).find(|(written, made)| written != made);
        assert_eq!(differs, None, "docs/reference.md is not what the command line says; run: {CURE}");
        assert_eq!(written.len(), made.len(), "docs/reference.md is longer or shorter; run: {CURE}");
    }

    #[test]
    fn every_command_has_a_section_and_no_value_of_this_environment_is_in_it() {
        let page = page();
        for name in ["meshctl", "meshctl token create", "meshctl coordinator backup", "meshctl policy apply"]
        {
            assert!(page.contains(&format!("\n## {name}\n")), "{name}");
        }
        assert!(page.contains("[env: MESH_TOKEN]"), "variables are named, without what they hold");
    }
}
