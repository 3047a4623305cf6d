//! An S3 server over a directory: `s3s` speaks the protocol, `s3s-fs` keeps the objects.
//!
//! What S3 promises and `s3s-fs` 0.14.1 does not, [`Promises`] adds, so that tests against this
//! server are tests of S3's behaviour:
//!
//! - A conditional create is atomic. `s3s-fs` looks first and renames later.
//! - A body and its checksum and metadata change together, and only after the whole body came and
//!   is the one that was signed. A body that never ends holds nobody off.
//! - A directory is no object, and an upload that is gone is `NoSuchUpload`.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::error::Error;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use futures_util::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsV2Input, ListObjectsV2Output,
    MultipartUpload, PutObjectInput, PutObjectOutput, StreamingBlob, UploadPartInput,
    UploadPartOutput,
};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, MutexGuard};

const LIST: &str = "s3:ListBucket";

/// Keys share locks, so that their number is bounded.
const LOCKS: usize = 64;

/// Answers connections until the future is dropped. Buckets are the directories below `root`; `denied` are the
/// actions that the key has no right to, as policies spell them.
pub(crate) async fn serve(
    listener: TcpListener,
    root: &Path,
    access_key: &str,
    secret_key: &str,
    denied: &[String],
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let service = service(root, access_key, secret_key, denied)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let service = service.clone();
        connections.spawn(async move {
            let connection = Builder::new(TokioExecutor::new());
            // A client that hangs up is no failure of the server's.
            drop(
                connection
                    .serve_connection(TokioIo::new(socket), service)
                    .await,
            );
        });
        while connections.try_join_next().is_some() {}
    }
}

fn service(
    root: &Path,
    access_key: &str,
    secret_key: &str,
    denied: &[String],
) -> Result<S3Service, Box<dyn Error + Send + Sync>> {
    let mut builder = S3ServiceBuilder::new(Promises::new(root, denied)?);
    builder.set_auth(Keys {
        access_key: access_key.to_owned(),
        secret_key: secret_key.to_owned(),
    });
    builder.set_access(Policy {
        denied: denied.to_vec(),
    });
    Ok(builder.build())
}

/// Who may do what: whoever has a key, all but what is denied.
struct Policy {
    denied: Vec<String>,
}

#[async_trait::async_trait]
impl S3Access for Policy {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let action = match context.s3_op().name() {
            "CompleteMultipartUpload" | "CreateMultipartUpload" | "PutObject" | "UploadPart" => {
                "s3:PutObject"
            }
            "GetObject" | "HeadObject" => "s3:GetObject",
            "DeleteObject" | "DeleteObjects" => "s3:DeleteObject",
            "ListObjectsV2" => LIST,
            "ListMultipartUploads" => "s3:ListBucketMultipartUploads",
            "AbortMultipartUpload" => "s3:AbortMultipartUpload",
            other => other,
        };
        let is_denied = self.denied.iter().any(|denied| denied == action);
        if context.credentials().is_none() || is_denied {
            return Err(s3_error!(AccessDenied));
        }
        Ok(())
    }
}

/// One pair of keys that always works, and with the same secret as many more as one likes that work
/// for a while: `KEY-until-SECONDS`, with the seconds since 1970.
struct Keys {
    access_key: String,
    secret_key: String,
}

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let rest = access_key.strip_prefix(&self.access_key);
        let until = rest.and_then(|rest| rest.strip_prefix("-until-"));
        match (rest, until.and_then(|until| until.parse::<i64>().ok())) {
            (Some(""), _) => {}
            (_, Some(until)) if until >= jiff::Timestamp::now().as_second() => {}
            (_, Some(_)) => return Err(s3_error!(ExpiredToken)),
            _ => return Err(s3_error!(InvalidAccessKeyId)),
        }
        Ok(self.secret_key.as_str().into())
    }
}

/// S3 as `s3s-fs` keeps it, with the promises that it leaves out.
struct Promises {
    files: FileSystem,
    root: PathBuf,
    locks: Vec<Mutex<()>>,
    /// Without the right to list, nobody is told that a key is not there.
    hides_absence: bool,
    /// Uploads that are neither completed nor aborted, by their ids.
    uploads: Mutex<BTreeMap<String, Upload>>,
}

struct Upload {
    bucket: String,
    key: String,
    begun: std::time::SystemTime,
}

