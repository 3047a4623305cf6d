//! How much of each file goes into a backup.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use walhalla_postgres::summary::Changes;
use walhalla_postgres::{Lsn, RelationFile, RelationFiles, page};

use super::parent::Parent;
use super::parts::Share;
use crate::contents::relations::{self, Relations};
use crate::server::data_directory::Entry;

/// A file of which more than this is to be stored is stored whole (basebackup_incremental.c, `GetFileBackupMethod`).
const MOST_PERCENT: u64 = 90;

/// What of a file goes into a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Some blocks of the file, which has `length` of them.
    Blocks {
        /// Ascending, in runs that do not touch.
        runs: Vec<Range<u32>>,
        /// Length of the file in blocks.
        length: u32,
    },
    /// Blocks that were written since the parent's start, which their pages tell, and `runs` anyway.
    Newer {
        /// As above.
        runs: Vec<Range<u32>>,
        /// Length of the file in blocks.
        length: u32,
    },
}

/// A file and what of it goes into a backup.
#[derive(Debug)]
pub(super) struct Item {
    /// The file.
    pub(super) entry: Entry,
    /// What of it.
    pub(super) extent: Extent,
    /// How much is read of it, in bytes.
    pub(super) read_bytes: u64,
}

/// What tells which blocks changed.
#[derive(Debug)]
pub(super) enum Changed<'a> {
    /// WAL between the parent's start and this backup's.
    Blocks(Cow<'a, Changes>),
    /// Each page's own LSN.
    Pages,
}

/// What a delta is a delta to.
#[derive(Debug)]
pub(super) struct Base<'a> {
    parent: &'a Relations,
    own: &'a Relations,
    changed: &'a Changed<'a>,
    /// Blocks that were damaged in the parent.
    damaged: HashMap<PathBuf, Vec<Range<u32>>>,
}

impl Item {
    /// What of a file goes into a backup on top of `base`; without one, all of it.
    pub(super) fn of(entry: Entry, base: Option<&Base>) -> Self {
        match base {
            Some(base) => base.item(entry),
            None => Self {
                read_bytes: entry.size_bytes,
                entry,
                extent: Extent::Whole,
            },
        }
    }

    /// The file as it is divided among parts.
    pub(super) fn share(&self, position: u32) -> Share {
        Share {
            position,
            read_bytes: self.read_bytes,
            is_whole: self.extent == Extent::Whole,
        }
    }
}

impl<'a> Base<'a> {
    /// What a backup with the relations `own` has to hold on top of `parent`.
    pub(super) fn new(parent: &'a Parent, own: &'a Relations, changed: &'a Changed<'a>) -> Self {
        let mut damaged: HashMap<PathBuf, Vec<Range<u32>>> = HashMap::new();
        for block in &parent.entry.corrupt_blocks {
            let run = block.block..block.block.saturating_add(1);
            damaged
                .entry(PathBuf::from(&block.file))
                .or_default()
                .push(run);
        }
        Self {
            parent: &parent.relations,
            own,
            changed,
            damaged,
        }
    }

    /// What of `entry` is not as it was in the parent.
    fn item(&self, entry: Entry) -> Item {
        let block_size = u64::from(self.own.block_size.max(1));
        let extent = self.extent(&entry).unwrap_or(Extent::Whole);
        let read_bytes = match &extent {
            Extent::Whole | Extent::Newer { .. } => entry.size_bytes,
            Extent::Blocks { runs, .. } => count(runs) * block_size,
        };
        Item {
            entry,
            extent,
            read_bytes,
        }
    }

    /// `None` when the file goes in whole.
    fn extent(&self, entry: &Entry) -> Option<Extent> {
        let file = entry.relation.filter(|file| relations::is_kept(*file))?;
        let block_size = u64::from(self.own.block_size.max(1));
        let length = u32::try_from(entry.size_bytes / block_size).ok()?;
        let is_ordinary = entry.size_bytes.is_multiple_of(block_size)
            && length > 0
            && length <= self.own.blocks_per_file;
        let known = self.parent.blocks(&entry.path).filter(|_| is_ordinary)?;
        // Blocks that the parent does not have, however they came to be, and those that it has damaged.
        let mut runs = self.damaged.get(&entry.path).cloned().unwrap_or_default();
        runs.push(known..length);
        match self.changed {
            Changed::Pages => self.newer(&entry.path, runs, length),
            Changed::Blocks(changes) => self.blocks(changes, file, runs, length),
        }
    }

