//! The answer of a server that refused a request, as errors show it.
//!
//! The SDKs' own errors do not go up: some repeat the signed request, with its session token.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::unreached::causes;

/// Longest of a server's words that an error repeats.
const MAX_MESSAGE_CHARS: usize = 500;

/// What a server said when it refused.
#[derive(Debug, Default)]
pub(crate) struct Refusal {
    pub(crate) status: Option<u16>,
    /// The protocol's word for the reason; may be empty.
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) request_id: Option<String>,
    pub(crate) hint: Option<&'static str>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = if self.code.is_empty() {
            "the server gave no reason"
        } else {
            &self.code
        };
        f.write_str(code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if let Some(status) = self.status {
            write!(f, " (HTTP {status}")?;
            if let Some(id) = &self.request_id {
                write!(f, ", request {id}")?;
            }
            f.write_str(")")?;
        }
        self.hint.map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
    }
}

impl StdError for Refusal {}

/// A server's words, cut to a bearable length.
pub(crate) fn text(words: Option<&str>) -> String {
    words
        .unwrap_or_default()
        .chars()
        .take(MAX_MESSAGE_CHARS)
        .collect()
}

/// The time to wait that a `Retry-After` header asks for in seconds.
pub(crate) fn retry_after(header: Option<&str>) -> Option<Duration> {
    Some(Duration::from_secs(header?.trim().parse().ok()?))
}

/// The first error of type `T` among `error` and its causes.
pub(crate) fn find<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a T> {
    causes(error).find_map(|cause| cause.downcast_ref::<T>())
}
