//! Backups in the store. A backup exists once its `backup.json` does.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use walhalla_providers::{Error as StoreError, ErrorKind, PutMode};

use super::catalog::Catalog;
use super::entry::{BackupEntry, BackupId, BackupSecond, FORMAT, Place};
use super::layout::{Key, RunId};
use super::object_error::Reason;
use super::{Error, ObjectError, Repository, SMALL_OBJECT_BYTES};

/// What stands for the id of the newest backup.
pub const LATEST: &str = "LATEST";

/// Entries that are read at the same time.
const ENTRIES_AT_A_TIME: usize = 32;
/// How far ids of backups run ahead of the clock that are taken within less than a second each. What is farther ahead is of a
/// clock that was wrong.
const IDS_RUN_AHEAD: SignedDuration = SignedDuration::from_mins(10);

/// What a claim's object holds.
#[derive(Serialize, Deserialize)]
struct Claim {
    #[serde(default)]
    lease: Option<String>,
}

impl Repository {
    /// Every backup, oldest first, and what is wrong with those that cannot be read.
    pub fn catalog(&self) -> Result<Catalog, Error> {
        let marks = self.marks()?;
        let mut catalog = self.entries()?;
        catalog.marks = marks;
        Ok(catalog)
    }

    /// The catalog as the `backup.json` objects have it, without marks.
    pub fn entries(&self) -> Result<Catalog, Error> {
        let mut catalog = Catalog::default();
        let mut ids = self.backup_ids()?;
        ids.sort();
        let texts = self.texts_of(&ids);
        for (id, text) in ids.into_iter().zip(texts) {
            let found = self.parse_entry(&id, text);
            catalog.add(id, found)?;
        }
        Ok(catalog)
    }

    /// The entries of backups that are not `known`.
    ///
    /// # Errors
    /// The repository's, of the first that cannot be read, too.
    pub fn entries_but(
        &self,
        known: impl Fn(&BackupId) -> bool,
    ) -> Result<Vec<BackupEntry>, Error> {
        let mut entries = Vec::new();
        for id in self.backup_ids()?.iter().filter(|id| !known(id)) {
            entries.extend(self.backup_if_there(id)?);
        }
        Ok(entries)
    }

    /// The backups named by `ids`, and those that they stand on; without any, the newest one, whether its entry can be
    /// read or not.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`]. A chain that is broken is none: [`Catalog::chain`] tells.
    pub fn catalog_of(&self, ids: &[String]) -> Result<Catalog, Error> {
        let mut catalog = Catalog::default();
        if ids.is_empty() {
            let mut newest = self.backup_ids()?;
            newest.sort();
            while let (true, Some(id)) = (catalog.is_empty(), newest.pop()) {
                let found = self.backup_if_there(&id);
                catalog.add(id, found)?;
            }
        }
        for id in ids {
            let parsed = self.backup_id(id)?;
            if catalog.get(&parsed).is_none() && catalog.damage_of(&parsed).is_none() {
                let found = self.backup_if_there(&parsed).transpose();
                let found = found.ok_or_else(|| self.no_such_backup(id))?;
                catalog.add(parsed, found.map(Some))?;
            }
        }
        let mut catalog = self.with_ancestors(catalog)?;
        catalog.marks = self.marks()?;
        Ok(catalog)
    }

    /// The backups that a restore can begin with, oldest first: their entries can be read and their chains are whole.
    /// Of the others the user hears.
    pub fn usable_backups(&self) -> Result<Vec<BackupEntry>, Error> {
        Ok(self.entries()?.usable())
    }

    /// The first object without which a backup cannot be restored that is not in the store with the length that the entry
    /// gives. A backup that stands alone needs neither its index nor its list of relations.
    ///
    /// # Errors
    /// The store's.
    pub fn missing_object(
        &self,
        backup: &BackupEntry,
        place: Place,
    ) -> Result<Option<String>, StoreError> {
        let folder = self.layout.backup_folder(&backup.id);
        let found = self.session.list(&folder, None)?;
        let lengths: HashMap<&str, u64> = found
            .iter()
            .map(|info| (info.key.as_str(), info.size_bytes))
            .collect();
        let missing = backup.needed(place).find(|part| {
            lengths.get(format!("{folder}{}", part.name).as_str()) != Some(&part.stored_bytes)
        });
        Ok(missing.map(|part| format!("{}/{folder}{}", self.session.url(), part.name)))
    }

