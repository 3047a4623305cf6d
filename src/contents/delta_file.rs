//! A relation's file in a delta backup: the blocks that changed, as PostgreSQL 17 stores them in `INCREMENTAL.*` files
//! (basebackup.c, `sendFile`; reconstruct.c, `make_incremental_rfile`).
//!
//! ```text
//! magic │ count │ truncation length │ count block numbers │ zeros up to a block's border │ count blocks
//! ```
//!
//! Numbers have 32 bits and are little-endian, as on every machine on which this program runs; block numbers count from
//! the file's first block. A file without blocks ends after its three numbers.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use walhalla_postgres::RelationFile;

/// `INCREMENTAL_PREFIX` (pg_combinebackup.c, basebackup_incremental.c).
const PREFIX: &str = "INCREMENTAL.";
/// `INCREMENTAL_MAGIC` (basebackup_incremental.h).
const MAGIC: u32 = 0xD3AE_1F0D;
/// Magic, count and truncation length.
const FIXED_BYTES: u64 = 12;
const NUMBER_BYTES: u64 = 4;

/// What such a file says of its blocks, which follow it in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The length in blocks up to which what is not among `blocks` is as it was in the older backup; beyond it there is
    /// what is among `blocks`, and zeros.
    pub truncation_block_length: u32,
    /// The blocks that are in the file, ascending, each below the blocks that a relation's file can have.
    pub blocks: Vec<u32>,
}

/// Why a header could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its file could not be read.
    #[error("it could not be read")]
    Read(#[source] io::Error),
    /// It is no header.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// How a header differs from what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It begins otherwise.
    #[error("it begins with {0:08X}, a file of changed blocks with {MAGIC:08X}")]
    Magic(u32),
    /// It ends too early.
    #[error("it is cut short")]
    Short,
    /// More blocks than a relation's file can have.
    #[error("it has {0} blocks, a relation's file at most {1}")]
    Count(u32, u32),
    /// A greater length than a relation's file can have.
    #[error("it is of a file of {0} blocks, a relation's file has at most {1}")]
    Truncation(u32, u32),
    /// Block numbers that do not ascend.
    #[error("it names block {1} after block {0}")]
    Order(u32, u32),
    /// A block number that no relation's file has.
    #[error("it names block {0}, a relation's file has at most {1}")]
    Block(u32, u32),
}

impl Header {
    /// The header as it is stored: what stands before the blocks.
    pub fn to_bytes(&self, block_size: u32) -> Vec<u8> {
        let count = u32::try_from(self.blocks.len()).expect("a file has fewer than 2^32 blocks");
        let numbers = [MAGIC, count, self.truncation_block_length];
        let numbers = numbers.iter().chain(&self.blocks);
        let mut bytes: Vec<u8> = numbers.flat_map(|number| number.to_le_bytes()).collect();
        let size = usize::try_from(self.size_bytes(block_size));
        bytes.resize(size.expect("little more than is in memory"), 0);
        bytes
    }

    /// Its length as it is stored: whole blocks when blocks follow (basebackup_incremental.c,
    /// `GetIncrementalHeaderSize`).
    pub fn size_bytes(&self, block_size: u32) -> u64 {
        let numbers = FIXED_BYTES + NUMBER_BYTES * self.blocks.len() as u64;
        if self.blocks.is_empty() {
            return numbers;
        }
        let whole = numbers.checked_next_multiple_of(u64::from(block_size));
        whole.unwrap_or(numbers)
    }

    /// Length of the file that it begins (basebackup_incremental.c, `GetIncrementalFileSize`).
    pub fn file_bytes(&self, block_size: u32) -> u64 {
        self.size_bytes(block_size) + u64::from(block_size) * self.blocks.len() as u64
    }

    /// Length in blocks of the file that is put together (reconstruct.c, `find_reconstructed_block_length`).
    pub fn result_blocks(&self) -> u32 {
        let beyond_last = self.blocks.last().map(|last| last.saturating_add(1));
        self.truncation_block_length
            .max(beyond_last.unwrap_or_default())
    }

