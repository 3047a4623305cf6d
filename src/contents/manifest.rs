//! PostgreSQL's `backup_manifest` (backup_manifest.c, parse_manifest.c), for servers of every version.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use walhalla_postgres::{Lsn, SystemIdentifier, TimelineId, Version};

use super::checksum::Checksum;

/// The manifest's name in a data directory.
pub const FILE_NAME: &str = "backup_manifest";

/// What a backup's files must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Every file, by its path below the data directory.
    pub files: BTreeMap<PathBuf, FileFacts>,
}

/// What a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Its length.
    pub size_bytes: u64,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// Of its content.
    pub checksum: Checksum,
}

/// The WAL that makes a backup consistent.
#[derive(Clone, Copy, Debug)]
pub struct WalRange {
    /// Where it is.
    pub timeline: TimelineId,
    /// Its begin.
    pub start: Lsn,
    /// Its end.
    pub end: Lsn,
}

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON of a manifest.
    #[error("it is not a backup manifest")]
    Json(#[from] serde_json::Error),
    /// Its own checksum does not fit.
    #[error("its checksum does not match its content")]
    Checksum,
    /// An entry that cannot be right.
    #[error("its entry for {0:?} is not valid")]
    Entry(String),
}

impl Manifest {
    /// The manifest's text, ending in its own checksum.
    pub fn to_text(&self, version: Version, cluster: SystemIdentifier, wal: WalRange) -> String {
        let mut text = String::from("{ \"PostgreSQL-Backup-Manifest-Version\": ");
        if version.has_manifest_version_2() {
            let _ = write!(text, "2,\n\"System-Identifier\": {cluster},\n");
        } else {
            text.push_str("1,\n");
        }
        text.push_str("\"Files\": [");
        let mut separator = "\n";
        for (path, facts) in &self.files {
            let _ = write!(
                text,
                "{separator}{{ {}, \"Size\": {}, \"Last-Modified\": \"{}\", \
                 \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"{}\" }}",
                path_field(path.as_os_str()),
                facts.size_bytes,
                gmt(facts.modified),
                facts.checksum.algorithm(),
                facts.checksum,
            );
            separator = ",\n";
        }
        let WalRange {
            timeline,
            start,
            end,
        } = wal;
        let _ = write!(
            text,
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\n],\n",
            timeline.number(),
        );
        let checksum = hex::encode(Sha256::digest(text.as_bytes()));
        let _ = writeln!(text, "\"Manifest-Checksum\": \"{checksum}\"}}");
        text
    }

    /// Reads a manifest that [`Manifest::to_text`] or PostgreSQL wrote, with CRC-32C or SHA-256.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let raw: Raw = serde_json::from_str(text)?;
        let covered = text
            .rfind("\"Manifest-Checksum\"")
            .and_then(|at| text.get(..at))
            .ok_or(Error::Checksum)?;
        if hex::encode(Sha256::digest(covered.as_bytes())) != raw.checksum {
            return Err(Error::Checksum);
        }
        let files = raw
            .files
            .into_iter()
            .map(RawFile::facts)
            .collect::<Result<_, _>>()?;
        Ok(Self { files })
    }
}

#[derive(serde::Deserialize)]
struct Raw {
    #[serde(rename = "Files")]
    files: Vec<RawFile>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(serde::Deserialize)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size_bytes: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: String,
    #[serde(rename = "Checksum")]
    checksum: String,
}

impl RawFile {
    fn facts(self) -> Result<(PathBuf, FileFacts), Error> {
        let name = self
            .path
            .clone()
            .or(self.encoded_path.clone())
            .unwrap_or_default();
        let encoded = || {
            self.encoded_path
                .as_deref()
                .and_then(|digits| hex::decode(digits).ok())
                .map(OsString::from_vec)
        };
        let path = self.path.clone().map(OsString::from).or_else(encoded);
        let checksum = Checksum::parse(&self.algorithm, &self.checksum);
        let (Some(path), Some(checksum)) = (path, checksum) else {
            return Err(Error::Entry(name));
        };
        Ok((
            path.into(),
            FileFacts {
                size_bytes: self.size_bytes,
                modified: 0,
                checksum,
            },
        ))
    }
}

fn path_field(path: &OsStr) -> String {
    match path.to_str() {
        Some(text) => format!("\"Path\": {}", serde_json::Value::from(text)),
        None => format!("\"Encoded-Path\": \"{}\"", hex::encode(path.as_bytes())),
    }
}

fn gmt(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%d %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Manifest, WalRange) {
        let facts = |size_bytes, checksum| FileFacts {
            size_bytes,
            modified: 0,
            checksum,
        };
        let crc = Checksum::Crc32c(7);
        let odd = OsString::from_vec(b"odd\xFF\"name".to_vec());
        let files = [
            ("base/5/16384".into(), facts(8192, crc)),
            (
                "a \"quoted\" name".into(),
                facts(1, Checksum::Sha256([7; 32])),
            ),
            (odd.into(), facts(2, crc)),
        ];
        let range = WalRange {
            timeline: TimelineId::FIRST,
            start: Lsn(40),
            end: Lsn(512),
        };
        (
            Manifest {
                files: files.into(),
            },
            range,
        )
    }

    #[test]
    fn a_manifest_reads_back() {
        let (manifest, range) = sample();
        for version in ["13", "17"] {
            let text =
                manifest.to_text(Version::parse(version).unwrap(), SystemIdentifier(7), range);
            assert_eq!(Manifest::parse(&text).unwrap(), manifest);
        }
    }

    #[test]
    fn a_changed_manifest_is_refused() {
        let (manifest, range) = sample();
        let text = manifest.to_text(Version::parse("17").unwrap(), SystemIdentifier(7), range);
        let changed = text.replace("8192", "8193");
        assert!(matches!(Manifest::parse(&changed), Err(Error::Checksum)));
        assert!(Manifest::parse(&text[..text.len() / 2]).is_err());
    }
}
