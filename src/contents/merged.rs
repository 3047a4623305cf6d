//! A relation's file put together from a full backup and its deltas (reconstruct.c, `reconstruct_from_incremental_file`).
//!
//! ```text
//! newest delta  ──┐
//! older deltas  ──┼─▶ each block from the newest that has it ─▶ the file
//! whole file    ──┘   zeros where none has it
//! ```
//!
//! The result is what one gets by applying one delta after the other. `pg_combinebackup` gives the same with one
//! difference: of the truncation lengths it heeds the newest's only, so that in a file that was cut before one delta and
//! grew again before a later one, by blocks of which no delta tells, it shows what had been cut off; here these are zeros.

use std::io::{self, Read};
use std::ops::Range;

use super::delta_file::Header;

/// A reader that can pass over bytes.
pub trait Skip: Read {
    /// Passes over `count` bytes. Readers that need not fetch what they pass over do not.
    ///
    /// # Errors
    /// Those of reading. That the input ends before is told now or by the next read.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        match io::copy(&mut Read::take(self, count), &mut io::sink())? {
            passed if passed == count => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<S: Skip + ?Sized> Skip for &mut S {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        (**self).skip(count)
    }
}

impl<S: Skip + ?Sized> Skip for Box<S> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        (**self).skip(count)
    }
}

/// Which blocks of a file come from where.
#[derive(Clone, Debug)]
pub struct Layout {
    layers: Vec<Layer>,
    /// Blocks that the whole file has and that no truncation took.
    bottom_blocks: u32,
    blocks: u32,
    size_bytes: u64,
    block_size: u32,
}

/// Blocks that follow each other in the file and in where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where they come from.
    pub source: Source,
    /// The first of them.
    pub first_block: u32,
    /// How many; at least one.
    pub blocks: u32,
    /// What precedes them in the content of where they come from, in blocks.
    pub preceding: u32,
}

/// Where blocks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A delta, 0 for the newest; its content begins after its header.
    Layer(usize),
    /// The whole file.
    Bottom,
    /// None has them: they are zeros.
    Zeros,
}

#[derive(Clone, Debug)]
struct Layer {
    header: Header,
    /// The least of the truncation lengths of newer layers: from here on this one's blocks do not count.
    limit: u32,
}

impl Layout {
    /// The layout of the file that `headers`, the newest first, and a whole file older than all of them make; the whole
    /// file itself when there is no header.
    pub fn new(headers: Vec<Header>, bottom_size_bytes: u64, block_size: u32) -> Self {
        let unit = u64::from(block_size.max(1));
        // What is less than a block at the end of a file is not taken (reconstruct.c divides its length).
        let (bottom_blocks, size_bytes) = match headers.first() {
            None => (bottom_size_bytes.div_ceil(unit), bottom_size_bytes),
            Some(newest) => {
                let size_bytes = u64::from(newest.result_blocks()) * unit;
                (bottom_size_bytes / unit, size_bytes)
            }
        };
        let bottom_blocks = u32::try_from(bottom_blocks).unwrap_or(u32::MAX);
        let blocks = headers.first().map(Header::result_blocks);
        let mut limit = u32::MAX;
        let layers = headers.into_iter().map(|header| {
            let own = limit;
            limit = limit.min(header.truncation_block_length);
            Layer { header, limit: own }
        });
        let layers = layers.collect();
        Self {
            layers,
            bottom_blocks: bottom_blocks.min(limit),
            blocks: blocks.unwrap_or(bottom_blocks),
            size_bytes,
            block_size: block_size.max(1),
        }
    }

    /// Length of the file.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How much of the file comes from the whole one.
    pub fn bottom_bytes(&self) -> u64 {
        let from_bottom = self.runs().filter(|run| run.source == Source::Bottom);
        from_bottom.map(|run| self.bytes(run)).sum()
    }

    /// Where each block comes from, in the file's order.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let mut cursor = Cursor::of(self);
        std::iter::from_fn(move || cursor.next(self))
    }

    /// Length of a run; the last of a whole file may end within a block.
    fn bytes(&self, run: Run) -> u64 {
        let begin = u64::from(run.first_block) * u64::from(self.block_size);
        let length = u64::from(run.blocks) * u64::from(self.block_size);
        length.min(self.size_bytes.saturating_sub(begin))
    }
}

/// How far the runs of a layout were told.
#[derive(Debug)]
struct Cursor {
    at: u32,
    /// For each layer, its first block that is not before `at`.
    places: Vec<usize>,
}

