//! Names of objects below a store's URL.

use std::fmt;

use crate::{Error, ErrorKind, Operation, Result};

/// A key: components joined by `/`, none of them empty, `.`, `..` or beginning with `.`, no NUL, at most 1,024 bytes.
///
/// Names that begin with a dot are the directory store's own (its temporary files), so no key has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Longest key in bytes: what S3 and GCS take.
    pub const MAX_BYTES: usize = 1024;

    /// The key spelled by `text`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the text is no key.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let valid = text.len() <= Self::MAX_BYTES
            && !text.contains('\0')
            && text
                .split('/')
                .all(|part| !part.is_empty() && !part.starts_with('.'));
        if valid {
            Ok(Self(text))
        } else {
            Err(Error::new(Operation::Open, text, ErrorKind::Invalid))
        }
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
