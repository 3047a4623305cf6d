//! What a drill checks, and what came of it.

use std::time::Instant;

use serde::Serialize;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Passed,
    /// What is wrong.
    Failed(String),
    /// Why it was not done.
    Skipped(String),
}

/// A check that was done or skipped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// `passed`, `failed` or `skipped`.
    pub result: Result,
    /// How long it took.
    pub seconds: f64,
    /// What is wrong, or why it was skipped.
    pub detail: Option<String>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Result {
    /// Nothing is wrong.
    Passed,
    /// Something is.
    Failed,
    /// It was not done.
    Skipped,
}

/// The checks of a drill, in order.
#[derive(Debug, Default)]
pub struct Checks(Vec<Check>);

impl Checks {
    /// Does a check; returns whether nothing was found wrong. An error is noted as a failed check, too.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn run<E: std::error::Error>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> std::result::Result<Verdict, E>,
    ) -> std::result::Result<bool, E> {
        self.run_since(Instant::now(), name, work)
    }

    /// The same for a check that has begun before.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn run_since<E: std::error::Error>(
        &mut self,
        begun: Instant,
        name: &str,
        work: impl FnOnce() -> std::result::Result<Verdict, E>,
    ) -> std::result::Result<bool, E> {
        let done = work();
        let (result, detail) = match &done {
            Ok(Verdict::Passed) => (Result::Passed, None),
            Ok(Verdict::Failed(what)) => (Result::Failed, Some(what.clone())),
            Ok(Verdict::Skipped(why)) => (Result::Skipped, Some(why.clone())),
            Err(error) => (Result::Failed, Some(crate::output::chain(error))),
        };
        self.0.push(Check {
            name: name.to_owned(),
            result,
            seconds: begun.elapsed().as_secs_f64(),
            detail,
        });
        done.map(|_| result != Result::Failed)
    }

    /// All of them.
    pub fn all(&self) -> &[Check] {
        &self.0
    }

    /// Those that found something wrong.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.0.iter().filter(|check| check.result == Result::Failed)
    }
}