    fn newer(&self, path: &Path, runs: Vec<Range<u32>>, length: u32) -> Option<Extent> {
        // The files of a database that was copied are as old as their original's: only the folder is new.
        let (before, now) = (self.parent.made(path), self.own.made(path));
        (before == now).then(|| Extent::Newer {
            runs: joined(runs, length),
            length,
        })
    }

    fn blocks(
        &self,
        changes: &Changes,
        file: RelationFile,
        mut runs: Vec<Range<u32>>,
        length: u32,
    ) -> Option<Extent> {
        if changes.is_replaced(database_of(file.files)) {
            return None;
        }
        let begin = file.segment.checked_mul(self.own.blocks_per_file)?;
        if let Some(changed) = changes.get(file.files, file.fork) {
            if let Some(limit) = changed.limit {
                // What is beyond the shortest length that it had was not there then, whatever it holds.
                let limit = limit.checked_sub(begin).filter(|limit| *limit > 0)?;
                runs.push(limit..length);
            }
            let own = changed.blocks.iter();
            let own = own.filter(|run| run.end > begin);
            runs.extend(own.map(|run| run.start.saturating_sub(begin)..run.end - begin));
        }
        let runs = joined(runs, length);
        is_worth_it(&runs, length).then_some(Extent::Blocks { runs, length })
    }
}

/// Whether storing blocks saves enough over storing the whole file.
pub(super) fn is_worth_it(runs: &[Range<u32>], length: u32) -> bool {
    count(runs) * 100 <= u64::from(length) * MOST_PERCENT
}

/// Number of blocks in `runs`.
pub(super) fn count(runs: &[Range<u32>]) -> u64 {
    runs.iter().map(|run| u64::from(run.end - run.start)).sum()
}

