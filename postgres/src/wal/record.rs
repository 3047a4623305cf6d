//! What a record's headers say: which blocks it changes, and where its data is (xlogrecord.h).
//!
//! ```text
//! XLogRecord │ block headers │ data header │ images and data of blocks │ main data
//!   24 bytes                                 skipped by their lengths
//! ```

use super::reader::{KEPT_BYTES, KEPT_DECODED_BYTES, Record, RecordHeader};
use crate::Version;
pub use crate::relation::{Fork, RelationFiles};

/// `RM_XLOG_ID`, `RM_XACT_ID`, `RM_SMGR_ID`, `RM_DBASE_ID`, `RM_TBLSPC_ID` and `RM_HEAP_ID` (rmgrlist.h).
pub(super) const RM_XLOG: u8 = 0;
pub(super) const RM_XACT: u8 = 1;
pub(super) const RM_SMGR: u8 = 2;
pub(super) const RM_DBASE: u8 = 4;
pub(super) const RM_TABLESPACE: u8 = 5;
const RM_HEAP: u8 = 10;
/// `XLOG_HEAP_OPMASK` and `XLOG_HEAP_DELETE` (heapam_xlog.h).
const HEAP_OPERATION: u8 = 0x70;
const HEAP_DELETE: u8 = 0x10;
/// `XLR_RMGR_INFO_MASK`
const INFO_MASK: u8 = 0xF0;
/// `XLOG_SWITCH`, `XLOG_FPI_FOR_HINT` and `XLOG_FPI` (pg_control.h).
const SWITCH: u8 = 0x40;
const FPI_FOR_HINT: u8 = 0xA0;
const FPI: u8 = 0xB0;
/// `XLR_MAX_BLOCK_ID`: blocks of a record have numbers up to this one.
const MAX_BLOCK_ID: u8 = 32;
/// `XLR_BLOCK_ID_DATA_SHORT`, `XLR_BLOCK_ID_DATA_LONG`, `XLR_BLOCK_ID_ORIGIN`, `XLR_BLOCK_ID_TOPLEVEL_XID`.
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;
/// `BKPBLOCK_FORK_MASK`, `BKPBLOCK_HAS_IMAGE`, `BKPBLOCK_WILL_INIT`, `BKPBLOCK_SAME_REL`.
const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;
/// `BKPIMAGE_HAS_HOLE`
const HAS_HOLE: u8 = 0x01;

/// A block that a record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReference {
    /// Its number in the record.
    pub id: u8,
    /// The relation.
    pub relation: RelationFiles,
    /// The fork.
    pub fork: Fork,
    /// The block's number in the fork.
    pub block: u32,
    /// Length of its image as stored in the record; `None` without one.
    pub image_bytes: Option<u16>,
    /// Length of its data.
    pub data_bytes: u16,
    /// Whether replay makes the page anew, whatever it was.
    pub will_init: bool,
}

/// The headers of a record after `XLogRecord`, without its blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// `xl_origin_id`'s replication origin.
    pub origin: Option<u16>,
    /// The transaction of which the record's is a part.
    pub toplevel_xid: Option<u32>,
    /// Length of the main data, which ends the record.
    pub main_data_bytes: u32,
    /// Length of the headers themselves: images and data of blocks follow.
    pub size_bytes: usize,
}

/// Why headers cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordNotUnderstood {
    /// They end before they are whole.
    #[error("its headers are cut")]
    Short,
    /// A number that no header has.
    #[error("it has a header with the number {0}")]
    UnknownId(u8),
    /// Blocks must come by ascending number.
    #[error("its block {0} is out of order")]
    OutOfOrder(u8),
    /// A fork that is none.
    #[error("its block {0} is in no fork")]
    Fork(u8),
    /// "The same relation as before" where there was none before.
    #[error("its block {0} has no relation")]
    NoRelation(u8),
    /// Lengths that do not add up to the record's.
    #[error("its lengths do not add up")]
    Lengths,
    /// A time that is none.
    #[error("its time is impossible")]
    Time,
}

impl RecordHeader {
    /// `xl_info` without the bits that are not the resource manager's.
    pub(super) fn operation(&self) -> u8 {
        self.info & INFO_MASK
    }

    /// How much is kept of the record's content.
    pub(crate) fn kept_bytes(&self) -> usize {
        match self.resource_manager {
            RM_XLOG if matches!(self.operation(), FPI | FPI_FOR_HINT) => KEPT_BYTES,
            RM_XLOG | RM_XACT | RM_SMGR | RM_DBASE | RM_TABLESPACE => KEPT_DECODED_BYTES,
            _ => KEPT_BYTES,
        }
    }
}

