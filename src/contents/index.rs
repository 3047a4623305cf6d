//! A backup's index: where each file is in its part, and the frames of the part, so that any of them is read alone.
//!
//! ```text
//! file ─▶ part, offset in the tar ─▶ frames that hold it ─▶ their place in the packed part
//! ```
//!
//! Frames lie one after the other without anything between, so lengths alone say where each is: in the content by
//! `content_bytes`, before encryption by `packed_bytes`.

use std::ffi::OsString;
use std::fmt;
use std::io::{BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::paths::{PathList, PathOrder, is_inside};
use crate::pipeline::encryption::{HEADER_BYTES, payload_bytes};
use crate::pipeline::{BLOCK_SIZE_BYTES, BlockDigest, Encryption, Frame, Packing};
use crate::repository::entry::StoredPart;

/// The format that is written.
const FORMAT: u32 = 2;
/// The earliest that is read, in which frames have BLAKE3 hashes.
const FORMAT_OF_BLAKE3: u32 = 1;
/// Longest frame that is read: what codecs make of a block that cannot be compressed is little longer than the block.
const MOST_PACKED_BYTES: usize = 2 * BLOCK_SIZE_BYTES;

/// Where everything in a backup is.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The parts, in the order of `backup.json`.
    pub parts: Vec<PartIndex>,
    /// The files of all parts, once it was read.
    by_path: PathOrder,
}

/// Where everything in a part is.
#[derive(Clone, Debug)]
pub struct PartIndex {
    /// The part's name in `backup.json`.
    pub name: String,
    /// Its frames, in order.
    pub frames: Vec<Frame>,
    /// Its files that are in the manifest, in order.
    pub files: PathList<FilePlace>,
}

/// Where a file's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// Where its first byte is in the part's content, the tar file.
    pub offset: u64,
    /// Its length.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// XXH3 of its content, with 128 bits, as `xxh128sum` prints it; earlier versions did not note it.
    pub xxh128: Option<[u8; 16]>,
}

/// Why a text is no index, or not the backup's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON of an index.
    #[error("it is not an index")]
    Json(#[from] serde_json::Error),
    /// Written by another version.
    #[error("its format is {0}, and this version reads {FORMAT_OF_BLAKE3} and {FORMAT}")]
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
    /// Writes the index as JSON.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: impl Write) -> Result<(), serde_json::Error> {
        serde_json::to_writer(
            out,
            &Raw {
                format: FORMAT,
                parts: &self.parts,
            },
        )
    }

    /// Reads what [`Index::write`] wrote; the text is not kept. Every file lies within its part's frames, in order and apart
    /// from the others, and no frame is longer than a reader wants to hold.
    ///
    /// # Errors
    /// [`Error`] for anything else.
    pub fn read(text: impl Read) -> Result<Self, Error> {
        let mut index = Self::default();
        let (mut other_format, mut invalid) = (None, None);
        let visitor = IndexVisitor {
            parts: &mut index.parts,
            other_format: &mut other_format,
            invalid: &mut invalid,
        };
        let mut json = serde_json::Deserializer::from_reader(BufReader::new(text));
        let read = json.deserialize_map(visitor).and_then(|()| json.end());
        if let Some(format) = other_format {
            return Err(Error::Format(format));
        }
        read?;
        if let Some(file) = invalid {
            return Err(Error::File(file));
        }
        index.parts.iter().try_for_each(PartIndex::check)?;
        index.by_path = by_path(&index.parts)?;
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

    /// An index that is to be written.
    pub fn of(parts: Vec<PartIndex>) -> Self {
        Self {
            parts,
            by_path: PathOrder::default(),
        }
    }

    /// Of an index that was read: a file's place, and the number of its part.
    pub fn place(&self, path: &Path) -> Option<(usize, &FilePlace)> {
        let files = |part: usize| self.parts.get(part).map(|part| &part.files);
        let (part, file) = self.by_path.find(path, files)?;
        Some((part, files(part)?.value(file)?))
    }
}

