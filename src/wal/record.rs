//! What a record's headers say: which blocks it changes, and where its data is (xlogrecord.h).
//!
//! ```text
//! XLogRecord │ block headers │ data header │ images and data of blocks │ main data
//!   24 bytes                                 skipped by their lengths
//! ```

use crate::postgres::Version;

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

/// A relation's files: tablespace, database and file number (`RelFileLocator`; `RelFileNode` before 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFiles {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// OID of the database; 0 for shared relations.
    pub database: u32,
    /// The number that names the files.
    pub number: u32,
}

/// A relation's fork (relpath.h, `ForkNumber`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The data itself.
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// What an unlogged relation begins anew from.
    Init,
}

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

/// The headers of a record after `XLogRecord`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// The blocks, by ascending number.
    pub blocks: Vec<BlockReference>,
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
pub enum Damage {
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
}

impl Headers {
    /// Reads the headers at the beginning of `content`, which follows `XLogRecord` in a record of `content_bytes` bytes
    /// more (xlogreader.c, `DecodeXLogRecord`).
    ///
    /// # Errors
    /// The [`Damage`].
    pub fn read(content: &[u8], content_bytes: u32, version: Version) -> Result<Self, Damage> {
        let mut headers = Self::default();
        let mut rest = Rest(content);
        // What the headers announce; they end where no more than that is left.
        let mut announced = 0_u64;
        let left = |rest: &Rest| u64::from(content_bytes) - (content.len() - rest.0.len()) as u64;
        if (content.len() as u64) > u64::from(content_bytes) {
            return Err(Damage::Lengths);
        }
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
                    let last = headers.blocks.last();
                    let block = block(id, last, &mut rest, version)?;
                    announced +=
                        u64::from(block.data_bytes) + block.image_bytes.map_or(0, u64::from);
                    headers.blocks.push(block);
                }
                id => return Err(Damage::UnknownId(id)),
            }
        }
        headers.size_bytes = content.len() - rest.0.len();
        if left(&rest) == announced {
            Ok(headers)
        } else {
            Err(Damage::Lengths)
        }
    }
}

/// `XLogRecordBlockHeader` after its number, and what its flags announce.
fn block(
    id: u8,
    last: Option<&BlockReference>,
    rest: &mut Rest,
    version: Version,
) -> Result<BlockReference, Damage> {
    if last.is_some_and(|last| last.id >= id) {
        return Err(Damage::OutOfOrder(id));
    }
    let flags = rest.byte()?;
    let fork = match flags & FORK_MASK {
        0 => Fork::Main,
        1 => Fork::FreeSpaceMap,
        2 => Fork::VisibilityMap,
        3 => Fork::Init,
        _ => return Err(Damage::Fork(id)),
    };
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
        last.ok_or(Damage::NoRelation(id))?.relation
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
fn image(rest: &mut Rest, version: Version) -> Result<u16, Damage> {
    let length = rest.u16()?;
    let _hole_offset = rest.u16()?;
    let flags = rest.byte()?;
    // XLogRecordBlockCompressHeader: the hole's length cannot be told from a compressed image's.
    if flags & HAS_HOLE != 0 && flags & version.compressed_image_flags() != 0 {
        rest.u16()?;
    }
    Ok(length)
}

/// What is left of the headers' bytes.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Damage::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Damage> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Damage> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Damage> {
        self.take().map(u32::from_le_bytes)
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

    fn read(bytes: &[u8], version: Version) -> Result<Headers, Damage> {
        Headers::read(bytes, u32::try_from(bytes.len()).unwrap(), version)
    }

    #[test]
    fn headers_of_each_kind_are_read() {
        for (name, compressed) in [("14", 0x02), ("15", 0x04), ("18", 0x10)] {
            let headers = read(&sample(compressed), version(name)).unwrap();
            let [first, second] = headers.blocks[..] else {
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
        let whole = read(&bytes, version("17")).unwrap();
        let content_bytes = u32::try_from(bytes.len()).unwrap();
        for length in 0..whole.size_bytes {
            let cut = Headers::read(&bytes[..length], content_bytes, version("17"));
            assert_eq!(cut, Err(Damage::Short), "{length}");
        }
        assert_eq!(
            read(&bytes[..bytes.len() - 1], version("17")),
            Err(Damage::Lengths)
        );
        let mut disordered = bytes.clone();
        disordered[27] = 0;
        assert_eq!(read(&disordered, version("17")), Err(Damage::OutOfOrder(0)));
    }
}
