//! What the protocols of the cloud stores have in common: ranges, statuses, and deletes of one object a request.

use std::time::Duration;

#[cfg(any(feature = "azure", feature = "gcs"))]
use futures_util::{StreamExt, stream};

use crate::ErrorKind;
#[cfg(any(feature = "azure", feature = "gcs"))]
use crate::{Error, ObjectKey, Result};

/// More than any store keeps in one object (Azure: 190.7 TiB), and a number that all servers read.
const PAST_EVERY_OBJECT: u64 = 1 << 48;

/// Deletes on their way at one time, for one call.
#[cfg(any(feature = "azure", feature = "gcs"))]
const DELETES_IN_FLIGHT: usize = 16;

/// The last byte of a range; none where it is open, or reaches past what any object has: servers read no larger numbers.
pub(crate) fn last_byte(offset: u64, length: Option<u64>) -> Option<u64> {
    let last = offset.saturating_add(length?.saturating_sub(1));
    (last < PAST_EVERY_OBJECT).then_some(last)
}

/// The value of a `Range` header, none for the whole object.
#[cfg(any(feature = "azure", feature = "s3"))]
pub(crate) fn byte_range(offset: u64, length: Option<u64>) -> Option<String> {
    match last_byte(offset, length) {
        None if offset == 0 => None,
        None => Some(format!("bytes={offset}-")),
        Some(last) => Some(format!("bytes={offset}-{last}")),
    }
}

/// The whole object's size in a `Content-Range: bytes 5-9/1234`; none unless the range begins at `offset`.
///
/// Where it ends is not looked at: Azurite has a range even of nothing, `bytes 0--1/0`.
#[cfg(any(feature = "azure", feature = "s3"))]
pub(crate) fn content_range(header: &str, offset: u64) -> Option<u64> {
    let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let size = size.parse().ok()?;
    (first == offset).then_some(size)
}

/// What a status means that no code explains. A 404 alone proves nothing: it may be a proxy's.
pub(crate) fn kind_of_status(status: u16, retry_after: Option<Duration>) -> ErrorKind {
    match status {
        300..=400 | 413 | 414 | 416 => ErrorKind::Invalid,
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::PermissionDenied,
        408 => ErrorKind::TimedOut,
        409 => ErrorKind::Conflict,
        412 => ErrorKind::AlreadyExists,
        429 => ErrorKind::Throttled(retry_after),
        501 => ErrorKind::Unsupported,
        503 if retry_after.is_some() => ErrorKind::Throttled(retry_after),
        507 => ErrorKind::NoSpace,
        500.. => ErrorKind::Unavailable,
        _ => ErrorKind::Other,
    }
}

/// Whether a completion that failed so is not asked for again: the key is taken, or the upload gone.
#[cfg(any(feature = "azure", feature = "gcs"))]
pub(crate) fn is_settled(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::AlreadyExists | ErrorKind::NotFound)
}

/// Deletes `keys` by one request each; returns each key that was refused, with its reason.
///
/// # Errors
/// One that the other keys would meet too. A failure that may pass is its key's alone: the others go on.
#[cfg(any(feature = "azure", feature = "gcs"))]
pub(crate) async fn delete_each<D>(
    keys: &[ObjectKey],
    delete: impl Fn(ObjectKey) -> D,
) -> Result<Vec<(ObjectKey, Error)>>
where
    D: Future<Output = (ObjectKey, Result<()>)>,
{
    let deletes = keys.iter().cloned().map(delete);
    let mut deletes = stream::iter(deletes).buffer_unordered(DELETES_IN_FLIGHT);
    let mut refused = Vec::new();
    while let Some((key, deleted)) = deletes.next().await {
        match deleted {
            Err(error) if !error.is_not_found() => {
                if concerns_all(error.kind) {
                    return Err(error);
                }
                refused.push((key, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(refused)
}

#[cfg(any(feature = "azure", feature = "gcs"))]
fn concerns_all(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::StoreMissing | ErrorKind::NoCredentials | ErrorKind::Unauthenticated
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_open_where_no_object_ends() {
        let range = |offset, length| byte_range(offset, length).unwrap_or_default();
        assert_eq!(range(0, None), "");
        assert_eq!(range(5, None), "bytes=5-");
        assert_eq!(range(0, Some(1)), "bytes=0-0");
        assert_eq!(range(5, Some(5)), "bytes=5-9");
        assert_eq!(range(5, Some(PAST_EVERY_OBJECT)), "bytes=5-");
        assert_eq!(range(5, Some(u64::MAX)), "bytes=5-");
        assert_eq!(range(0, Some(u64::MAX)), "");
    }

    #[test]
    fn only_the_range_that_was_asked_for_is_one() {
        assert_eq!(content_range("bytes 0-9/1234", 0), Some(1234));
        assert_eq!(content_range("bytes 5-9/10", 5), Some(10));
        assert_eq!(content_range("bytes 0--1/0", 0), Some(0));
        for other in [
            "bytes 0-9/10",
            "bytes 6-9/10",
            "bytes 5-9/*",
            "bytes */10",
            "bytes=5-9/10",
            "5-9/10",
            "bytes 5-9",
            "bytes -5-9/10",
            "",
        ] {
            assert_eq!(content_range(other, 5), None, "{other}");
        }
    }

    #[test]
    fn statuses_have_their_kinds() {
        let kind = |status| kind_of_status(status, None);
        for invalid in [301, 302, 307, 308, 400, 413, 414, 416] {
            assert_eq!(kind(invalid), ErrorKind::Invalid, "{invalid}");
        }
        for other in [200, 204, 404, 405, 410] {
            assert_eq!(kind(other), ErrorKind::Other, "{other}");
        }
        for failure in [500, 502, 503, 504] {
            assert_eq!(kind(failure), ErrorKind::Unavailable, "{failure}");
        }
        assert_eq!(kind(501), ErrorKind::Unsupported);
        assert_eq!(kind(507), ErrorKind::NoSpace);
        let wait = Some(Duration::from_secs(7));
        assert_eq!(kind_of_status(429, wait), ErrorKind::Throttled(wait));
        assert_eq!(kind_of_status(503, wait), ErrorKind::Throttled(wait));
        assert_eq!(kind_of_status(500, wait), ErrorKind::Unavailable);
    }

    #[cfg(any(feature = "azure", feature = "gcs"))]
    #[tokio::test]
    async fn a_failure_that_may_pass_is_its_keys_alone_and_no_bucket_concerns_all() {
        use crate::Operation;
        let keys = ["a", "b", "c"].map(|key| ObjectKey::new(key).unwrap());
        let deleted = async |of_b| {
            delete_each(&keys, async |key: ObjectKey| {
                let kind = match key.as_str() {
                    "a" => ErrorKind::NotFound,
                    "b" => of_b,
                    _ => return (key, Ok(())),
                };
                (key, Err(Error::new(Operation::Delete, "x", kind)))
            })
            .await
        };
        for kind in [ErrorKind::Unavailable, ErrorKind::PermissionDenied] {
            let refused = deleted(kind).await.unwrap();
            let [(key, error)] = refused.try_into().unwrap();
            assert_eq!((key.as_str(), error.kind), ("b", kind));
        }
        for kind in [ErrorKind::StoreMissing, ErrorKind::Unauthenticated] {
            assert_eq!(deleted(kind).await.unwrap_err().kind, kind);
        }
    }
}
