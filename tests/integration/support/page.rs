//! A page of the book, as its blocks of code.

use std::path::Path;

/// What stands between two fences.
pub struct Block {
    /// The heading above it, with its `#`.
    pub heading: String,
    /// What the fence names, such as `sh`; empty where it names nothing.
    pub language: String,
    /// Its lines, without the indentation of the fence.
    pub text: String,
}

/// A page of the book.
pub struct Page {
    name: String,
    blocks: Vec<Block>,
}

impl Page {
    /// The page with this path below `docs`.
    pub fn of(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs")
            .join(name);
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        Self {
            name: name.to_owned(),
            blocks: blocks(&text),
        }
    }

    /// All blocks, in their order.
    pub fn into_blocks(self) -> Vec<Block> {
        self.blocks
    }

    /// The blocks of a language in the section with this heading.
    #[track_caller]
    pub fn section(&self, heading: &str, language: &str) -> Vec<String> {
        let is_there = self.blocks.iter().any(|block| block.heading == heading);
        assert!(is_there, "{} has no block below {heading:?}", self.name);
        let wanted = |block: &&Block| block.heading == heading && block.language == language;
        let blocks = self.blocks.iter().filter(wanted);
        blocks.map(|block| block.text.clone()).collect()
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut heading = String::new();
    let mut open: Option<(usize, Block)> = None;
    for line in page.lines() {
        let start = line.trim_start();
        let indentation = line.len() - start.len();
        match open.take() {
            Some((_, block)) if start == "```" => blocks.push(block),
            Some((fence, mut block)) => {
                block.text.push_str(&line[fence.min(indentation)..]);
                block.text.push('\n');
                open = Some((fence, block));
            }
            None => {
                if let Some(language) = start.strip_prefix("```") {
                    let block = Block {
                        heading: heading.clone(),
                        language: language.to_owned(),
                        text: String::new(),
                    };
                    open = Some((indentation, block));
                } else if line.starts_with('#') {
                    line.clone_into(&mut heading);
                }
            }
        }
    }
    assert!(open.is_none(), "a block that does not end:\n{page}");
    blocks
}
