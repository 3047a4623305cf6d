//! What is known of a cluster's backups, and which stands on which. It answers from memory.
//!
//! ```text
//! full ◀─ delta ◀─ delta (the leaf)        each names its parent; a restore of the leaf takes all of them
//!      ◀─ delta
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::entry::{BackupEntry, BackupId};
use super::marks::{Marks, Permanence};
use super::{Error, ObjectError};
use crate::failure::Failure as _;
use crate::output;

/// The backups of a cluster.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Those that can be read, oldest first.
    backups: Vec<BackupEntry>,
    /// Where each of them is in the list.
    positions: HashMap<BackupId, usize>,
    /// Where the deltas of each parent are.
    deltas: HashMap<BackupId, Vec<usize>>,
    /// The others.
    pub damaged: Vec<DamagedEntry>,
    /// Folders without an entry: of backups that run, failed, or lost it.
    pub unfinished: Vec<BackupId>,
    /// What was said of backups after they were taken.
    pub(super) marks: Marks,
}

impl Catalog {
    /// A catalog of these backups alone.
    pub(super) fn of(mut backups: Vec<BackupEntry>) -> Self {
        backups.sort_by(|a, b| a.id.cmp(&b.id));
        let mut catalog = Self::default();
        for backup in backups {
            catalog.insert(backup);
        }
        catalog
    }

    /// The same catalog with its backups in order.
    #[must_use]
    pub(super) fn sorted(self) -> Self {
        let Self {
            damaged,
            unfinished,
            marks,
            ..
        } = self;
        Self {
            damaged,
            unfinished,
            marks,
            ..Self::of(self.backups)
        }
    }

    fn insert(&mut self, backup: BackupEntry) {
        let position = self.backups.len();
        self.positions.insert(backup.id.clone(), position);
        if let Some(parent) = backup.parent.clone() {
            self.deltas.entry(parent).or_default().push(position);
        }
        self.backups.push(backup);
    }

    /// The backups that can be read, oldest first.
    pub fn backups(&self) -> &[BackupEntry] {
        &self.backups
    }

    /// Whether there is no backup, readable or not.
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty() && self.damaged.is_empty()
    }

    /// Takes in how reading a backup's entry ended.
    pub(super) fn add(
        &mut self,
        id: BackupId,
        found: Result<Option<BackupEntry>, Error>,
    ) -> Result<(), Error> {
        match found {
            Ok(Some(backup)) => self.insert(backup),
            Ok(None) => self.unfinished.push(id),
            Err(error) if error.is_of_the_object() => {
                let error = Arc::new(error);
                self.damaged.push(DamagedEntry { id, error });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The backups that a restore can begin with, oldest first: their entries can be read and their chains are whole. Of the
    /// others the user hears.
    pub fn usable(&self) -> Vec<BackupEntry> {
        for damaged in &self.damaged {
            let reason = output::chain(&*damaged.error);
            tracing::warn!("{reason}; the backup is passed over");
        }
        let is_whole = |backup: &&BackupEntry| match self.chain(&backup.id) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!("{error}; the backup is passed over");
                false
            }
        };
        self.backups.iter().filter(is_whole).cloned().collect()
    }

    /// Whether retention rules keep a backup whatever they say: the newest mark counts, else what was said when it was taken;
    /// and a permanent delta keeps all that it stands on.
    pub fn is_permanent(&self, id: &BackupId) -> bool {
        let own = self.get(id).into_iter();
        let mut keepers = own.chain(self.dependents(id));
        keepers.any(|backup| self.marks.permanence_of(backup) == Permanence::Permanent)
    }
}

/// A backup whose `backup.json` cannot be read.
#[derive(Debug)]
pub struct DamagedEntry {
    /// The backup.
    pub id: BackupId,
    /// What is wrong.
    pub error: Arc<Error>,
}

impl DamagedEntry {
    /// Whether the store failed to give it, so that another try may.
    pub fn did_not_arrive(&self) -> bool {
        matches!(&*self.error, Error::Object(ObjectError::Store(_)))
    }
}

/// Why a backup's chain is not whole, and which backup is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct ChainError {
    /// The backup whose chain it is.
    pub backup: BackupId,
    /// The backup on the way to the full one that breaks the chain; may be `backup` itself.
    pub ancestor: BackupId,
    /// What is wrong with it.
    pub problem: ChainProblem,
}

