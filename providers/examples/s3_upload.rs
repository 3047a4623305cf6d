//! `s3_upload bare|walhalla ENDPOINT ACCESS_KEY SECRET_KEY BUCKET/PREFIX CONCURRENCY FILE...`
//!
//! Uploads the files, so many at a time, and prints `SECONDS BYTES`: for `make bench`, which compares a loop that
//! does nothing but call the SDK with Walhalla's store (checks, tokens, conditions, permits, retries) on the same bytes.

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use walhalla_providers::s3::S3Store;
use walhalla_providers::transfer::{ConditionalWrites, Options, S3Settings, Store, StoreSettings};
use walhalla_providers::{Location, ObjectKey, PutMode};

type AnyError = Box<dyn Error + Send + Sync>;

const USAGE: &str = "usage: s3_upload bare|walhalla ENDPOINT ACCESS_KEY SECRET_KEY BUCKET/PREFIX CONCURRENCY FILE...";

/// As long as the frames that the pipeline gives to an upload.
const CHUNK_BYTES: usize = 512 << 10;

/// As the pipeline sends WAL.
const WHOLE_BYTES: usize = 64 << 20;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [
        how,
        endpoint,
        access_key,
        secret_key,
        place,
        concurrency,
        files @ ..,
    ] = arguments.as_slice()
    else {
        return Err(USAGE.into());
    };
    let (bucket, prefix) = place.split_once('/').ok_or(USAGE)?;
    let client = client(endpoint, access_key, secret_key);
    let concurrency: usize = concurrency.parse()?;
    let started = Instant::now();
    let bytes = match how.as_str() {
        "bare" => bare(&client, bucket, prefix, concurrency, files).await?,
        "walhalla" => {
            let store = store(client, Location::new("s3", bucket, prefix), concurrency)?;
            through(&store, concurrency, files).await?
        }
        _ => return Err(USAGE.into()),
    };
    let seconds = started.elapsed().as_secs_f64();
    writeln!(io::stdout(), "{seconds:.3} {bytes}")?;
    Ok(())
}

fn client(endpoint: &str, access_key: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(
            access_key, secret_key, None, None, "bench",
        ))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}

async fn bare(
    client: &Client,
    bucket: &str,
    prefix: &str,
    concurrency: usize,
    files: &[String],
) -> Result<u64, AnyError> {
    let put = async |(number, file): (usize, &String)| {
        let body = tokio::fs::read(file).await?;
        let length = body.len() as u64;
        let request = client
            .put_object()
            .bucket(bucket)
            .key(format!("{prefix}/{number:08}"))
            .body(body.into());
        request.send().await?;
        Ok::<_, AnyError>(length)
    };
    let puts = stream::iter(files.iter().enumerate()).map(put);
    let lengths: Vec<u64> = puts.buffer_unordered(concurrency).try_collect().await?;
    Ok(lengths.iter().sum())
}

fn store(client: Client, location: Location, concurrency: usize) -> Result<Store, AnyError> {
    let settings = StoreSettings {
        s3: S3Settings {
            conditional_writes: Some(ConditionalWrites::Probe),
            ..S3Settings::default()
        },
        ..StoreSettings::default()
    };
    let store = S3Store::with_client(client, location, &settings)?;
    let options = Options {
        upload_concurrency: concurrency,
        ..Options::default()
    };
    Ok(Store::new(Arc::new(store), options))
}

async fn through(store: &Store, concurrency: usize, files: &[String]) -> Result<u64, AnyError> {
    let put = async |(number, file): (usize, &String)| {
        let body = Bytes::from(tokio::fs::read(file).await?);
        let key = ObjectKey::new(format!("{number:08}"))?;
        let mut upload = store.upload(key, PutMode::Create).whole_up_to(WHOLE_BYTES);
        for chunk in body.chunks(CHUNK_BYTES) {
            upload.write(body.slice_ref(chunk)).await?;
        }
        Ok::<_, AnyError>(upload.finish().await?)
    };
    let puts = stream::iter(files.iter().enumerate()).map(put);
    let lengths: Vec<u64> = puts.buffer_unordered(concurrency).try_collect().await?;
    Ok(lengths.iter().sum())
}
