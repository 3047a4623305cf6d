//! Bodies of objects, which Google's own crate writes and reads.
//!
//! Each default of the crate (`google-cloud-storage` 1.21) that would make a call more than one attempt is turned off:
//!
//! | default | here |
//! | --- | --- |
//! | a failed request is sent again for 300 s (`retry_policy.rs`, `storage_default`) | never |
//! | a read that breaks off is resumed without end (`read_resume_policy.rs`, `Recommended`) | never |
//! | a body of 16 MiB or more is a resumable upload (`common_options.rs`) | always one request |
//! | a checksum that is not known follows the body as a third part (`unbuffered.rs`) | it is known, and goes first |
//! | one gRPC channel a processor (`client.rs`, `ClientBuilder::new`) | one, which is never used |

use std::sync::Arc;

use bytes::Bytes;
use google_cloud_auth::credentials::Credentials;
use google_cloud_gax::client_builder::Error as BuilderError;
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::client::Storage;
use google_cloud_storage::error::WriteError;
use google_cloud_storage::model::Object;
use google_cloud_storage::model_ext::ReadRange;
use google_cloud_storage::read_object::ReadObjectResponse;
use google_cloud_storage::read_resume_policy::NeverResume;
use tokio::sync::OnceCell;

use super::credentials::{Access, Shared};
use super::failure::Failure;
use super::json::{NewObject, check_stored};
use crate::refusal::find;
use crate::{ErrorKind, PutMode};

/// One bucket of a server, by Google's crate.
pub(super) struct Bodies {
    endpoint: String,
    bucket: String,
    access: Arc<Access>,
    /// Built with the first body: it reads the system's certificates.
    client: OnceCell<Storage>,
}

impl Bodies {
    /// Bodies of objects in `bucket` on the server at `endpoint`.
    pub(super) fn new(endpoint: String, bucket: &str, access: Arc<Access>) -> Self {
        Self {
            endpoint,
            bucket: format!("projects/_/buckets/{bucket}"),
            access,
            client: OnceCell::new(),
        }
    }

    /// Stores `body` in one request.
    pub(super) async fn write(
        &self,
        object: &NewObject<'_>,
        body: Bytes,
        mode: PutMode,
    ) -> Result<(), Failure> {
        let (crc32c, size_bytes) = (crc32c::crc32c(&body), body.len() as u64);
        let client = self.client().await?;
        let mut write = client
            .write_object(&self.bucket, object.name, body)
            .set_content_type(object.content_type)
            .set_metadata(object.metadata.clone())
            .with_known_crc32c(crc32c);
        if mode == PutMode::Create {
            write = write.set_if_generation_match(0);
        }
        if let Some(class) = object.storage_class {
            write = write.set_storage_class(class);
        }
        if let Some(key) = object.kms_key {
            write = write.set_kms_key(key);
        }
        let age = self.access.age();
        let stored = stored(Box::pin(write.send_unbuffered()).await)
            .map_err(|error| self.access.judged(Failure::of_google(error), age))?;
        let theirs = stored.checksums.and_then(|sums| sums.crc32c);
        let length = u64::try_from(stored.size).ok();
        check_stored((crc32c, size_bytes), theirs.zip(length))
    }

    /// The answer to a request for the bytes of an object, or a generation of it, in `range`.
    pub(super) async fn read(
        &self,
        name: &str,
        generation: Option<i64>,
        range: ReadRange,
    ) -> Result<ReadObjectResponse, Failure> {
        let client = self.client().await?;
        let age = self.access.age();
        let read = client.read_object(&self.bucket, name).set_read_range(range);
        let read = match generation {
            Some(generation) => read.set_generation(generation),
            None => read,
        };
        let answer = read.send().await;
        answer.map_err(|error| self.access.judged(Failure::of_google(error), age))
    }

    async fn client(&self) -> Result<&Storage, Failure> {
        self.client
            .get_or_try_init(|| async {
                let endpoint = self.endpoint.clone();
                let credentials = Credentials::from(Shared(Arc::clone(&self.access)));
                let runtime = tokio::runtime::Handle::current();
                // Certificates are files.
                let built = tokio::task::spawn_blocking(move || {
                    runtime.block_on(build(endpoint, credentials))
                });
                let built = built
                    .await
                    .map_err(|join| Failure::new(ErrorKind::Other, join))?;
                built.map_err(|error| Failure::new(ErrorKind::Invalid, error))
            })
            .await
    }
}

/// What the server stored, other bytes than were sent too: the crate's error for these does not say what was sent.
fn stored(answer: google_cloud_storage::Result<Object>) -> google_cloud_storage::Result<Object> {
    answer.or_else(|error| match find(&error) {
        Some(WriteError::ChecksumMismatch { object, .. }) => Ok(object.as_ref().clone()),
        _ => Err(error),
    })
}

async fn build(endpoint: String, credentials: Credentials) -> Result<Storage, BuilderError> {
    Storage::builder()
        .with_endpoint(endpoint)
        .with_credentials(credentials)
        .with_retry_policy(NeverRetry)
        .with_read_resume_policy(NeverResume)
        .with_resumable_upload_threshold(usize::MAX)
        .with_grpc_subchannel_count(1)
        .build()
        .await
}