    /// Sees that the identity opens what belongs to a backup.
    ///
    /// # Errors
    /// [`ObjectError::Locked`], and those of opening its manifest.
    pub fn must_open(&self, backup: &BackupEntry) -> Result<(), Error> {
        if backup.encrypted_to.is_empty() {
            return Ok(());
        }
        let object = self
            .layout
            .backup_object(&backup.id, &backup.manifest.name)?;
        self.open(&object).map(drop)
    }

    /// Ids of backup folders, committed or not.
    fn backup_ids(&self) -> Result<Vec<BackupId>, StoreError> {
        let folders = self.session.folders(&self.layout.backups())?;
        Ok(folders
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// The backup named by `id`, or the newest whole one for `LATEST`, after those that it stands on. Of an id, only these are
    /// read.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`]; [`Error::BrokenChain`] when something is missing that the backup stands on.
    pub fn named_chain(&self, id: &str) -> Result<Vec<BackupEntry>, Error> {
        if id == LATEST {
            let catalog = self.entries()?;
            let newest = { catalog.usable().into_iter() }.max_by_key(|backup| backup.stop_time);
            let newest = newest.ok_or_else(|| self.no_such_backup(id))?;
            return catalog.whole_chain(&newest.id);
        }
        let found = self.backup_if_there(&self.backup_id(id)?)?;
        let backup = found.ok_or_else(|| self.no_such_backup(id))?;
        self.chain(&backup)
    }

    /// The backup named by `id`, as [`Repository::named_chain`] finds it.
    ///
    /// # Errors
    /// As [`Repository::named_chain`].
    pub fn backup(&self, id: &str) -> Result<BackupEntry, Error> {
        let leaf = self.named_chain(id)?.pop();
        Ok(leaf.expect("a chain ends in the backup whose chain it is"))
    }

    /// The backup of `catalog` that is named by `id`, whole or not, or the newest whole one for `LATEST`.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`], or what is wrong with its entry.
    pub fn named_backup<'a>(
        &self,
        catalog: &'a Catalog,
        id: &str,
    ) -> Result<&'a BackupEntry, Error> {
        if id == LATEST {
            return catalog.latest().ok_or_else(|| self.no_such_backup(id));
        }
        let parsed = self.backup_id(id)?;
        match catalog.get(&parsed) {
            Some(backup) => Ok(backup),
            None => Err(match catalog.damage_of(&parsed) {
                Some(damage) => Error::Entry(Arc::clone(damage)),
                None => self.no_such_backup(id),
            }),
        }
    }

    /// The id that the user wrote, or that of the newest whole backup for `LATEST`.
    fn backup_id(&self, id: &str) -> Result<BackupId, Error> {
        if id == LATEST {
            return self.backup(id).map(|backup| backup.id);
        }
        id.parse().map_err(|_| self.no_such_backup(id))
    }

    fn no_such_backup(&self, id: &str) -> Error {
        // Whatever hinders this, the answer is the same.
        let known = self.backup_ids().unwrap_or_default();
        Error::NoSuchBackup {
            nearest: nearest(id, known),
            cluster: self.layout.system_identifier(),
            id: id.to_owned(),
            store: self.session.url().to_owned(),
        }
    }

    /// A backup as its `backup.json` has it; `None` without one.
    pub fn backup_if_there(&self, id: &BackupId) -> Result<Option<BackupEntry>, Error> {
        let text = self.read_small(&self.layout.backup_json(id));
        self.parse_entry(id, text)
    }

    /// The same of several backups, which are read at the same time.
    ///
    /// # Errors
    /// As [`Repository::backup_if_there`], of the first that has one.
    pub fn backups_if_there(&self, ids: &[BackupId]) -> Result<Vec<Option<BackupEntry>>, Error> {
        let found = ids.iter().zip(self.texts_of(ids));
        found.map(|(id, text)| self.parse_entry(id, text)).collect()
    }

    fn texts_of(&self, ids: &[BackupId]) -> Vec<Result<Bytes, StoreError>> {
        let keys = ids.iter().map(|id| self.layout.backup_json(id));
        self.session
            .get_all(keys, SMALL_OBJECT_BYTES, ENTRIES_AT_A_TIME)
    }

