//! Every error of the program, printed for a person to read from top to bottom: `tests/messages/errors.txt`.
//!
//! ```text
//! samples: one of each variant ─▶ message, causes, hint ─┐
//! sources of the crates: #[error("…")] as written ───────┴▶ compared with the file
//! ```
//!
//! A variant without a sample does not compile. `UPDATE_EXPECT=1` writes the file anew.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::path::Path;

use crate::error::Error;
use crate::failure::Failure;
use crate::output;

const FILE: &str = "tests/messages/errors.txt";

const HEAD: &str = "\
What Walhalla says when something fails. `UPDATE_EXPECT=1 cargo nextest run --lib messages` writes this file anew.

The first part has a sample of each error of the program: its message with its causes, and the hint.
The second part has the texts of the crates below it as they are written in the source, with fields in braces.
";

/// A function that returns one sample of each variant of an enum. Variants that only hand on another error, whose text they
/// take, stand after the semicolon. A variant in neither list does not compile.
macro_rules! each_of {
    ($function:ident: $type:ty, $($variant:pat => $sample:expr,)* $(; $handed_on:pat)?) => {
        pub(super) fn $function() -> Vec<$type> {
            type E = $type;
            fn must_be_listed(error: &E) {
                match error {
                    $($variant => {})*
                    $($handed_on => {})?
                }
            }
            vec![$({
                let sample: E = $sample;
                must_be_listed(&sample);
                assert!(matches!(sample, $variant), "the sample is of another variant: {sample:?}");
                sample
            }),*]
        }
    };
}
mod samples;
mod sources;

/// The file as it has to be.
fn text() -> String {
    let mut text = format!("{HEAD}\n# Part 1: samples\n");
    for (what, section) in samples::sections() {
        let _written = write!(text, "\n## {what}\n{section}");
    }
    text.push_str("\n# Part 2: texts of the crates below\n");
    text.push_str(&sources::texts());
    text
}

/// Errors that know what helps.
fn with_hints<E: Failure + 'static>(errors: Vec<E>) -> String {
    let entry = |error: E| {
        let hint = error.hint();
        entry(&error, hint.as_deref())
    };
    errors.into_iter().map(entry).collect()
}

/// Errors that are part of another one's text.
fn parts<E: StdError + 'static>(errors: &[E]) -> String {
    errors.iter().map(|error| entry(error, None)).collect()
}

fn entry(error: &(dyn StdError + 'static), hint: Option<&str>) -> String {
    let variant = format!("{error:?}");
    let ends = |letter: char| !letter.is_alphanumeric() && letter != '_';
    let variant = variant.split(ends).next().unwrap_or_default();
    let mut text = format!("{variant}\n    {}\n", output::chain(error));
    if let Some(hint) = hint {
        let _written = writeln!(text, "    hint: {hint}");
    }
    text
}

#[test]
fn every_message_is_in_the_file_that_people_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let text = text();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = { text.lines().zip(expected.lines()) }.find(|(now, then)| now != then);
    assert!(
        text == expected,
        "{FILE} is not what the program says now; read what changed and write it anew with UPDATE_EXPECT=1; the first difference: \
         {differs:#?}"
    );
}

#[test]
fn messages_and_hints_are_written_as_the_style_wants_them() {
    let text = text();
    let samples = text.split("# Part 2").next().unwrap();
    for line in samples.lines().filter(|line| line.starts_with("    ")) {
        let said = line.trim_start().trim_start_matches("hint: ");
        assert!(!said.ends_with('.'), "a full stop at the end: {line}");
        for debug in ["Some(", "None", "Error {", "Custom {", "Os {"] {
            assert!(!said.contains(debug), "{debug} in {line}");
        }
    }
}

#[test]
fn an_error_of_a_command_hints_as_its_cause_does() {
    let cause = crate::repository::Error::NoCluster {
        store: "file:///store".to_owned(),
    };
    let hint = cause.hint();
    assert_eq!(Error::from(cause).hint(), hint);
}