/// The order of all files, of which each is there once.
fn by_path(parts: &[PartIndex]) -> Result<PathOrder, Error> {
    let lists: Vec<_> = parts.iter().map(|part| &part.files).collect();
    let order = PathOrder::of(&lists);
    let path = |(part, file): (usize, usize)| lists.get(part)?.path(file);
    let mut last = None;
    for at in order.iter() {
        let path = path(at);
        if path == last {
            return Err(Error::File(path.unwrap_or_default()));
        }
        last = path;
    }
    Ok(order)
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
        for (path, file) in self.files.iter() {
            let end = file.offset.checked_add(file.size_bytes);
            let end = end.filter(|end| file.offset >= free_from && *end <= content_bytes);
            match end {
                Some(end) if is_inside(&path) => free_from = end,
                _ => return Err(Error::File(path)),
            }
        }
        Ok(())
    }

    fn fits(&self, stored: &StoredPart) -> bool {
        let of_files: u64 = self.files.values().map(|file| file.size_bytes).sum();
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

#[derive(Serialize)]
struct Raw<'a> {
    format: u32,
    parts: &'a [PartIndex],
}

impl Serialize for PartIndex {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct RawPart<'a> {
            name: &'a str,
            #[serde(serialize_with = "frames")]
            frames: &'a [Frame],
            files: FilesOf<'a>,
        }

        fn frames<S: Serializer>(frames: &&[Frame], to: S) -> Result<S::Ok, S::Error> {
            let raw = |frame: &Frame| {
                RawFrame(
                    frame.content_bytes,
                    frame.packed_bytes,
                    frame.digest.bytes(),
                )
            };
            to.collect_seq(frames.iter().map(raw))
        }

        struct FilesOf<'a>(&'a PathList<FilePlace>);

        impl Serialize for FilesOf<'_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let raw = |(path, place): (PathBuf, &FilePlace)| RawFile::of(&path, place);
                to.collect_seq(self.0.iter().map(raw))
            }
        }

        let raw = RawPart {
            name: &self.name,
            frames: &self.frames,
            files: FilesOf(&self.files),
        };
        raw.serialize(to)
    }
}

/// Takes files in as they come, and notes what cannot be right.
struct IndexVisitor<'a> {
    parts: &'a mut Vec<PartIndex>,
    other_format: &'a mut Option<u32>,
    invalid: &'a mut Option<PathBuf>,
}

