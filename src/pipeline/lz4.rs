//! Writing LZ4 frames (LZ4 frame format 1.6), each of a block that is in memory as a whole.
//!
//! ```text
//! magic │ FLG │ BD │ HC │ { block size │ block │ XXH32 of it }… │ 0 │ XXH32 of the content
//!   4      1    1    1        4                     4             4        4
//! ```
//!
//! `lz4_flex` compresses the blocks. Its `FrameEncoder` writes the same bytes, but copies each block before and after
//! that, because its input comes in pieces.

use std::io;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use twox_hash::XxHash32;

const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Version 1, independent blocks, a checksum of each block, no content size, a checksum of the content.
///
/// Some bits of LZ4 mean nothing (the match length of a block's last token): their change would go unnoticed by a
/// checksum of the content alone. Without that one, `lz4` 1.9.4 (Debian 12) does not find the frame that follows.
const FLAGS: u8 = 0b0111_0100;
/// Magic, descriptor and its checksum.
const HEADER_BYTES: usize = 7;
const SIZE_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;
/// In a block's size: the block is stored as it is.
const UNCOMPRESSED: u32 = 1 << 31;
const END_MARK: [u8; 4] = [0; 4];

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

    /// The frame's two bytes that say how it is made.
    fn descriptor(self) -> [u8; 2] {
        let size: u8 = match self {
            Self::Short => 4,
            Self::Long => 6,
        };
        [FLAGS, size << 4]
    }
}

/// Makes frames, one after the other with the same memory.
pub(super) struct Lz4Encoder {
    table: CompressTable,
    blocks: BlockSize,
}

impl Lz4Encoder {
    pub(super) fn new(blocks: BlockSize) -> Self {
        Self {
            table: CompressTable::large(),
            blocks,
        }
    }

    /// Makes the frame of `content` in the memory of `frame`.
    pub(super) fn frame(&mut self, content: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        let (block_bytes, descriptor) = (self.blocks.bytes(), self.blocks.descriptor());
        let [_, header_checksum, ..] = XxHash32::oneshot(0, &descriptor).to_le_bytes();
        let most_bytes: usize = content
            .chunks(block_bytes)
            .map(|block| SIZE_BYTES + get_maximum_output_size(block.len()) + CHECKSUM_BYTES)
            .sum();
        // Longer than it becomes, so that blocks are compressed where they are to stand. What is in it is written over.
        frame.resize(HEADER_BYTES + most_bytes, 0);
        let header = [&MAGIC[..], &descriptor, &[header_checksum]].concat();
        put(frame, &header)?;
        let mut filled = HEADER_BYTES;
        for block in content.chunks(block_bytes) {
            let room = frame.get_mut(filled..).unwrap_or_default();
            filled += self.block(block, room)?;
        }
        frame.truncate(filled);
        frame.extend_from_slice(&END_MARK);
        frame.extend_from_slice(&XxHash32::oneshot(0, content).to_le_bytes());
        Ok(())
    }

    /// Writes a block between its size and its checksum to the begin of `room`; how many bytes that took.
    fn block(&mut self, block: &[u8], room: &mut [u8]) -> io::Result<usize> {
        let packed = room.get_mut(SIZE_BYTES..).unwrap_or_default();
        let packed_bytes =
            compress_into_with_table(block, packed, &mut self.table).map_err(io::Error::other)?;
        let (size_bytes, flag) = if packed_bytes < block.len() {
            (packed_bytes, 0)
        } else {
            put(packed, block)?;
            (block.len(), UNCOMPRESSED)
        };
        let size = u32::try_from(size_bytes).map_err(io::Error::other)? | flag;
        put(room, &size.to_le_bytes())?;
        let (stored, rest) = room.split_at_mut(SIZE_BYTES + size_bytes);
        let checksum = XxHash32::oneshot(0, stored.get(SIZE_BYTES..).unwrap_or_default());
        put(rest, &checksum.to_le_bytes())?;
        Ok(SIZE_BYTES + size_bytes + CHECKSUM_BYTES)
    }
}

/// Writes `bytes` over the begin of `room`.
fn put(room: &mut [u8], bytes: &[u8]) -> io::Result<()> {
    let place = room
        .get_mut(..bytes.len())
        .ok_or(io::ErrorKind::WriteZero)?;
    place.copy_from_slice(bytes);
    Ok(())
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

    #[test]
    fn a_frame_is_what_the_library_writes() {
        let mut encoder = Lz4Encoder::new(BlockSize::Long);
        for content in contents() {
            let info = FrameInfo::new()
                .block_mode(BlockMode::Independent)
                .block_size(Library::Max1MB)
                .block_checksums(true)
                .content_checksum(true);
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
        let mut encoder = Lz4Encoder::new(BlockSize::Short);
        for content in contents() {
            let (mut frame, mut read) = (Vec::new(), Vec::new());
            encoder.frame(&content, &mut frame).unwrap();
            let mut library = FrameDecoder::new(frame.as_slice());
            library.read_to_end(&mut read).unwrap();
            assert!(read == content, "{}", content.len());
        }
    }
}
