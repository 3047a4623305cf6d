//! The texts of errors as they stand in the source, for enums that no sample can be made of from here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const ROOTS: [&str; 2] = ["providers/src", "postgres/src"];

/// Each file's texts, file by file.
pub(super) fn texts() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    for folder in ROOTS {
        let mut files = Vec::new();
        collect(&root.join(folder), &mut files);
        files.sort();
        for file in files
            .iter()
            .filter(|file| !file.components().any(|part| part.as_os_str() == "testing"))
        {
            let source = std::fs::read_to_string(file).unwrap();
            let found = written(&source);
            if !found.is_empty() {
                let name = file.strip_prefix(root).unwrap().display();
                let _written = write!(text, "\n## {name}\n    {}\n", found.join("\n    "));
            }
        }
    }
    text
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The first literal of each `#[error(…)]`, on one line.
fn written(source: &str) -> Vec<String> {
    let attributes = source.split("#[error(").skip(1);
    let literal = |rest: &str| {
        let rest = rest.trim_start().strip_prefix('"')?;
        let mut text = String::new();
        let mut letters = rest.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => return Some(text),
                '\\' => match letters.next()? {
                    // A line that goes on begins after the blanks.
                    '\n' => {
                        let left = letters.as_str().trim_start();
                        letters = left.chars();
                    }
                    escaped => text.push(escaped),
                },
                letter => text.push(letter),
            }
        }
        None
    };
    attributes.filter_map(literal).collect()
}