/// What breaks a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainProblem {
    /// It is not in the store.
    #[error("is missing")]
    Missing,
    /// Its `backup.json` cannot be read.
    #[error("is damaged")]
    Damaged,
    /// Its parents lead back to it, so that there is no full backup at the end.
    #[error("stands on itself")]
    Cycle,
    /// The delta that names it as its parent cannot have come from it: it is on another branch, or began later.
    #[error("is of another history")]
    OtherHistory,
}

impl ChainError {
    fn text(&self) -> String {
        let Self {
            backup,
            ancestor,
            problem,
        } = self;
        if backup == ancestor {
            format!("backup {backup} {problem}")
        } else {
            format!("backup {backup} cannot be restored: {ancestor}, on which it stands, {problem}")
        }
    }
}

impl Catalog {
    /// The backups that it takes to restore `id`, the full one first, `id` itself last.
    ///
    /// # Errors
    /// Names the backup that is not in this catalog, is damaged, or does not belong there.
    pub fn chain(&self, id: &BackupId) -> Result<Vec<&BackupEntry>, ChainError> {
        let mut chain = vec![self.member(id, id)?];
        while let Some(parent) = chain.last().and_then(|child| child.parent.as_ref()) {
            if chain.iter().any(|member| member.id == *parent) {
                return Err(broken(id, parent, ChainProblem::Cycle));
            }
            chain.push(self.member(id, parent)?);
        }
        chain.reverse();
        let mut steps = chain.iter().zip(chain.iter().skip(1));
        match steps.find(|(parent, child)| !comes_from(child, parent)) {
            Some((parent, _)) => Err(broken(id, &parent.id, ChainProblem::OtherHistory)),
            None => Ok(chain),
        }
    }

    /// Backups that cannot be restored without `id`, oldest first: its deltas and theirs.
    pub fn dependents(&self, id: &BackupId) -> Vec<&BackupEntry> {
        let mut found = BTreeSet::new();
        let mut parents = vec![id];
        while let Some(parent) = parents.pop() {
            for position in self.deltas.get(parent).into_iter().flatten() {
                let delta = self.backups.get(*position).filter(|delta| delta.id != *id);
                if let Some(delta) = delta
                    && found.insert(*position)
                {
                    parents.push(&delta.id);
                }
            }
        }
        { found.into_iter() }
            .filter_map(|position| self.backups.get(position))
            .collect()
    }

    /// The newest backup whose chain is whole.
    pub fn latest(&self) -> Option<&BackupEntry> {
        let is_whole = |backup: &&BackupEntry| self.chain(&backup.id).is_ok();
        let whole = self.backups.iter().filter(is_whole);
        whole.max_by_key(|backup| backup.stop_time)
    }

    /// The backup of this id, if it can be read.
    pub fn get(&self, id: &BackupId) -> Option<&BackupEntry> {
        self.backups.get(*self.positions.get(id)?)
    }

    /// What is wrong with the backup of this id, if its entry cannot be read.
    pub fn damage_of(&self, id: &BackupId) -> Option<&Arc<Error>> {
        let damaged = self.damaged.iter().find(|damaged| damaged.id == *id)?;
        Some(&damaged.error)
    }

    /// As [`Catalog::chain`], for those who go on with the backups alone.
    ///
    /// # Errors
    /// [`Error::BrokenChain`].
    pub fn whole_chain(&self, id: &BackupId) -> Result<Vec<BackupEntry>, Error> {
        match self.chain(id) {
            Ok(chain) => Ok(chain.into_iter().cloned().collect()),
            Err(error) => {
                let source = self.damage_of(&error.ancestor).cloned();
                Err(Error::BrokenChain { error, source })
            }
        }
    }

    fn member(&self, of: &BackupId, id: &BackupId) -> Result<&BackupEntry, ChainError> {
        self.get(id).ok_or_else(|| {
            let problem = match self.damage_of(id) {
                Some(_) => ChainProblem::Damaged,
                None => ChainProblem::Missing,
            };
            broken(of, id, problem)
        })
    }
}

fn broken(backup: &BackupId, ancestor: &BackupId, problem: ChainProblem) -> ChainError {
    ChainError {
        backup: backup.clone(),
        ancestor: ancestor.clone(),
        problem,
    }
}

