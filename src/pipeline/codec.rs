//! Compression: what is set for writing, and what a suffix says for reading.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::str::FromStr;

use lz4_flex::frame::FrameDecoder;

pub(super) use super::lz4::Checksums;
use super::lz4::{BlockSize, Lz4Encoder};

/// How new objects are compressed (the setting `compression`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 frames.
    #[default]
    Lz4,
    /// Zstandard frames at a level from 1 to 22.
    Zstd(i32),
    /// As they are.
    None,
}

/// How an object is compressed, as its suffix says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// `.lz4`
    Lz4,
    /// `.zst`
    Zstd,
    /// No suffix.
    None,
}

/// A level that costs what LZ4 costs on WAL and stores a third less.
const DEFAULT_ZSTD_LEVEL: i32 = 1;

impl Compression {
    /// The same, or LZ4 where nothing would carry a checksum.
    #[must_use]
    pub fn framed(self) -> Self {
        match self {
            Self::None => Self::Lz4,
            Self::Lz4 | Self::Zstd(_) => self,
        }
    }

    /// The codec, without its level.
    pub fn codec(self) -> Codec {
        match self {
            Self::Lz4 => Codec::Lz4,
            Self::Zstd(_) => Codec::Zstd,
            Self::None => Codec::None,
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let zstd_level = |level: &str| {
            level
                .parse()
                .ok()
                .filter(|level| (1..=22).contains(level))
                .map(Self::Zstd)
        };
        let known = match text {
            "lz4" => Some(Self::Lz4),
            "none" => Some(Self::None),
            "zstd" => Some(Self::Zstd(DEFAULT_ZSTD_LEVEL)),
            _ => text.strip_prefix("zstd:").and_then(zstd_level),
        };
        known.ok_or_else(|| format!("{text:?} is none of lz4, zstd, zstd:LEVEL (1 to 22), none"))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl Codec {
    /// Every codec; the default first.
    pub const ALL: [Self; 3] = [Self::Lz4, Self::Zstd, Self::None];

    /// What the codec adds to an object's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Lz4 => ".lz4",
            Self::Zstd => ".zst",
            Self::None => "",
        }
    }

    /// A name without its codec's suffix.
    pub fn split(name: &str) -> (&str, Self) {
        let mut suffixed = [Self::Lz4, Self::Zstd].into_iter();
        let found = suffixed.find_map(|codec| Some((name.strip_suffix(codec.suffix())?, codec)));
        found.unwrap_or((name, Self::None))
    }
}

/// Content up to this length is one block of the shorter kind.
const SHORT_BYTES: usize = 64 << 10;

/// Compresses blocks, each into a frame of its own.
pub(super) enum Encoder {
    Lz4(Lz4Encoder),
    Zstd(zstd::bulk::Compressor<'static>),
    None,
}

impl Encoder {
    pub(super) fn new(compression: Compression, checksums: Checksums) -> io::Result<Self> {
        Self::with_blocks(compression, BlockSize::Long, checksums)
    }

    /// One for a single object with content of this length, whose frames have checksums.
    pub(super) fn of_length(compression: Compression, content_bytes: usize) -> io::Result<Self> {
        let blocks = if content_bytes <= SHORT_BYTES {
            BlockSize::Short
        } else {
            BlockSize::Long
        };
        Self::with_blocks(compression, blocks, Checksums::InFrames)
    }

    fn with_blocks(
        compression: Compression,
        blocks: BlockSize,
        checksums: Checksums,
    ) -> io::Result<Self> {
        Ok(match compression {
            Compression::Lz4 => Self::Lz4(Lz4Encoder::new(blocks, checksums)),
            Compression::Zstd(level) => {
                let mut compressor = zstd::bulk::Compressor::new(level)?;
                compressor.include_checksum(checksums == Checksums::InFrames)?;
                Self::Zstd(compressor)
            }
            Compression::None => Self::None,
        })
    }

