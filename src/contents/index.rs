//! A backup's index: where each file is in its part, and the frames of the part, so that any of them is read alone.
//!
//! ```text
//! file ─▶ part, offset in the tar ─▶ frames that hold it ─▶ their place in the packed part
//! ```
//!
//! Frames lie one after the other without anything between, so lengths alone say where each is: in the content by
//! `content_bytes`, before encryption by `packed_bytes`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::pipeline::encryption::{HEADER_BYTES, payload_bytes};
use crate::pipeline::{BLOCK_SIZE_BYTES, Encryption, Frame, Packing};
use crate::repository::entry::StoredPart;

/// The format that is written; others are refused.
const FORMAT: u32 = 1;
/// Longest frame that is read: what codecs make of a block that cannot be compressed is little longer than the block.
const MOST_PACKED_BYTES: usize = 2 * BLOCK_SIZE_BYTES;

/// Where everything in a backup is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The parts, in the order of `backup.json`.
    pub parts: Vec<PartIndex>,
}

/// Where everything in a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartIndex {
    /// The part's name in `backup.json`.
    pub name: String,
    /// Its frames, in order.
    pub frames: Vec<Frame>,
    /// Its files that are in the manifest, in order.
    pub files: Vec<FilePlace>,
}

/// Where a file's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// The file, below the data directory.
    pub path: PathBuf,
    /// Where its first byte is in the part's content, the tar file.
    pub offset: u64,
    /// Its length.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// XXH3 of its content, with 128 bits; earlier versions did not note it.
    pub xxh128: Option<u128>,
}

/// Why a text is no index, or not the backup's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON of an index.
    #[error("it is not an index")]
    Json(#[from] serde_json::Error),
    /// Written by another version.
    #[error("its format is {0}, and this version reads {FORMAT}")]
    Format(u32),
    /// Frames that no writer makes.
    #[error("its frames of {0} cannot be right")]
    Frames(String),
    /// A file that is outside its part or the data directory, out of order, or named twice.
    #[error("its entry for the file {0:?} cannot be right")]
    File(PathBuf),
    /// Not the parts of `backup.json`, by their names or lengths.
    #[error("it does not fit the part {0} of backup.json")]
    Part(String),
}

impl Index {
    /// The index as JSON.
    pub fn to_text(&self) -> String {
        let raw = Raw {
            format: FORMAT,
            parts: self.parts.iter().map(RawPart::from).collect(),
        };
        serde_json::to_string(&raw).expect("numbers and texts have a spelling in JSON")
    }

    /// Reads what [`Index::to_text`] wrote. Every file lies within its part's frames, in order and apart from the
    /// others, and no frame is longer than a reader wants to hold.
    ///
    /// # Errors
    /// [`Error`] for anything else.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let Format { format } = serde_json::from_slice(text)?;
        if format != FORMAT {
            return Err(Error::Format(format));
        }
        let raw: Raw = serde_json::from_slice(text)?;
        let parts = raw.parts.into_iter().map(RawPart::part);
        let index = Self {
            parts: parts.collect::<Result<_, _>>()?,
        };
        index.check()?;
        Ok(index)
    }

    /// Whether it is the index of `parts`: the same names in the same order, the same lengths.
    ///
    /// # Errors
    /// [`Error::Part`].
    pub fn fits(&self, parts: &[StoredPart]) -> Result<(), Error> {
        let longer = self.parts.get(parts.len()).map(|part| &part.name);
        if let Some(name) = longer {
            return Err(Error::Part(name.clone()));
        }
        for (number, stored) in parts.iter().enumerate() {
            if !self.parts.get(number).is_some_and(|part| part.fits(stored)) {
                return Err(Error::Part(stored.name.clone()));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        let mut paths = HashSet::new();
        for part in &self.parts {
            part.check()?;
            let again = part.files.iter().find(|file| !paths.insert(&*file.path));
            if let Some(file) = again {
                return Err(Error::File(file.path.clone()));
            }
        }
        Ok(())
    }
}

impl PartIndex {
    /// Length of the part's content, the tar file.
    pub fn content_bytes(&self) -> u64 {
        let lengths = self.frames.iter();
        lengths.map(|frame| u64::from(frame.content_bytes)).sum()
    }

    /// Length of the part before encryption.
    pub fn packed_bytes(&self) -> u64 {
        let lengths = self.frames.iter();
        lengths.map(|frame| u64::from(frame.packed_bytes)).sum()
    }

    fn check(&self) -> Result<(), Error> {
        let is_right = |frame: &Frame| {
            let (content, packed) = (frame.content_bytes, frame.packed_bytes);
            (1..=BLOCK_SIZE_BYTES).contains(&usize::try_from(content).unwrap_or(usize::MAX))
                && (1..=MOST_PACKED_BYTES).contains(&usize::try_from(packed).unwrap_or(usize::MAX))
        };
        if !self.frames.iter().all(is_right) {
            return Err(Error::Frames(self.name.clone()));
        }
        let (mut free_from, content_bytes) = (0, self.content_bytes());
        for file in &self.files {
            let end = file.offset.checked_add(file.size_bytes);
            let end = end.filter(|end| file.offset >= free_from && *end <= content_bytes);
            match end {
                Some(end) if is_inside(&file.path) => free_from = end,
                _ => return Err(Error::File(file.path.clone())),
            }
        }
        Ok(())
    }

    fn fits(&self, stored: &StoredPart) -> bool {
        let of_files: u64 = self.files.iter().map(|file| file.size_bytes).sum();
        let packed = self.packed_bytes();
        let has_length = match Packing::split(&stored.name).1.encryption {
            Encryption::None => packed == stored.stored_bytes,
            // How long the header is, only the object tells.
            Encryption::Age => {
                let header = stored.stored_bytes.checked_sub(payload_bytes(packed));
                header.is_some_and(|header| (1..=HEADER_BYTES as u64).contains(&header))
            }
        };
        self.name == stored.name && of_files == stored.size_bytes && has_length
    }
}

fn is_inside(path: &Path) -> bool {
    let mut components = path.components();
    !path.as_os_str().is_empty() && components.all(|part| matches!(part, Component::Normal(_)))
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Raw<'a> {
    format: u32,
    parts: Vec<RawPart<'a>>,
}

#[derive(Serialize, Deserialize)]
struct RawPart<'a> {
    name: Cow<'a, str>,
    frames: Vec<RawFrame>,
    files: Vec<RawFile<'a>>,
}