/// Whether a delta can have been taken from what `parent` was. A standby's backup may begin where its parent began.
fn comes_from(child: &BackupEntry, parent: &BackupEntry) -> bool {
    let since = child.changed_blocks.as_ref().map(|told| told.since);
    let manifest = child.parent_manifest.as_ref();
    since.is_none_or(|since| since == parent.start_lsn)
        && manifest.is_none_or(|known| *known == parent.manifest.digest.to_hex())
        && parent.start_lsn <= child.start_lsn
        && parent.leads_to(&child.timeline_history())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `2D` is the delta of the second day, `1F` the full backup of the first.
    pub(in crate::repository) fn id(day: &str) -> BackupId {
        let (number, kind) = day.split_at(1);
        format!("2026110{number}T043000Z-{kind}").parse().unwrap()
    }

    /// A backup of a day, with the parent of another day.
    pub(in crate::repository) fn entry(day: &str, parent: Option<&str>) -> BackupEntry {
        let number = day.split_at(1).0;
        let id = id(day);
        let part = serde_json::json!({
            "name": "x", "size_bytes": 1, "stored_bytes": 1, "sha256": "00".repeat(32),
        });
        serde_json::from_value(serde_json::json!({
            "format": super::super::entry::FORMAT, "id": id, "kind": id.kind(), "parent": parent.map(self::id),
            "system_identifier": "7710533931497189584", "timeline": 1, "history": [],
            "start_lsn": format!("{number}/28"), "stop_lsn": format!("{number}/100"),
            "start_time": format!("2026-11-0{number}T04:30:00Z"),
            "stop_time": format!("2026-11-0{number}T04:31:00Z"),
            "stop_snapshot": "1:1:", "postgres_version": "17", "server_version": "17.6",
            "wal_segment_size": 1 << 24, "wal_block_size": 8192, "data_checksums": true, "corrupt_blocks": [],
            "size_bytes": 1, "files": 1, "stored_bytes": 2, "tablespaces": [], "parts": [part], "manifest": part,
            "permanent": false, "label": null, "annotations": {}, "walhalla_version": "0",
        }))
        .unwrap()
    }

    /// Backups of these days, each with its parent's.
    pub(in crate::repository) fn catalog(backups: &[(&str, Option<&str>)]) -> Catalog {
        let backups = backups.iter().map(|(day, parent)| entry(day, *parent));
        Catalog::of(backups.collect())
    }

    impl Catalog {
        /// The same catalog without a backup.
        fn without(self, day: &str) -> Self {
            let mut backups = self.backups.clone();
            backups.retain(|backup| backup.id != id(day));
            Self { backups, ..self }.sorted()
        }

        /// The same catalog with another version of one of its backups.
        pub(in crate::repository) fn with(
            mut self,
            day: &str,
            change: impl FnOnce(&mut BackupEntry),
        ) -> Self {
            let position = self.positions[&id(day)];
            change(&mut self.backups[position]);
            self.sorted()
        }
    }

    /// ```text
    /// 1F ◀─ 2D ◀─ 3D        5F ◀─ 6D
    ///          ◀─ 4D
    /// ```
    pub(in crate::repository) fn two_chains() -> Catalog {
        catalog(&[
            ("1F", None),
            ("2D", Some("1F")),
            ("3D", Some("2D")),
            ("4D", Some("2D")),
            ("5F", None),
            ("6D", Some("5F")),
        ])
    }

    fn ids(backups: &[&BackupEntry]) -> Vec<BackupId> {
        backups.iter().map(|backup| backup.id.clone()).collect()
    }

    fn breaks(catalog: &Catalog, of: &str) -> (BackupId, ChainProblem) {
        let error = catalog.chain(&id(of)).unwrap_err();
        assert_eq!(error.backup, id(of));
        (error.ancestor, error.problem)
    }

    #[test]
    fn a_chain_goes_from_the_full_backup_to_the_leaf() {
        let catalog = two_chains();
        let chain = |of| ids(&catalog.chain(&id(of)).unwrap());
        assert_eq!(chain("1F"), [id("1F")]);
        assert_eq!(chain("4D"), ["1F", "2D", "4D"].map(id));
        assert_eq!(chain("6D"), ["5F", "6D"].map(id));
        assert_eq!(catalog.latest().unwrap().id, id("6D"));
    }

    #[test]
    fn dependents_are_deltas_and_theirs_whatever_the_order() {
        let catalog = two_chains();
        let dependents = |catalog: &Catalog, of| ids(&catalog.dependents(&id(of)));
        assert_eq!(dependents(&catalog, "1F"), ["2D", "3D", "4D"].map(id));
        assert_eq!(dependents(&catalog, "2D"), ["3D", "4D"].map(id));
        assert_eq!(dependents(&catalog, "3D"), []);
        assert_eq!(dependents(&catalog, "5F"), [id("6D")]);
        // Of a backup that is gone, too.
        let catalog = catalog.without("1F");
        assert_eq!(dependents(&catalog, "1F"), ["2D", "3D", "4D"].map(id));
        // A clock was set back between a parent and its delta.
        let back = super::tests::catalog(&[("1D", Some("2D")), ("2D", Some("3F")), ("3F", None)]);
        assert_eq!(dependents(&back, "3F"), ["1D", "2D"].map(id));
    }

    #[test]
    fn a_broken_chain_names_the_ancestor_and_what_is_wrong() {
        let mut catalog = two_chains().without("1F");
        assert_eq!(breaks(&catalog, "3D"), (id("1F"), ChainProblem::Missing));
        assert_eq!(breaks(&catalog, "1F"), (id("1F"), ChainProblem::Missing));
        catalog.damaged.push(DamagedEntry {
            id: id("1F"),
            error: Arc::new(Error::MarkedByOthers { backup: id("1F") }),
        });
        assert_eq!(breaks(&catalog, "3D"), (id("1F"), ChainProblem::Damaged));
        let text = catalog.chain(&id("3D")).unwrap_err().to_string();
        let expected = "backup 20261103T043000Z-D cannot be restored: 20261101T043000Z-F, on which it stands, is damaged";
        assert_eq!(text, expected);
        // The other chain is as whole as before.
        assert_eq!(catalog.latest().unwrap().id, id("6D"));
        assert!(catalog.without("5F").latest().is_none());
    }

    #[test]
    fn parents_in_a_circle_are_told_and_end_every_walk() {
        let mut circle = catalog(&[
            ("1D", Some("3D")),
            ("2D", Some("1D")),
            ("3D", Some("2D")),
            ("4D", Some("3D")),
        ]);
        assert_eq!(breaks(&circle, "2D"), (id("2D"), ChainProblem::Cycle));
        assert_eq!(breaks(&circle, "4D"), (id("3D"), ChainProblem::Cycle));
        assert_eq!(
            ids(&circle.dependents(&id("2D"))),
            ["1D", "3D", "4D"].map(id)
        );
        let marks = std::iter::once((
            id("4D"),
            crate::repository::marks::Mark {
                number: 1,
                permanence: Permanence::Permanent,
            },
        ));
        circle.marks = marks.collect();
        assert!(
            circle
                .backups
                .iter()
                .all(|backup| circle.is_permanent(&backup.id))
        );
    }

    #[test]
    fn a_parent_on_another_branch_or_of_a_later_time_breaks_the_chain() {
        let other = |id: &str| (self::id(id), ChainProblem::OtherHistory);
        let backwards = catalog(&[("1D", Some("2F")), ("2F", None)]);
        assert_eq!(breaks(&backwards, "1D"), other("2F"));
        // Timeline 2 left timeline 1 before the parent's end, and after it.
        for (switch, is_whole) in [("1/50", false), ("1/100", true)] {
            let left = serde_json::json!({ "timeline": 1, "switch_lsn": switch });
            let forked = catalog(&[("1F", None), ("2D", Some("1F"))]).with("2D", |delta| {
                delta.history = vec![serde_json::from_value(left).unwrap()];
                delta.timeline = "00000002".parse().unwrap();
            });
            let chain = forked.chain(&id("2D"));
            assert_eq!(chain.is_ok(), is_whole);
            if let Err(error) = chain {
                assert_eq!((error.ancestor, error.problem), other("1F"));
            }
        }
    }

    #[test]
    fn another_backup_of_the_parents_id_breaks_the_chain() {
        let own = || catalog(&[("1F", None), ("2D", Some("1F"))]);
        let told = |since: &str| serde_json::json!({ "source": "wal", "since": since });
        let start = own().backups()[0].start_lsn.to_string();
        let known = own().backups()[0].manifest.digest.to_hex();
        for (since, manifest, is_whole) in [
            (start.as_str(), known.as_str(), true),
            (start.as_str(), "another's", false),
            ("7/70", known.as_str(), false),
        ] {
            let catalog = own().with("2D", |delta| {
                delta.changed_blocks = Some(serde_json::from_value(told(since)).unwrap());
                delta.parent_manifest = Some(manifest.to_owned());
            });
            assert_eq!(
                catalog.chain(&id("2D")).is_ok(),
                is_whole,
                "{since} {manifest}"
            );
        }
    }
}
