//! From a URL to a store.

use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

#[cfg(feature = "s3")]
use crate::ObjectKey;
use crate::fs::FsStore;
#[cfg(feature = "s3")]
use crate::s3::{Location, S3Store};
use crate::{Error, ErrorKind, ObjectStore, Operation, Result};

/// What a URL does not say. The default suits the services themselves.
#[derive(Clone, Debug, Default)]
pub struct StoreSettings {
    /// Buckets in the path instead of the host's name, as most S3-compatible servers want it.
    /// Default: in the path when an endpoint is set by the environment or the AWS profile.
    pub s3_force_path_style: Option<bool>,
    /// Length of a part of an upload, 5 MiB to 5 GiB; default 8 MiB. An object has at most 10,000 parts,
    /// so that 8 MiB reach to 80 GB; memory grows with it, see [`Upload`](super::Upload).
    pub s3_part_size_bytes: Option<usize>,
}

/// The store at `url`: `file:///path`, or `s3://bucket/prefix` with the cargo feature `s3`.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a URL that names no store that is built in,
/// [`ErrorKind::StoreMissing`] where it can be known without a request that the store does not exist.
#[cfg_attr(
    not(feature = "s3"),
    expect(unused_variables, reason = "S3 alone has settings")
)]
pub async fn open(url: &str, settings: &StoreSettings) -> Result<Arc<dyn ObjectStore>> {
    match target(url) {
        Ok(Target::Directory(path)) => open_directory(path).await,
        #[cfg(feature = "s3")]
        Ok(Target::S3(location)) => Ok(Arc::new(S3Store::connect(location, settings).await?)),
        Err(fault) => {
            let url = without_credentials(url);
            Err(Error::new(Operation::Open, url, ErrorKind::Invalid).with_source(fault))
        }
    }
}

enum Target {
    Directory(PathBuf),
    #[cfg(feature = "s3")]
    S3(Location),
}

fn target(url: &str) -> std::result::Result<Target, UrlFault> {
    let url = Url::parse(url).map_err(UrlFault::Unreadable)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlFault::Credentials);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(UrlFault::QueryOrFragment);
    }
    match url.scheme() {
        "file" => url
            .to_file_path()
            .map(Target::Directory)
            .map_err(|()| UrlFault::FileHost),
        "s3" => s3_target(&url),
        scheme => Err(UrlFault::UnknownScheme {
            scheme: scheme.to_owned(),
        }),
    }
}

#[cfg(feature = "s3")]
fn s3_target(url: &Url) -> std::result::Result<Target, UrlFault> {
    let bucket = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or(UrlFault::NoBucket)?;
    let prefix = percent_decode(url.path()).ok_or(UrlFault::BadPrefix)?;
    let prefix = prefix.trim_matches('/');
    if !prefix.is_empty() && ObjectKey::new(prefix).is_err() {
        return Err(UrlFault::BadPrefix);
    }
    Ok(Target::S3(Location {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    }))
}

#[cfg(not(feature = "s3"))]
fn s3_target(_url: &Url) -> std::result::Result<Target, UrlFault> {
    Err(UrlFault::S3NotBuiltIn)
}

async fn open_directory(path: PathBuf) -> Result<Arc<dyn ObjectStore>> {
    let shown = path.display().to_string();
    let opened = tokio::task::spawn_blocking(move || FsStore::open(path)).await;
    let store = opened.unwrap_or_else(|join| {
        Err(Error::new(Operation::Open, shown, ErrorKind::Other).with_source(join))
    })?;
    Ok(Arc::new(store))
}

#[cfg(feature = "s3")]
fn percent_decode(path: &str) -> Option<String> {
    let decoded = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .ok()?;
    Some(decoded.into_owned())
}

/// The URL as errors may show it.
fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => url.to_owned(),
    }
}

/// Why a URL names no store.
#[derive(Debug, thiserror::Error)]
enum UrlFault {
    #[error("the URL cannot be read; write file:///path or s3://bucket/prefix")]
    Unreadable(#[source] url::ParseError),
    #[error(
        "the URL carries credentials; hint: give them in the environment or the cloud's own files"
    )]
    Credentials,
    #[error("the URL has a query or a fragment; a `?` or `#` in a path is written %3F or %23")]
    QueryOrFragment,
    #[error("a directory's URL has three slashes and no host: file:///path")]
    FileHost,
    #[cfg(feature = "s3")]
    #[error("the URL names no bucket; write s3://bucket/prefix")]
    NoBucket,
    #[cfg(feature = "s3")]
    #[error("the prefix has an empty part or one that begins with a dot")]
    BadPrefix,
    #[cfg(not(feature = "s3"))]
    #[error("this binary was built without S3; hint: build it with the cargo feature `s3`")]
    S3NotBuiltIn,
    #[error(
        "no store is built in for `{scheme}:`; there are `file:` and, with the cargo feature `s3`, `s3:`"
    )]
    UnknownScheme { scheme: String },
}
