//! The house stays as `docs/architecture.md` draws it: no circle between files, no arrow that runs back up, no function
//! that fills more than a page.
//!
//! Imports are read as text. A folder's `mod.rs` is its face and belongs to all files in it, so that arrows between the two
//! do not count.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Longest function, in lines from its name to its closing brace.
const MOST_LINES: usize = 80;
/// Of a hundred functions, ninety-nine are not longer.
const USUAL_LINES: usize = 60;

/// Folders and files of `src/`, from the ground up: nothing imports what stands after it.
const FLOORS: [&[&str]; 12] = [
    &[
        "output",
        "failure",
        "durability",
        "lib",
        "paths",
        "temporary_folder",
        "users",
    ],
    &["progress", "server"],
    &["threads", "session"],
    &["pipeline", "spool"],
    &["repository", "config"],
    &["wal", "contents"],
    &["archive"],
    &[
        "archiving",
        "prefetch",
        "backup",
        "copying",
        "receive",
        "restore",
        "retention",
        "verify",
        "find",
        "status",
        "check",
    ],
    &["daemon", "drill"],
    &["cli", "error"],
    &["commands", "main"],
    &["messages"],
];

/// A module's path, and those that it imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    for root in ["src", "postgres/src", "providers/src"] {
        let imports = imports(&sources(root));
        let mut left = imports.clone();
        loop {
            let ends: Vec<String> = left
                .iter()
                .filter(|(_, targets)| targets.iter().all(|target| !left.contains_key(target)))
                .map(|(module, _)| module.clone())
                .collect();
            if ends.is_empty() {
                break;
            }
            left.retain(|module, _| !ends.contains(module));
        }
        assert!(left.is_empty(), "in {root}, circles among: {left:#?}");
    }
}

#[test]
fn every_arrow_runs_down() {
    let floor = |module: &str| {
        let room = module.split("::").next().unwrap();
        let floor = FLOORS.iter().position(|rooms| rooms.contains(&room));
        floor.unwrap_or_else(|| panic!("on which floor is {module}?"))
    };
    for (module, targets) in imports(&sources("src")) {
        for target in targets {
            let is_own = module.split("::").next() == target.split("::").next();
            assert!(
                is_own || floor(&target) <= floor(&module),
                "{module} imports {target}, which stands above it"
            );
        }
    }
}

#[test]
fn only_the_session_waits_for_the_network() {
    let waits = |(_, text): &(String, String)| text.contains(".block_on(");
    let waiting = sources("src").into_iter().filter(waits);
    let modules: Vec<String> = waiting.map(|(module, _)| module).collect();
    assert_eq!(modules, ["session"]);
}

#[test]
fn functions_are_short() {
    let mut lengths = Vec::new();
    for root in ["src", "postgres/src", "providers/src"] {
        for (module, text) in sources(root) {
            let lines: Vec<&str> = text.lines().collect();
            for (at, line) in lines.iter().enumerate() {
                let indent = line.len() - line.trim_start().len();
                let is_function = line.contains("fn ") && line.trim_end().ends_with(['{', '(']);
                let end = format!("{}}}", " ".repeat(indent));
                if !is_function || line.trim_start().starts_with("//") {
                    continue;
                }
                if let Some(length) = lines[at..].iter().position(|line| *line == end) {
                    lengths.push((length + 1, format!("{root}, {module}: {}", line.trim())));
                }
            }
        }
    }
    lengths.sort();
    let (most, longest) = lengths.last().unwrap();
    assert!(*most <= MOST_LINES, "{most} lines: {longest}");
    let (usual, one) = &lengths[lengths.len() * 99 / 100];
    assert!(*usual <= USUAL_LINES, "{usual} lines: {one}");
}

#[test]
fn imports_are_read() {
    let found = imports(&sources("src"));
    let of = |module: &str| &found[module];
    assert!(of("commands::restore").contains("restore::choose"));
    assert!(of("restore::choose").contains("restore::branches"));
    let group = paths("use crate::wal::{self, archiver::Archiver, x::{Y, z::W}};");
    let expected = [
        "crate::wal::self",
        "crate::wal::archiver::Archiver",
        "crate::wal::x::Y",
        "crate::wal::x::z::W",
    ];
    assert_eq!(group, expected);
}

/// Modules below `root` and their texts, without tests.
fn sources(root: &str) -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut sources = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let module = path.strip_prefix(&root).unwrap().with_extension("");
            let parts: Vec<&str> = module.iter().map(|part| part.to_str().unwrap()).collect();
            let module = parts.join("::");
            let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
            if parts.last() == Some(&"tests") || parts.first() == Some(&"testing") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            sources.insert(module, text.to_owned());
        }
    }
    sources
}

fn imports(sources: &BTreeMap<String, String>) -> Imports {
    let mut imports = Imports::new();
    for (module, text) in sources {
        let mut targets = BTreeSet::new();
        for path in paths(text) {
            let path = absolute(&path, module);
            if let Some(target) = defining(&path, sources) {
                let is_family = |face: &str, other: &str| other.starts_with(&format!("{face}::"));
                if target != *module && !is_family(&target, module) && !is_family(module, &target) {
                    targets.insert(target);
                }
            }
        }
        imports.insert(module.clone(), targets);
    }
    imports
}

/// All paths in a text that begin with `crate` or `super`, groups in braces written out.
fn paths(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let mut paths = Vec::new();
    for begin in ["crate::", "super::"] {
        for (at, _) in code.match_indices(begin) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|letter| !letter.is_alphanumeric() && !"_:$".contains(letter)) {
                expand("", &code[at..], &mut paths);
            }
        }
    }
    paths
}

/// Adds `prefix` with what `text` begins with; returns what of it was read.
fn expand(prefix: &str, text: &str, paths: &mut Vec<String>) -> usize {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    let length = text.find(|letter| !is_name(letter)).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..length]);
    if !path.ends_with("::") || !text[length..].starts_with('{') {
        paths.push(path.trim_end_matches(':').to_owned());
        return length;
    }
    let mut at = length + 1;
    loop {
        at += text[at..].len() - text[at..].trim_start_matches([' ', ',']).len();
        if text[at..].is_empty() || text[at..].starts_with('}') {
            return at + 1;
        }
        let read = expand(&path, &text[at..], paths);
        at += read.max(1);
    }
}

/// A path from the crate's root.
fn absolute(path: &str, module: &str) -> String {
    let mut own: Vec<&str> = module.split("::").collect();
    let mut rest = path;
    while let Some(above) = rest.strip_prefix("super::") {
        own.pop();
        rest = above;
    }
    match rest.strip_prefix("crate::") {
        Some(rest) => rest.to_owned(),
        None if own.is_empty() => rest.to_owned(),
        None => format!("{}::{rest}", own.join("::")),
    }
}

/// The longest beginning of a path that is a module.
fn defining(path: &str, sources: &BTreeMap<String, String>) -> Option<String> {
    let parts: Vec<&str> = path.split("::").collect();
    let beginnings = (1..=parts.len())
        .rev()
        .map(|count| parts[..count].join("::"));
    beginnings
        .into_iter()
        .find(|path| sources.contains_key(path))
}