impl Cursor {
    fn of(layout: &Layout) -> Self {
        Self {
            at: 0,
            places: vec![0; layout.layers.len()],
        }
    }

    fn next(&mut self, layout: &Layout) -> Option<Run> {
        let mut end = layout.blocks;
        if self.at >= end {
            return None;
        }
        for (number, (layer, place)) in layout.layers.iter().zip(&mut self.places).enumerate() {
            let blocks = &layer.header.blocks;
            while blocks.get(*place).is_some_and(|block| *block < self.at) {
                *place += 1;
            }
            match blocks.get(*place).filter(|block| **block < layer.limit) {
                Some(block) if *block == self.at => {
                    let count = consecutive(blocks.get(*place..), self.at..end.min(layer.limit));
                    let preceding = u32::try_from(*place).unwrap_or(u32::MAX);
                    return Some(self.run(Source::Layer(number), count, preceding));
                }
                Some(later) => end = end.min(*later),
                None => {}
            }
        }
        if self.at < layout.bottom_blocks {
            let count = end.min(layout.bottom_blocks) - self.at;
            return Some(self.run(Source::Bottom, count, self.at));
        }
        Some(self.run(Source::Zeros, end - self.at, 0))
    }

    fn run(&mut self, source: Source, blocks: u32, preceding: u32) -> Run {
        let first_block = self.at;
        self.at += blocks;
        Run {
            source,
            first_block,
            blocks,
            preceding,
        }
    }
}

/// How many of `blocks` are those of `expected`, up to the first that is not.
fn consecutive(blocks: Option<&[u32]>, expected: Range<u32>) -> u32 {
    let pairs = blocks.unwrap_or_default().iter().zip(expected);
    let count = pairs.take_while(|(block, number)| *block == number).count();
    u32::try_from(count).expect("it is at most the length of a range of 32-bit numbers")
}

/// The file, read from its beginning to its end. Keeps the headers in memory and no content: blocks go from where they
/// come from into the buffer that is given, as many at a time as follow each other there and fit, so a large buffer pays.
/// Of what the file has no need for, nothing is read and what precedes a needed block is passed over.
#[derive(Debug)]
pub struct Merged<L, B> {
    layout: Layout,
    cursor: Cursor,
    layers: Vec<Positioned<L>>,
    bottom: Positioned<B>,
    rest: Option<Rest>,
}

/// What is still to be read of a run.
#[derive(Clone, Copy, Debug)]
struct Rest {
    source: Source,
    /// Where it is in the content of its source.
    position: u64,
    bytes: u64,
}

impl<L: Skip, B: Skip> Merged<L, B> {
    /// The file that `layers`, the newest first, and a whole file older than all of them make. A layer's reader stands
    /// after its header, the whole file's at its beginning; when all is read, the whole file's may stand before its end.
    pub fn new(
        layers: Vec<(Header, L)>,
        bottom: B,
        bottom_size_bytes: u64,
        block_size: u32,
    ) -> Self {
        let (headers, layers): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        let layout = Layout::new(headers, bottom_size_bytes, block_size);
        Self {
            cursor: Cursor::of(&layout),
            layout,
            layers: layers.into_iter().map(Positioned::new).collect(),
            bottom: Positioned::new(bottom),
            rest: None,
        }
    }

    /// Length of the file.
    pub fn size_bytes(&self) -> u64 {
        self.layout.size_bytes()
    }

    /// How much of the file, read or not, comes from the whole one.
    pub fn bottom_bytes(&self) -> u64 {
        self.layout.bottom_bytes()
    }

    /// Which blocks come from where.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn rest(&mut self) -> Option<Rest> {
        self.rest.take_if(|rest| rest.bytes > 0).or_else(|| {
            let run = self.cursor.next(&self.layout)?;
            Some(Rest {
                source: run.source,
                position: u64::from(run.preceding) * u64::from(self.layout.block_size),
                bytes: self.layout.bytes(run),
            })
        })
    }
}

