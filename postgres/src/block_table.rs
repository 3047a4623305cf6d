//! Tables of changed blocks as PostgreSQL stores them since 17 (blkreftable.c).
//!
//! ```text
//! magic │ fork │ words in each chunk │ the chunks' words │ fork … │ zeros in place of a fork │ CRC-32C of what is before
//! ```
//!
//! A fork is a `BlockRefTableSerializedEntry`, words have 16 bits, and a chunk stands for 65,536 blocks: as their numbers
//! within it, or, when it has as many words as a bitmap takes, as a bitmap. Numbers are little-endian, as on every
//! machine on which this program runs.

use std::io::{self, BufReader, Read};

use crate::summary::{Changed, Changes};
use crate::wal::record::{Fork, RelationFiles};

/// `BLOCKREFTABLE_MAGIC` (blkreftable.h).
const MAGIC: u32 = 0x652B_137B;
/// `BLOCKS_PER_CHUNK`
const CHUNK_BLOCKS: u32 = 1 << 16;
/// `MAX_ENTRIES_PER_CHUNK`: the words of a bitmap, and one more than a list of numbers has.
const BITMAP_WORDS: u16 = 4096;
/// `InvalidBlockNumber` (block.h): as a limit, that the fork was never cut.
const NO_BLOCK: u32 = u32::MAX;
/// The chunks of a relation of the greatest length.
const MOST_CHUNKS: usize = 1 << 16;
/// Length of a `BlockRefTableSerializedEntry`.
const FORK_BYTES: usize = 24;
const BUFFER_BYTES: usize = 64 << 10;

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its file could not be read.
    #[error("it could not be read")]
    Read(#[source] io::Error),
    /// It is not what PostgreSQL writes.
    #[error(transparent)]
    Damaged(#[from] BlockTableDamage),
}

/// How a table differs from what PostgreSQL writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockTableDamage {
    /// It begins otherwise.
    #[error("it begins with {0:08X}, a table of blocks with {MAGIC:08X}")]
    Magic(u32),
    /// It ends too early.
    #[error("it is cut short")]
    Short,
    /// There is more after its end.
    #[error("it goes on after its end")]
    Long,
    /// A fork that there is not.
    #[error("it names the fork {0}")]
    Fork(u32),
    /// More chunks than a relation can have.
    #[error("it has a relation of {0} chunks")]
    Chunks(u32),
    /// More words than a bitmap takes.
    #[error("it has a chunk of {0} words")]
    Words(u16),
    /// A block beyond the last that a relation can have.
    #[error("it names a block that no relation has")]
    Block,
    /// Its bytes changed.
    #[error("its checksum is {actual:08X}, it should be {expected:08X}")]
    Checksum {
        /// Of its bytes.
        actual: u32,
        /// At its end.
        expected: u32,
    },
}

/// Reads a table. What is in it is believed only after its checksum was found right.
///
/// Takes memory for the changes and at most 512 KiB besides them.
///
/// # Errors
/// Any other bytes than PostgreSQL writes are [`Error::Damaged`].
pub fn read(input: &mut dyn Read) -> Result<Changes, Error> {
    let mut input = Input {
        input: BufReader::with_capacity(BUFFER_BYTES, input),
        crc: 0,
    };
    let magic = input.number()?;
    if magic != MAGIC {
        return Err(BlockTableDamage::Magic(magic).into());
    }
    let mut forks = Vec::new();
    while let Some(fork) = input.fork()? {
        forks.push(fork);
    }
    let actual = input.crc;
    let expected = input.number()?;
    if actual != expected {
        return Err(BlockTableDamage::Checksum { actual, expected }.into());
    }
    input.end()?;
    Ok(forks.into_iter().collect())
}

type Entry = ((RelationFiles, Fork), Changed);

/// A table's bytes and their checksum up to here.
struct Input<'a> {
    input: BufReader<&'a mut dyn Read>,
    crc: u32,
}

