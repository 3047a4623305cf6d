//! PostgreSQL's `backup_manifest` (backup_manifest.c, parse_manifest.c), for servers of every version.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::de::{SeqAccess, Visitor};
use sha2::{Digest, Sha256};
use walhalla_postgres::{Lsn, SystemIdentifier, TimelineId, Version};

use super::checksum::Checksum;
use crate::paths::{PathList, PathMap, is_inside};

/// The manifest's name in a data directory.
pub const FILE_NAME: &str = "backup_manifest";
/// How times are written (backup_manifest.c, `AddFileToBackupManifest`).
const TIME_FORMAT: &str = "%Y-%m-%d %H:%M:%S GMT";
/// What the last member is called. Its value is the checksum of all that is before its name.
const CHECKSUM: &str = "\"Manifest-Checksum\"";
/// Within so many bytes before the end the last member begins.
const LAST_BYTES: usize = 1024;

/// What a backup's files must be.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Every file, by its path below the data directory.
    pub files: PathMap<FileFacts>,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Its length.
    pub size_bytes: u64,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// Of its content.
    pub checksum: Checksum,
}

/// What a manifest tells besides its files.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The server's version, which decides the manifest's.
    pub version: Version,
    /// The cluster.
    pub cluster: SystemIdentifier,
    /// The WAL that makes the backup consistent.
    pub wal: WalRange,
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
    /// Two entries for one file.
    #[error("it has two entries for {0:?}")]
    Twice(String),
}

/// Writes a manifest of `files`, one after the other, ending in its own checksum.
///
/// # Errors
/// Those of `out`.
pub fn write(
    out: &mut dyn Write,
    head: Head,
    files: impl Iterator<Item = (PathBuf, FileFacts)>,
) -> io::Result<()> {
    let mut out = Hashing {
        out,
        hash: Sha256::new(),
    };
    out.write_all(b"{ \"PostgreSQL-Backup-Manifest-Version\": ")?;
    if head.version.has_manifest_version_2() {
        write!(out, "2,\n\"System-Identifier\": {},\n", head.cluster)?;
    } else {
        out.write_all(b"1,\n")?;
    }
    out.write_all(b"\"Files\": [")?;
    let mut separator = "\n";
    for (path, facts) in files {
        write!(
            out,
            "{separator}{{ {}, \"Size\": {}, \"Last-Modified\": \"{}\", \
             \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"{}\" }}",
            path_field(path.as_os_str()),
            facts.size_bytes,
            gmt(facts.modified),
            facts.checksum.algorithm(),
            facts.checksum,
        )?;
        separator = ",\n";
    }
    let WalRange {
        timeline,
        start,
        end,
    } = head.wal;
    write!(
        out,
        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\n],\n",
        timeline.number(),
    )?;
    let checksum = hex::encode(out.hash.finalize());
    writeln!(out.out, "{CHECKSUM}: \"{checksum}\"}}")
}

impl Manifest {
    /// A manifest of these files.
    ///
    /// # Errors
    /// [`Error::Twice`].
    pub fn of(files: PathList<FileFacts>) -> Result<Self, Error> {
        let files = files.into_map();
        let files = files.map_err(|path| Error::Twice(path.to_string_lossy().into_owned()))?;
        Ok(Self { files })
    }

    /// Reads a manifest that [`write()`] or PostgreSQL wrote, with CRC-32C or SHA-256. The text is not kept.
    ///
    /// # Errors
    /// [`Error`]; what `input` fails with is among the reasons of [`Error::Json`].
    pub fn read(input: impl Read) -> Result<Self, Error> {
        let mut input = Covered {
            input,
            hash: Sha256::new(),
            last: Vec::new(),
        };
        let raw: Raw = serde_json::from_reader(BufReader::new(&mut input))?;
        if input.checksum() != Some(raw.checksum) {
            return Err(Error::Checksum);
        }
        match raw.files.invalid {
            Some(name) => Err(Error::Entry(name)),
            None => Self::of(raw.files.list),
        }
    }
}

/// Passes on what is written, and hashes it.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    hash: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Hashes what is read, but for the end, of which only the last member's place tells what is to be hashed.
struct Covered<R> {
    input: R,
    hash: Sha256,
    last: Vec<u8>,
}

impl<R: Read> Read for Covered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.last
            .extend_from_slice(buffer.get(..count).unwrap_or_default());
        let sure = self.last.len().saturating_sub(LAST_BYTES);
        self.hash.update(self.last.get(..sure).unwrap_or_default());
        self.last.drain(..sure);
        Ok(count)
    }
}

impl<R> Covered<R> {
    /// The checksum of all that was read, as it stands in the last member; `None` without one.
    fn checksum(mut self) -> Option<String> {
        let name = CHECKSUM.as_bytes();
        let at = { self.last.windows(name.len()) }.rposition(|bytes| bytes == name)?;
        self.hash.update(self.last.get(..at)?);
        Some(hex::encode(self.hash.finalize()))
    }
}

