//! From a URL to a store.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use url::Url;

use super::as_of::AsOfStore;
use super::late::LateStore;
use crate::fs::FsStore;
use crate::{Error, ErrorKind, Location, ObjectKey, ObjectStore, Operation, Result};

/// What a URL does not say. The default suits the services themselves.
#[derive(Clone, Debug, Default)]
pub struct StoreSettings {
    /// Certificates in PEM form that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The time as of which the store is looked at; it cannot be changed then.
    pub as_of: Option<Timestamp>,
    /// For `s3:`.
    pub s3: S3Settings,
    /// For `gs:`.
    pub gcs: GcsSettings,
    /// For `az:`.
    pub azure: AzureSettings,
}

/// What an S3 store is used with.
#[derive(Clone, Debug, Default)]
pub struct S3Settings {
    /// The AWS profile with credentials, region and endpoint, in the place of the environment's.
    pub profile: Option<String>,
    /// Buckets in the path instead of the host's name, as most S3-compatible servers want it.
    /// Default: in the path when an endpoint is set by the environment or the AWS profile.
    pub force_path_style: Option<bool>,
    /// Length of a part of an upload, 5 MiB to 5 GiB; default 8 MiB. An object has at most 10,000 parts,
    /// so that 8 MiB reach to 80 GB; memory grows with it, see [`Upload`](super::Upload).
    pub part_size_bytes: Option<usize>,
    /// Server-side encryption: `AES256`, `aws:kms` or `aws:kms:dsse`; default: the bucket's.
    pub encryption: Option<String>,
    /// KMS key for it; default: the account's for S3.
    pub kms_key_id: Option<String>,
    /// Storage class of new objects; default: `STANDARD`.
    pub storage_class: Option<String>,
    /// Object lock of new objects; default: the bucket's.
    pub object_lock: Option<ObjectLock>,
    /// Whether the requester pays, not the bucket's owner.
    pub requester_pays: bool,
    /// How far the server's conditional writes are relied on. Default: [`ConditionalWrites::Trust`] for
    /// AWS, [`ConditionalWrites::Probe`] when an endpoint is set.
    pub conditional_writes: Option<ConditionalWrites>,
    /// A directory in which it is remembered for a day that the server keeps them; without one each process asks. It and the
    /// one that holds it are made where they are missing.
    pub probe_memory: Option<PathBuf>,
    /// Whether requests carry CRC-32 checksums, which the server compares, and whole bodies are
    /// compared with theirs. Default: unless the AWS settings say `when_required`.
    pub checksums: Option<bool>,
    /// Whether bodies are signed; where this is not said, without TLS and without checksums.
    pub sign_bodies: Option<bool>,
}

/// How long S3 refuses to delete an object or to replace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLock {
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub mode: String,
    /// From when the object is stored.
    pub days: u32,
}

/// How far a server's `If-None-Match: *` is relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionalWrites {
    /// After it was seen to refuse a second create.
    Probe,
    /// Wholly.
    Trust,
    /// Not at all: look whether the key is taken, then write. Of two writers at the same moment the
    /// second replaces the first one's object.
    Off,
}

/// What a GCS store is used with.
#[derive(Clone, Debug, Default)]
pub struct GcsSettings {
    /// Cloud KMS key that new objects are encrypted with, `projects/…/cryptoKeys/…`; default: the bucket's.
    pub kms_key: Option<String>,
    /// Storage class of new objects; default: the bucket's.
    pub storage_class: Option<String>,
}

/// What an Azure store is used with.
#[derive(Clone, Debug, Default)]
pub struct AzureSettings {
    /// Access tier of new blobs: `Hot`, `Cool` or `Cold`; default: the account's.
    pub access_tier: Option<String>,
}

/// The store at `url`: `file:///path` and, with the cargo features `s3`, `gcs` and `azure`,
/// `s3://bucket/prefix`, `gs://bucket/prefix` and `az://container/prefix`.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a URL that names no store that is built in,
/// [`ErrorKind::StoreMissing`] where it can be known without a request that the store does not exist.
pub async fn open(url: &str, settings: &StoreSettings) -> Result<Arc<dyn ObjectStore>> {
    let store = match target(url) {
        Ok(Target::Directory(path)) => match FsStore::open_later(path).await {
            Ok(store) => Ok(Arc::new(store) as Arc<dyn ObjectStore>),
            Err(error) => Err(error),
        },
        Ok(Target::S3(location)) => open_s3(location, settings).await,
        Ok(Target::Gcs(location)) => open_gcs(location, settings).await,
        Ok(Target::Azure(location)) => open_azure(location, settings).await,
        Err(fault) => Err(refused(&shown(url), fault)),
    };
    let store = store?;
    Ok(match settings.as_of {
        Some(time) => Arc::new(AsOfStore::new(store, time)),
        None => store,
    })
}

/// The same for a store beside another one: a directory is opened by the first request, and by later ones where that failed,
/// as it may not be mounted yet.
///
/// # Errors
/// As [`open`], but for a directory.
pub async fn open_beside(url: &str, settings: &StoreSettings) -> Result<Arc<dyn ObjectStore>> {
    match directory_of(url) {
        Some(path) if settings.as_of.is_none() => Ok(Arc::new(LateStore::new(path))),
        Some(_) | None => open(url, settings).await,
    }
}

