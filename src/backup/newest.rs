//! The pages of a backup that were changed last.
//!
//! A page on disk is never newer than the WAL that the server has written, so that an LSN beyond the end of WAL shows a
//! damaged page. Where WAL ends is known only when every page has been read; until then the greatest LSNs are kept.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

use walhalla_postgres::Lsn;

use super::parent::KEPT_CORRUPT_BLOCKS;
use crate::repository::entry::CorruptBlock;

/// The pages with the greatest LSNs, as many as there may be corrupt blocks in an entry.
#[derive(Debug, Default)]
pub(super) struct Newest(BinaryHeap<Reverse<(Lsn, PathBuf, u32)>>);

impl Newest {
    /// Takes note of a page: block `block` of the file at `path`.
    pub(super) fn note(&mut self, lsn: Lsn, path: &Path, block: u32) {
        if self.0.len() < KEPT_CORRUPT_BLOCKS {
            self.0.push(Reverse((lsn, path.to_owned(), block)));
        } else if let Some(mut least) = self.0.peek_mut()
            && least.0.0 < lsn
        {
            *least = Reverse((lsn, path.to_owned(), block));
        }
    }

    /// Takes over what was noted elsewhere.
    pub(super) fn append(&mut self, other: Self) {
        for Reverse((lsn, path, block)) in other.0 {
            self.note(lsn, &path, block);
        }
    }

    /// The newest page after `end` that is not newer than `wal_end`.
    pub(super) fn between(&self, end: Lsn, wal_end: Lsn) -> Option<(Lsn, &Path, u32)> {
        let pages = self.0.iter().map(|Reverse(page)| page);
        let newest = pages
            .filter(|(lsn, ..)| *lsn > end && *lsn <= wal_end)
            .max()?;
        Some((newest.0, &newest.1, newest.2))
    }

    /// The blocks whose pages are newer than `end`, where the server's WAL ends.
    pub(super) fn beyond(&self, end: Lsn) -> Vec<CorruptBlock> {
        let pages = self.0.iter().filter(|Reverse((lsn, ..))| *lsn > end);
        let blocks = pages.map(|Reverse((_, path, block))| CorruptBlock {
            file: path.display().to_string(),
            block: *block,
        });
        let mut blocks: Vec<CorruptBlock> = blocks.collect();
        blocks.sort_by(|a, b| (&a.file, a.block).cmp(&(&b.file, b.block)));
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_after_the_end_is_told_from_one_that_no_wal_can_explain() {
        let path = Path::new("base/5/16384");
        let mut newest = Newest::default();
        for (block, lsn) in [(0, 100), (1, 101), (2, 150), (3, 200), (4, 201)] {
            newest.note(Lsn(lsn), path, block);
        }
        assert_eq!(
            newest.between(Lsn(100), Lsn(200)),
            Some((Lsn(200), path, 3))
        );
        assert_eq!(
            newest.between(Lsn(100), Lsn(149)),
            Some((Lsn(101), path, 1))
        );
        assert_eq!(newest.between(Lsn(201), Lsn(300)), None);
        assert_eq!(newest.between(Lsn(200), Lsn(200)), None);
    }

    #[test]
    fn the_newest_pages_are_kept_whatever_their_order_and_judged_by_the_end_of_wal() {
        let most = u32::try_from(KEPT_CORRUPT_BLOCKS).unwrap();
        let path = Path::new("base/5/16384");
        let mut newest = Newest::default();
        newest.note(Lsn(u64::MAX), path, 7);
        for block in 0..2 * most {
            newest.note(Lsn(u64::from(block)), path, block);
        }
        let mut other = Newest::default();
        other.note(Lsn(u64::MAX - 1), Path::new("base/5/16385"), 3);
        newest.append(other);
        assert_eq!(newest.0.len(), KEPT_CORRUPT_BLOCKS);
        let beyond = newest.beyond(Lsn(u64::from(2 * most) - 1));
        let beyond: Vec<_> = beyond
            .iter()
            .map(|block| (block.file.as_str(), block.block))
            .collect();
        assert_eq!(beyond, [("base/5/16384", 7), ("base/5/16385", 3)]);
        assert_eq!(newest.beyond(Lsn(u64::MAX)), []);
    }
}
