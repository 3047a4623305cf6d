//! S3 over a store in memory: `s3s` speaks the protocol. The server of the other tests (`providers/examples/s3_server`) reads a
//! whole directory for each page of a listing, which nothing can be measured against.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    CommonPrefix, DeleteObjectsInput, DeleteObjectsOutput, ETag, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob,
};
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;
use walhalla_providers::{
    Error, ErrorKind, ListRequest, ObjectInfo, ObjectKey, ObjectStore, PageToken, PutMode, PutToken,
};

const BUCKET: &str = "large";

/// Answers for ever.
pub async fn serve(listener: TcpListener, store: Arc<dyn ObjectStore>) {
    let mut builder = S3ServiceBuilder::new(Bucket(store));
    builder.set_auth(SimpleAuth::from_single("large-key", "large-secret"));
    let service = builder.build();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let service = service.clone();
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            // A client that hangs up is no failure of the server's.
            drop(
                builder
                    .serve_connection(TokioIo::new(socket), service)
                    .await,
            );
        });
    }
}

struct Bucket(Arc<dyn ObjectStore>);

fn key(bucket: &str, key: &str) -> S3Result<ObjectKey> {
    if bucket != BUCKET {
        return Err(s3_error!(NoSuchBucket));
    }
    ObjectKey::new(key).map_err(|_| s3_error!(NoSuchKey))
}

fn refusal(error: Error) -> S3Error {
    match error.kind {
        ErrorKind::NotFound => s3_error!(NoSuchKey),
        ErrorKind::AlreadyExists => s3_error!(PreconditionFailed),
        ErrorKind::Invalid => s3_error!(InvalidRange),
        _ => S3Error::internal_error(error),
    }
}

fn modified(info: &ObjectInfo) -> Option<s3s::dto::Timestamp> {
    Some(SystemTime::from(info.modified).into())
}

fn length(bytes: u64) -> Option<i64> {
    Some(i64::try_from(bytes).unwrap())
}

fn tag(version: &str) -> Option<ETag> {
    Some(ETag::Strong(version.to_owned()))
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        key(&request.input.bucket, "x").map(|_| S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        key(&input.bucket, "x")?;
        let wanted = ListRequest {
            prefix: input.prefix.clone().unwrap_or_default(),
            start_after: input.start_after,
            fold: input.delimiter.is_some(),
            most_keys: input.max_keys.and_then(|most| u16::try_from(most).ok()),
            page: input.continuation_token.map(PageToken::from),
        };
        let page = self.0.list(&wanted).await.map_err(refusal)?;
        let contents = page.objects.iter().map(|info| Object {
            key: Some(info.key.as_str().to_owned()),
            size: length(info.size_bytes),
            last_modified: modified(info),
            ..Object::default()
        });
        let folders = page.folders.into_iter().map(|folder| CommonPrefix {
            prefix: Some(folder),
        });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|next| next.as_str().to_owned()),
            contents: Some(contents.collect()),
            common_prefixes: Some(folders.collect()),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let key = key(&request.input.bucket, &request.input.key)?;
        let info = self.0.head(&key).await.map_err(refusal)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: length(info.size_bytes),
            last_modified: modified(&info),
            e_tag: tag("head"),
            ..HeadObjectOutput::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let key = key(&request.input.bucket, &request.input.key)?;
        let info = self.0.head(&key).await.map_err(refusal)?;
        let size = info.size_bytes;
        let range = request.input.range.map(|range| range.check(size));
        let range = range.transpose().map_err(|_| s3_error!(InvalidRange))?;
        let taken = range.clone().unwrap_or(0..size);
        let wanted = range.is_some().then_some(taken.end - taken.start);
        let download = self.0.get(&key, taken.start, wanted).await;
        let mut download = download.map_err(refusal)?;
        let mut body = Vec::new();
        while let Some(chunk) = download.body.next().await {
            body.extend_from_slice(&chunk.map_err(refusal)?);
        }
        Ok(S3Response::new(GetObjectOutput {
            content_length: length(body.len() as u64),
            content_range: range
                .map(|range| format!("bytes {}-{}/{size}", range.start, range.end - 1)),
            last_modified: modified(&info),
            e_tag: tag(&download.version.unwrap_or_default()),
            body: Some(StreamingBlob::from(Body::from(body))),
            ..GetObjectOutput::default()
        }))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let key = key(&input.bucket, &input.key)?;
        let mut body = Vec::new();
        if let Some(mut stream) = input.body {
            while let Some(chunk) = stream.next().await {
                body.extend_from_slice(&chunk.map_err(|_| s3_error!(IncompleteBody))?);
            }
        }
        let mode = match input.if_none_match {
            Some(_) => PutMode::Create,
            None => PutMode::Overwrite,
        };
        let token = PutToken::random();
        let put = self.0.put(&key, body.into(), mode, &token).await;
        put.map_err(refusal)?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: tag("put"),
            ..PutObjectOutput::default()
        }))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let objects = request.input.delete.objects.iter();
        let keys = objects.map(|object| key(&request.input.bucket, &object.key));
        let keys: Vec<ObjectKey> = keys.collect::<S3Result<_>>()?;
        self.0.delete(&keys).await.map_err(refusal)?;
        Ok(S3Response::new(DeleteObjectsOutput::default()))
    }
}
