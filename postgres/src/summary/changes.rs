//! The blocks that WAL changes, as PostgreSQL 17's summarizer sees them (walsummarizer.c, blkreftable.c).

use std::collections::BTreeMap;
use std::ops::Range;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::wal::event::{Event, TransactionEnd};
use crate::wal::record::{BlockReference, Fork, RelationFiles};

/// Blocks that changed, by relation and fork.
///
/// Free space maps and visibility maps are left out, as not all that changes them is in the WAL: up to 16 a record that
/// clears bits of a visibility map names the heap's block only (heapam.c, `heap_delete`). Who uses this takes them whole.
/// A database that was created, by copy or block by block, or dropped stands as its relation 0, with the limit 0: no
/// file of it is as before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Row>", into = "Vec<Row>")]
pub struct Changes(BTreeMap<(RelationFiles, Fork), Changed>);

/// What became of a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The shortest that it was, in blocks: what is beyond it and not among `blocks` is not the same as before.
    /// 0 after it was created, dropped or emptied; `None` when it was never cut.
    pub limit: Option<u32>,
    /// Blocks that changed after it was last cut, ascending, in runs that do not touch.
    pub blocks: Vec<Range<u32>>,
}

/// Collects changes.
#[derive(Debug, Default)]
pub(super) struct Collector {
    places: FxHashMap<(RelationFiles, Fork), usize>,
    forks: Vec<((RelationFiles, Fork), Touched)>,
    /// Where the last blocks were put, by the last bits of the relation's number: records turn to the same few relations again
    /// and again.
    last: [usize; RECENT],
}

/// A power of two.
const RECENT: usize = 16;

/// A fork whose blocks come in any order.
#[derive(Debug, Default)]
struct Touched {
    limit: Option<u32>,
    blocks: Vec<u32>,
}

/// A fork in JSON.
#[derive(Clone, Serialize, Deserialize)]
struct Row {
    relation: RelationFiles,
    fork: Fork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    /// Blocks that are passed over, blocks that changed, and so on in turn.
    blocks: Vec<u32>,
}

impl Changes {
    /// Each fork that changed.
    pub fn iter(&self) -> impl Iterator<Item = (&(RelationFiles, Fork), &Changed)> {
        self.0.iter()
    }

    /// What became of a fork; `None` when nothing did.
    pub fn get(&self, relation: RelationFiles, fork: Fork) -> Option<&Changed> {
        self.0.get(&(relation, fork))
    }

    /// Whether a database's files in a tablespace, which `database` names with the relation 0, are others than before.
    pub fn is_replaced(&self, database: RelationFiles) -> bool {
        let all = self.get(database, Fork::Main);
        all.is_some_and(|changed| changed.limit == Some(0))
    }

    /// Takes in what `later` changed after this.
    pub fn extend(&mut self, later: Self) {
        for (place, changed) in later.0 {
            let own = self.0.entry(place).or_default();
            if let Some(limit) = changed.limit {
                own.cut(limit);
            }
            let blocks = own.blocks.iter().cloned().chain(changed.blocks);
            own.blocks = joined(blocks.collect());
        }
    }
}

impl Changed {
    fn cut(&mut self, limit: u32) {
        self.limit = Some(self.limit.map_or(limit, |known| known.min(limit)));
        self.blocks.retain(|run| run.start < limit);
        if let Some(last) = self.blocks.last_mut() {
            last.end = last.end.min(limit);
        }
    }
}

impl Touched {
    fn cut(&mut self, limit: u32) {
        self.limit = Some(self.limit.map_or(limit, |known| known.min(limit)));
        self.blocks.retain(|block| *block < limit);
    }
}

/// The runs in order, those that overlap or touch made one.
fn joined(mut runs: Vec<Range<u32>>) -> Vec<Range<u32>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<u32>> = Vec::with_capacity(runs.len());
    for run in runs.into_iter().filter(|run| !run.is_empty()) {
        match joined.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

impl Collector {
    /// A record changes a block.
    pub(super) fn block(&mut self, block: &BlockReference) {
        if !is_kept(block.fork) {
            return;
        }
        let touched = self.at(block.relation, block.fork);
        if touched.blocks.last() != Some(&block.block) {
            touched.blocks.push(block.block);
        }
    }

    /// What an event changes besides its record's blocks.
    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::TransactionEnd(TransactionEnd { dropped, .. }) => {
                for relation in dropped {
                    for fork in [Fork::Main, Fork::Init] {
                        self.at(*relation, fork).cut(0);
                    }
                }
            }
            Event::RelationCreated { relation, fork } if is_kept(*fork) => {
                self.at(*relation, *fork).cut(0);
            }
            Event::RelationTruncated(cut) if cut.main => {
                self.at(cut.relation, Fork::Main).cut(cut.blocks);
            }
            Event::DatabaseCreated {
                database,
                tablespace,
                ..
            } => self.database(*database, *tablespace),
            Event::DatabaseDropped {
                database,
                tablespaces,
            } => {
                for tablespace in tablespaces {
                    self.database(*database, *tablespace);
                }
            }
            _ => {}
        }
    }

    /// A database's files in a tablespace came or went, all of them.
    fn database(&mut self, database: u32, tablespace: u32) {
        let all = RelationFiles {
            tablespace,
            database,
            number: 0,
        };
        self.at(all, Fork::Main).cut(0);
    }

    pub(super) fn finish(self) -> Changes {
        let forks = self.forks.into_iter().map(|(place, touched)| {
            let runs = touched.blocks.iter();
            let runs = runs.map(|block| *block..block.saturating_add(1));
            let changed = Changed {
                limit: touched.limit,
                blocks: joined(runs.collect()),
            };
            (place, changed)
        });
        Changes(forks.collect())
    }

    fn at(&mut self, relation: RelationFiles, fork: Fork) -> &mut Touched {
        let key = (relation, fork);
        let recent = relation.number as usize % RECENT;
        let last = self.last.get_mut(recent).expect("it is a remainder");
        if self.forks.get(*last).is_none_or(|(known, _)| *known != key) {
            let next = self.forks.len();
            *last = *self.places.entry(key).or_insert(next);
            if *last == next {
                self.forks.push((key, Touched::default()));
            }
        }
        let (_, touched) = self.forks.get_mut(*last).expect("it was found or made");
        touched
    }
}