    /// The frame of `block`, in the memory of `room`, and memory for another block.
    pub(super) fn frame(
        &mut self,
        block: Vec<u8>,
        mut room: Vec<u8>,
    ) -> io::Result<(Vec<u8>, Vec<u8>)> {
        match self {
            Self::Lz4(encoder) => {
                encoder.frame(&block, &mut room)?;
                Ok((room, block))
            }
            Self::Zstd(compressor) => {
                room.clear();
                room.reserve(zstd::zstd_safe::compress_bound(block.len()));
                compressor.compress_to_buffer(&block, &mut room)?;
                Ok((room, block))
            }
            Self::None => Ok((block, room)),
        }
    }
}

/// The block that became `frame` when it was written, or whatever else is in it, up to a byte more than `content_bytes`.
pub fn open_frame(codec: Codec, frame: &[u8], content_bytes: usize) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(content_bytes);
    // One byte more, so that the frame is read to its end, where its checksum is if it has one.
    let limit = content_bytes as u64 + 1;
    Decoder::new(codec, frame)?
        .take(limit)
        .read_to_end(&mut block)?;
    Ok(block)
}

/// Reads what a codec wrote: all frames to the end of the input, and at least one.
pub enum Decoder<R: BufRead> {
    /// LZ4 frames.
    Lz4 {
        /// Stops at each frame's end; `None` once that of the last one was read.
        frames: Option<Box<FrameDecoder<Input<R>>>>,
        /// How the frame being read begins: magic, flags and block size. Empty before the first one.
        shape: Vec<u8>,
    },
    /// Zstandard frames.
    Zstd {
        /// Reads on across frames.
        frames: Box<zstd::stream::read::Decoder<'static, R>>,
        /// Whether any byte came in.
        begun: bool,
    },
    /// Bytes as they are.
    None(R),
}

impl<R: BufRead> Decoder<R> {
    /// A reader of what `codec` wrote into `input`.
    pub fn new(codec: Codec, mut input: R) -> io::Result<Self> {
        if codec == Codec::None {
            return Ok(Self::None(input));
        }
        let shape = shape(input.fill_buf()?);
        let begun = !shape.is_empty();
        Ok(match codec {
            Codec::Lz4 => Self::Lz4 {
                frames: Some(Box::new(FrameDecoder::new(Input::new(input)))),
                shape,
            },
            Codec::Zstd => Self::Zstd {
                frames: Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
                begun,
            },
            Codec::None => Self::None(input),
        })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Lz4 { shape, .. } if shape.is_empty() => Err(empty()),
            Self::Zstd { begun: false, .. } => Err(empty()),
            Self::Lz4 { frames, shape } => read_frames(frames, shape, buffer),
            Self::Zstd { frames, .. } => frames.read(buffer),
            Self::None(input) => input.read(buffer),
        }
    }
}

fn empty() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the object is empty")
}

/// The bytes of a frame's header that say how long its buffers have to be.
fn shape(begin: &[u8]) -> Vec<u8> {
    begin.get(..begin.len().min(6)).unwrap_or_default().to_vec()
}

/// What LZ4 frames are read from. `lz4_flex` 0.14 takes an input that ends in a frame's header or between its blocks for
/// the frame's end (`FrameDecoder::read_frame_info`, `read_block`); a frame that is whole is left without asking for more.
pub struct Input<R> {
    stored: R,
    ran_dry: bool,
}

