//! Why a server was not reached: what the causes of a failed request tell.
//!
//! A certificate that is not trusted and a host name that does not exist look like any other broken connection to the
//! clients' own error types. Neither passes by waiting.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error as TlsError};

use crate::{Distrust, ErrorKind};

/// What resolvers say of a name that does not exist: glibc, musl, and glibc of a name without an address.
const NO_SUCH_NAME: [&str; 3] = [
    "Name or service not known",
    "Name does not resolve",
    "No address associated with hostname",
];

/// Why no connection came about.
#[derive(Debug)]
pub(crate) struct Unreached {
    pub(crate) kind: ErrorKind,
    host: Option<String>,
    words: String,
}

impl Unreached {
    /// The reason among `error` and its causes, for messages of a request to `host`.
    pub(crate) fn of(error: &(dyn StdError + 'static), host: Option<&str>) -> Option<Self> {
        let of_cause = |(kind, words)| Self {
            kind,
            host: host.map(str::to_owned),
            words,
        };
        { causes(error) }.find_map(reason).map(of_cause)
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.host.as_deref()) {
            (ErrorKind::Untrusted(_), host) => {
                let host = host.unwrap_or("the server");
                write!(f, "TLS: the certificate of {host} {}", self.words)
            }
            (_, Some(host)) => write!(f, "DNS knows no host {host}: {}", self.words),
            (_, None) => write!(f, "DNS knows no such host: {}", self.words),
        }
    }
}

impl StdError for Unreached {}

/// An error and its causes, those within the system's errors included, which do not count as their sources.
pub(crate) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let of_system = error.downcast_ref::<io::Error>();
        match of_system.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

fn reason(error: &(dyn StdError + 'static)) -> Option<(ErrorKind, String)> {
    if let Some(TlsError::InvalidCertificate(fault)) = error.downcast_ref::<TlsError>() {
        let (distrust, words) = distrust(fault);
        return Some((ErrorKind::Untrusted(distrust), words));
    }
    let said = error.to_string();
    let is_unknown = NO_SUCH_NAME.iter().any(|words| said.ends_with(words));
    is_unknown.then(|| (ErrorKind::NoSuchHost, last_words(&said).to_owned()))
}

fn last_words(said: &str) -> &str {
    said.rsplit(": ").next().unwrap_or(said)
}

fn distrust(fault: &CertificateError) -> (Distrust, String) {
    match fault {
        CertificateError::UnknownIssuer => (Distrust::Authority, UNKNOWN_AUTHORITY.to_owned()),
        // A certificate that signed itself, and says that it is an authority (webpki, `CaUsedAsEndEntity`).
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => (
            Distrust::Authority,
            "is not trusted: it is an authority's own certificate, which no server may use"
                .to_owned(),
        ),
        CertificateError::NotValidForName => (
            Distrust::Name,
            "is not for this host: it is for another name".to_owned(),
        ),
        CertificateError::NotValidForNameContext { presented, .. } => (
            Distrust::Name,
            match presented.as_slice() {
                [] => "is not for this host: it names no host".to_owned(),
                names => format!("is not for this host: it is for {}", plain_names(names)),
            },
        ),
        CertificateError::Expired => (Distrust::Time, "has expired".to_owned()),
        CertificateError::ExpiredContext { time, not_after } => (
            Distrust::Time,
            format!(
                "expired at {}; this host's clock says {}",
                shown(*not_after),
                shown(*time)
            ),
        ),
        CertificateError::NotValidYet => (Distrust::Time, "is not valid yet".to_owned()),
        CertificateError::NotValidYetContext { time, not_before } => (
            Distrust::Time,
            format!(
                "is not valid before {}; this host's clock says {}",
                shown(*not_before),
                shown(*time)
            ),
        ),
        other => (Distrust::Other, format!("is not trusted: {other}")),
    }
}

const UNKNOWN_AUTHORITY: &str =
    "is not trusted: it is self-signed, or signed by an authority that is unknown here";

/// Names as people write them: rustls has `DnsName("host")`.
fn plain_names(names: &[String]) -> String {
    let plain = |name: &String| {
        let inner = name
            .split_once('(')
            .and_then(|(_, rest)| rest.strip_suffix(')'));
        inner
            .map_or(name.as_str(), |inner| inner.trim_matches('"'))
            .to_owned()
    };
    names.iter().map(plain).collect::<Vec<_>>().join(", ")
}

fn shown(time: UnixTime) -> String {
    let time = i64::try_from(time.as_secs()).ok();
    let time = time.and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreached(error: TlsError) -> Unreached {
        // As the clients wrap it.
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        Unreached::of(&wrapped, Some("store.example")).unwrap()
    }

    #[test]
    fn a_certificate_is_found_below_the_systems_errors() {
        for (fault, distrust, words) in [
            (
                CertificateError::UnknownIssuer,
                Distrust::Authority,
                "self-signed",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: "store.example".try_into().unwrap(),
                    presented: vec!["DnsName(\"other.example\")".to_owned()],
                },
                Distrust::Name,
                "it is for other.example",
            ),
            (
                CertificateError::ExpiredContext {
                    time: UnixTime::since_unix_epoch(std::time::Duration::from_hours(500_000)),
                    not_after: UnixTime::since_unix_epoch(std::time::Duration::from_secs(0)),
                },
                Distrust::Time,
                "expired at 1970-01-01T00:00:00Z",
            ),
        ] {
            let found = unreached(TlsError::InvalidCertificate(fault));
            assert_eq!(found.kind, ErrorKind::Untrusted(distrust));
            let said = found.to_string();
            assert!(
                said.contains("store.example") && said.contains(words),
                "{said}"
            );
        }
    }

    #[test]
    fn a_name_that_may_come_back_is_not_taken_for_one_that_does_not_exist() {
        let kind = |words: &str| {
            let error = io::Error::other(format!("failed to lookup address information: {words}"));
            Unreached::of(&error, None).map(|unreached| unreached.kind)
        };
        assert_eq!(
            kind("Name or service not known"),
            Some(ErrorKind::NoSuchHost)
        );
        assert_eq!(kind("Name does not resolve"), Some(ErrorKind::NoSuchHost));
        assert_eq!(kind("Temporary failure in name resolution"), None);
    }
}