    fn parse_entry(
        &self,
        id: &BackupId,
        text: Result<Bytes, StoreError>,
    ) -> Result<Option<BackupEntry>, Error> {
        let key = self.layout.backup_json(id);
        let bytes = match text {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            // One file of a directory; a bucket denies all that the credentials ask for.
            Err(error) if self.is_denied_alone(&error) => {
                return Err(ObjectError::Denied(error).into());
            }
            Err(error) => return Err(error.into()),
        };
        let unfit = |source: Reason| {
            self.unfit(
                &key,
                "it is no backup entry that this version reads",
                source,
            )
        };
        let entry = BackupEntry::parse(&bytes).map_err(unfit)?;
        let foreign = entry.system_identifier != self.layout.system_identifier() || entry.id != *id;
        if entry.format > FORMAT || foreign {
            return Err(unfit(
                "its format is newer, or it belongs to another backup or cluster".into(),
            ));
        }
        Ok(Some(entry))
    }

    fn is_denied_alone(&self, error: &StoreError) -> bool {
        error.kind == ErrorKind::PermissionDenied && self.session.url().starts_with("file:")
    }

    /// Takes the second of `now`, or one after it, for the id of a backup that begins now. No other backup has it, of whatever
    /// kind. It comes after the ids of backups that were taken just before, which may run ahead of the clock: an id between
    /// those may have been that of a backup that was deleted since. `run` is that of the lease that will hold while the backup
    /// is made.
    ///
    /// # Errors
    /// The store's.
    pub fn claim_next_second(
        &self,
        now: Timestamp,
        run: RunId,
    ) -> Result<BackupSecond, StoreError> {
        let ahead = BackupSecond::at(now.saturating_add(IDS_RUN_AHEAD).unwrap_or(now));
        self.claim_from(now, run, |taken| *taken <= ahead)
    }

    /// Takes the first free second from `time` on, for the id of a backup of what was there at that time.
    ///
    /// # Errors
    /// The store's.
    pub fn claim_second_of(&self, time: Timestamp, run: RunId) -> Result<BackupSecond, StoreError> {
        let second = BackupSecond::at(time);
        self.claim_from(time, run, |taken| *taken == second)
    }

    /// Takes the first free second from `time` on that comes after each taken one which is `passed_over`.
    fn claim_from(
        &self,
        time: Timestamp,
        run: RunId,
        passed_over: impl Fn(&BackupSecond) -> bool,
    ) -> Result<BackupSecond, StoreError> {
        let first = BackupSecond::at(time);
        // The first one is free nearly always.
        let (found, is_claimed) = thread::scope(|scope| {
            let found = scope.spawn(|| self.backup_ids());
            let is_claimed = self.claim(&first, run);
            (found.join(), is_claimed)
        });
        let mut taken: Vec<BackupSecond> = match found.unwrap_or_else(|panic| resume_unwind(panic))
        {
            // A directory that is not there yet is made by the first write.
            Err(error) if error.kind == ErrorKind::StoreMissing => Vec::new(),
            found => found?.iter().map(BackupId::second).collect(),
        };
        taken.retain(|second| *second >= first);
        let last = taken.iter().filter(|second| passed_over(second)).max();
        if is_claimed? && last.is_none() {
            return Ok(first);
        }
        let later = (1..).map_while(|later| {
            let time = time.checked_add(SignedDuration::from_secs(later));
            time.ok().map(BackupSecond::at)
        });
        for second in later.filter(|second| last < Some(second) && !taken.contains(second)) {
            if self.claim(&second, run)? {
                return Ok(second);
            }
        }
        unreachable!("a store holds fewer backups than there are seconds")
    }

