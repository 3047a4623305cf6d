//! Marking a backup in the store.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use walhalla_providers::{Error as StoreError, ErrorKind, PutMode};

use super::catalog::Catalog;
use super::entry::{BackupEntry, BackupId};
use super::layout::Key;
use super::leases::Needs;
use super::marks::{Mark, Marks, Permanence};
use super::{Error, Repository};

/// How often a mark is tried that others get ahead of.
const MOST_ATTEMPTS: u32 = 16;

/// The format of a mark's content.
const FORMAT: u32 = 1;

/// How marking a backup ended.
#[derive(Clone, Debug)]
pub struct Marked {
    /// The backup.
    pub backup: BackupId,
    /// Whether there was anything to do.
    pub change: Change,
    /// What it stands on, the full backup first; as far as it is known.
    pub ancestors: Vec<BackupId>,
}

/// Whether something became different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A mark was made.
    Made,
    /// The backup was so already.
    None,
}

/// What a mark's object holds, for people; whoever reads marks goes by the key.
#[derive(Serialize)]
struct Content<'a> {
    format: u32,
    backup: &'a BackupId,
    permanent: bool,
    time: Timestamp,
    walhalla_version: &'static str,
}

impl Repository {
    /// The marks of all backups, by one listing.
    ///
    /// # Errors
    /// The store's.
    pub fn marks(&self) -> Result<Marks, StoreError> {
        let prefix = self.layout.marks();
        let found = self.session.list(&prefix, None)?;
        let marks = found
            .iter()
            .filter_map(|info| match self.layout.parse(&info.key) {
                Key::Mark(id, mark) => Some((id, mark)),
                _ => None,
            });
        Ok(marks.collect())
    }

    /// Says of a backup, by its id or `LATEST`, that it is permanent or not. After `Ok` it is so by itself, whatever
    /// others said at the same moment; by a delta that stands on it, it may be permanent all the same later.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`]; [`Error::KeptByDelta`] when a permanent delta stands on a backup that shall be
    /// impermanent; [`Error::MarkedByOthers`] when others were faster each time.
    pub fn mark_backup(&self, id: &str, permanence: Permanence) -> Result<Marked, Error> {
        let catalog = self.entries()?;
        // One that did not arrive may be a delta that keeps this backup, or be the newest.
        if let Some(entry) = catalog.damaged.iter().find(|entry| entry.did_not_arrive()) {
            return Err(Error::Entry(Arc::clone(&entry.error)));
        }
        let backup = self.named_backup(&catalog, id)?;
        // A deletion that runs takes what the marks said that it saw.
        let chain = ancestors(&catalog, backup)
            .into_iter()
            .chain([backup.id.clone()]);
        let _guarded = self.guard(&Needs::of("backup-mark", chain.collect(), Vec::new()))?;
        let done = |change| Marked {
            backup: backup.id.clone(),
            change,
            ancestors: ancestors(&catalog, backup),
        };
        for _ in 0..MOST_ATTEMPTS {
            let marks = self.marks()?;
            check(&marks, permanence, backup, &catalog)?;
            if marks.permanence_of(backup) == permanence {
                return Ok(done(Change::None));
            }
            let mark = marks.next(&backup.id, permanence);
            if self.create_mark(&backup.id, mark)? && self.counts(&backup.id, mark)? {
                return Ok(done(Change::Made));
            }
        }
        Err(Error::MarkedByOthers {
            backup: backup.id.clone(),
        })
    }

    /// Copies what was said of a backup to `copy`, the same cluster in another store.
    ///
    /// # Errors
    /// Of either store.
    pub fn copy_marks(&self, id: &BackupId, copy: &Self) -> Result<(), StoreError> {
        let folder = format!("{}{id}/", self.layout.marks());
        for info in self.session.list(&folder, None)? {
            let content = self.read_small(&info.key)?;
            match copy.session.put(&info.key, content, PutMode::Create) {
                Err(error) if error.kind == ErrorKind::AlreadyExists => {}
                put => put?,
            }
        }
        Ok(())
    }