impl<L: Skip, B: Skip> Read for Merged<L, B> {
    /// Fills `buffer` as far as one run goes.
    ///
    /// # Errors
    /// Those of the readers, and [`io::ErrorKind::UnexpectedEof`] when one ends before its last needed block.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(rest) = self.rest() else {
            return Ok(0);
        };
        self.rest = Some(rest);
        let longest = usize::try_from(rest.bytes).unwrap_or(usize::MAX);
        let longest = longest.min(buffer.len());
        let buffer = buffer.get_mut(..longest).unwrap_or_default();
        let count = match rest.source {
            Source::Layer(number) => {
                let layer = self.layers.get_mut(number);
                let layer = layer.expect("the layout is of these layers");
                layer.read_at(rest.position, buffer)?
            }
            Source::Bottom => self.bottom.read_at(rest.position, buffer)?,
            Source::Zeros => {
                buffer.fill(0);
                buffer.len()
            }
        };
        self.rest = Some(Rest {
            source: rest.source,
            position: rest.position + count as u64,
            bytes: rest.bytes - count as u64,
        });
        Ok(count)
    }
}

impl<L: Skip, B: Skip> Skip for Merged<L, B> {
    fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let rest = self.rest().ok_or(io::ErrorKind::UnexpectedEof)?;
            let passed = count.min(rest.bytes);
            self.rest = Some(Rest {
                source: rest.source,
                position: rest.position + passed,
                bytes: rest.bytes - passed,
            });
            count -= passed;
        }
        Ok(())
    }
}

/// A reader of which it is known where it stands.
#[derive(Debug)]
struct Positioned<R> {
    reader: R,
    position: u64,
}