    /// Claims a second; returns whether nobody else has.
    fn claim(&self, second: &BackupSecond, run: RunId) -> Result<bool, StoreError> {
        let claim = self.layout.key(&Key::Claim(second.clone()));
        let content = Claim {
            lease: Some(run.to_string()),
        };
        let content = serde_json::to_string(&content).expect("a text is JSON");
        match self.session.put(&claim, content.into(), PutMode::Create) {
            Ok(()) => Ok(true),
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The run of the lease that held while the backup of a claim was made; `None` where nothing tells, as earlier programs took
    /// no lease.
    ///
    /// # Errors
    /// The store's.
    pub fn lease_of_claim(&self, second: &BackupSecond) -> Result<Option<RunId>, StoreError> {
        let claim = self.layout.key(&Key::Claim(second.clone()));
        match self.read_small(&claim) {
            Err(error) if error.is_not_found() => Ok(None),
            text => {
                let claim: Option<Claim> = serde_json::from_slice(&text?).ok();
                Ok(claim.and_then(|claim| claim.lease?.parse().ok()))
            }
        }
    }

    /// Makes the backup exist.
    pub fn commit_backup(&self, entry: &BackupEntry) -> Result<(), Error> {
        let key = self.layout.backup_json(&entry.id);
        // A tablespace's place that is not UTF-8 has no spelling in JSON.
        let json = entry
            .to_text()
            .map_err(|source| self.unfit(&key, "it cannot be written", source))?;
        Ok(self.session.put(&key, json.into(), PutMode::Create)?)
    }

    /// The backups that it takes to restore `backup`, the full one first, `backup` itself last; only they are read.
    ///
    /// # Errors
    /// [`Error::BrokenChain`].
    pub fn chain(&self, backup: &BackupEntry) -> Result<Vec<BackupEntry>, Error> {
        let catalog = Catalog::of(vec![backup.clone()]);
        self.with_ancestors(catalog)?.whole_chain(&backup.id)
    }

    /// The catalog with what its backups stand on, as far as that is there.
    pub(super) fn with_ancestors(&self, mut catalog: Catalog) -> Result<Catalog, Error> {
        let parents = catalog.backups().iter();
        let mut wanted: Vec<BackupId> = parents.filter_map(|it| it.parent.clone()).collect();
        while let Some(id) = wanted.pop() {
            if catalog.get(&id).is_some() || catalog.damage_of(&id).is_some() {
                continue;
            }
            let found = self.backup_if_there(&id);
            if let Ok(Some(ancestor)) = &found {
                wanted.extend(ancestor.parent.clone());
            }
            // What is not there is nobody's failed backup: the chain tells of it.
            if !matches!(found, Ok(None)) {
                catalog.add(id, found)?;
            }
        }
        Ok(catalog.sorted())
    }
}

/// The id that somebody may have meant who wrote `id`.
fn nearest(id: &str, known: Vec<BackupId>) -> Option<BackupId> {
    /// Letters that may be wrong: an `F` for a `D`, and some digits.
    const MOST_WRONG: usize = 4;

    let distance = |known: &BackupId| strsim::osa_distance(id, &known.to_string());
    let nearest = { known.into_iter() }.min_by_key(distance)?;
    (distance(&nearest) <= MOST_WRONG).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::super::entry::BackupKind;
    use super::*;
    use crate::repository::testing;
    use crate::session::Network;

    fn second(text: &str) -> BackupSecond {
        text.parse().unwrap()
    }

    impl Repository {
        fn put_entry(&self, second: &BackupSecond) {
            let id = BackupId::of(second, BackupKind::Full);
            let entry = self.layout.backup_json(&id);
            let put = self.session.put(&entry, "{}".into(), PutMode::Create);
            put.unwrap();
        }
    }

    #[test]
    fn no_backup_that_begins_takes_the_id_of_one_that_was_deleted_just_before() {
        let network = Network::start(2).unwrap();
        let repository = testing::in_memory(&network);
        let now: Timestamp = "2026-11-30T05:09:44Z".parse().unwrap();
        let run = RunId::random;
        let claimed = repository.claim_next_second(now, run()).unwrap();
        assert_eq!(claimed, second("20261130T050944Z"));
        // Another is being made, and has no entry yet.
        let claimed = repository.claim_next_second(now, run()).unwrap();
        assert_eq!(claimed, second("20261130T050945Z"));
        // Those of :45 and :46 were deleted, with their claims; a clock that was wrong left one of another year.
        repository.put_entry(&second("20261130T050947Z"));
        repository.put_entry(&second("20301130T050945Z"));
        let later = now + SignedDuration::from_secs(2);
        let claimed = repository.claim_next_second(later, run()).unwrap();
        assert_eq!(claimed, second("20261130T050948Z"));
        // What was merged takes the first one that is free; :46 was tried above.
        let claimed = repository.claim_second_of(now, run()).unwrap();
        assert_eq!(claimed, second("20261130T050949Z"));
    }
}