enum Target {
    Directory(PathBuf),
    S3(Location),
    Gcs(Location),
    Azure(Location),
}

/// The directory that a store's URL names, if it names one.
pub fn directory_of(url: &str) -> Option<PathBuf> {
    match target(url) {
        Ok(Target::Directory(path)) => Some(path),
        _ => None,
    }
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
        "s3" => location("s3", &url).map(Target::S3),
        "gs" => location("gs", &url).map(Target::Gcs),
        "az" => location("az", &url).map(Target::Azure),
        scheme => Err(UrlFault::UnknownScheme {
            scheme: scheme.to_owned(),
        }),
    }
}

fn location(scheme: &'static str, url: &Url) -> std::result::Result<Location, UrlFault> {
    if url.port().is_some() {
        return Err(UrlFault::Port { scheme });
    }
    let bucket = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or(UrlFault::NoBucket { scheme })?;
    let prefix = percent_decode(url.path()).ok_or(UrlFault::BadPrefix)?;
    let prefix = prefix.trim_matches('/');
    if !prefix.is_empty() && ObjectKey::new(prefix).is_err() {
        return Err(UrlFault::BadPrefix);
    }
    Ok(Location::new(scheme, bucket, prefix))
}

/// A function that opens a store of one cloud, or says that it was not built in.
macro_rules! open_cloud {
    ($function:ident, $feature:literal, $store:path) => {
        #[cfg(feature = $feature)]
        async fn $function(
            location: Location,
            settings: &StoreSettings,
        ) -> Result<Arc<dyn ObjectStore>> {
            Ok(Arc::new(<$store>::connect(location, settings).await?))
        }

        #[cfg(not(feature = $feature))]
        async fn $function(location: Location, _: &StoreSettings) -> Result<Arc<dyn ObjectStore>> {
            let fault = UrlFault::NotBuiltIn { feature: $feature };
            Err(refused(&location.url(), fault))
        }
    };
}

open_cloud!(open_s3, "s3", crate::s3::S3Store);
open_cloud!(open_gcs, "gcs", crate::gcs::GcsStore);
open_cloud!(open_azure, "azure", crate::azure::AzureStore);

fn refused(url: &str, fault: UrlFault) -> Error {
    Error::new(Operation::Open, url, ErrorKind::Invalid).with_source(fault)
}

fn percent_decode(path: &str) -> Option<String> {
    let decoded = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .ok()?;
    Some(decoded.into_owned())
}

/// A URL as people may see it: without name and password before the host, and without what follows a `?` or `#`,
/// such as the signature of a shared access.
pub fn shown(url: &str) -> String {
    let cut = url.find(['?', '#']).unwrap_or(url.len());
    let (url, rest) = url.split_at(cut);
    let rest = if rest.is_empty() { "" } else { "?***" };
    let (scheme, after) = match url.find("://") {
        Some(end) => url.split_at(end + 3),
        None => ("", url),
    };
    let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
    // A slash in a password makes the host look as if it ended there.
    let suspect = if authority.contains(':') {
        after
    } else {
        authority
    };
    let secret_ends = suspect.rfind('@');
    match secret_ends {
        Some(end) => format!("{scheme}***{}{rest}", after.get(end..).unwrap_or_default()),
        None => format!("{scheme}{authority}{path}{rest}"),
    }
}

/// Why a URL names no store.
#[derive(Debug, thiserror::Error)]
enum UrlFault {
    #[error(
        "the URL cannot be read; write file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    )]
    Unreadable(#[source] url::ParseError),
    #[error(
        "the URL carries credentials; hint: give them in the environment or the cloud's own files"
    )]
    Credentials,
    #[error("the URL has a query or a fragment; a `?` or `#` in a path is written %3F or %23")]
    QueryOrFragment,
    #[error("a directory's URL has three slashes and no host: file:///path")]
    FileHost,
    #[error("the URL names no bucket or container; write {scheme}://name/prefix")]
    NoBucket { scheme: &'static str },
    #[error(
        "the URL names a port, but {scheme}:// names a bucket and no server; the server stands in the endpoint's variable"
    )]
    Port { scheme: &'static str },
    #[error("the prefix has an empty part or one that begins with a dot")]
    BadPrefix,
    #[cfg(not(all(feature = "azure", feature = "gcs", feature = "s3")))]
    #[error(
        "this binary was built without this store; hint: build it with the cargo feature `{feature}`"
    )]
    NotBuiltIn { feature: &'static str },
    #[error("no store is known for `{scheme}:`; there are file:, s3:, gs: and az:")]
    UnknownScheme { scheme: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_of_a_url_is_shown() {
        for (url, expected) in [
            ("s3://bucket/prefix", "s3://bucket/prefix"),
            ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
            ("s3://key:sec/ret@bucket/a", "s3://***@bucket/a"),
            ("s3://key@bucket/a@b", "s3://***@bucket/a@b"),
            ("s3://bucket/a@b", "s3://bucket/a@b"),
            ("az://container?sv=1&sig=secret", "az://container?***"),
            ("https://a.blob/c?sig=secret", "https://a.blob/c?***"),
            ("gs://bucket#secret", "gs://bucket?***"),
            ("container?sig=secret", "container?***"),
            ("key:secret@host", "***@host"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
