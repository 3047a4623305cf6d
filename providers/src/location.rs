//! Where in a cloud a store lies.

use crate::ObjectKey;

/// A bucket or container, and what all keys in it begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    scheme: &'static str,
    bucket: String,
    /// Empty, or ends in `/`.
    base: String,
}

#[cfg_attr(
    not(any(feature = "azure", feature = "gcs", feature = "s3")),
    allow(
        dead_code,
        reason = "a directory has no location, but its errors know the others' URLs"
    )
)]
impl Location {
    /// The place below `prefix` (no slashes around it; may be empty) that URLs name as `scheme://bucket/prefix`.
    pub fn new(scheme: &'static str, bucket: impl Into<String>, prefix: &str) -> Self {
        let base = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        Self {
            scheme,
            bucket: bucket.into(),
            base,
        }
    }

    /// As in the settings, without a trailing slash.
    pub(crate) fn url(&self) -> String {
        let url = format!("{}://{}/{}", self.scheme, self.bucket, self.base);
        url.trim_end_matches('/').to_owned()
    }

    /// The bucket's or container's name.
    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// A key, or the beginning of one, as the bucket spells it.
    pub(crate) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.base)
    }

    /// What the bucket's name for a key or folder is below the prefix.
    pub(crate) fn below<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&self.base)
    }

    /// The key of an object in the bucket; none where it is no [`ObjectKey`], and so not of this store.
    pub(crate) fn key(&self, full: &str) -> Option<ObjectKey> {
        ObjectKey::new(self.below(full)?).ok()
    }
}
