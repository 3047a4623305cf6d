//! A second store, which gets what the first one got.
//!
//! ```text
//! first store ─▶ the object's bytes ─▶ second store
//!                                └─▶ owed: noted in the spool and in the first store ─▶ paid by who pushes next, or the daemon
//! ```
//!
//! The first store has everything that was acknowledged. The second has the same, but for what it is owed.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use walhalla_postgres::{SegmentName, WalFileName};
use walhalla_providers::transfer::Patience;
use walhalla_providers::{Error as StoreError, ErrorKind};

use super::Error;
use crate::output;
use crate::pipeline::{Packing, Pipeline};
use crate::repository::layout::Object;
use crate::repository::owed::{MirrorId, MirrorMode, Owed};
use crate::repository::sending::{Likeness, SendError, Sent};
use crate::repository::{self, ArchivedFile, Repository};
use crate::session::StoreSession;
use crate::spool::{Lock, Spool};
use crate::threads::lock;

/// The part of the spool in which debts are noted.
const PART: &str = "owed";
/// The file in it that tells when the second store failed last.
const DOWN: &str = "down";
/// For how long nobody waits for a second store again that failed.
const LEFT_ALONE: Duration = Duration::from_secs(20);
/// How long a server that waits for its segment is kept waiting for debts to be paid.
const MOST_PAYING: Duration = Duration::from_secs(2);

/// How long one request to a store is tried again whose objects may come later.
const OWED_DEADLINE: Duration = Duration::from_secs(5);

/// How long a server that waits for its segment waits for such a store to take a file.
const MOST_FOLLOWING: Duration = Duration::from_secs(10);

/// A second store that was opened, for whatever cluster.
#[derive(Clone)]
pub struct Second {
    /// The store.
    pub session: StoreSession,
    /// Packs what goes to it.
    pub pipeline: Pipeline,
    /// When something counts as archived.
    pub mode: MirrorMode,
    /// How long it is waited for a file that may come later, where a server waits.
    pub bound: Option<Duration>,
}

/// The second store of a cluster's archive.
pub struct Mirror {
    /// The cluster in it.
    pub second: Repository,
    /// Packs summaries into it.
    pub pipeline: Pipeline,
    /// When something counts as archived.
    pub mode: MirrorMode,
    /// What is noted on this host.
    notes: Option<Notes>,
    /// What this process knows to be owed besides.
    known: Mutex<Vec<Owed>>,
    /// How long it is waited for one file.
    bound: Option<Duration>,
    failed: Mutex<Option<Instant>>,
}

/// Debts that are noted in the spool of a data directory.
#[derive(Clone, Debug)]
struct Notes {
    spool: Spool,
    /// What tells the debts of a cluster and a store from others.
    prefix: String,
}

/// Whether the second store has something by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It has.
    Now,
    /// It is owed that.
    Later,
}

/// Sends an object, and sees that what was there before is the same.
fn send(first: &Repository, second: &Repository, object: &Object) -> Result<(), SendError> {
    let sent = first.send(object, second, |_| true, || true)?;
    if sent != Sent::Before {
        return Ok(());
    }
    let settled = second.session().settle(&object.key);
    settled.map_err(|error| SendError::Copy(error.into()))?;
    let is_alike = first.is_stored_alike(object, second);
    if is_alike.map_err(SendError::Copy)? {
        return Ok(());
    }
    let likeness = first.likeness(object, second, object);
    let finding = match likeness.map_err(SendError::Copy)? {
        Likeness::Same => return Ok(()),
        Likeness::Other => "it has other content",
        Likeness::Unknown => "it has other bytes",
    };
    let url = first.url(&object.key);
    let reason = format!("{finding} than {url}, and nothing is overwritten");
    let finding = "the mirror has another object under this name";
    let unfit = second.unfit(&object.key, finding, reason);
    Err(SendError::Copy(unfit))
}

/// Whether a deletion took a file.
fn was_deleted(first: &Repository, file: WalFileName) -> Result<bool, Error> {
    let deleted = first.deleted_wal()?;
    Ok(match file {
        WalFileName::Segment(name)
        | WalFileName::Partial(name, _)
        | WalFileName::BackupHistory(name, _) => deleted.has(name),
        WalFileName::History(_) => false,
    })
}