    /// Stores a mark; `false` when another one has its key.
    fn create_mark(&self, id: &BackupId, mark: Mark) -> Result<bool, StoreError> {
        let content = Content {
            format: FORMAT,
            backup: id,
            permanent: mark.permanence == Permanence::Permanent,
            time: Timestamp::now(),
            walhalla_version: crate::VERSION,
        };
        let json = serde_json::to_string(&content).expect("a mark is text and numbers");
        let key = self.layout.key(&Key::Mark(id.clone(), mark));
        let json = format!("{json}\n").into();
        match self.session.put(&key, json, PutMode::Create) {
            Ok(()) => Ok(true),
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether no greater mark with the same number was made at the same moment.
    fn counts(&self, id: &BackupId, mark: Mark) -> Result<bool, StoreError> {
        if mark.permanence == Permanence::Permanent {
            return Ok(true);
        }
        let marks = self.marks()?;
        // A greater number was given out later, by somebody who may have seen this one.
        let newest = marks.of(id);
        Ok(newest.is_none_or(|newest| newest.number > mark.number || newest == mark))
    }
}

/// What a backup stands on; nothing where its chain is broken.
fn ancestors(catalog: &Catalog, backup: &BackupEntry) -> Vec<BackupId> {
    let chain = catalog.chain(&backup.id).unwrap_or_default();
    let ids = chain.iter().map(|member| &member.id);
    ids.filter(|id| **id != backup.id).cloned().collect()
}

/// Refuses what would have no effect: a permanent delta keeps what it stands on.
fn check(
    marks: &Marks,
    permanence: Permanence,
    backup: &BackupEntry,
    catalog: &Catalog,
) -> Result<(), Error> {
    let dependents = match permanence {
        Permanence::Permanent => Vec::new(),
        Permanence::Impermanent => catalog.dependents(&backup.id),
    };
    let mut newest_first = dependents.into_iter().rev();
    match newest_first.find(|delta| marks.permanence_of(delta) == Permanence::Permanent) {
        None => Ok(()),
        Some(delta) => Err(Error::KeptByDelta {
            backup: backup.id.clone(),
            delta: delta.id.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::Permanence::{Impermanent, Permanent};
    use super::*;
    use crate::repository::catalog::tests::{catalog, id, two_chains};

    fn marks(given: &[(&str, u32, Permanence)]) -> Marks {
        let marks = given.iter().map(|(day, number, permanence)| {
            let (number, permanence) = (*number, *permanence);
            (id(day), Mark { number, permanence })
        });
        marks.collect()
    }

    fn permanent(mut catalog: Catalog, given: &[(&str, u32, Permanence)]) -> Vec<BackupId> {
        catalog.marks = marks(given);
        let ids = catalog.backups().iter().map(|backup| &backup.id);
        ids.filter(|id| catalog.is_permanent(id)).cloned().collect()
    }

    #[test]
    fn the_mark_with_the_greatest_number_counts_and_of_one_number_the_permanent_one() {
        let backups = catalog(&[("1F", None)]);
        let counts = |given: &[(u32, Permanence)]| {
            let given: Vec<_> = given
                .iter()
                .map(|(number, it)| ("1F", *number, *it))
                .collect();
            marks(&given).permanence_of(&backups.backups()[0])
        };
        assert_eq!(counts(&[]), Impermanent);
        assert_eq!(counts(&[(1, Permanent)]), Permanent);
        assert_eq!(counts(&[(10, Impermanent), (9, Permanent)]), Impermanent);
        assert_eq!(counts(&[(2, Permanent), (2, Impermanent)]), Permanent);
        assert_eq!(counts(&[(2, Impermanent), (2, Permanent)]), Permanent);
        let known = marks(&[("1F", 7, Permanent)]);
        assert_eq!(known.next(&id("1F"), Impermanent).number, 8);
        assert_eq!(known.next(&id("5F"), Impermanent).number, 1);
    }

    #[test]
    fn a_permanent_delta_keeps_what_it_stands_on_and_nothing_else() {
        assert_eq!(permanent(two_chains(), &[]), []);
        assert_eq!(permanent(two_chains(), &[("1F", 1, Permanent)]), [id("1F")]);
        let kept = ["1F", "2D", "3D"].map(id);
        assert_eq!(permanent(two_chains(), &[("3D", 1, Permanent)]), kept);
        let against = [
            ("3D", 1, Permanent),
            ("1F", 1, Impermanent),
            ("2D", 1, Impermanent),
        ];
        assert_eq!(permanent(two_chains(), &against), kept);
        let other = ["5F", "6D"].map(id);
        assert_eq!(permanent(two_chains(), &[("6D", 1, Permanent)]), other);
    }

    #[test]
    fn a_mark_counts_more_than_backup_json() {
        let taken_as_permanent = || two_chains().with("6D", |backup| backup.permanent = true);
        assert_eq!(permanent(taken_as_permanent(), &[]), ["5F", "6D"].map(id));
        let marked = [("6D", 1, Impermanent)];
        assert_eq!(permanent(taken_as_permanent(), &marked), []);
    }

    #[test]
    fn what_a_permanent_delta_stands_on_cannot_be_made_impermanent() {
        let catalog = two_chains();
        let marks = marks(&[("3D", 1, Permanent)]);
        let may_be = |permanence, day| {
            let backup = catalog.get(&id(day)).unwrap();
            check(&marks, permanence, backup, &catalog)
        };
        for day in ["1F", "2D"] {
            let refused = may_be(Impermanent, day).unwrap_err();
            assert!(
                matches!(&refused, Error::KeptByDelta { backup, delta } if (backup, delta) == (&id(day), &id("3D"))),
                "{refused}"
            );
            may_be(Permanent, day).unwrap();
        }
        for day in ["3D", "4D", "5F", "6D"] {
            may_be(Impermanent, day).unwrap();
        }
    }
}
