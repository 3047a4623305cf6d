//! Versions of objects in a bucket with versioning (`ListObjectVersions`, Amazon S3 API reference).

use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::types::BucketVersioningStatus;

use super::failure::{Failure, Unexpected};
use super::{S3Store, timestamp};
use jiff::Timestamp;

use crate::{
    Error, ErrorKind, ObjectKey, ObjectVersion, Operation, PageToken, Result, VersionKind,
    Versioning, VersionsPage, VersionsRequest,
};

impl S3Store {
    /// Whether the bucket keeps versions.
    pub(super) async fn bucket_versioning(&self) -> Result<Versioning> {
        let session = self.sessions.current();
        let call = session.client.get_bucket_versioning();
        match call.bucket(self.bucket()).send().await {
            Ok(output) => Ok(match output.status {
                Some(BucketVersioningStatus::Enabled) => Versioning::Kept,
                Some(BucketVersioningStatus::Suspended) => Versioning::Ended,
                _ => Versioning::Never,
            }),
            Err(error) => {
                let failure = self.renewed_after(&session, error.into()).await;
                if failure.kind() == ErrorKind::PermissionDenied {
                    return Ok(Versioning::Unknown);
                }
                Err(failure.on(Operation::List, self.url.clone()))
            }
        }
    }

    /// The lock on an object, which is told to whoever has the right `s3:GetObjectRetention`.
    pub(super) async fn locked_until(&self, key: &ObjectKey) -> Result<Option<Timestamp>> {
        let session = self.sessions.current();
        let request = session
            .client
            .head_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .set_request_payer(self.payer());
        match request.send().await {
            Ok(output) => {
                let until = output.object_lock_retain_until_date.as_ref();
                Ok(until.and_then(timestamp))
            }
            Err(error) => Err(self.failed(&session, Operation::Head, key, error).await),
        }
    }

    pub(super) async fn list_versions(&self, request: &VersionsRequest) -> Result<VersionsPage> {
        let session = self.sessions.current();
        let (key_marker, id_marker) = match &request.page {
            Some(page) => page.as_str().rsplit_once('\n').unzip(),
            None => (None, None),
        };
        let key_marker = key_marker.map(str::to_owned);
        let start_after = request.start_after.as_deref().map(|key| self.full(key));
        let call = session
            .client
            .list_object_versions()
            .bucket(self.bucket())
            .prefix(self.full(&request.prefix))
            .set_key_marker(key_marker.or(start_after))
            .set_version_id_marker(id_marker.filter(|id| !id.is_empty()).map(str::to_owned))
            .set_max_keys(request.most.map(i32::from))
            .set_delimiter(request.fold.then(|| "/".to_owned()))
            .set_request_payer(self.payer());
        match call.send().await {
            Ok(output) => self.versions_page(request, output),
            Err(error) => {
                let failure: Failure = self.renewed_after(&session, error.into()).await;
                Err(failure.on(Operation::List, format!("{}/{}", self.url, request.prefix)))
            }
        }
    }

    fn versions_page(
        &self,
        request: &VersionsRequest,
        output: ListObjectVersionsOutput,
    ) -> Result<VersionsPage> {
        let incomplete = || {
            let object = format!("{}/{}", self.url, request.prefix);
            let error = Error::new(Operation::List, object, ErrorKind::Other);
            error.with_source(Unexpected::MissingField)
        };
        let is_truncated = output.is_truncated.ok_or_else(incomplete)?;
        let mut page = VersionsPage::default();
        if is_truncated {
            let key = output.next_key_marker.ok_or_else(incomplete)?;
            let id = output.next_version_id_marker.unwrap_or_default();
            page.next = Some(PageToken::from(format!("{key}\n{id}")));
        }
        for version in output.versions.unwrap_or_default() {
            let full = version.key.as_deref().ok_or_else(incomplete)?;
            // What is no key of a store was put there by somebody else.
            if let Some(key) = self.location.key(full) {
                page.versions.push(ObjectVersion {
                    key,
                    id: version.version_id.ok_or_else(incomplete)?,
                    kind: VersionKind::Object,
                    size_bytes: { version.size.and_then(|size| u64::try_from(size).ok()) }
                        .ok_or_else(incomplete)?,
                    since: { version.last_modified.as_ref().and_then(timestamp) }
                        .ok_or_else(incomplete)?,
                    until: None,
                });
            }
        }
        for deletion in output.delete_markers.unwrap_or_default() {
            let full = deletion.key.as_deref().ok_or_else(incomplete)?;
            if let Some(key) = self.location.key(full) {
                page.versions.push(ObjectVersion {
                    key,
                    id: deletion.version_id.ok_or_else(incomplete)?,
                    kind: VersionKind::Deletion,
                    size_bytes: 0,
                    since: { deletion.last_modified.as_ref().and_then(timestamp) }
                        .ok_or_else(incomplete)?,
                    until: None,
                });
            }
        }
        // The answer has them in two lists.
        page.versions.sort_by(|one, other| one.key.cmp(&other.key));
        for folder in output.common_prefixes.unwrap_or_default() {
            let full = folder.prefix.ok_or_else(incomplete)?;
            page.folders
                .extend(self.location.below(&full).map(str::to_owned));
        }
        Ok(page)
    }
}
