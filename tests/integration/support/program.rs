//! A program that ran, and what it said.

use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};

/// How a program ended.
pub struct Outcome {
    pub command: String,
    /// The exit status; none when a signal ended the program.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the command to its end. Its exit status is the caller's to judge.
pub fn run(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
    Outcome::of(shown, &output)
}

impl Outcome {
    pub fn of(command: String, output: &Output) -> Self {
        let mut stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if let Some(signal) = output.status.signal() {
            let _ = writeln!(stderr, "(ended by signal {signal})");
        }
        Self {
            command,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr,
        }
    }

    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits_with(0)
    }

    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit status of {self}");
        self
    }

    #[track_caller]
    pub fn exits_within(self, codes: std::ops::RangeInclusive<i32>) -> Self {
        assert!(
            self.code.is_some_and(|code| codes.contains(&code)),
            "exit status not in {codes:?}: {self}"
        );
        self
    }

    /// The message on standard error holds each of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no {part:?} in the message of {self}"
            );
        }
        self
    }

    /// Standard output as the one JSON document that it has to be.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}) from {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "{command}\n  exit status {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}