impl Second {
    /// The second store of the cluster in `first`; debts are noted in `spool` too.
    pub fn of(&self, first: &Repository, spool: Option<Spool>) -> Mirror {
        let session = match self.mode {
            MirrorMode::Both => self.session.clone(),
            MirrorMode::Owed => self.session.within(OWED_DEADLINE),
        };
        let url = self.session.url();
        Mirror {
            notes: spool.map(|spool| Notes::new(spool, first, url)),
            pipeline: self.pipeline.into_store(&session),
            second: first.with_session(&session),
            mode: self.mode,
            bound: self.bound,
            known: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// The same for a server that waits: what it must have is tried `within` that time, as `patience` lasts; for what may come
    /// later nobody waits long, however slow the store is.
    #[must_use]
    pub fn patient(&self, within: Duration, patience: &Patience) -> Self {
        let session = self.session.within(within);
        let (session, bound) = match self.mode {
            MirrorMode::Both => (session.patient(patience), None),
            MirrorMode::Owed => (session, Some(MOST_FOLLOWING)),
        };
        Self {
            session,
            bound,
            ..self.clone()
        }
    }
}

impl Notes {
    /// Those of the debts of `first` to the store at the URL `second`.
    fn new(spool: Spool, first: &Repository, second: &str) -> Self {
        let (from, to) = (MirrorId::of(first.store_url()), MirrorId::of(second));
        let cluster = first.layout().system_identifier();
        let prefix = format!("{cluster}.{from}.{to}.");
        Self { spool, prefix }
    }

    fn add(&self, owed: &Owed) -> std::io::Result<()> {
        let part = self.spool.make_part(PART)?;
        part.write_durably(&format!("{}{owed}", self.prefix), b"")
    }

    fn remove(&self, owed: &Owed) -> std::io::Result<()> {
        let Some(part) = self.spool.part(PART)? else {
            return Ok(());
        };
        part.remove(&format!("{}{owed}", self.prefix))?;
        if part.names()?.iter().all(|name| name.ends_with(DOWN)) {
            part.remove(&self.down())?;
        }
        self.spool.remove_if_empty(PART)
    }

    /// What is noted, in the order of names.
    fn all(&self) -> std::io::Result<Vec<Owed>> {
        let Some(part) = self.spool.part(PART)? else {
            return Ok(Vec::new());
        };
        let mut names = part.names()?;
        names.sort();
        let own = names
            .iter()
            .filter_map(|name| name.strip_prefix(&self.prefix));
        Ok(own.filter_map(|name| name.parse().ok()).collect())
    }

    fn lock(&self) -> std::io::Result<Option<Lock>> {
        self.spool.make_part(PART)?.lock()
    }

    fn down(&self) -> String {
        format!("{}{DOWN}", self.prefix)
    }

    fn note_down(&self) -> std::io::Result<()> {
        self.spool.make_part(PART)?.write(&self.down(), b"")
    }

    fn forget_down(&self) -> std::io::Result<()> {
        match self.spool.part(PART)? {
            Some(part) => part.remove(&self.down()),
            None => Ok(()),
        }
    }

    fn is_down(&self) -> bool {
        let part = self.spool.part(PART).ok().flatten();
        let noted = part.and_then(|part| part.read_with_time(&self.down(), 0).ok().flatten());
        let age = noted.and_then(|(_, time)| SystemTime::now().duration_since(time).ok());
        age.is_some_and(|age| age < LEFT_ALONE)
    }
}

impl Mirror {
    /// What tells its debts from those to other stores.
    pub fn id(&self) -> MirrorId {
        MirrorId::of(self.second.store_url())
    }

    /// Takes up what is recorded in `first`.
    ///
    /// # Errors
    /// The store's.
    pub fn read_debts(&self, first: &Repository) -> Result<(), StoreError> {
        let debts = first.debts(self.id())?;
        *lock(&self.known) = debts.into_iter().map(|debt| debt.owed).collect();
        Ok(())
    }

    /// Gives the second store what `first` has as `object`, or notes that it is owed that.
    ///
    /// # Errors
    /// [`Error::NotMirrored`] where the second store must have it and does not; what hinders the note.
    pub fn follow(
        &self,
        first: &Repository,
        file: WalFileName,
        object: &Object,
    ) -> Result<Followed, Error> {
        let owed = Owed::Wal(file);
        if self.mode == MirrorMode::Owed && self.is_left_alone() {
            return self.owe(first, &owed);
        }
        match send(first, &self.bounded(), object) {
            Ok(()) => {
                self.answered();
                Ok(Followed::Now)
            }
            Err(SendError::Source(error)) if self.mode == MirrorMode::Both => Err(error.into()),
            // The first store has it, and it cannot be read there now.
            Err(SendError::Source(error)) => {
                tracing::warn!("{}; the mirror is owed {owed}", output::chain(&error));
                self.owe(first, &owed)
            }
            Err(SendError::Copy(error)) => {
                let error = self.not_mirrored(first, &owed, error);
                if self.mode == MirrorMode::Both {
                    return Err(error);
                }
                tracing::warn!("{}; it is owed", output::chain(&error));
                if error.is_of_the_store() {
                    self.failed();
                }
                self.owe(first, &owed)
            }
        }
    }

    /// The same of a file that is in `first`, in whatever forms.
    ///
    /// # Errors
    /// As [`Mirror::follow`].
    pub fn follow_all(&self, first: &Repository, file: WalFileName) -> Result<Followed, Error> {
        let mut followed = Followed::Now;
        for form in first.wal_forms(file)? {
            if self.follow(first, file, &form.object())? == Followed::Later {
                followed = Followed::Later;
            }
        }
        if let (Followed::Now, WalFileName::Segment(segment)) = (followed, file) {
            self.send_summary(first, segment)?;
        }
        Ok(followed)
    }

    /// Notes that the second store is owed something.
    ///
    /// # Errors
    /// The note can be kept neither in the store nor in the spool.
    pub fn owe(&self, first: &Repository, owed: &Owed) -> Result<Followed, Error> {
        let noted = self.notes.as_ref().map(|notes| notes.add(owed));
        let mut known = lock(&self.known);
        if !known.contains(owed) {
            known.push(owed.clone());
        }
        drop(known);
        let recorded = first.owe(self.id(), owed, self.second.store_url());
        if let Some(Err(error)) = &noted {
            tracing::warn!("that {owed} is owed is not noted in the spool: {error}");
        }
        match recorded {
            Err(error) if matches!(noted, Some(Ok(()))) => {
                tracing::warn!(
                    "that {owed} is owed is noted in the spool only: {}",
                    output::chain(&error)
                );
            }
            recorded => recorded?,
        }
        Ok(Followed::Later)
    }

    /// Pays what is noted on this host of WAL, oldest first, as far as it takes no long time.
    ///
    /// # Errors
    /// Why it was not paid.
    pub fn pay_some(&self, first: &Repository) -> Result<(), Error> {
        let begun = Instant::now();
        let is_over = || self.is_left_alone() || begun.elapsed() > MOST_PAYING;
        let (_, failure) = self.pay_each(first, self.noted(), is_over);
        failure.map_or(Ok(()), Err)
    }

    /// Pays debts of WAL until it is over, or a store fails. What is wrong with one file does not keep the others back. Returns
    /// how many were paid, and the first failure.
    pub fn pay_each(
        &self,
        first: &Repository,
        debts: Vec<Owed>,
        is_over: impl Fn() -> bool,
    ) -> (u64, Option<Error>) {
        let (mut paid, mut failure) = (0, None);
        for owed in debts {
            let Owed::Wal(file) = owed else {
                continue;
            };
            if is_over() {
                break;
            }
            match self.pay(first, file) {
                Ok(()) => paid += 1,
                Err(error) => {
                    tracing::debug!("{file} stays owed: {}", output::chain(&error));
                    let is_stopped = error.is_of_the_store();
                    failure.get_or_insert(error);
                    if is_stopped {
                        break;
                    }
                }
            }
        }
        (paid, failure)
    }

    /// What is known to be owed without a question to the store: WAL first, in its order.
    pub fn noted(&self) -> Vec<Owed> {
        let noted = self.notes.as_ref().map(Notes::all).transpose();
        let noted = noted.inspect_err(|error| {
            tracing::warn!("what the mirror is owed cannot be read in the spool: {error}");
        });
        let mut owed = noted.ok().flatten().unwrap_or_default();
        let known = lock(&self.known);
        owed.extend(
            known
                .iter()
                .filter(|one| !owed.contains(one))
                .cloned()
                .collect::<Vec<_>>(),
        );
        drop(known);
        owed.sort_by_key(ToString::to_string);
        owed
    }

    /// Gives the second store a file that it is owed, compares what it has then, and forgets the debt. So is the debt of what
    /// was deleted.
    ///
    /// # Errors
    /// Why the second store does not have it; [`Error::NotArchived`] where the first store has lost it.
    fn pay(&self, first: &Repository, file: WalFileName) -> Result<(), Error> {
        let forms = first.wal_forms(file)?;
        let is_there = || Ok::<_, Error>(!self.second.wal_forms(file)?.is_empty());
        if forms.is_empty() && !was_deleted(first, file)? && !is_there()? {
            let object = first.layout().wal(file, Packing::NONE);
            let archive = first.url(&object.key);
            return Err(Error::NotArchived { file, archive });
        }
        for object in forms.iter().map(ArchivedFile::object) {
            let second = self.bounded();
            let sent = send(first, &second, &object).and_then(|()| {
                let is_alike = first.is_stored_alike(&object, &second);
                is_alike.map_err(SendError::Copy)
            });
            match sent {
                // Of other bytes it was seen that they hold the same.
                Ok(_) => {}
                Err(SendError::Source(error)) => return Err(error.into()),
                Err(SendError::Copy(error)) => {
                    let error = self.not_mirrored(first, &Owed::Wal(file), error);
                    if error.is_of_the_store() {
                        self.failed();
                    }
                    return Err(error);
                }
            }
        }
        if let WalFileName::Segment(segment) = file {
            self.send_summary(first, segment)?;
        }
        self.answered();
        self.forget(first, &Owed::Wal(file));
        Ok(())
    }

    /// Forgets a debt that is paid.
    pub fn forget(&self, first: &Repository, owed: &Owed) {
        lock(&self.known).retain(|known| known != owed);
        if let Err(error) = first.forget_debt(self.id(), owed) {
            tracing::debug!("the record of a debt that is paid stays: {error}");
        }
        let removed = self.notes.as_ref().map(|notes| notes.remove(owed));
        if let Some(Err(error)) = removed {
            tracing::warn!("the note of a debt that is paid stays: {error}");
        }
    }

    /// The summary of a segment, which can be made again.
    fn send_summary(&self, first: &Repository, segment: SegmentName) -> Result<(), StoreError> {
        for form in first.summary_forms(segment)? {
            match first.send(&form.object(), &self.second, |_| true, || true) {
                Ok(_) => {}
                Err(SendError::Source(error) | SendError::Copy(error)) => {
                    tracing::debug!("{}", output::chain(&error));
                }
            }
        }
        Ok(())
    }

    /// The second store, which does not keep a server waiting for ever that waits for one file.
    fn bounded(&self) -> Repository {
        let Some(most) = self.bound else {
            return self.second.clone();
        };
        let patience = Patience::new(most);
        patience.end_within(most);
        let session = self.second.session().patient(&patience);
        self.second.with_session(&session)
    }

    fn not_mirrored(&self, first: &Repository, owed: &Owed, error: repository::Error) -> Error {
        Error::NotMirrored {
            what: owed.to_string(),
            first: first.store_url().to_owned(),
            second: self.second.store_url().to_owned(),
            source: Box::new(error),
        }
    }

    /// Asks the second store something, to see whether it answers.
    ///
    /// # Errors
    /// The store's. A directory that is not there is none: the first write makes it.
    pub fn must_answer(&self) -> Result<(), StoreError> {
        match self.second.session().folders("") {
            Err(error) if error.kind == ErrorKind::StoreMissing => Ok(()),
            found => found.map(drop),
        }
    }

    /// That this process alone pays what is noted here; `None` while another does.
    pub fn lock(&self) -> Option<Lock> {
        self.notes.as_ref()?.lock().ok().flatten()
    }

    /// Whether the second store failed a moment ago.
    fn is_left_alone(&self) -> bool {
        let failed = *lock(&self.failed);
        failed.is_some_and(|failed| failed.elapsed() < LEFT_ALONE)
            || self.notes.as_ref().is_some_and(Notes::is_down)
    }

    /// The second store failed.
    fn failed(&self) {
        *lock(&self.failed) = Some(Instant::now());
        let noted = self.notes.as_ref().map(Notes::note_down);
        if let Some(Err(error)) = noted {
            tracing::debug!("that the second store is down is not noted: {error}");
        }
    }

    fn answered(&self) {
        let failed = lock(&self.failed).take();
        if failed.is_some()
            && let Some(Err(error)) = self.notes.as_ref().map(Notes::forget_down)
        {
            tracing::debug!("that the second store was down stays noted: {error}");
        }
    }
}
