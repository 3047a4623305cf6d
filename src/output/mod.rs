//! What users see: results on standard output, messages on standard error.
//!
//! Names, labels and error texts come from stores and servers that others can write to. Everything that is printed goes
//! through here, and characters that a terminal would obey are shown as escapes.

pub mod look;
pub mod table;

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use sqlx::postgres::PgDatabaseError;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::prelude::*;

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write to standard output")]
pub struct Error(#[source] io::Error);

/// How messages are written (`--log-format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Sends log messages of `level` and above to standard error.
pub fn start_log(level: LevelFilter, format: LogFormat) {
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets([("walhalla", level), ("walhalla_providers", level)])
        // It warns at each read of an object in parts that S3 keeps no checksum of the whole.
        .with_target("aws_sdk_s3", level.min(LevelFilter::ERROR))
        // It prints its errors with all their fields; they come with the request that fails, too.
        .with_target("aws_config", level.min(LevelFilter::ERROR));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || LogLines(format))
        .with_target(false)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => registry
            .with(lines.with_ansi(AutoStream::choice(&io::stderr()) != ColorChoice::Never))
            .init(),
        LogFormat::Json => registry.with(lines.json()).init(),
    }
}

/// Prints a result as one JSON document.
pub fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).expect("results are text, numbers and lists");
    print(&in_json(&text))
}

/// Prints a line of a result; a line break in it is shown as an escape.
pub fn line(text: &str) -> Result<(), Error> {
    print(&in_a_line(text))
}

/// Prints lines of a result, whose line breaks are meant. What of it may come from elsewhere went through [`in_a_line`].
pub fn block(text: &str) -> Result<(), Error> {
    print(&printable(text, |letter| letter == '\n'))
}

/// Prints a line of pieces, each in its shade where the terminal has colours.
///
/// # Errors
/// Standard output cannot be written.
pub fn pieces(pieces: &[(Shade, &str)]) -> Result<(), Error> {
    let has_colour = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
    let painted = pieces.iter().map(|(shade, text)| {
        let text = in_a_line(text);
        if has_colour {
            shade.paint(&text)
        } else {
            text.into_owned()
        }
    });
    print(painted.collect::<String>().trim_end())
}

/// What colour says of a text. It never says it alone: the text does, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shade {
    /// Nothing.
    Plain,
    /// All is well.
    Good,
    /// Something needs a look.
    Warning,
    /// Something is wrong.
    Bad,
    /// It matters less than what is around it.
    Faint,
    /// It is a title.
    Strong,
}

impl Shade {
    fn style(self) -> Style {
        let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
        match self {
            Self::Plain => Style::new(),
            Self::Good => colour(AnsiColor::Green),
            Self::Warning => colour(AnsiColor::Yellow),
            Self::Bad => colour(AnsiColor::Red).bold(),
            Self::Faint => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
        }
    }

    fn paint(self, text: &str) -> String {
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// A word at the begin of a message, in its shade where standard error is a terminal with colours.
fn label(shade: Shade, text: &str) -> String {
    if AutoStream::choice(&io::stderr()) == ColorChoice::Never {
        text.to_owned()
    } else {
        shade.paint(text)
    }
}

/// Results that are held back; `None` while they are printed at once.
static HELD: Mutex<Option<String>> = Mutex::new(None);

/// Holds results back from now on, until [`release`] prints them.
pub fn hold() {
    *held() = Some(String::new());
}

/// Prints what was held back.
///
/// # Errors
/// Standard output cannot be written.
pub fn release() -> Result<(), Error> {
    let text = held().take().unwrap_or_default();
    if text.is_empty() {
        Ok(())
    } else {
        print(text.trim_end())
    }
}

fn held() -> MutexGuard<'static, Option<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reader that has seen enough is no error.
fn print(text: &str) -> Result<(), Error> {
    if let Some(held) = held().as_mut() {
        held.push_str(text);
        held.push('\n');
        return Ok(());
    }
    let mut output = std::io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error(error)),
        _ => Ok(()),
    }
}

/// Text that stays in its line and that no terminal obeys: `\u{1b}` stands for an escape character.
pub fn in_a_line(text: &str) -> Cow<'_, str> {
    printable(text, |_| false)
}

fn printable(text: &str, is_meant: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_shown = |letter: char| is_meant(letter) || !is_obeyed(letter);
    if text.chars().all(is_shown) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|letter| {
        if is_shown(letter) {
            letter.to_string()
        } else {
            letter.escape_unicode().to_string()
        }
    });
    Cow::Owned(shown.collect())
}