impl<'de> Visitor<'de> for IndexVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Member {
            Format,
            Parts,
            #[serde(other)]
            Other,
        }

        let (mut format, mut parts) = (None, None);
        while let Some(member) = members.next_key()? {
            match member {
                Member::Format if format.is_some() => {
                    return Err(A::Error::duplicate_field("format"));
                }
                Member::Format => {
                    format = Some(members.next_value()?);
                    *self.other_format = format.filter(|format| !is_read(*format));
                }
                Member::Parts if parts.is_some() => return Err(A::Error::duplicate_field("parts")),
                // What another version means by it nobody knows.
                Member::Parts if format.is_some_and(is_read) => {
                    parts = Some(members.next_value::<Vec<RawPart>>()?);
                }
                Member::Parts | Member::Other => {
                    members.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        if self.other_format.is_some() {
            return Ok(());
        }
        // They come after their format.
        let digest = match format {
            Some(FORMAT_OF_BLAKE3) => BlockDigest::Blake3,
            _ => BlockDigest::Xxh128,
        };
        for part in parts.ok_or_else(|| A::Error::missing_field("parts"))? {
            let frames = { part.frames.into_iter() }.map(|frame| frame.frame(digest));
            *self.invalid = self.invalid.take().or(part.files.invalid);
            self.parts.push(PartIndex {
                name: part.name,
                frames: frames.collect(),
                files: part.files.list,
            });
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct RawPart {
    name: String,
    frames: Vec<RawFrame>,
    files: Files,
}

/// Length of the content, length of the frame, digest.
#[derive(Serialize, Deserialize)]
struct RawFrame(u32, u32, #[serde(with = "hex::serde")] [u8; 16]);

fn is_read(format: u32) -> bool {
    (FORMAT_OF_BLAKE3..=FORMAT).contains(&format)
}

impl RawFrame {
    fn frame(self, digest_of: fn([u8; 16]) -> BlockDigest) -> Frame {
        let Self(content_bytes, packed_bytes, digest) = self;
        Frame {
            content_bytes,
            packed_bytes,
            digest: digest_of(digest),
        }
    }
}

/// The files of a part, each taken in as it comes.
#[derive(Default)]
struct Files {
    list: PathList<FilePlace>,
    /// The first that has no path.
    invalid: Option<PathBuf>,
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(FilesVisitor)
    }
}

struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = Files;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the files of a part")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut raw: A) -> Result<Files, A::Error> {
        let mut files = Files::default();
        while let Some(file) = raw.next_element::<RawFile>()? {
            match file.path() {
                Ok(path) => files.list.push(&path, file.place()),
                Err(name) => files.invalid = files.invalid.or(Some(name)),
            }
        }
        Ok(files)
    }
}

#[derive(Serialize, Deserialize)]
struct RawFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The same, hexadecimal, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoded_path: Option<String>,
    offset: u64,
    size_bytes: u64,
    mode: u32,
    modified: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    xxh128: Option<Digits>,
}

/// As hexadecimal digits.
#[derive(Serialize, Deserialize)]
struct Digits(#[serde(with = "hex::serde")] [u8; 16]);

impl RawFile {
    fn of(path: &Path, place: &FilePlace) -> Self {
        let text = path.to_str();
        let encoded = || hex::encode(path.as_os_str().as_bytes());
        Self {
            path: text.map(str::to_owned),
            encoded_path: text.is_none().then(encoded),
            offset: place.offset,
            size_bytes: place.size_bytes,
            mode: place.mode,
            modified: place.modified,
            xxh128: place.xxh128.map(Digits),
        }
    }

    /// Its path, or else the text in the place of one.
    fn path(&self) -> Result<PathBuf, PathBuf> {
        if let Some(path) = &self.path {
            return Ok(path.into());
        }
        let encoded = self.encoded_path.as_deref().unwrap_or_default();
        match hex::decode(encoded) {
            Ok(bytes) => Ok(OsString::from_vec(bytes).into()),
            Err(_) => Err(encoded.into()),
        }
    }

    fn place(&self) -> FilePlace {
        FilePlace {
            offset: self.offset,
            size_bytes: self.size_bytes,
            mode: self.mode & 0o777,
            modified: self.modified,
            xxh128: self.xxh128.as_ref().map(|Digits(hash)| *hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::pipeline::StoredDigest;

    fn frame(content_bytes: u32, packed_bytes: u32) -> Frame {
        Frame {
            content_bytes,
            packed_bytes,
            digest: BlockDigest::Xxh128([0xAB; 16]),
        }
    }

    fn place(offset: u64, size_bytes: u64) -> FilePlace {
        FilePlace {
            offset,
            size_bytes,
            mode: 0o600,
            modified: 1_790_000_000,
            xxh128: (offset > 9000).then_some([0x0C; 16]),
        }
    }

    fn files<const N: usize>(files: [(&OsStr, FilePlace); N]) -> PathList<FilePlace> {
        let mut list = PathList::default();
        for (path, place) in files {
            list.push(Path::new(path), place);
        }
        list
    }

    fn sample() -> Index {
        let odd = OsString::from_vec(b"odd\xFF\"name".to_vec());
        let first = PartIndex {
            name: "base/00001.tar.lz4".to_owned(),
            frames: vec![frame(1 << 20, 500), frame(6_000, 70)],
            files: files([
                ("base/5/\"1\"".as_ref(), place(512, 8192)),
                (&odd, place(9216, 0)),
                ("large".as_ref(), place(9728, 1_040_000)),
            ]),
        };
        let second = PartIndex {
            name: "base/00002.tar.lz4".to_owned(),
            frames: vec![frame(4096, 5000)],
            files: files([("global/pg_control".as_ref(), place(512, 1000))]),
        };
        Index::of(vec![first, second])
    }

    fn text(index: &Index) -> String {
        let mut text = Vec::new();
        index.write(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    /// The first part's files, changed.
    fn with_files(part: &mut PartIndex, change: impl Fn(&mut Vec<(PathBuf, FilePlace)>)) {
        let all = part.files.iter().map(|(path, place)| (path, *place));
        let mut all: Vec<_> = all.collect();
        change(&mut all);
        part.files = PathList::default();
        for (path, place) in all {
            part.files.push(&path, place);
        }
    }

    fn stored(index: &Index) -> Vec<StoredPart> {
        let parts = index.parts.iter().map(|part| StoredPart {
            name: part.name.clone(),
            size_bytes: part.files.values().map(|file| file.size_bytes).sum(),
            stored_bytes: part.packed_bytes(),
            digest: StoredDigest::of(b""),
        });
        parts.collect()
    }

    #[test]
    fn an_index_reads_back_and_fits_its_parts() {
        let index = sample();
        let text = text(&index);
        let read = Index::read(text.as_bytes()).unwrap();
        assert_eq!(self::text(&read), text);
        for (part, read) in index.parts.iter().zip(&read.parts) {
            assert_eq!((&part.name, &part.frames), (&read.name, &read.frames));
            assert!(part.files.iter().eq(read.files.iter()));
        }
        let frame = "[1048576,500,\"abababababababababababababababab\"]";
        assert!(text.contains(frame), "{text}");
        assert!(text.contains("\"encoded_path\":\"6f6464ff"), "{text}");
        index.fits(&stored(&index)).unwrap();
    }

    #[test]
    fn frames_of_the_earlier_format_have_the_hashes_of_their_time() {
        let text = text(&sample()).replace("\"format\":2", "\"format\":1");
        let read = Index::read(text.as_bytes()).unwrap();
        let digests = { read.parts.iter() }.flat_map(|part| &part.frames);
        for frame in digests {
            assert_eq!(frame.digest, BlockDigest::Blake3([0xAB; 16]));
        }
    }

    #[test]
    fn an_index_that_cannot_be_right_is_refused() {
        let changes: [fn(&mut PartIndex); 11] = [
            |part| part.frames[0].content_bytes = 0,
            |part| part.frames[0].content_bytes = (1 << 20) + 1,
            |part| part.frames[1].packed_bytes = 0,
            |part| part.frames[1].packed_bytes = u32::MAX,
            |part| with_files(part, |files| files[2].1.size_bytes = 1 << 20),
            |part| with_files(part, |files| files[2].1.offset = u64::MAX),
            |part| with_files(part, |files| files[0].1.size_bytes = 9000),
            |part| with_files(part, |files| files.swap(0, 1)),
            |part| with_files(part, |files| files[0].0 = "../outside".into()),
            |part| with_files(part, |files| files[0].0 = "base//5/1".into()),
            |part| with_files(part, |files| files[0].0 = "global/pg_control".into()),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut index = sample();
            change(&mut index.parts[0]);
            let read = Index::read(text(&index).as_bytes());
            let is_right_error = match number {
                0..4 => matches!(read, Err(Error::Frames(_))),
                _ => matches!(read, Err(Error::File(_))),
            };
            assert!(is_right_error, "change {number}: {read:?}");
        }
        let text = text(&sample());
        for (from, to) in [
            ("\"encoded_path\":\"6f", "\"encoded_path\":\"6"),
            ("\"path\"", "\"p\""),
        ] {
            let read = Index::read(text.replace(from, to).as_bytes());
            assert!(matches!(read, Err(Error::File(_))), "{to}: {read:?}");
        }
        for other in [0, 3] {
            let text = text.replace("\"format\":2", &format!("\"format\":{other}"));
            let read = Index::read(text.as_bytes());
            assert!(
                matches!(read, Err(Error::Format(format)) if format == other),
                "{read:?}"
            );
        }
        let twice = text.replacen("{\"format\":2", "{\"format\":2,\"parts\":[]", 1);
        let late = text.replacen("\"format\":2,", "", 1);
        for text in [twice, late, "{\"format\":2}".to_owned()] {
            let read = Index::read(text.as_bytes());
            assert!(matches!(read, Err(Error::Json(_))), "{text}: {read:?}");
        }
        let cut = Index::read(&text.as_bytes()[..text.len() / 2]);
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