/// Length of the content, length of the frame, digest.
#[derive(Serialize, Deserialize)]
struct RawFrame(u32, u32, #[serde(with = "hex::serde")] [u8; 16]);

#[derive(Serialize, Deserialize)]
struct RawFile<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    /// The same, hexadecimal, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoded_path: Option<Cow<'a, str>>,
    offset: u64,
    size_bytes: u64,
    mode: u32,
    modified: i64,
    /// Hexadecimal, as `xxh128sum` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    xxh128: Option<String>,
}

impl<'a> From<&'a PartIndex> for RawPart<'a> {
    fn from(part: &'a PartIndex) -> Self {
        let frames = part.frames.iter();
        Self {
            name: Cow::from(&part.name),
            frames: frames
                .map(|frame| RawFrame(frame.content_bytes, frame.packed_bytes, frame.digest))
                .collect(),
            files: part.files.iter().map(RawFile::from).collect(),
        }
    }
}

impl RawPart<'_> {
    fn part(self) -> Result<PartIndex, Error> {
        let frames = self.frames.into_iter();
        let files = self.files.into_iter();
        Ok(PartIndex {
            name: self.name.into_owned(),
            frames: frames
                .map(|RawFrame(content_bytes, packed_bytes, digest)| Frame {
                    content_bytes,
                    packed_bytes,
                    digest,
                })
                .collect(),
            files: files.map(RawFile::file).collect::<Result<_, _>>()?,
        })
    }
}

impl<'a> From<&'a FilePlace> for RawFile<'a> {
    fn from(file: &'a FilePlace) -> Self {
        let path = file.path.to_str();
        let encoded = || hex::encode(file.path.as_os_str().as_bytes());
        Self {
            path: path.map(Cow::from),
            encoded_path: path.is_none().then(encoded).map(Cow::from),
            offset: file.offset,
            size_bytes: file.size_bytes,
            mode: file.mode,
            modified: file.modified,
            xxh128: file.xxh128.map(|hash| format!("{hash:032x}")),
        }
    }
}