    /// Reads a header; the next byte of `input` is then the first of its first block.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] for what is not written for relations' files of up to `blocks_per_file` blocks.
    pub fn read(
        input: &mut dyn Read,
        block_size: u32,
        blocks_per_file: u32,
    ) -> Result<Self, ReadError> {
        let [magic, count, truncation_block_length] = fixed(input)?;
        if magic != MAGIC {
            return Err(Malformed::Magic(magic).into());
        }
        if count > blocks_per_file {
            return Err(Malformed::Count(count, blocks_per_file).into());
        }
        if truncation_block_length > blocks_per_file {
            return Err(Malformed::Truncation(truncation_block_length, blocks_per_file).into());
        }
        let header = Self {
            truncation_block_length,
            blocks: numbers(input, count)?,
        };
        header.check_blocks(blocks_per_file)?;
        let numbers = FIXED_BYTES + NUMBER_BYTES * u64::from(count);
        read_exactly(input, header.size_bytes(block_size) - numbers)?;
        Ok(header)
    }

    fn check_blocks(&self, blocks_per_file: u32) -> Result<(), Malformed> {
        for pair in self.blocks.windows(2) {
            if let [before, after] = *pair
                && before >= after
            {
                return Err(Malformed::Order(before, after));
            }
        }
        match self.blocks.last() {
            Some(last) if *last >= blocks_per_file => Err(Malformed::Block(*last, blocks_per_file)),
            _ => Ok(()),
        }
    }
}

/// The name under which the changed blocks of a relation's file are stored: `base/5/INCREMENTAL.16384.1` for
/// `base/5/16384.1`.
pub fn delta_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(PREFIX);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// The relation's file whose changed blocks `path`, a file of a delta, holds, the inverse of [`delta_name`]; `None` for a
/// file that is whole, as all are in a full backup, whatever their names.
///
/// A delta has such a name for nothing else: [`is_taken_for_delta`].
pub fn whole_name(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let whole = path.with_file_name(name.strip_prefix(PREFIX)?);
    RelationFile::of_path(&whole).map(|_| whole)
}

