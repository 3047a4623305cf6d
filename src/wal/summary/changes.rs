//! The blocks that WAL changes, as PostgreSQL 17's summarizer sees them (walsummarizer.c, blkreftable.c).

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::wal::event::{Event, TransactionEnd};
use crate::wal::record::{BlockReference, Fork, RelationFiles};

/// A segment of 1 GiB has no room for records that name more.
const MAX_BLOCKS: u64 = 1 << 26;

/// Blocks that changed, by relation and fork. Free space maps are left out: not all that changes them is in the WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Row>", into = "Vec<Row>")]
pub struct Changes(BTreeMap<(RelationFiles, Fork), Changed>);

/// What became of a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The shortest that it was, in blocks: what is beyond it and not among `blocks` is not the same as before.
    /// 0 after it was created, dropped or emptied; `None` when it was never cut.
    pub limit: Option<u32>,
    /// Blocks that changed after it was last cut, ascending.
    pub blocks: Vec<u32>,
}

/// Collects changes.
#[derive(Debug, Default)]
pub(super) struct Collector {
    places: HashMap<(RelationFiles, Fork), usize>,
    forks: Vec<((RelationFiles, Fork), Changed)>,
    /// Where the last block was put.
    last: usize,
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

    /// Takes in what `later` changed after this.
    pub fn extend(&mut self, later: Self) {
        for (place, changed) in later.0 {
            let own = self.0.entry(place).or_default();
            if let Some(limit) = changed.limit {
                own.cut(limit);
            }
            own.blocks.extend(changed.blocks);
            own.sort();
        }
    }
}

impl Changed {
    fn cut(&mut self, blocks: u32) {
        self.limit = Some(self.limit.map_or(blocks, |limit| limit.min(blocks)));
        self.blocks.retain(|block| *block < blocks);
    }

    fn sort(&mut self) {
        self.blocks.sort_unstable();
        self.blocks.dedup();
    }
}

impl Collector {
    /// A record changes a block.
    pub(super) fn block(&mut self, block: &BlockReference) {
        if block.fork == Fork::FreeSpaceMap {
            return;
        }
        let changed = self.at(block.relation, block.fork);
        if changed.blocks.last() != Some(&block.block) {
            changed.blocks.push(block.block);
        }
    }

    /// What an event changes besides its record's blocks.
    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::TransactionEnd(TransactionEnd { dropped, .. }) => {
                for relation in dropped {
                    for fork in [Fork::Main, Fork::VisibilityMap, Fork::Init] {
                        self.at(*relation, fork).cut(0);
                    }
                }
            }
            Event::RelationCreated { relation, fork } if *fork != Fork::FreeSpaceMap => {
                self.at(*relation, *fork).cut(0);
            }
            Event::RelationTruncated(cut) => {
                if cut.main {
                    self.at(cut.relation, Fork::Main).cut(cut.blocks);
                }
                // Which of its blocks are left depends on the block size; PostgreSQL takes it whole too.
                if cut.visibility_map {
                    self.at(cut.relation, Fork::VisibilityMap).cut(0);
                }
            }
            _ => {}
        }
    }

    pub(super) fn finish(self) -> Changes {
        let forks = self.forks.into_iter().map(|(place, mut changed)| {
            changed.sort();
            (place, changed)
        });
        Changes(forks.collect())
    }

    fn at(&mut self, relation: RelationFiles, fork: Fork) -> &mut Changed {
        let key = (relation, fork);
        let is_last = self
            .forks
            .get(self.last)
            .is_some_and(|(last, _)| *last == key);
        if !is_last {
            let next = self.forks.len();
            self.last = *self.places.entry(key).or_insert(next);
            if self.last == next {
                self.forks.push((key, Changed::default()));
            }
        }
        let (_, changed) = self.forks.get_mut(self.last).expect("it was found or made");
        changed
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

impl TryFrom<Vec<Row>> for Changes {
    type Error = &'static str;

    fn try_from(rows: Vec<Row>) -> Result<Self, Self::Error> {
        let taken = rows.iter().flat_map(|row| row.blocks.chunks(2));
        let blocks_in_all: u64 = taken
            .filter_map(|pair| pair.last())
            .map(|n| u64::from(*n))
            .sum();
        if blocks_in_all > MAX_BLOCKS {
            return Err("more blocks than a segment can name");
        }
        let forks = rows.into_iter().map(|row| {
            let changed = Changed {
                limit: row.limit,
                blocks: blocks(&row.blocks),
            };
            ((row.relation, row.fork), changed)
        });
        Ok(Self(forks.collect()))
    }
}

/// Ascending numbers as what to pass over and what to take, in turn.
fn runs(blocks: &[u32]) -> Vec<u32> {
    let mut runs: Vec<u32> = Vec::new();
    let mut next = 0;
    for block in blocks {
        match runs.last_mut() {
            Some(taken) if *block == next => *taken += 1,
            _ => runs.extend([block - next, 1]),
        }
        next = block.saturating_add(1);
    }
    runs
}

/// The numbers of [`runs`].
fn blocks(runs: &[u32]) -> Vec<u32> {
    let mut blocks = Vec::new();
    let mut next = 0_u32;
    for pair in runs.chunks(2) {
        let [passed, taken] = pair else { break };
        let begin = next.saturating_add(*passed);
        next = begin.saturating_add(*taken);
        blocks.extend(begin..next);
    }
    blocks
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
            vec![0],
            vec![7, 8, 9, 20, 22, 23],
            (0..100).collect(),
        ] {
            assert_eq!(blocks(&runs(&numbers)), numbers);
        }
        assert_eq!(runs(&[0, 1, 2, 9]), [0, 3, 6, 1]);
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
        assert_eq!((changed.limit, &*changed.blocks), (Some(2), &[1, 5][..]));

        let mut collector = Collector::default();
        collector.event(&Event::RelationCreated {
            relation: RELATION,
            fork: Fork::Main,
        });
        touch(&mut collector, 0);
        let mut both = first.clone();
        both.extend(collector.finish());
        let (_, changed) = both.iter().next().unwrap();
        assert_eq!((changed.limit, &*changed.blocks), (Some(0), &[0][..]));
    }
}