impl RawFile<'_> {
    fn file(self) -> Result<FilePlace, Error> {
        let encoded = self.encoded_path.as_deref().unwrap_or_default();
        let path = match self.path {
            Some(path) => OsString::from(path.into_owned()),
            None => hex::decode(encoded)
                .map(OsString::from_vec)
                .map_err(|_| Error::File(encoded.into()))?,
        };
        let xxh128 = { self.xxh128 }.map(|digits| u128::from_str_radix(&digits, 16));
        let xxh128 = { xxh128 }.transpose();
        let xxh128 = xxh128.map_err(|_| Error::File(PathBuf::from(&path)))?;
        Ok(FilePlace {
            path: path.into(),
            offset: self.offset,
            size_bytes: self.size_bytes,
            mode: self.mode & 0o777,
            modified: self.modified,
            xxh128,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::StoredDigest;

    fn frame(content_bytes: u32, packed_bytes: u32) -> Frame {
        Frame {
            content_bytes,
            packed_bytes,
            digest: [0xAB; 16],
        }
    }

    fn file(path: impl Into<PathBuf>, offset: u64, size_bytes: u64) -> FilePlace {
        FilePlace {
            path: path.into(),
            offset,
            size_bytes,
            mode: 0o600,
            modified: 1_790_000_000,
            xxh128: offset.checked_sub(9000).map(u128::from),
        }
    }

    fn sample() -> Index {
        let odd = OsString::from_vec(b"odd\xFF\"name".to_vec());
        let first = PartIndex {
            name: "base/00001.tar.lz4".to_owned(),
            frames: vec![frame(1 << 20, 500), frame(6_000, 70)],
            files: vec![
                file("base/5/\"1\"", 512, 8192),
                file(odd, 9216, 0),
                file("large", 9728, 1_040_000),
            ],
        };
        let second = PartIndex {
            name: "base/00002.tar.lz4".to_owned(),
            frames: vec![frame(4096, 5000)],
            files: vec![file("global/pg_control", 512, 1000)],
        };
        Index {
            parts: vec![first, second],
        }
    }

    fn stored(index: &Index) -> Vec<StoredPart> {
        let parts = index.parts.iter().map(|part| StoredPart {
            name: part.name.clone(),
            size_bytes: part.files.iter().map(|file| file.size_bytes).sum(),
            stored_bytes: part.packed_bytes(),
            digest: StoredDigest::of(b""),
        });
        parts.collect()
    }

    #[test]
    fn an_index_reads_back_and_fits_its_parts() {
        let index = sample();
        let text = index.to_text();
        assert_eq!(Index::parse(text.as_bytes()).unwrap(), index);
        let frame = "[1048576,500,\"abababababababababababababababab\"]";
        assert!(text.contains(frame), "{text}");
        assert!(text.contains("\"encoded_path\":\"6f6464ff"), "{text}");
        index.fits(&stored(&index)).unwrap();
    }

    #[test]
    fn an_index_that_cannot_be_right_is_refused() {
        let changes: [fn(&mut PartIndex); 10] = [
            |part| part.frames[0].content_bytes = 0,
            |part| part.frames[0].content_bytes = (1 << 20) + 1,
            |part| part.frames[1].packed_bytes = 0,
            |part| part.frames[1].packed_bytes = u32::MAX,
            |part| part.files[2].size_bytes = 1 << 20,
            |part| part.files[2].offset = u64::MAX,
            |part| part.files[0].size_bytes = 9000,
            |part| part.files.swap(0, 1),
            |part| part.files[0].path = "../outside".into(),
            |part| part.files[0].path = "global/pg_control".into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut index = sample();
            change(&mut index.parts[0]);
            let read = Index::parse(index.to_text().as_bytes());
            let is_right_error = match number {
                0..4 => matches!(read, Err(Error::Frames(_))),
                _ => matches!(read, Err(Error::File(_))),
            };
            assert!(is_right_error, "change {number}: {read:?}");
        }
        let text = sample().to_text();
        for (from, to) in [
            ("\"encoded_path\":\"6f", "\"encoded_path\":\"6"),
            ("\"path\"", "\"p\""),
        ] {
            let read = Index::parse(text.replace(from, to).as_bytes());
            assert!(matches!(read, Err(Error::File(_))), "{to}: {read:?}");
        }
        let newer = text.replace("\"format\":1", "\"format\":2");
        let newer = Index::parse(newer.as_bytes());
        assert!(matches!(newer, Err(Error::Format(2))), "{newer:?}");
        let cut = Index::parse(&text.as_bytes()[..text.len() / 2]);
        assert!(matches!(cut, Err(Error::Json(_))), "{cut:?}");
    }

    #[test]
    fn an_index_of_other_parts_is_refused() {
        let index = sample();
        let changes: [fn(&mut Vec<StoredPart>); 6] = [
            |parts| parts.truncate(1),
            |parts| parts.push(parts[0].clone()),
            |parts| parts.swap(0, 1),
            |parts| parts[1].size_bytes += 1,
            |parts| parts[1].stored_bytes -= 1,
            |parts| parts[1].name.push_str(".age"),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut parts = stored(&index);
            change(&mut parts);
            let fits = index.fits(&parts);
            assert!(matches!(fits, Err(Error::Part(_))), "change {number}");
        }
    }
}
