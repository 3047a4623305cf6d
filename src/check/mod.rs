//! Whether what Walhalla relies on is there.
//!
//! ```text
//! settings ─▶ store: create ─▶ create again ─▶ read ─▶ list ─▶ parts ─▶ delete          store
//!          ─▶ host: whose files, room, what another user left behind                   host
//!          ─▶ server: version, archiving, rights, clock                                server
//!          ─▶ archive: one switch, seen arriving, fetched back                         arrival
//! ```
//!
//! Each line of the answer is a [`Finding`]. Only the last step and the store's own objects change anything.

pub mod arrival;
pub mod host;
pub mod server;
mod store;

pub use store::{Deletes, check_reading, check_store};

use serde::Serialize;

/// What was looked at, and what came out.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was tried.
    pub check: &'static str,
    /// The object it was tried on.
    pub object: String,
    /// How it came out.
    pub state: State,
    /// What is wrong, and what to do; none where all is well.
    pub problem: Option<String>,
    /// What is worth knowing though all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It was not tried.
    Skipped,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work.
    Failed,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "objects are shown where they are named: paths, texts and numbers"
)]
impl Finding {
    /// A check that came out well.
    pub fn ok(check: &'static str, object: impl ToString) -> Self {
        Self {
            check,
            object: object.to_string(),
            state: State::Ok,
            problem: None,
            note: None,
        }
    }

    /// The same with something worth knowing.
    #[must_use]
    pub fn noting(self, note: impl Into<String>) -> Self {
        Self {
            note: Some(note.into()),
            ..self
        }
    }

    /// A check that was not tried, and why.
    pub fn skipped(check: &'static str, object: impl ToString, why: impl Into<String>) -> Self {
        Self {
            state: State::Skipped,
            note: Some(why.into()),
            ..Self::ok(check, object)
        }
    }

    /// A check that shows what somebody should look at.
    pub fn warning(check: &'static str, object: impl ToString, problem: impl Into<String>) -> Self {
        Self {
            state: State::Warning,
            problem: Some(problem.into()),
            ..Self::ok(check, object)
        }
    }

    /// A check that failed.
    pub fn failed(check: &'static str, object: impl ToString, problem: impl Into<String>) -> Self {
        Self {
            state: State::Failed,
            problem: Some(problem.into()),
            ..Self::ok(check, object)
        }
    }

    /// A check that failed if there is a problem.
    pub fn of(check: &'static str, object: impl ToString, problem: Option<String>) -> Self {
        match problem {
            None => Self::ok(check, object),
            Some(problem) => Self::failed(check, object, problem),
        }
    }
}