impl Input<'_> {
    /// The next fork; `None` for the zeros that stand after the last.
    fn fork(&mut self) -> Result<Option<Entry>, Error> {
        let mut bytes = [0; FORK_BYTES];
        self.fill(&mut bytes)?;
        if bytes == [0; FORK_BYTES] {
            return Ok(None);
        }
        let mut numbers = bytes
            .as_chunks()
            .0
            .iter()
            .map(|number| u32::from_le_bytes(*number));
        let mut next = || numbers.next().unwrap_or_default();
        let relation = RelationFiles {
            tablespace: next(),
            database: next(),
            number: next(),
        };
        let (fork, limit, chunks) = (next(), next(), next());
        let fork = Fork::of_number(fork).ok_or(BlockTableDamage::Fork(fork))?;
        let changed = Changed {
            limit: (limit != NO_BLOCK).then_some(limit),
            blocks: self.blocks(chunks)?.0,
        };
        Ok(Some(((relation, fork), changed)))
    }

    fn blocks(&mut self, chunks: u32) -> Result<Runs, Error> {
        let count = usize::try_from(chunks).ok();
        let count = count.filter(|count| *count <= MOST_CHUNKS);
        let sizes = self.words(count.ok_or(BlockTableDamage::Chunks(chunks))?)?;
        let mut runs = Runs::default();
        for (chunk, words) in (0..).zip(sizes) {
            if words > BITMAP_WORDS {
                return Err(BlockTableDamage::Words(words).into());
            }
            let mut blocks = self.words(usize::from(words))?;
            if words == BITMAP_WORDS {
                runs.add_bitmap(chunk, &blocks)?;
            } else {
                blocks.sort_unstable();
                runs.add(chunk, blocks.into_iter().map(u32::from))?;
            }
        }
        Ok(runs)
    }

    fn words(&mut self, count: usize) -> Result<Vec<u16>, Error> {
        let mut bytes = vec![[0; 2]; count];
        self.fill(bytes.as_flattened_mut())?;
        Ok(bytes.into_iter().map(u16::from_le_bytes).collect())
    }

    fn number(&mut self) -> Result<u32, Error> {
        let mut number = [0; 4];
        self.fill(&mut number)?;
        Ok(u32::from_le_bytes(number))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.input
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => BlockTableDamage::Short.into(),
                _ => Error::Read(error),
            })?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        match self.fill(&mut [0]) {
            Ok(()) => Err(BlockTableDamage::Long.into()),
            Err(Error::Damaged(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Ascending blocks as runs.
#[derive(Default)]
struct Runs(Vec<std::ops::Range<u32>>);

impl Runs {
    fn add_bitmap(&mut self, chunk: u32, words: &[u16]) -> Result<(), BlockTableDamage> {
        for (first, word) in (0..).step_by(16).zip(words) {
            let is_set = |bit: &u32| word >> bit & 1 == 1;
            self.add(chunk, (0..16).filter(is_set).map(|bit| first + bit))?;
        }
        Ok(())
    }

    /// Adds blocks of a chunk, which are above those that are here.
    fn add(
        &mut self,
        chunk: u32,
        offsets: impl Iterator<Item = u32>,
    ) -> Result<(), BlockTableDamage> {
        for offset in offsets {
            let block = chunk
                .checked_mul(CHUNK_BLOCKS)
                .and_then(|first| first.checked_add(offset))
                .ok_or(BlockTableDamage::Block)?;
            let end = block.checked_add(1).ok_or(BlockTableDamage::Block)?;
            match self.0.last_mut() {
                Some(run) if run.end >= block => run.end = end,
                _ => self.0.push(block..end),
            }
        }
        Ok(())
    }
}

/// Tables for tests.
#[cfg(any(test, feature = "testing"))]
pub mod testing {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::{FORK_BYTES, MAGIC};

    /// A fork to be written: its numbers as they are stored, and its chunks.
    pub struct Stored {
        /// Tablespace, database, file number and fork.
        pub place: [u32; 4],
        /// `limit_block`
        pub limit: u32,
        /// Its chunks.
        pub chunks: Vec<Vec<u16>>,
    }

    /// What PostgreSQL would write (blkreftable.c, `WriteBlockRefTable`).
    pub fn table(entries: &[Stored]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        for entry in entries {
            let chunks = u32::try_from(entry.chunks.len()).unwrap();
            let numbers = entry.place.iter().chain([&entry.limit, &chunks]);
            bytes.extend(numbers.flat_map(|number| number.to_le_bytes()));
            let sizes = entry.chunks.iter().map(Vec::len);
            let words = sizes.map(|size| u16::try_from(size).unwrap());
            let words = words.chain(entry.chunks.concat());
            bytes.extend(words.flat_map(u16::to_le_bytes));
        }
        bytes.extend([0; FORK_BYTES]);
        with_checksum(bytes)
    }

    /// The bytes with the checksum that ends a table.
    pub fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Stored, table, with_checksum};
    use super::*;

    fn sound() -> Vec<u8> {
        let mut bitmap = vec![0; 4096];
        bitmap[0] = 0b1000_0000_0000_0110;
        bitmap[1] = 0b11;
        bitmap[4095] = 0x8000;
        table(&[
            Stored {
                place: [1663, 5, 0, 0],
                limit: 0,
                chunks: vec![],
            },
            Stored {
                place: [1663, 5, 16384, 0],
                limit: NO_BLOCK,
                chunks: vec![vec![7, 3, 65535, 8], vec![], bitmap, vec![0]],
            },
            Stored {
                place: [1663, 5, 16384, 2],
                limit: 4,
                chunks: vec![vec![1]],
            },
            Stored {
                place: [1663, 5, 16385, 3],
                limit: 9,
                chunks: vec![vec![0]],
            },
        ])
    }

    fn damage(bytes: &[u8]) -> BlockTableDamage {
        match read(&mut &*bytes) {
            Err(Error::Damaged(damage)) => damage,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lists_and_bitmaps_of_every_chunk_are_read_and_visibility_maps_left_out() {
        let read = read(&mut &*sound()).unwrap();
        let forks: Vec<_> = read.iter().collect();
        let [(database, dropped), (main, changed), (init, cut)] = &forks[..] else {
            panic!("{forks:?}")
        };
        assert_eq!((database.0.number, dropped.limit), (0, Some(0)));
        assert_eq!((main.0.number, main.1), (16384, Fork::Main));
        let bitmap = 2 << 16;
        let expected = [
            3..4,
            7..9,
            65535..65536,
            bitmap + 1..bitmap + 3,
            bitmap + 15..bitmap + 18,
            bitmap + 65535..bitmap + 65537,
        ];
        assert_eq!((changed.limit, &*changed.blocks), (None, &expected[..]));
        assert_eq!((init.1, cut.limit), (Fork::Init, Some(9)));
    }

    #[test]
    fn a_table_that_is_cut_short_anywhere_is_refused() {
        let sound = sound();
        for length in 0..sound.len() {
            assert_eq!(
                damage(&sound[..length]),
                BlockTableDamage::Short,
                "{length} bytes"
            );
        }
        assert_eq!(damage(&[&*sound, &[0]].concat()), BlockTableDamage::Long);
    }

    #[test]
    fn a_table_with_a_changed_bit_is_refused() {
        let sound = sound();
        for at in (0..sound.len()).filter(|at| *at < 200 || at % 61 == 0 || at + 40 > sound.len()) {
            for bit in 0..8 {
                let mut spoiled = sound.clone();
                spoiled[at] ^= 1 << bit;
                damage(&spoiled);
            }
        }
        let mut spoiled = sound.clone();
        *spoiled.last_mut().unwrap() ^= 1;
        assert!(matches!(
            damage(&spoiled),
            BlockTableDamage::Checksum { .. }
        ));
    }

    #[test]
    fn numbers_that_postgresql_does_not_write_are_refused_whatever_the_checksum() {
        let one = |place, chunks| {
            damage(&table(&[Stored {
                place,
                limit: 0,
                chunks,
            }]))
        };
        assert_eq!(one([1663, 5, 1, 4], vec![]), BlockTableDamage::Fork(4));
        assert_eq!(
            one([1663, 5, 1, 0], vec![vec![0; 4097]]),
            BlockTableDamage::Words(4097)
        );
        let mut last = vec![vec![]; 1 << 16];
        last[65535] = vec![65535];
        assert_eq!(one([1663, 5, 1, 0], last), BlockTableDamage::Block);
        let numbers = [MAGIC, 1663, 5, 1, 0, 0, (1 << 16) + 1];
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
        assert_eq!(
            damage(&with_checksum(bytes.collect())),
            BlockTableDamage::Chunks(65537)
        );
        assert_eq!(
            damage(&with_checksum(vec![0; 28])),
            BlockTableDamage::Magic(0),
            "zeros"
        );
    }
}