/// Forks that are not kept are left out; what is said of one fork more than once is all taken to be true.
impl FromIterator<((RelationFiles, Fork), Changed)> for Changes {
    fn from_iter<I: IntoIterator<Item = ((RelationFiles, Fork), Changed)>>(forks: I) -> Self {
        let mut changes: BTreeMap<_, Changed> = BTreeMap::new();
        for (place, changed) in forks.into_iter().filter(|((_, fork), _)| is_kept(*fork)) {
            let own = changes.entry(place).or_default();
            own.limit = own.limit.into_iter().chain(changed.limit).min();
            let blocks = std::mem::take(&mut own.blocks);
            own.blocks = joined(blocks.into_iter().chain(changed.blocks).collect());
        }
        Self(changes)
    }
}

impl From<Changes> for Vec<Row> {
    fn from(changes: Changes) -> Self {
        let rows = changes
            .0
            .into_iter()
            .map(|((relation, fork), changed)| Row {
                relation,
                fork,
                limit: changed.limit,
                blocks: runs(&changed.blocks),
            });
        rows.collect()
    }
}

impl From<Vec<Row>> for Changes {
    fn from(rows: Vec<Row>) -> Self {
        let forks = rows.into_iter().map(|row| {
            let changed = Changed {
                limit: row.limit,
                blocks: blocks(&row.blocks),
            };
            ((row.relation, row.fork), changed)
        });
        Self(forks.collect())
    }
}

/// Whether all that changes a fork is in the WAL.
fn is_kept(fork: Fork) -> bool {
    matches!(fork, Fork::Main | Fork::Init)
}

/// Runs as what to pass over and what to take, in turn.
fn runs(blocks: &[Range<u32>]) -> Vec<u32> {
    let mut next = 0;
    let pairs = blocks.iter().flat_map(|run| {
        let passed = run.start.saturating_sub(next);
        next = run.end;
        [passed, run.end.saturating_sub(run.start)]
    });
    pairs.collect()
}

/// The inverse of [`runs`].
fn blocks(runs: &[u32]) -> Vec<Range<u32>> {
    let mut next = 0_u32;
    let pairs = runs.chunks(2).filter_map(|pair| match pair {
        [passed, taken] => {
            let begin = next.saturating_add(*passed);
            next = begin.saturating_add(*taken);
            Some(begin..next)
        }
        _ => None,
    });
    joined(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELATION: RelationFiles = RelationFiles {
        tablespace: 1663,
        database: 5,
        number: 16384,
    };

    fn touch(collector: &mut Collector, block: u32) {
        collector.block(&BlockReference {
            id: 0,
            relation: RELATION,
            fork: Fork::Main,
            block,
            image_bytes: None,
            data_bytes: 0,
            will_init: false,
        });
    }

    #[test]
    fn numbers_come_back_from_runs() {
        for numbers in [
            vec![],
            vec![Range { start: 0, end: 1 }],
            vec![7..10, 20..21, 22..24],
        ] {
            assert_eq!(blocks(&runs(&numbers)), numbers);
        }
        assert_eq!(runs(&[0..3, 9..10]), [0, 3, 6, 1]);
    }

    #[test]
    fn forks_that_are_told_are_put_in_order_and_maps_left_out() {
        let changed = |limit, blocks: &[Range<u32>]| Changed {
            limit,
            blocks: blocks.to_vec(),
        };
        let told: Changes = [
            ((RELATION, Fork::Main), changed(None, &[7..9, 2..4])),
            ((RELATION, Fork::VisibilityMap), changed(Some(0), &[])),
            ((RELATION, Fork::FreeSpaceMap), changed(Some(0), &[])),
            ((RELATION, Fork::Main), changed(Some(3), &[4..5, 8..12])),
        ]
        .into_iter()
        .collect();
        let forks: Vec<_> = told.iter().collect();
        let expected = changed(Some(3), &[2..5, 7..12]);
        assert_eq!(forks, [(&(RELATION, Fork::Main), &expected)]);
    }

    #[test]
    fn what_is_cut_off_is_forgotten_and_what_grows_again_is_known() {
        let mut collector = Collector::default();
        for block in [3, 9, 1] {
            touch(&mut collector, block);
        }
        collector.event(&Event::RelationTruncated(crate::wal::event::Truncation {
            relation: RELATION,
            blocks: 2,
            main: true,
            visibility_map: false,
            free_space_map: false,
        }));
        touch(&mut collector, 5);
        let first = collector.finish();
        let (_, changed) = first.iter().next().unwrap();
        assert_eq!(
            (changed.limit, &*changed.blocks),
            (Some(2), &[1..2, 5..6][..])
        );

        let mut collector = Collector::default();
        collector.event(&Event::RelationCreated {
            relation: RELATION,
            fork: Fork::Main,
        });
        touch(&mut collector, 0);
        let mut both = first.clone();
        both.extend(collector.finish());
        let (_, changed) = both.iter().next().unwrap();
        assert_eq!(
            (changed.limit, &*changed.blocks),
            (Some(0), &[Range { start: 0, end: 1 }][..])
        );
    }
}
