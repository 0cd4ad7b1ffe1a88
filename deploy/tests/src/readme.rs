//! What the README tells its reader to type: tests run that, and nothing that only resembles it.

use std::{fs, path::Path};

/// A code block: what its fence says it is, and its lines without comments at their ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// `sh`, `toml`, or nothing.
    pub language: String,
    /// The lines, as they stand there but for what follows ` #`.
    pub lines: Vec<String>,
}

/// The code blocks of the section of a Markdown file, of this repository, that begins with `heading` (`## Three hosts`), in their order.
///
/// # Panics
/// If there is no such section: the test that asks for it has to follow.
#[must_use]
pub fn blocks(file: &str, heading: &str) -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let found = section(&text, heading).map(blocks_of);
    found.unwrap_or_else(|| panic!("{file} has no section `{heading}`"))
}

/// The lines below a heading, up to the next one of its level or of a higher one.
fn section<'a>(text: &'a str, heading: &str) -> Option<Vec<&'a str>> {
    let level = heading.chars().take_while(|char| *char == '#').count();
    let mut lines = text.lines().skip_while(|line| *line != heading);
    lines.next()?;
    let mut in_code = false;
    let within = lines.take_while(|line| {
        in_code ^= line.starts_with("```");
        let hashes = line.chars().take_while(|char| *char == '#').count();
        in_code || !(1..=level).contains(&hashes)
    });
    Some(within.collect())
}

fn blocks_of(lines: Vec<&str>) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut in_code = false;
    for line in lines {
        match line.strip_prefix("```") {
            Some(language) if !in_code => {
                in_code = true;
                blocks.push(Block { language: language.to_owned(), lines: Vec::new() });
            }
            Some(_) => in_code = false,
            None if in_code => {
                let line = line.split_once(" #").map_or(line, |(code, _)| code).trim_end();
                blocks.last_mut().into_iter().for_each(|block| block.lines.push(line.to_owned()));
            }
            None => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n```sh\nnot this\n```\n## Wanted\nwords\n```sh\nfirst   # says why\n# of code\nsecond\n```\n\
        ### Below\n```toml\n[[allow]]\n```\n## Next\n```sh\nnor this\n```\n";

    #[test]
    fn a_section_has_its_own_blocks_and_those_below_it() {
        let found = blocks_of(section(TEXT, "## Wanted").unwrap_or_default());
        let block = |language: &str, lines: &[&str]| Block {
            language: language.to_owned(),
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(found, [block("sh", &["first", "# of code", "second"]), block("toml", &["[[allow]]"])]);
        assert_eq!(section(TEXT, "## Missing"), None);
    }
}
