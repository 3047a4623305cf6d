//! Carrying out a plan.
//!
//! ```text
//! what is used, new or marked since? ─▶ entries, those first on which none stands ─▶ objects of backups ─▶ marks, claims
//!                                                                          ─▶ summaries ─▶ WAL, oldest first
//! ```
//!
//! Killed at any moment, what is left is whole: a backup without its entry is none, and WAL goes after all that needs it.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use walhalla_providers::{
    Error as StoreError, ErrorKind, MAX_DELETE_KEYS, ObjectInfo, ObjectKey, Operation,
};

use super::Error;
use super::amounts::Amount;
use super::decide::{Refusal, Request, own_wal};
use super::plan::Plan;
use super::survey::Survey;
use crate::progress::Progress;
use crate::repository::layout::Key;
use crate::repository::leases::{HeldLease, Lease, Needs};
use crate::repository::marks::Permanence;
use crate::repository::ranges::{Range, Ranges};
use crate::repository::{BackupId, Repository};
use crate::threads::{lock, on_threads};

/// Batches that wait for a thread.
const WAITING_BATCHES: usize = 2;
/// How long a deletion goes on that cannot renew its lease: others take it for dead after [`HOLDS_FOR`], and a request may
/// take its time.
///
/// [`HOLDS_FOR`]: crate::repository::leases::HOLDS_FOR
const OLDEST_LEASE: Duration = Duration::from_mins(5);
/// Why a backup is spared, besides its use.
const NEW: &str = "a backup was finished just now that stands on it";
const MARKED: &str = "it was marked as permanent just now";
const REFUSED: &str = "the store did not give up its entry, or that of a delta to it";
/// How long a request is tried again.
const DEADLINE: Duration = Duration::from_mins(3);

/// What became of a deletion.
#[derive(Debug, Default)]
pub struct Swept {
    /// What is gone.
    pub deleted: Amount,
    /// What the store refused, and why.
    pub refused: Vec<(String, StoreError)>,
    /// Backups that stay although the plan takes them, and why.
    pub spared: Vec<(BackupId, String)>,
}