impl<'a> Record<'a> {
    /// Whether the rest of the segment is unused (`XLOG_SWITCH`).
    pub fn is_switch(&self) -> bool {
        self.header.resource_manager == RM_XLOG && self.header.operation() == SWITCH
    }

    /// Whether it deletes a row (`XLOG_HEAP_DELETE`).
    pub fn is_heap_delete(&self) -> bool {
        self.header.resource_manager == RM_HEAP && self.header.info & HEAP_OPERATION == HEAP_DELETE
    }

    /// Reads its headers and shows the blocks that it changes, by ascending number.
    ///
    /// # Errors
    /// The [`RecordNotUnderstood`].
    pub fn headers(
        &self,
        version: Version,
        show: impl FnMut(BlockReference),
    ) -> Result<Headers, RecordNotUnderstood> {
        Headers::read(self.content, self.header.content_bytes(), version, show)
    }

    /// The data that is no block's.
    ///
    /// # Errors
    /// The [`RecordNotUnderstood`]; [`RecordNotUnderstood::Short`] when the record was too long to be kept.
    pub fn main_data(&self, version: Version) -> Result<&'a [u8], RecordNotUnderstood> {
        let headers = self.headers(version, |_| {})?;
        let wanted = usize::try_from(headers.main_data_bytes).unwrap_or(usize::MAX);
        let all = usize::try_from(self.header.content_bytes()).unwrap_or(usize::MAX);
        let begin = all
            .checked_sub(wanted)
            .ok_or(RecordNotUnderstood::Lengths)?;
        self.content
            .get(begin..all)
            .ok_or(RecordNotUnderstood::Short)
    }
}

impl Headers {
    /// Reads the headers at the beginning of `content`, which follows `XLogRecord` in a record of `content_bytes` bytes
    /// more (xlogreader.c, `DecodeXLogRecord`).
    ///
    /// # Errors
    /// The [`RecordNotUnderstood`].
    pub fn read(
        content: &[u8],
        content_bytes: u32,
        version: Version,
        mut show: impl FnMut(BlockReference),
    ) -> Result<Self, RecordNotUnderstood> {
        let mut headers = Self::default();
        let mut rest = Rest(content);
        let mut last: Option<BlockReference> = None;
        // What the headers announce; they end where no more than that is left.
        let mut announced = 0_u64;
        // What the record has beyond `content`.
        let Some(beyond) = u64::from(content_bytes).checked_sub(content.len() as u64) else {
            return Err(RecordNotUnderstood::Lengths);
        };
        let left = |rest: &Rest| beyond + rest.0.len() as u64;
        while left(&rest) > announced {
            match rest.byte()? {
                DATA_SHORT => {
                    headers.main_data_bytes = u32::from(rest.byte()?);
                    announced += u64::from(headers.main_data_bytes);
                    break;
                }
                DATA_LONG => {
                    headers.main_data_bytes = rest.u32()?;
                    announced += u64::from(headers.main_data_bytes);
                    break;
                }
                ORIGIN => headers.origin = Some(rest.u16()?),
                TOPLEVEL_XID => headers.toplevel_xid = Some(rest.u32()?),
                id if id <= MAX_BLOCK_ID => {
                    let block = block(id, last.as_ref(), &mut rest, version)?;
                    announced +=
                        u64::from(block.data_bytes) + block.image_bytes.map_or(0, u64::from);
                    show(block);
                    last = Some(block);
                }
                id => return Err(RecordNotUnderstood::UnknownId(id)),
            }
        }
        headers.size_bytes = content.len() - rest.0.len();
        if left(&rest) == announced {
            Ok(headers)
        } else {
            Err(RecordNotUnderstood::Lengths)
        }
    }
}

/// `XLogRecordBlockHeader` after its number, and what its flags announce.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a third of the time of reading headers"
)]
fn block(
    id: u8,
    last: Option<&BlockReference>,
    rest: &mut Rest,
    version: Version,
) -> Result<BlockReference, RecordNotUnderstood> {
    if last.is_some_and(|last| last.id >= id) {
        return Err(RecordNotUnderstood::OutOfOrder(id));
    }
    let flags = rest.byte()?;
    let fork =
        Fork::of_number(u32::from(flags & FORK_MASK)).ok_or(RecordNotUnderstood::Fork(id))?;
    let data_bytes = rest.u16()?;
    let image_bytes = (flags & HAS_IMAGE != 0)
        .then(|| image(rest, version))
        .transpose()?;
    let relation = if flags & SAME_RELATION == 0 {
        RelationFiles {
            tablespace: rest.u32()?,
            database: rest.u32()?,
            number: rest.u32()?,
        }
    } else {
        last.ok_or(RecordNotUnderstood::NoRelation(id))?.relation
    };
    Ok(BlockReference {
        id,
        relation,
        fork,
        block: rest.u32()?,
        image_bytes,
        data_bytes,
        will_init: flags & WILL_INIT != 0,
    })
}

