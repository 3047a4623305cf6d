//! Writing LZ4 frames (LZ4 frame format 1.6), each of a block that is in memory as a whole.
//!
//! ```text
//! magic │ FLG │ BD │ HC │ { block size │ block │ XXH32 of it }… │ 0 │ XXH32 of the content
//!   4      1    1    1        4                     4 or 0        4        4 or 0
//! ```
//!
//! `lz4_flex` compresses the blocks. Its `FrameEncoder` writes the same bytes, but copies each block before and after
//! that, because its input comes in pieces.

use std::io;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use twox_hash::XxHash32;

const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Version 1, independent blocks, no content size, and no checksum.
const FLAGS: u8 = 0b0110_0000;
/// A checksum of each block, and of the content.
///
/// Some bits of LZ4 mean nothing (the match length of a block's last token): their change would go unnoticed by a
/// checksum of the content alone. Without that one, `lz4` 1.9.4 (Debian 12) does not find the frame that follows.
const CHECKSUM_FLAGS: u8 = 0b0001_0100;
/// In a block's size: the block is stored as it is.
const UNCOMPRESSED: u32 = 1 << 31;
const END_MARK: [u8; 4] = [0; 4];
/// What a frame takes besides its blocks, and each block besides its content, at most.
const FRAME_BYTES: usize = 15;
const BLOCK_BYTES: usize = 8;

/// Where the checksums are that tell whether a frame is what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    /// The codec's own.
    InFrames,
    /// In what names the object: its digest, and that of each block.
    Elsewhere,
}

/// Longest block of a frame. A reader makes room for some blocks of this length before it reads the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockSize {
    /// 64 KiB: for objects that are short, and many.
    Short,
    /// 1 MiB.
    Long,
}

impl BlockSize {
    fn bytes(self) -> usize {
        match self {
            Self::Short => 64 << 10,
            Self::Long => 1 << 20,
        }
    }

    /// The number that stands for it in a frame.
    fn id(self) -> u8 {
        match self {
            Self::Short => 4,
            Self::Long => 6,
        }
    }
}

/// Makes frames, one after the other with the same memory.
pub(super) struct Lz4Encoder {
    table: CompressTable,
    blocks: BlockSize,
    checksums: Checksums,
    /// Where a block is compressed. It keeps its length, as filling it with zeros each time would cost a pass over it.
    room: Vec<u8>,
}

impl Lz4Encoder {
    pub(super) fn new(blocks: BlockSize, checksums: Checksums) -> Self {
        Self {
            table: CompressTable::large(),
            blocks,
            checksums,
            room: Vec::new(),
        }
    }

    /// Makes the frame of `content` in the memory of `frame`.
    pub(super) fn frame(&mut self, content: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        let flags = match self.checksums {
            Checksums::InFrames => FLAGS | CHECKSUM_FLAGS,
            Checksums::Elsewhere => FLAGS,
        };
        let descriptor = [flags, self.blocks.id() << 4];
        let [_, header_checksum, ..] = XxHash32::oneshot(0, &descriptor).to_le_bytes();
        frame.clear();
        // At once, as a vector that grows takes twice what it needs.
        let blocks = content.len().div_ceil(self.blocks.bytes());
        frame.reserve_exact(FRAME_BYTES + content.len() + blocks * BLOCK_BYTES);
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&descriptor);
        frame.push(header_checksum);
        for block in content.chunks(self.blocks.bytes()) {
            self.block(block, frame)?;
        }
        frame.extend_from_slice(&END_MARK);
        self.checksum(content, frame);
        Ok(())
    }

    /// Adds a block, between its size and its checksum.
    fn block(&mut self, block: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        let most_bytes = get_maximum_output_size(block.len());
        if self.room.len() < most_bytes {
            self.room.resize(most_bytes, 0);
        }
        let packed_bytes = compress_into_with_table(block, &mut self.room, &mut self.table)
            .map_err(io::Error::other)?;
        let packed = self.room.get(..packed_bytes).unwrap_or_default();
        let (stored, flag) = if packed_bytes < block.len() {
            (packed, 0)
        } else {
            (block, UNCOMPRESSED)
        };
        let size = u32::try_from(stored.len()).map_err(io::Error::other)? | flag;
        frame.extend_from_slice(&size.to_le_bytes());
        frame.extend_from_slice(stored);
        self.checksum(stored, frame);
        Ok(())
    }

    /// Adds the checksum of `bytes`, if frames have any.
    fn checksum(&self, bytes: &[u8], frame: &mut Vec<u8>) {
        if self.checksums == Checksums::InFrames {
            frame.extend_from_slice(&XxHash32::oneshot(0, bytes).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use lz4_flex::frame::{BlockMode, BlockSize as Library, FrameDecoder, FrameEncoder, FrameInfo};

    use super::*;

    fn contents() -> [Vec<u8>; 5] {
        let noise: Vec<u8> = (0..70_000).map(|_| fastrand::u8(..)).collect();
        let text: Vec<u8> = (0..400_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let block = text[..1 << 20].to_vec();
        [noise, text, block, b"a".to_vec(), Vec::new()]
    }

    fn contents_of_both() -> impl Iterator<Item = (Vec<u8>, Checksums)> {
        let both = [Checksums::InFrames, Checksums::Elsewhere];
        { both.into_iter() }.flat_map(|checksums| contents().map(|content| (content, checksums)))
    }

    #[test]
    fn a_frame_is_what_the_library_writes() {
        for (content, checksums) in contents_of_both() {
            let has_checksums = checksums == Checksums::InFrames;
            let mut encoder = Lz4Encoder::new(BlockSize::Long, checksums);
            let info = FrameInfo::new()
                .block_mode(BlockMode::Independent)
                .block_size(Library::Max1MB)
                .block_checksums(has_checksums)
                .content_checksum(has_checksums);
            let mut library = FrameEncoder::with_frame_info(info, Vec::new());
            library.write_all(&content).unwrap();
            // Memory that was used before.
            let mut frame = vec![1; 3_000];
            encoder.frame(&content, &mut frame).unwrap();
            assert!(frame == library.finish().unwrap(), "{}", content.len());
        }
    }

    /// For shorter blocks the library takes another table, so that it finds other matches.
    #[test]
    fn a_frame_of_short_blocks_is_read_by_the_library() {
        for (content, checksums) in contents_of_both() {
            let mut encoder = Lz4Encoder::new(BlockSize::Short, checksums);
            let (mut frame, mut read) = (Vec::new(), Vec::new());
            encoder.frame(&content, &mut frame).unwrap();
            let mut library = FrameDecoder::new(frame.as_slice());
            library.read_to_end(&mut read).unwrap();
            assert!(read == content, "{}", content.len());
        }
    }
}