impl<R: Skip> Positioned<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            position: 0,
        }
    }

    /// Reads from a position that is not before where the last read ended.
    fn read_at(&mut self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if position > self.position {
            self.reader.skip(position - self.position)?;
            self.position = position;
        }
        let count = self.reader.read(buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 16;

    /// Bytes of which it is counted what was read, in reads of any length up to a limit.
    #[derive(Debug)]
    struct Counted {
        content: io::Cursor<Vec<u8>>,
        most_bytes: usize,
        read_bytes: u64,
        reads: u64,
    }

    impl Counted {
        fn new(content: Vec<u8>, most_bytes: usize) -> Self {
            Self {
                content: io::Cursor::new(content),
                most_bytes,
                read_bytes: 0,
                reads: 0,
            }
        }
    }

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(self.most_bytes);
            let count = self.content.read(&mut buffer[..count])?;
            self.read_bytes += count as u64;
            self.reads += 1;
            Ok(count)
        }
    }

    impl Skip for Counted {
        fn skip(&mut self, count: u64) -> io::Result<()> {
            self.content.set_position(self.content.position() + count);
            Ok(())
        }
    }

    /// A delta whose blocks are each filled with a byte of their own.
    #[derive(Clone, Debug)]
    struct Delta {
        header: Header,
        content: Vec<u8>,
    }

    fn random_content(blocks: usize) -> Vec<u8> {
        let bytes = (0..blocks).flat_map(|_| [fastrand::u8(1..); BLOCK]);
        bytes.collect()
    }

    fn random_delta(most_blocks: u32) -> Delta {
        let density = fastrand::f64();
        let blocks: Vec<u32> = (0..most_blocks)
            .filter(|_| fastrand::f64() < density)
            .collect();
        Delta {
            content: random_content(blocks.len()),
            header: Header {
                truncation_block_length: fastrand::u32(..=most_blocks),
                blocks,
            },
        }
    }

    /// The file after a delta, from the file before it: what the format says, one step at a time.
    fn applied(before: &[u8], delta: &Delta) -> Vec<u8> {
        let kept = delta.header.truncation_block_length as usize * BLOCK;
        let mut after = before[..before.len() / BLOCK * BLOCK].to_vec();
        after.resize(kept, 0);
        for (block, content) in delta.header.blocks.iter().zip(delta.content.chunks(BLOCK)) {
            let at = *block as usize * BLOCK;
            after.resize(after.len().max(at + BLOCK), 0);
            after[at..at + BLOCK].copy_from_slice(content);
        }
        after
    }

    fn merged(
        newest_first: &[Delta],
        bottom: &[u8],
        most_bytes: usize,
    ) -> Merged<Counted, Counted> {
        let counted = |content: &[u8]| Counted::new(content.to_vec(), most_bytes);
        let layers = newest_first
            .iter()
            .map(|delta| (delta.header.clone(), counted(&delta.content)));
        let size_bytes = bottom.len() as u64;
        let block_size = u32::try_from(BLOCK).unwrap();
        Merged::new(layers.collect(), counted(bottom), size_bytes, block_size)
    }

    fn read_whole(merged: &mut impl Read, buffer_bytes: usize) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut buffer = vec![0; buffer_bytes];
        loop {
            let count = merged.read(&mut buffer).unwrap();
            if count == 0 {
                return whole;
            }
            whole.extend(&buffer[..count]);
        }
    }

    #[test]
    fn merged_is_what_deltas_applied_one_after_the_other_make() {
        let seed = fastrand::u64(..);
        fastrand::seed(seed);
        for round in 0..3000 {
            let most_blocks = fastrand::u32(1..40);
            let mut bottom = random_content(fastrand::usize(..40));
            bottom.truncate(bottom.len() - fastrand::usize(..BLOCK).min(bottom.len()));
            let deltas: Vec<Delta> = (0..fastrand::usize(1..6))
                .map(|_| random_delta(most_blocks))
                .collect();
            let expected = deltas
                .iter()
                .fold(bottom.clone(), |before, delta| applied(&before, delta));
            let newest_first: Vec<Delta> = deltas.into_iter().rev().collect();
            let mut merged = merged(&newest_first, &bottom, fastrand::usize(1..100));
            let whole = read_whole(&mut merged, fastrand::usize(1..200));
            assert!(whole == expected, "seed {seed}, round {round}");
            assert_eq!(merged.size_bytes(), whole.len() as u64);
            assert_eq!(merged.bottom_bytes(), merged.bottom.reader.read_bytes);
            let layers = merged.layers.iter().map(|layer| layer.reader.read_bytes);
            let zeros = whole.chunks(BLOCK).filter(|block| block[0] == 0).count() * BLOCK;
            let taken = layers.sum::<u64>() + merged.bottom_bytes() + zeros as u64;
            assert_eq!(taken, merged.size_bytes(), "seed {seed}, round {round}");
        }
    }

    #[test]
    fn runs_go_to_the_buffer_at_once_whatever_lies_over_them() {
        let blocks = 1000;
        let delta = |blocks: Vec<u32>| Delta {
            content: random_content(blocks.len()),
            header: Header {
                truncation_block_length: 1000,
                blocks,
            },
        };
        let newest = delta((500..600).collect());
        let older = delta((400..900).collect());
        let bottom = random_content(blocks);
        let mut merged = merged(&[newest, older], &bottom, usize::MAX);
        let runs: Vec<_> = merged
            .layout()
            .runs()
            .map(|run| (run.source, run.first_block, run.blocks, run.preceding))
            .collect();
        let expected = [
            (Source::Bottom, 0, 400, 0),
            (Source::Layer(1), 400, 100, 0),
            (Source::Layer(0), 500, 100, 0),
            (Source::Layer(1), 600, 300, 200),
            (Source::Bottom, 900, 100, 900),
        ];
        assert_eq!(runs, expected);
        read_whole(&mut merged, 1 << 20);
        assert_eq!(merged.bottom.reader.reads, 2);
        assert_eq!(merged.layers[1].reader.reads, 2);
        assert_eq!(merged.bottom_bytes(), 500 * BLOCK as u64);
    }

    #[test]
    fn a_file_without_deltas_is_whole_to_its_last_byte() {
        let bottom = random_content(3)[..BLOCK * 3 - 5].to_vec();
        let mut merged = merged(&[], &bottom, 7);
        assert_eq!(read_whole(&mut merged, 100), bottom);
        assert_eq!(merged.size_bytes(), bottom.len() as u64);
    }

    #[test]
    fn a_source_that_ends_too_early_is_an_error() {
        let mut delta = random_delta(30);
        delta.header.blocks = vec![3, 4];
        delta.header.truncation_block_length = 30;
        delta.content = random_content(1);
        let bottom = random_content(30);
        let mut whole = Vec::new();
        let result = merged(&[delta.clone()], &bottom, 100).read_to_end(&mut whole);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        delta.content = random_content(2);
        let layers = vec![(delta.header, Counted::new(delta.content, 100))];
        let short = Counted::new(random_content(20), 100);
        let mut merged = Merged::new(layers, short, bottom.len() as u64, 16);
        let result = merged.read_to_end(&mut whole);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn bytes_that_must_be_read_to_be_passed_over_are() {
        struct Plain<'a>(&'a [u8]);
        impl Read for Plain<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl Skip for Plain<'_> {}
        let mut plain = Plain(b"abcdef");
        plain.skip(4).unwrap();
        assert_eq!(plain.0, b"ef");
        let mut boxed: Box<dyn Skip> = Box::new(plain);
        let error = boxed.skip(3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