/// `XLogRecordBlockImageHeader`: the length of the image as it is stored.
fn image(rest: &mut Rest, version: Version) -> Result<u16, RecordNotUnderstood> {
    let length = rest.u16()?;
    let _hole_offset = rest.u16()?;
    let flags = rest.byte()?;
    // XLogRecordBlockCompressHeader: the hole's length cannot be told from a compressed image's.
    if flags & HAS_HOLE != 0 && flags & version.compressed_image_flags() != 0 {
        rest.u16()?;
    }
    Ok(length)
}

/// What is left of bytes that are read from the front.
pub(super) struct Rest<'a>(pub(super) &'a [u8]);

#[expect(
    clippy::inline_always,
    reason = "a third of the time of reading headers"
)]
impl<'a> Rest<'a> {
    #[inline(always)]
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], RecordNotUnderstood> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(RecordNotUnderstood::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], RecordNotUnderstood> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(RecordNotUnderstood::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline(always)]
    pub(super) fn byte(&mut self) -> Result<u8, RecordNotUnderstood> {
        self.take::<1>().map(|[byte]| byte)
    }

    #[inline(always)]
    pub(super) fn u16(&mut self) -> Result<u16, RecordNotUnderstood> {
        self.take().map(u16::from_le_bytes)
    }

    #[inline(always)]
    pub(super) fn u32(&mut self) -> Result<u32, RecordNotUnderstood> {
        self.take().map(u32::from_le_bytes)
    }

    #[inline(always)]
    pub(super) fn i64(&mut self) -> Result<i64, RecordNotUnderstood> {
        self.take().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    /// Two blocks of one relation, the first with a compressed image that has a hole, and main data.
    fn sample(compressed: u8) -> Vec<u8> {
        let mut bytes = vec![
            0,
            HAS_IMAGE,
            4,
            0,
            10,
            0,
            100,
            0,
            HAS_HOLE | compressed,
            50,
            0,
        ];
        for number in [1663_u32, 5, 16_384, 7] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&[1, SAME_RELATION | WILL_INIT | 2, 0, 0, 8, 0, 0, 0]);
        bytes.extend_from_slice(&[DATA_SHORT, 3]);
        bytes.extend_from_slice(&[0; 10 + 4 + 3]);
        bytes
    }

    fn read(
        bytes: &[u8],
        version: Version,
    ) -> Result<(Headers, Vec<BlockReference>), RecordNotUnderstood> {
        let mut blocks = Vec::new();
        let content_bytes = u32::try_from(bytes.len()).unwrap();
        let headers = Headers::read(bytes, content_bytes, version, |block| blocks.push(block))?;
        Ok((headers, blocks))
    }

    #[test]
    fn headers_of_each_kind_are_read() {
        for (name, compressed) in [("14", 0x02), ("15", 0x04), ("18", 0x10)] {
            let (headers, blocks) = read(&sample(compressed), version(name)).unwrap();
            let [first, second] = blocks[..] else {
                panic!("{headers:?}");
            };
            assert_eq!((first.relation.number, first.block), (16_384, 7));
            assert_eq!((first.image_bytes, first.data_bytes), (Some(10), 4));
            assert_eq!(second.relation, first.relation);
            assert_eq!((second.fork, second.block), (Fork::VisibilityMap, 8));
            assert!(second.will_init && !first.will_init);
            assert_eq!(headers.main_data_bytes, 3);
        }
    }

    #[test]
    fn cut_and_disordered_headers_are_refused() {
        let bytes = sample(0x04);
        let (whole, _) = read(&bytes, version("17")).unwrap();
        let content_bytes = u32::try_from(bytes.len()).unwrap();
        for length in 0..whole.size_bytes {
            let cut = Headers::read(&bytes[..length], content_bytes, version("17"), |_| {});
            assert_eq!(cut, Err(RecordNotUnderstood::Short), "{length}");
        }
        assert_eq!(
            read(&bytes[..bytes.len() - 1], version("17")),
            Err(RecordNotUnderstood::Lengths)
        );
        let mut disordered = bytes.clone();
        disordered[27] = 0;
        assert_eq!(
            read(&disordered, version("17")),
            Err(RecordNotUnderstood::OutOfOrder(0))
        );
    }
}
