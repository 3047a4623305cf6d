//! The uploads that this process has begun.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::{PutToken, UploadId};

/// Most uploads at one time. Each is a task with buffers of its own, so nobody has so many.
const MAX_UPLOADS: usize = 10_000;

/// The tokens of uploads in progress, which Azure takes only with the last request.
///
/// Azure knows blocks, not uploads: that an upload has begun, was completed or given up is known here alone.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<String, PutToken>>);

impl Uploads {
    /// A new upload; none when there are too many.
    pub(super) fn start(&self, token: &PutToken) -> Option<UploadId> {
        let mut uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if uploads.len() >= MAX_UPLOADS {
            return None;
        }
        let upload = new_id();
        uploads.insert(upload.0.clone(), token.clone());
        Some(upload)
    }

    /// The token of an upload in progress.
    pub(super) fn token(&self, upload: &UploadId) -> Option<PutToken> {
        let uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.get(&upload.0).cloned()
    }

    pub(super) fn end(&self, upload: &UploadId) {
        let mut uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.remove(&upload.0);
    }
}

/// A name that no other upload has.
pub(super) fn new_id() -> UploadId {
    UploadId(format!("{:032x}", fastrand::u128(..)))
}

/// The name of a part among the blob's blocks, and no other upload's.
///
/// All names have one length, which must never change: Azure takes no others beside those that an
/// earlier upload of the key has left.
pub(super) fn block_id(upload: &UploadId, number: u32) -> Vec<u8> {
    format!("{}-{number:05}", upload.0).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_bounded_and_end() {
        let uploads = Uploads::default();
        let token = PutToken::random();
        let first = uploads.start(&token).unwrap();
        for _ in 1..MAX_UPLOADS {
            uploads.start(&token).unwrap();
        }
        assert!(uploads.start(&token).is_none());
        assert_eq!(uploads.token(&first), Some(token.clone()));
        uploads.end(&first);
        assert_eq!(uploads.token(&first), None);
        assert!(uploads.start(&token).is_some());
    }

    #[test]
    fn block_names_have_one_length() {
        let upload = Uploads::default().start(&PutToken::random()).unwrap();
        let names = [1, 50_000].map(|number| block_id(&upload, number));
        assert!(names.iter().all(|name| name.len() == 38));
        assert_ne!(names[0], names[1]);
    }
}