/// Whether `pg_combinebackup` would take a file of a delta for the changed blocks of another (pg_combinebackup.c,
/// `process_directory_recursively`: by the folder and the beginning of the name). No server gives a file such a name; a
/// data directory that holds one goes into full backups only.
pub fn is_taken_for_delta(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let depth = folder.components().count();
    let in_relations = folder == Path::new("global")
        || depth > 1 && (folder.starts_with("base") || folder.starts_with("pg_tblspc"));
    in_relations && name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

fn fixed(input: &mut dyn Read) -> Result<[u32; 3], ReadError> {
    let mut bytes = [0; 12];
    input.read_exact(&mut bytes).map_err(short)?;
    let (numbers, _) = bytes.as_chunks();
    let mut numbers = numbers.iter().map(|number| u32::from_le_bytes(*number));
    Ok([(); 3].map(|()| numbers.next().unwrap_or_default()))
}

/// Takes memory for what is there, whatever `count` says.
fn numbers(input: &mut dyn Read, count: u32) -> Result<Vec<u32>, ReadError> {
    let bytes = read_exactly(input, NUMBER_BYTES * u64::from(count))?;
    let (numbers, _) = bytes.as_chunks();
    let numbers = numbers.iter().map(|number| u32::from_le_bytes(*number));
    Ok(numbers.collect())
}

fn read_exactly(input: &mut dyn Read, count: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let read = input.take(count).read_to_end(&mut bytes);
    let read = read.map_err(ReadError::Read)?;
    if read as u64 == count {
        Ok(bytes)
    } else {
        Err(Malformed::Short.into())
    }
}

fn short(error: io::Error) -> ReadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Malformed::Short.into(),
        _ => ReadError::Read(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 8192;

    fn header(truncation_block_length: u32, blocks: &[u32]) -> Header {
        Header {
            truncation_block_length,
            blocks: blocks.to_vec(),
        }
    }

    fn read(bytes: &[u8]) -> Result<Header, Malformed> {
        match Header::read(&mut &*bytes, BLOCK, 131_072) {
            Ok(header) => Ok(header),
            Err(ReadError::Malformed(malformed)) => Err(malformed),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_header_is_padded_to_whole_blocks_only_when_blocks_follow() {
        for (count, size_bytes, file_bytes) in [
            (0, 12, 12),
            (1, 8192, 2 * 8192),
            (2045, 8192, 2046 * 8192),
            (2046, 2 * 8192, 2048 * 8192),
        ] {
            let blocks: Vec<u32> = (0..count).collect();
            let header = header(3000, &blocks);
            assert_eq!(header.to_bytes(BLOCK).len() as u64, size_bytes, "{count}");
            assert_eq!(header.size_bytes(BLOCK), size_bytes, "{count}");
            assert_eq!(header.file_bytes(BLOCK), file_bytes, "{count}");
        }
    }

    #[test]
    fn a_header_reads_back_and_leaves_the_blocks() {
        for header in [
            header(0, &[]),
            header(7, &[]),
            header(2, &[0, 5, 131_071]),
            header(131_072, &[1]),
        ] {
            let bytes = [header.to_bytes(BLOCK), vec![7; 10]].concat();
            let mut input = &*bytes;
            let read = Header::read(&mut input, BLOCK, 131_072).unwrap();
            assert_eq!((read, input), (header, &[7; 10][..]));
        }
    }

    #[test]
    fn a_header_that_is_cut_short_anywhere_is_refused() {
        let sound = header(9, &[1, 4, 8]).to_bytes(BLOCK);
        for length in 0..sound.len() {
            assert_eq!(read(&sound[..length]), Err(Malformed::Short), "{length}");
        }
    }

    #[test]
    fn a_header_that_no_server_writes_is_refused() {
        let of = |numbers: &[u32]| {
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            let mut bytes: Vec<u8> = bytes.collect();
            bytes.resize(8192, 0);
            read(&bytes).unwrap_err()
        };
        assert_eq!(of(&[MAGIC + 1, 0, 0]), Malformed::Magic(MAGIC + 1));
        assert_eq!(
            of(&[MAGIC, u32::MAX, 0]),
            Malformed::Count(u32::MAX, 131_072)
        );
        assert_eq!(
            of(&[MAGIC, 0, 131_073]),
            Malformed::Truncation(131_073, 131_072)
        );
        assert_eq!(of(&[MAGIC, 2, 9, 4, 4]), Malformed::Order(4, 4));
        assert_eq!(of(&[MAGIC, 2, 9, 4, 3]), Malformed::Order(4, 3));
        assert_eq!(
            of(&[MAGIC, 1, 9, 131_072]),
            Malformed::Block(131_072, 131_072)
        );
    }

    #[test]
    fn only_relations_files_have_names_of_deltas() {
        for (whole, delta) in [
            ("base/5/16384.1", "base/5/INCREMENTAL.16384.1"),
            ("base/5/16384_init", "base/5/INCREMENTAL.16384_init"),
            ("global/1262", "global/INCREMENTAL.1262"),
            (
                "pg_tblspc/16400/PG_17_202406281/5/16384",
                "pg_tblspc/16400/PG_17_202406281/5/INCREMENTAL.16384",
            ),
        ] {
            assert_eq!(delta_name(Path::new(whole)), Path::new(delta));
            assert_eq!(whole_name(Path::new(delta)).unwrap(), Path::new(whole));
            assert_eq!(whole_name(Path::new(whole)), None);
        }
        for name in [
            "INCREMENTAL.config",
            "INCREMENTAL.16384",
            "base/5/INCREMENTAL.",
            "base/5/INCREMENTAL.config",
            "base/INCREMENTAL.5/16384",
            "base/5/INCREMENTAL.INCREMENTAL.16384",
        ] {
            assert_eq!(whole_name(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn names_that_would_be_taken_for_changed_blocks_are_known_by_their_folder() {
        for (name, is_taken) in [
            ("global/INCREMENTAL.1262", true),
            ("global/INCREMENTAL.config", true),
            ("base/5/INCREMENTAL.", true),
            ("base/5/x/INCREMENTAL.16384", true),
            ("pg_tblspc/16400/PG_17_202406281/5/INCREMENTAL.x", true),
            ("base/INCREMENTAL.5", false),
            ("INCREMENTAL.16384", false),
            ("pg_xact/INCREMENTAL.0000", false),
            ("base/5/16384", false),
        ] {
            assert_eq!(is_taken_for_delta(Path::new(name)), is_taken, "{name}");
        }
    }
}
