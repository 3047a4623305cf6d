//! Whether what Walhalla relies on is there. So far the store's half.
//!
//! create ─▶ create again ─▶ read ─▶ look for what is not there ─▶ list ─▶ parts ─▶ delete

mod store;

pub use store::{Deletes, check_store};

use serde::Serialize;

/// What was looked at, and what came out.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was tried.
    pub check: &'static str,
    /// The object it was tried on.
    pub object: String,
    /// What is wrong, and what to do; none where all is well.
    pub problem: Option<String>,
}
