//! What users see: results on standard output, messages on standard error.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::prelude::*;

use crate::cli::{Global, LogFormat};
use crate::error::Error;

/// Sends log messages to standard error as the flags say.
pub fn start_log(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets([("walhalla", level), ("walhalla_providers", level)])
        // It warns at each read of an object in parts that S3 keeps no checksum of the whole.
        .with_target("aws_sdk_s3", level.min(LevelFilter::ERROR));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .log_internal_errors(false);
    match global.log_format {
        LogFormat::Text => registry
            .with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())))
            .init(),
        LogFormat::Json => registry.with(lines.json()).init(),
    }
}

/// Prints a result as one JSON document.
pub fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).expect("results are text, numbers and lists");
    line(&text)
}

/// Prints a line of a result. A reader that has seen enough is no error.
pub fn line(text: &str) -> Result<(), Error> {
    let mut output = std::io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::System {
            doing: "write to standard output",
            source: error,
        }),
        _ => Ok(()),
    }
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
    // age puts marks of bidirectional text around names.
    let plain =
        |cause: &dyn std::error::Error| cause.to_string().replace(['\u{2068}', '\u{2069}'], "");
    causes.map(plain).collect()
}

/// Prints an error, its causes and its hint.
pub fn error(error: &Error, format: LogFormat) {
    let causes = causes(error);
    if format == LogFormat::Json {
        let document = serde_json::json!({
            "level": "ERROR", "message": error.to_string(), "causes": causes, "hint": error.hint(),
        });
        message(&document.to_string());
        return;
    }
    message(&format!("error: {error}"));
    let mut last = error.to_string();
    for cause in causes {
        if !last.contains(&cause) {
            message(&format!("  cause: {cause}"));
        }
        last = cause;
    }
    if let Some(hint) = error.hint() {
        message(&format!("hint: {hint}"));
    }
}

/// Prints a line to standard error. A log that cannot be written must not change how the command ends.
pub fn message(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// An exit code of [`crate::error`].
pub fn exit(code: u8) -> ExitCode {
    ExitCode::from(code)
}