impl<R> Input<R> {
    fn new(stored: R) -> Self {
        Self {
            stored,
            ran_dry: false,
        }
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stored.read(buffer)?;
        self.ran_dry |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

/// Reads across frames. A decoder keeps its buffers for the next frame, which `lz4_flex` 0.14 takes to have blocks of the
/// same size (`FrameDecoder::read_block`), so a frame of another shape gets a decoder of its own.
fn read_frames<R: BufRead>(
    frames: &mut Option<Box<FrameDecoder<Input<R>>>>,
    last_shape: &mut Vec<u8>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    while let Some(decoder) = frames {
        let count = decoder.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        let input = decoder.get_mut();
        if input.ran_dry {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "its last LZ4 frame is cut",
            ));
        }
        let next_shape = shape(input.stored.fill_buf()?);
        if next_shape != *last_shape {
            let input = frames.take().map(|decoder| decoder.into_inner());
            if !next_shape.is_empty() {
                *frames = input.map(|input| Box::new(FrameDecoder::new(input)));
                *last_shape = next_shape;
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

    use super::*;

    fn frames(compression: Compression, blocks: &[&[u8]]) -> Vec<u8> {
        frames_with(compression, Checksums::InFrames, blocks)
    }

    fn frames_with(compression: Compression, checksums: Checksums, blocks: &[&[u8]]) -> Vec<u8> {
        let mut encoder = Encoder::new(compression, checksums).unwrap();
        blocks
            .iter()
            .flat_map(|block| encoder.frame(block.to_vec(), Vec::new()).unwrap().0)
            .collect()
    }

    fn decode(codec: Codec, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(codec, bytes)?
            .read_to_end(&mut out)
            .map(|_| out)
    }

    #[test]
    fn frames_one_after_the_other_read_back_as_one() {
        let noise: Vec<u8> = (0..BLOCK).map(|_| fastrand::u8(..)).collect();
        let expected = [b"first ", noise.as_slice(), b"last"].concat();
        for compression in [Compression::Lz4, Compression::Zstd(3), Compression::None] {
            for checksums in [Checksums::InFrames, Checksums::Elsewhere] {
                let blocks: [&[u8]; 4] = [b"first ", &noise, b"", b"last"];
                let stored = frames_with(compression, checksums, &blocks);
                assert_eq!(decode(compression.codec(), &stored).unwrap(), expected);
            }
        }
    }

    #[test]
    fn frames_with_blocks_of_different_sizes_read_back_as_one() {
        let sizes = [BlockSize::Max4MB, BlockSize::Max64KB, BlockSize::Max1MB];
        let mut stored = Vec::new();
        for size in sizes {
            for mode in [BlockMode::Independent, BlockMode::Linked] {
                let info = FrameInfo::new().block_size(size).block_mode(mode);
                let mut encoder = FrameEncoder::with_frame_info(info, &mut stored);
                encoder.write_all(&vec![7; 300_000]).unwrap();
                encoder.finish().unwrap();
            }
        }
        assert_eq!(decode(Codec::Lz4, &stored).unwrap(), vec![7; 1_800_000]);
    }

    #[test]
    fn a_cut_or_empty_object_is_an_error() {
        for compression in [Compression::Lz4, Compression::Zstd(1)] {
            for checksums in [Checksums::InFrames, Checksums::Elsewhere] {
                let stored = frames_with(compression, checksums, &[&vec![7; 100_000]]);
                for cut in 0..stored.len() {
                    assert!(
                        decode(compression.codec(), &stored[..cut]).is_err(),
                        "{compression}, {checksums:?}, cut at {cut}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_lz4_frame_cut_between_its_blocks_is_an_error() {
        let mut stored = frames(Compression::Lz4, &[b"one frame before"]);
        let before = stored.len();
        let info = FrameInfo::new().block_size(BlockSize::Max64KB);
        let mut encoder = FrameEncoder::with_frame_info(info, &mut stored);
        encoder.write_all(&vec![7; 300_000]).unwrap();
        encoder.finish().unwrap();
        for cut in 0..stored.len() {
            let read = decode(Codec::Lz4, &stored[..cut]);
            assert_eq!(read.is_ok(), cut == before, "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_bit_is_an_error() {
        for compression in [Compression::Lz4, Compression::Zstd(1)] {
            let text: Vec<u8> = (0..50_000_u32)
                .flat_map(|n| (n / 7).to_le_bytes())
                .collect();
            let stored = frames(compression, &[&text]);
            for _ in 0..200 {
                let mut damaged = stored.clone();
                damaged[fastrand::usize(..stored.len())] ^= 1 << fastrand::u8(..8);
                let read = decode(compression.codec(), &damaged);
                assert!(read.is_err() || read.unwrap() == text);
            }
        }
    }

    #[test]
    fn every_changed_bit_of_an_lz4_frame_is_noticed() {
        let text: Vec<u8> = (0..5_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for content in [text, vec![0; 100_000]] {
            let stored = frames(Compression::Lz4, &[&content]);
            for bit in 0..stored.len() * 8 {
                let mut damaged = stored.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    decode(Codec::Lz4, &damaged).is_err(),
                    "bit {bit} of {}",
                    stored.len() * 8
                );
            }
        }
    }

    const BLOCK: usize = super::super::BLOCK_SIZE_BYTES;

    #[test]
    fn settings_for_compression_read_back() {
        for text in ["lz4", "zstd:19", "none"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        for text in ["", "gzip", "zstd:0", "zstd:23", "zstd:x", "LZ4"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
