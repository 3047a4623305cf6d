//! Servers' addresses and certificates, for every store that speaks HTTP.

use std::path::Path;
#[cfg(any(feature = "azure", feature = "gcs"))]
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

use crate::transfer::shown;
use crate::{Error, ErrorKind, Operation, Result};

/// The URL of a server that is not the cloud's own, without a trailing slash.
///
/// # Errors
/// [`ErrorKind::Invalid`] without `http://` or `https://`: nobody shall send data in clear who did not write so.
pub(crate) fn endpoint<'a>(variable: &'static str, url: &'a str) -> Result<&'a str> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if matches!(scheme, Some("http" | "https")) {
        return Ok(url.trim_end_matches('/'));
    }
    let error = Error::new(Operation::Open, shown(url), ErrorKind::Invalid);
    Err(error.with_source(NoScheme { variable }))
}

/// The certificates of a PEM file that are trusted beside the system's.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the file cannot be read or holds anything but sound certificates.
pub(crate) fn ca_certificates(path: &Path) -> Result<Vec<u8>> {
    let failed = |source: CaFault| {
        let shown = path.display().to_string();
        Error::new(Operation::Open, shown, ErrorKind::Invalid).with_source(source)
    };
    let pem = std::fs::read(path).map_err(|source| failed(CaFault::Read(source)))?;
    // Each is looked at here: the SDK for S3 panics on one that it cannot use.
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|source| failed(CaFault::Pem(source)))?;
        let added = roots.add(certificate);
        added.map_err(|source| failed(CaFault::Certificate(source)))?;
    }
    if roots.is_empty() {
        return Err(failed(CaFault::NoCertificate));
    }
    Ok(pem)
}

/// A client that trusts the system's roots and `ca_file`'s, follows no redirects, never waits long for a connection
/// and takes bodies as they are: whatever features other crates ask reqwest for, it neither offers nor unpacks encodings.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a `ca_file` that is none.
#[cfg(any(feature = "azure", feature = "gcs"))]
pub(crate) fn http_client(ca_file: Option<&Path>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate();
    let failed = |path: &Path, source| {
        let shown = path.display().to_string();
        Error::new(Operation::Open, shown, ErrorKind::Invalid).with_source(CaFault::Http(source))
    };
    if let Some(path) = ca_file {
        let pem = ca_certificates(path)?;
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|source| failed(path, source))?;
        builder = builder.tls_certs_merge(certificates);
    }
    let path = ca_file.unwrap_or(Path::new("TLS"));
    builder.build().map_err(|source| failed(path, source))
}

/// What errors say of where a request went: the endpoint, and the proxy that the environment names.
#[cfg(any(feature = "azure", feature = "gcs"))]
pub(crate) fn place(endpoint: &str) -> Arc<str> {
    let words = std::iter::once(format!("endpoint {}", shown(endpoint)));
    let words: Vec<String> = words.chain(proxy(endpoint)).collect();
    words.join(", ").into()
}

/// The proxy that the environment names for requests to `url`, for messages.
pub(crate) fn proxy(url: &str) -> Option<String> {
    // The clients ask the same matcher. It knows `NO_PROXY`, but not which variable names the proxy.
    Matcher::from_env().intercept(&url.parse().ok()?)?;
    let names: &[&str] = if url.starts_with("https:") {
        &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
    };
    let set = |name: &&str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.map(|value| format!("proxy {} ({name})", shown(&value)))
    };
    names.iter().find_map(set)
}

/// How long a connection may take.
pub(crate) const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// An address without its protocol.
#[derive(Debug, thiserror::Error)]
#[error(
    "{variable} names no protocol; write https:// or, to send everything in clear, http:// before it"
)]
struct NoScheme {
    variable: &'static str,
}

/// What is wrong with a file of certificates.
#[derive(Debug, thiserror::Error)]
enum CaFault {
    #[error("the certificates (ca_file) cannot be read")]
    Read(#[source] std::io::Error),
    #[error("the file (ca_file) is damaged")]
    Pem(#[source] pem::Error),
    #[error("a certificate in the file (ca_file) is damaged")]
    Certificate(#[source] rustls::Error),
    #[error("the file (ca_file) holds no certificate in PEM form")]
    NoCertificate,
    #[cfg(any(feature = "azure", feature = "gcs"))]
    #[error("the TLS client could not be set up with the certificates (ca_file)")]
    Http(#[source] reqwest::Error),
}