/// A plan on its way.
pub(super) struct Sweep<'a> {
    repository: Repository,
    plan: &'a Plan,
    survey: &'a Survey,
    lease: Option<&'a Lease>,
    threads: usize,
    progress: &'a Progress,
    swept: Mutex<Swept>,
    /// Backups whose objects stay although the plan takes them.
    spared: BTreeSet<BackupId>,
    /// WAL that stays although the plan takes it.
    kept: Ranges,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(
        repository: &Repository,
        (plan, survey): (&'a Plan, &'a Survey),
        lease: Option<&'a Lease>,
        threads: usize,
        progress: &'a Progress,
    ) -> Self {
        Self {
            repository: repository.within(DEADLINE),
            plan,
            survey,
            lease,
            threads,
            progress,
            swept: Mutex::default(),
            spared: BTreeSet::new(),
            kept: Ranges::default(),
        }
    }

    /// Deletes what the plan takes.
    ///
    /// # Errors
    /// The store's; [`Error::LeaseLost`]; [`Error::Refused`] where somebody began to use a cluster that goes. What the store refused
    /// is part of the answer.
    pub(super) fn run(mut self) -> Result<Swept, Error> {
        self.spare_what_is_used()?;
        self.spare_what_is_new()?;
        self.uploads()?;
        self.entries()?;
        if self.lease.is_none() {
            // Nobody could see what was about to go.
            self.spare_what_is_used()?;
        }
        let (is_refused, may_delete) = {
            let swept = lock(&self.swept);
            (!swept.refused.is_empty(), swept.deleted.objects > 0)
        };
        match self.plan.request {
            // Each of a million objects would be refused like these.
            _ if is_refused && !may_delete => {}
            Request::Everything if is_refused => {}
            Request::Everything => self.everything()?,
            _ => self.objects()?,
        }
        Ok(self
            .swept
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// Spares what somebody uses who took a lease since the plan was made.
    fn spare_what_is_used(&mut self) -> Result<(), Error> {
        let now = match self.lease {
            Some(lease) => self.repository.lease_time(lease.run())?,
            None => self.plan.time,
        };
        let own = self.lease.map(Lease::run);
        let leases = self.repository.leases(now)?.held.into_iter();
        let is_new =
            |lease: &HeldLease| Some(lease.run) != own && !self.survey.leases.held.contains(lease);
        let new: Vec<HeldLease> = leases.filter(is_new).collect();
        for lease in new {
            if self.plan.request == Request::Everything && !lease.needs.is_empty() {
                return Err(Refusal::ClusterInUse(lease.needs.user).into());
            }
            let Needs {
                user,
                backups,
                wal,
                makes,
            } = lease.needs;
            for wal in wal {
                self.kept
                    .add(wal.first.timeline, Range::of(wal.first, wal.last));
            }
            for id in backups.into_iter().chain(makes) {
                self.spare(&id, &user);
            }
        }
        Ok(())
    }

    /// Spares what backups stand on that were finished since the plan was made, and what was marked since then.
    fn spare_what_is_new(&mut self) -> Result<(), Error> {
        let known = |id: &BackupId| self.survey.catalog.get(id).is_some();
        let new = self.repository.entries_but(known)?;
        if self.plan.request == Request::Everything && !new.is_empty() {
            return Err(Refusal::ClusterInUse("a backup was taken just now".to_owned()).into());
        }
        for entry in &new {
            let (first, _) = own_wal(entry);
            self.kept.add(entry.timeline, Range::since(first));
            self.spare(&entry.id, NEW);
            if let Some(parent) = &entry.parent {
                self.spare(parent, NEW);
            }
        }
        let marks = self.repository.marks()?;
        for entry in self.survey.catalog.backups() {
            if marks.permanence_of(entry) == Permanence::Permanent {
                self.spare(&entry.id, MARKED);
            }
        }
        Ok(())
    }

    /// Removes entries. A backup whose entry the store does not give up stays, and so does what it stands on.
    fn entries(&mut self) -> Result<(), Error> {
        let layout = self.repository.layout().clone();
        for level in self.plan.levels() {
            let may_go = level.iter().filter(|id| !self.spared.contains(id));
            let may_go: Vec<&BackupId> = may_go.collect();
            let entries: Vec<Doomed> = { may_go.iter() }
                .map(|id| Doomed::of_unknown_length(layout.backup_json(id)))
                .collect();
            let refused = self.delete(&entries)?;
            for id in may_go {
                if refused.contains(&layout.backup_json(id)) {
                    self.spare(id, REFUSED);
                }
            }
        }
        Ok(())
    }

    /// Spares a backup that the plan takes, what it stands on, and the WAL that makes them consistent.
    fn spare(&mut self, id: &BackupId, why: &str) {
        let mut next = Some(id);
        while let Some(id) = next {
            let backup = self.plan.backups.iter().find(|backup| backup.id == *id);
            let goes = backup.is_some_and(|backup| backup.fate.goes());
            if (!goes && !self.plan.leftovers.contains(id)) || !self.spared.insert(id.clone()) {
                return;
            }
            if let Some(backup) = backup {
                let (first, last) = backup.own_wal;
                self.kept.add(first.timeline, Range::through(first, last));
            }
            lock(&self.swept).spared.push((id.clone(), why.to_owned()));
            next = backup.and_then(|backup| backup.parent.as_ref());
        }
    }

    fn uploads(&self) -> Result<(), Error> {
        for upload in &self.plan.uploads {
            match self.repository.session().drop_unfinished(upload) {
                Ok(()) => lock(&self.swept).deleted.add(0),
                Err(error) => {
                    let url = format!("{}/{}", self.repository.store_url(), upload.key);
                    lock(&self.swept).refused.push((url, error));
                }
            }
            if !self.progress.add(1) {
                return Err(Error::BrokenOff);
            }
        }
        Ok(())
    }

    fn objects(&self) -> Result<(), Error> {
        let layout = self.repository.layout().clone();
        let gone = { self.plan.backups.iter() }.filter(|backup| backup.fate.goes());
        let gone = gone.map(|backup| &backup.id).chain(&self.plan.leftovers);
        let gone: BTreeSet<&BackupId> = gone.filter(|id| !self.spared.contains(*id)).collect();
        if !gone.is_empty() {
            self.delete_listed(&layout.backups(), |info| {
                let of = layout.in_backup_folder(&info.key);
                of.is_some_and(|(id, _)| gone.contains(&id))
            })?;
        }
        let is_spared = |key: &ObjectKey| match layout.parse(key) {
            Key::Mark(id, _) => self.spared.contains(&id),
            Key::Claim(second) => self.spared.iter().any(|id| id.second() == second),
            _ => false,
        };
        let small: Vec<Doomed> = { self.plan.small.iter() }
            .filter(|key| !is_spared(key))
            .map(|key| Doomed::of_unknown_length(key.clone()))
            .collect();
        self.delete(&small)?;
        for prefix in [layout.summary_folders(), layout.wal_folders()] {
            for folder in self.repository.session().folders(&prefix)? {
                self.delete_listed(&format!("{prefix}{folder}/"), |info| {
                    let key = layout.parse(&info.key);
                    let is_kept = super::survey::wal_of(&key)
                        .is_some_and(|(segment, _)| self.kept.has(segment));
                    !is_kept && self.plan.takes(&key, info)
                })?;
            }
        }
        Ok(())
    }

    /// Every object of the cluster; last of all what says that this deletion runs.
    fn everything(&self) -> Result<(), Error> {
        let layout = self.repository.layout().clone();
        let own = self.lease.map(Lease::run);
        self.delete_listed(&layout.cluster(), |info| match layout.parse(&info.key) {
            Key::Lease(run, _) | Key::Deletion(run) => Some(run) != own,
            Key::Foreign(_) => layout.in_backup_folder(&info.key).is_some(),
            _ => true,
        })?;
        if let Some(own) = own {
            self.repository.remove(&[layout.key(&Key::Deletion(own))])?;
        }
        Ok(())
    }

    /// Deletes what `takes` takes of a listing, batch after batch, several at a time.
    fn delete_listed(
        &self,
        prefix: &str,
        takes: impl Fn(&ObjectInfo) -> bool + Send,
    ) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(WAITING_BATCHES);
            let receiver = Mutex::new(receiver);
            // The threads end when nobody can send any more.
            let listing = scope.spawn(move || self.list(prefix, takes, &sender));
            let deleted = on_threads(self.threads, self.progress, &|| {
                self.delete_batches(&receiver)
            });
            // A listing that has more to say must not wait for ever.
            drop(receiver);
            let listed = listing
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            deleted.and(listed)
        })
    }

    fn list(
        &self,
        prefix: &str,
        takes: impl Fn(&ObjectInfo) -> bool,
        batches: &SyncSender<Vec<Doomed>>,
    ) -> Result<(), Error> {
        let session = self.repository.session();
        let mut pages = session.pages(prefix, None);
        let mut batch = Vec::new();
        while let Some(page) = session.wait(pages.next_page())? {
            for info in page.objects {
                if !takes(&info) {
                    continue;
                }
                batch.push(Doomed::from(info));
                if batch.len() == MAX_DELETE_KEYS
                    && batches.send(std::mem::take(&mut batch)).is_err()
                {
                    // The threads have ended, and say why.
                    return Ok(());
                }
            }
        }
        if !batch.is_empty() {
            drop(batches.send(batch));
        }
        Ok(())
    }

    fn delete_batches(&self, batches: &Mutex<Receiver<Vec<Doomed>>>) -> Result<(), Error> {
        loop {
            let batch = lock(batches).recv();
            let Ok(batch) = batch else {
                return Ok(());
            };
            self.delete(&batch)?;
        }
    }

    /// Deletes objects, and returns those that the store refused.
    fn delete(&self, doomed: &[Doomed]) -> Result<BTreeSet<ObjectKey>, Error> {
        let mut all_refused = BTreeSet::new();
        for batch in doomed.chunks(MAX_DELETE_KEYS) {
            if self.lease.is_some_and(|lease| lease.age() > OLDEST_LEASE) {
                return Err(Error::LeaseLost);
            }
            let keys: Vec<ObjectKey> = batch.iter().map(|doomed| doomed.key.clone()).collect();
            let refused = match self.repository.session().delete(&keys) {
                // None of them, whichever they are.
                Err(error) if error.kind == ErrorKind::PermissionDenied => {
                    let refusal = |key: &ObjectKey| {
                        let url = self.repository.url(key);
                        StoreError::new(Operation::Delete, url, ErrorKind::PermissionDenied)
                    };
                    let all = keys.iter().map(|key| (key.clone(), refusal(key)));
                    all.collect()
                }
                deleted => deleted?,
            };
            let mut swept = lock(&self.swept);
            for (key, error) in refused {
                swept.refused.push((self.repository.url(&key), error));
                all_refused.insert(key);
            }
            for doomed in batch
                .iter()
                .filter(|doomed| !all_refused.contains(&doomed.key))
            {
                swept.deleted.add(doomed.stored_bytes);
            }
            drop(swept);
            if !self.progress.add(batch.len() as u64) {
                return Err(Error::BrokenOff);
            }
        }
        Ok(all_refused)
    }
}

/// An object that goes.
struct Doomed {
    key: ObjectKey,
    stored_bytes: u64,
}

impl Doomed {
    fn of_unknown_length(key: ObjectKey) -> Self {
        Self {
            key,
            stored_bytes: 0,
        }
    }
}

impl From<ObjectInfo> for Doomed {
    fn from(info: ObjectInfo) -> Self {
        Self {
            key: info.key,
            stored_bytes: info.size_bytes,
        }
    }
}