/// JSON as a terminal may show it, too: its own escapes leave out the second block of control characters.
fn in_json(text: &str) -> Cow<'_, str> {
    if !text.contains(|letter| letter != '\n' && is_obeyed(letter)) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|letter| {
        if letter != '\n' && is_obeyed(letter) {
            format!("\\u{:04x}", u32::from(letter))
        } else {
            letter.to_string()
        }
    });
    Cow::Owned(shown.collect())
}

/// Whether a character does something else than stand there: control characters, and those that turn the direction of
/// what follows or end a line.
fn is_obeyed(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Standard error for log lines, of which each comes in one piece.
#[derive(Clone, Copy)]
struct LogLines(LogFormat);

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let shown = match self.0 {
            LogFormat::Json => in_json(text).into_owned(),
            LogFormat::Text => colored(text),
        };
        writeln!(io::stderr().lock(), "{shown}")?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log line with the colors that its author gave it.
fn colored(text: &str) -> String {
    let mut pieces = text.split("\u{1b}[");
    let mut shown = in_a_line(pieces.next().unwrap_or_default()).into_owned();
    for piece in pieces {
        let length = piece
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b';')
            .count();
        let is_color = piece
            .get(length..)
            .is_some_and(|rest| rest.starts_with('m'));
        shown.push_str(if is_color { "\u{1b}[" } else { "\\u{1b}[" });
        shown.push_str(&in_a_line(piece));
    }
    shown
}

/// An error with its causes, in a line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.map(words).collect()
}

fn words(cause: &(dyn std::error::Error + 'static)) -> String {
    // The driver adds the line of the server's own source.
    if let Some(sqlx::Error::Database(answer)) = cause.downcast_ref() {
        return answer.message().to_owned();
    }
    if let Some(answer) = cause.downcast_ref::<PgDatabaseError>() {
        return answer.message().to_owned();
    }
    // age puts marks of bidirectional text around names.
    cause.to_string().replace(['\u{2068}', '\u{2069}'], "")
}

/// Prints an error, its causes and its hint.
pub fn error(error: &dyn std::error::Error, hint: Option<&str>, format: LogFormat) {
    let causes = causes(error);
    if format == LogFormat::Json {
        let document = serde_json::json!({
            "level": "ERROR", "message": error.to_string(), "causes": causes, "hint": hint,
        });
        message(&in_json(&document.to_string()));
        return;
    }
    labelled(Shade::Bad, "error:", &error.to_string());
    let mut last = error.to_string();
    for cause in causes {
        if !last.contains(&cause) {
            message(&format!("  cause: {cause}"));
        }
        last = cause;
    }
    if let Some(hint) = hint {
        labelled(Shade::Strong, "hint:", hint);
    }
}

/// Prints a line to standard error; further lines of it are indented. A log that cannot be written must not change how the
/// command ends.
pub fn message(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{}", indented(text)));
}

fn labelled(shade: Shade, word: &str, text: &str) {
    let (word, text) = (label(shade, word), indented(text));
    drop(writeln!(std::io::stderr().lock(), "{word} {text}"));
}

fn indented(text: &str) -> String {
    printable(text, |letter| letter == '\n').replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_as_an_escape() {
        let hostile = "a\u{1b}]0;x\u{7}\r\n\u{9b}31m\u{202e}\u{2028}é\u{1f418}";
        let shown = in_a_line(hostile);
        assert_eq!(
            shown,
            "a\\u{1b}]0;x\\u{7}\\u{d}\\u{a}\\u{9b}31m\\u{202e}\\u{2028}é\u{1f418}"
        );
        assert_eq!(in_a_line("plain, café"), "plain, café");
        let json = in_json(&serde_json::to_string(&hostile).unwrap()).into_owned();
        assert!(!json.contains(is_obeyed), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }

    #[test]
    fn a_log_line_keeps_its_colors_and_nothing_else() {
        let line = "\u{1b}[33m WARN\u{1b}[0m x\u{1b}[2Jy\u{1b}]0;z\u{7}\nhint: forged";
        assert_eq!(
            colored(line),
            "\u{1b}[33m WARN\u{1b}[0m x\\u{1b}[2Jy\\u{1b}]0;z\\u{7}\\u{a}hint: forged"
        );
    }
}