/// The runs below `length` in order, those that overlap or touch made one.
pub(super) fn joined(mut runs: Vec<Range<u32>>, length: u32) -> Vec<Range<u32>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<u32>> = Vec::with_capacity(runs.len());
    for run in runs {
        let run = run.start..run.end.min(length);
        match joined.last_mut() {
            _ if run.is_empty() => {}
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

/// A database's files in a tablespace, as changes name them.
fn database_of(files: RelationFiles) -> RelationFiles {
    RelationFiles { number: 0, ..files }
}

/// What the LSN of a page is worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    /// The parent's start.
    pub(super) lsn: Lsn,
    /// Whether checksums were on from the parent's start until now. Without, a page that became all-visible has the LSN that
    /// it had, and must not be left behind by its visibility map, which goes in whole.
    pub(super) checksums: bool,
}

/// Whether a page need not be stored again: it was written before the parent's start, and tells so.
///
/// A page that was never logged tells nothing: one of zeros may stand where a relation was cut and grew again.
pub(super) fn is_older(page: &[u8], since: Since) -> bool {
    let lsn = page::lsn(page);
    let tells = lsn != Lsn::ZERO && !page::is_new(page);
    let tells_all = since.checksums || !page::is_all_visible(page);
    tells && tells_all && lsn < since.lsn
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::paths::PathList;
    use walhalla_postgres::Fork;
    use walhalla_postgres::summary::Changed as ForkChanged;

    const PER_FILE: u32 = 1000;

    fn relations(blocks: &[(&str, u32)]) -> Relations {
        let mut files = PathList::default();
        for (name, blocks) in blocks {
            files.push(&Path::new("base/5").join(name), *blocks);
        }
        Relations {
            block_size: 8192,
            blocks_per_file: PER_FILE,
            databases: BTreeMap::from([("base/5".to_owned(), 1)]),
            files: files.into_map().unwrap(),
        }
    }

    /// What of base/5/`name`, now of `length` blocks, goes into a delta to a parent that had these files.
    fn extent(parent: &[(&str, u32)], changed: &Changed, name: &str, length: u32) -> Extent {
        let (parent, own) = (relations(parent), relations(&[]));
        let base = Base {
            parent: &parent,
            own: &own,
            changed,
            damaged: HashMap::from([("base/5/7".into(), vec![Range { start: 3, end: 4 }])]),
        };
        let path = Path::new("base/5").join(name);
        base.extent(&Entry {
            relation: RelationFile::of_path(&path),
            path,
            size_bytes: u64::from(length) * 8192,
            mode: 0o600,
            modified: 0,
        })
        .unwrap_or(Extent::Whole)
    }

    fn wal(number: u32, limit: Option<u32>, blocks: &[Range<u32>]) -> Changed<'static> {
        let files = RelationFiles {
            tablespace: 1663,
            database: 5,
            number,
        };
        let blocks = blocks.to_vec();
        let fork = ForkChanged { limit, blocks };
        let all = [((files, Fork::Main), fork)].into_iter().collect();
        Changed::Blocks(Cow::Owned(all))
    }

    fn blocks(runs: &[Range<u32>], length: u32) -> Extent {
        let runs = runs.to_vec();
        Extent::Blocks { runs, length }
    }

    #[test]
    fn what_wal_names_goes_in_and_what_the_parent_does_not_have() {
        let changed = wal(9, None, &[2..4, 50..51]);
        assert_eq!(
            extent(&[("9", 100)], &changed, "9", 100),
            blocks(&[2..4, 50..51], 100)
        );
        assert_eq!(
            extent(&[("9", 90)], &changed, "9", 100),
            blocks(&[2..4, 50..51, 90..100], 100)
        );
        assert_eq!(extent(&[("8", 100)], &changed, "8", 100), blocks(&[], 100));
        assert_eq!(
            extent(&[], &changed, "9", 100),
            Extent::Whole,
            "not in the parent"
        );
        // A damaged block of the parent is read again.
        assert_eq!(
            extent(&[("7", 100)], &changed, "7", 100),
            blocks(&[Range { start: 3, end: 4 }], 100)
        );
    }

    #[test]
    fn all_beyond_the_shortest_length_goes_in_whether_wal_names_it_or_not() {
        let changed = wal(9, Some(60), &[2..3, 70..71]);
        assert_eq!(
            extent(&[("9", 100)], &changed, "9", 100),
            blocks(&[2..3, 60..100], 100)
        );
        let emptied = wal(9, Some(0), &[]);
        assert_eq!(extent(&[("9", 100)], &emptied, "9", 100), Extent::Whole);
    }

    #[test]
    fn later_files_of_a_relation_count_from_their_own_beginning() {
        let parent = [("9", PER_FILE), ("9.1", 500)];
        let changed = wal(
            9,
            Some(PER_FILE + 400),
            &[Range {
                start: 998,
                end: 1003,
            }],
        );
        assert_eq!(
            extent(&parent, &changed, "9", PER_FILE),
            blocks(
                &[Range {
                    start: 998,
                    end: 1000
                }],
                PER_FILE
            )
        );
        assert_eq!(
            extent(&parent, &changed, "9.1", 500),
            blocks(&[0..3, 400..500], 500)
        );
        let cut = wal(9, Some(PER_FILE), &[]);
        assert_eq!(
            extent(&parent, &cut, "9.1", 500),
            Extent::Whole,
            "cut at its beginning"
        );
    }

    #[test]
    fn files_of_a_new_database_and_those_changed_throughout_go_in_whole() {
        let replaced = wal(0, Some(0), &[]);
        assert_eq!(extent(&[("9", 100)], &replaced, "9", 100), Extent::Whole);
        let throughout = wal(9, None, &[Range { start: 0, end: 95 }]);
        assert_eq!(extent(&[("9", 100)], &throughout, "9", 100), Extent::Whole);
        let map = wal(9, None, &[]);
        for name in ["9_vm", "9_fsm", "pg_filenode.map"] {
            assert_eq!(
                extent(&[(name, 100)], &map, name, 100),
                Extent::Whole,
                "{name}"
            );
        }
    }

    #[test]
    fn only_a_page_that_tells_that_it_is_older_is_left_out() {
        let page = |lsn: u32, flags: u8, upper: u8| {
            let mut page = vec![0; 8192];
            page[4..8].copy_from_slice(&lsn.to_le_bytes());
            (page[10], page[14]) = (flags, upper);
            page
        };
        let since = |checksums| Since {
            lsn: Lsn(100),
            checksums,
        };
        for (page, checksums, older) in [
            (page(99, 0, 1), false, true),
            (page(100, 0, 1), false, false),
            (page(0, 0, 1), true, false),
            (page(99, 0, 0), true, false),
            (page(99, 4, 1), true, true),
            (page(99, 4, 1), false, false),
        ] {
            assert_eq!(is_older(&page, since(checksums)), older);
        }
    }
}