#[derive(serde::Deserialize)]
struct Raw {
    #[serde(rename = "Files")]
    files: Files,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

/// The files of a manifest, each taken in as it comes.
#[derive(Default)]
struct Files {
    list: PathList<FileFacts>,
    /// The first entry that cannot be right.
    invalid: Option<String>,
}

impl<'de> serde::Deserialize<'de> for Files {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(FilesVisitor)
    }
}

struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = Files;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("the files of a manifest")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut raw: A) -> Result<Files, A::Error> {
        let mut files = Files::default();
        while let Some(file) = raw.next_element::<RawFile>()? {
            match file.facts() {
                Ok((path, facts)) => files.list.push(&path, facts),
                Err(name) => files.invalid = files.invalid.or(Some(name)),
            }
        }
        Ok(files)
    }
}

#[derive(serde::Deserialize)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size_bytes: u64,
    #[serde(rename = "Last-Modified", default)]
    modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: String,
    #[serde(rename = "Checksum")]
    checksum: String,
}

impl RawFile {
    /// The entry, or else the name in one that cannot be right.
    fn facts(self) -> Result<(PathBuf, FileFacts), String> {
        let encoded = self.encoded_path.unwrap_or_default();
        let path = match &self.path {
            Some(path) => Some(OsString::from(path)),
            None => hex::decode(&encoded).ok().map(OsString::from_vec),
        };
        let checksum = Checksum::parse(&self.algorithm, &self.checksum);
        match (path.filter(|path| is_inside(path.as_ref())), checksum) {
            (Some(path), Some(checksum)) => Ok((
                path.into(),
                FileFacts {
                    size_bytes: self.size_bytes,
                    modified: seconds(&self.modified),
                    checksum,
                },
            )),
            _ => Err(self.path.unwrap_or(encoded)),
        }
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
    time.strftime(TIME_FORMAT).to_string()
}

/// Seconds since 1970; 0 for a text that is no time, as no server writes one.
fn seconds(gmt: &str) -> i64 {
    let time = DateTime::strptime(TIME_FORMAT, gmt).and_then(|time| time.to_zoned(TimeZone::UTC));
    time.map_or(0, |time| time.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sample() -> PathList<FileFacts> {
        let facts = |size_bytes, checksum| FileFacts {
            size_bytes,
            modified: 1_790_000_000 + i64::try_from(size_bytes).unwrap(),
            checksum,
        };
        let crc = Checksum::Crc32c(7);
        let odd = OsString::from_vec(b"odd\xFF\"name".to_vec());
        let mut files = PathList::default();
        files.push(Path::new("base/5/16384"), facts(8192, crc.clone()));
        let quoted = Path::new("a \"quoted\" name");
        files.push(quoted, facts(1, Checksum::Sha256(Box::new([7; 32]))));
        files.push(Path::new(&odd), facts(2, crc));
        files
    }

    fn text(files: &PathList<FileFacts>, version: &str) -> Vec<u8> {
        let head = Head {
            version: Version::parse(version).unwrap(),
            cluster: SystemIdentifier(7),
            wal: WalRange {
                timeline: TimelineId::FIRST,
                start: Lsn(40),
                end: Lsn(512),
            },
        };
        let mut text = Vec::new();
        write(
            &mut text,
            head,
            files.iter().map(|(path, facts)| (path, facts.clone())),
        )
        .unwrap();
        text
    }

    /// What a restore puts beside the files is what was stored, byte by byte. PostgreSQL's own, which is never stored, would not be.
    #[test]
    fn a_manifest_reads_back() {
        for version in ["13", "17"] {
            let text = text(&sample(), version);
            let manifest = Manifest::read(&*text).unwrap();
            assert_eq!(self::text(manifest.files.list(), version), text);
            assert_eq!(
                manifest
                    .files
                    .get(Path::new("base/5/16384"))
                    .unwrap()
                    .modified,
                1_790_008_192
            );
        }
    }

    #[test]
    fn a_changed_manifest_is_refused() {
        let text = String::from_utf8(text(&sample(), "17")).unwrap();
        let read = |text: &str| Manifest::read(text.as_bytes());
        let changed = text.replace("8192", "8193");
        assert!(matches!(read(&changed), Err(Error::Checksum)));
        assert!(read(&text[..text.len() / 2]).is_err());
    }

    #[test]
    fn entries_that_cannot_be_right_are_refused() {
        let mut twice = sample();
        twice.push(
            Path::new("base/5/16384"),
            sample().value(0).unwrap().clone(),
        );
        let read = Manifest::read(&*text(&twice, "17"));
        assert!(
            matches!(&read, Err(Error::Twice(name)) if name == "base/5/16384"),
            "{read:?}"
        );
        let text = String::from_utf8(text(&sample(), "17")).unwrap();
        let covered = text.split(CHECKSUM).next().unwrap();
        let changed = covered.replacen("CRC32C", "CRC32", 1);
        let checksum = hex::encode(Sha256::digest(&changed));
        let read = Manifest::read(format!("{changed}{CHECKSUM}: \"{checksum}\"}}").as_bytes());
        assert!(
            matches!(&read, Err(Error::Entry(name)) if name == "base/5/16384"),
            "{read:?}"
        );
    }
}