impl Promises {
    fn new(root: &Path, denied: &[String]) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let files =
            FileSystem::new(root).map_err(|error| format!("{}: {error:?}", root.display()))?;
        let locks = (0..LOCKS).map(|_| Mutex::new(())).collect();
        Ok(Self {
            files,
            root: root.canonicalize()?,
            locks,
            hides_absence: denied.iter().any(|action| action == LIST),
            uploads: Mutex::default(),
        })
    }

    /// Holds off other requests for the key, and answers those for no object of no bucket.
    async fn lock(&self, bucket: &str, key: &str) -> S3Result<MutexGuard<'_, ()>> {
        if !self.root.join(bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let mut hasher = DefaultHasher::new();
        (bucket, key).hash(&mut hasher);
        let slot = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or(0);
        let lock = self
            .locks
            .get(slot)
            .ok_or_else(|| s3_error!(InternalError))?;
        Ok(lock.lock().await)
    }

    async fn lock_object(&self, bucket: &str, key: &str) -> S3Result<MutexGuard<'_, ()>> {
        let guard = self.lock(bucket, key).await?;
        if self.root.join(bucket).join(key).is_file() {
            Ok(guard)
        } else if self.hides_absence {
            Err(s3_error!(AccessDenied))
        } else {
            Err(s3_error!(NoSuchKey))
        }
    }
}

/// The request without its key, which `s3s-fs` takes for the upload's owner; in S3 that is the account.
fn anyones<T>(request: S3Request<T>) -> S3Request<T> {
    S3Request {
        credentials: None,
        ..request
    }
}

/// The body, read to its end and compared with the checksum that came with it: its hash is compared only
/// there, and `s3s-fs` compares a checksum only after it has stored the body.
async fn whole(
    body: Option<StreamingBlob>,
    checksum_crc32: Option<&str>,
) -> S3Result<Option<StreamingBlob>> {
    let Some(mut body) = body else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            if error.to_string().contains("Sha256Mismatch") {
                s3_error!(BadDigest)
            } else {
                s3_error!(IncompleteBody)
            }
        })?;
        bytes.extend_from_slice(&chunk);
    }
    let crc32 = crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, &bytes);
    let crc32 = u32::try_from(crc32).unwrap_or_default().to_be_bytes();
    if checksum_crc32.is_some_and(|checksum| checksum != STANDARD.encode(crc32)) {
        return Err(s3_error!(BadDigest));
    }
    Ok(Some(StreamingBlob::from(Body::from(bytes))))
}

/// What `s3s-fs` says of an upload that it does not know.
fn upload_gone<T>(answer: S3Result<T>) -> S3Result<T> {
    answer.map_err(|error| match error.code() {
        S3ErrorCode::AccessDenied => s3_error!(NoSuchUpload),
        _ => error,
    })
}

#[async_trait::async_trait]
impl S3 for Promises {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let checksum = request.input.checksum_crc32.as_deref();
        request.input.body = whole(request.input.body, checksum).await?;
        let _guard = self.lock(&request.input.bucket, &request.input.key).await?;
        self.files.put_object(request).await
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let _guard = self
            .lock_object(&request.input.bucket, &request.input.key)
            .await?;
        self.files.get_object(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let _guard = self
            .lock_object(&request.input.bucket, &request.input.key)
            .await?;
        self.files.head_object(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let _guard = self.lock(&request.input.bucket, &request.input.key).await?;
        self.files.delete_object(request).await
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        drop(self.lock(&request.input.bucket, "").await?);
        self.files.delete_objects(request).await
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        drop(self.lock(&bucket, "").await?);
        let answer = self.files.create_multipart_upload(anyones(request)).await?;
        if let Some(id) = &answer.output.upload_id {
            let begun = std::time::SystemTime::now();
            let upload = Upload { bucket, key, begun };
            self.uploads.lock().await.insert(id.clone(), upload);
        }
        Ok(answer)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let prefix = request.input.prefix.unwrap_or_default();
        let uploads = self.uploads.lock().await;
        let asked = uploads.iter().filter(|(_, upload)| {
            upload.bucket == request.input.bucket && upload.key.starts_with(&prefix)
        });
        let shown = asked.map(|(id, upload)| MultipartUpload {
            key: Some(upload.key.clone()),
            upload_id: Some(id.clone()),
            initiated: Some(upload.begun.into()),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(request.input.bucket.clone()),
            uploads: Some(shown.collect()),
            is_truncated: Some(false),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        mut request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let checksum = request.input.checksum_crc32.as_deref();
        request.input.body = whole(request.input.body, checksum).await?;
        upload_gone(self.files.upload_part(anyones(request)).await)
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let _guard = self.lock(&request.input.bucket, &request.input.key).await?;
        let id = request.input.upload_id.clone();
        let answer = upload_gone(self.files.complete_multipart_upload(anyones(request)).await)?;
        self.uploads.lock().await.remove(&id);
        Ok(answer)
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let id = request.input.upload_id.clone();
        let answer = upload_gone(self.files.abort_multipart_upload(anyones(request)).await)?;
        self.uploads.lock().await.remove(&id);
        Ok(answer)
    }
}
