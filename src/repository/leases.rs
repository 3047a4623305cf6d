//! Leases: what runs now, and what it needs of the store, so that no deletion takes that away.
//!
//! ```text
//! <system identifier>/leases/<run>/NNNNN.json     created once each two minutes; the one with the greatest number counts
//! ```
//!
//! A lease ends when its objects are removed, or when none was added for the time that the last one gives, by the store's
//! clock. Whoever uses objects writes the lease first and then looks whether they are still there and stay; a deletion says
//! first what goes and then looks for leases. So one of the two sees the other.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use walhalla_postgres::SegmentName;
use walhalla_providers::{Error as StoreError, ErrorKind, ObjectInfo, ObjectKey, PutMode};

use super::entry::BackupId;
use super::layout::{Key, RunId};
use super::{Error, ObjectError, Repository};
use crate::threads::lock;

/// The format of a lease's content.
const FORMAT: u32 = 1;
/// How often a lease is renewed.
const RENEWED_EACH: Duration = Duration::from_mins(2);
/// How long a renewal is tried, and the removal of a lease, for which a command that has ended waits.
const RENEWING: Duration = Duration::from_mins(1);
const REMOVING: Duration = Duration::from_secs(10);
/// For how long a lease holds that is not renewed.
pub const HOLDS_FOR: Duration = Duration::from_mins(15);
/// The longest time for which any lease may hold; an older one is not read.
const HOLDS_AT_MOST: SignedDuration = SignedDuration::from_hours(48);
/// Longest lease that is read: it names a chain and some ranges.
const LEASE_LIMIT_BYTES: u64 = 1 << 20;
/// Leases that are read at the same time.
const READ_AT_A_TIME: usize = 16;
/// How often leases are listed that come and go.
const MOST_ATTEMPTS: u32 = 16;
/// What a lease is called in messages.
const LEASE: &str = "lease";

/// What somebody uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Who: a command, its host and its process.
    pub user: String,
    /// Backups.
    pub backups: Vec<BackupId>,
    /// WAL.
    pub wal: Vec<NeededWal>,
    /// The backup that it makes.
    pub makes: Option<BackupId>,
}

/// Segments of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeededWal {
    /// The first one.
    pub first: SegmentName,
    /// The last one; all that come where there is none.
    pub last: Option<SegmentName>,
}

/// What a lease's object holds.
#[derive(Serialize, Deserialize)]
struct Content {
    format: u32,
    #[serde(flatten)]
    needs: Needs,
    /// For how long it holds if it is not renewed.
    holds_for_seconds: u64,
    walhalla_version: String,
}

/// A lease that somebody else holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// Whose.
    pub run: RunId,
    /// What it is for.
    pub needs: Needs,
}

/// The leases in the store.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    /// Those that hold.
    pub held: Vec<HeldLease>,
    /// Objects of those that do not, and the earlier ones of those that do.
    pub spent: Vec<ObjectKey>,
}

impl Leases {
    /// Whether somebody makes a backup under this id.
    pub fn makes(&self, id: &BackupId) -> bool {
        let mut needs = self.held.iter().map(|lease| &lease.needs);
        needs.any(|needs| needs.makes.as_ref() == Some(id))
    }
}

impl Needs {
    /// What a command of this process needs.
    pub fn of(command: &str, backups: Vec<BackupId>, wal: Vec<NeededWal>) -> Self {
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy();
        let user = format!("{command} on {host}, process {}", std::process::id());
        Self {
            user,
            backups,
            wal,
            makes: None,
        }
    }

    /// Whether nothing is needed.
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty() && self.wal.is_empty() && self.makes.is_none()
    }
}

/// When a lease was renewed.
#[derive(Clone, Copy, Debug)]
struct Renewed {
    /// Last, since the machine started, whether it slept or not.
    last: Duration,
    /// Whether it lay dead between two times.
    lapsed: bool,
}

impl Renewed {
    fn at(&mut self, time: Duration) {
        self.lapsed |= time.saturating_sub(self.last) > HOLDS_FOR;
        self.last = time;
    }
}

/// A lease of this process's. It is renewed until it is dropped.
#[derive(Debug)]
pub struct Lease {
    run: RunId,
    renewed: Arc<Mutex<Renewed>>,
    end: Option<Sender<()>>,
    renewing: Option<JoinHandle<()>>,
}

impl Lease {
    /// Whose it is.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// How long ago it was renewed last.
    pub fn age(&self) -> Duration {
        uptime().saturating_sub(lock(&self.renewed).last)
    }

    /// Whether it held from its begin until now.
    pub fn has_held(&self) -> bool {
        !lock(&self.renewed).lapsed && self.age() < HOLDS_FOR
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The thread hears that nobody holds the other end any more.
        drop(self.end.take());
        if let Some(renewing) = self.renewing.take() {
            drop(renewing.join());
        }
    }
}

/// The objects of a lease, one after the other.
struct Renewal {
    repository: Repository,
    run: RunId,
    needs: Needs,
    number: u32,
    renewed: Arc<Mutex<Renewed>>,
}

impl Renewal {
    /// Adds the next object, and removes the one before where that is allowed.
    fn renew(&mut self) -> Result<(), StoreError> {
        let begun = uptime();
        self.put(HOLDS_FOR)?;
        lock(&self.renewed).at(begun);
        if self.number > 1 {
            drop(self.remove(self.number - 1));
        }
        Ok(())
    }

    fn put(&mut self, holds_for: Duration) -> Result<(), StoreError> {
        let session = self.repository.session().within(RENEWING);
        let next = self.key(self.number + 1);
        let content = content(self.needs.clone(), holds_for);
        match session.put(&next, content.into(), PutMode::Create) {
            // It was stored, and the answer was lost.
            Err(error) if error.kind == ErrorKind::AlreadyExists => {}
            put => put?,
        }
        self.number += 1;
        Ok(())
    }

    fn remove(&self, number: u32) -> Result<(), StoreError> {
        self.repository.within(REMOVING).remove(&[self.key(number)])
    }

    fn key(&self, number: u32) -> ObjectKey {
        self.repository.layout.key(&Key::Lease(self.run, number))
    }

    /// Renews it until nobody holds the other end of `ended`.
    fn run(mut self, ended: &mpsc::Receiver<()>) {
        while ended.recv_timeout(RENEWED_EACH) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = self.renew() {
                tracing::warn!(
                    "what is used here may be deleted if this goes on for long: {error}"
                );
            }
        }
        // Whoever may not delete says that it has ended.
        if self.remove(self.number).is_err()
            && let Err(error) = self.put(Duration::ZERO)
        {
            tracing::debug!("a lease stays until it ends by itself: {error}");
        }
    }
}

/// The time since the machine started, in which it may have slept.
fn uptime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

impl Repository {
    /// Takes a lease. `None` where the store takes none, because this user may not write or there is no room: nothing is guarded
    /// then.
    ///
    /// # Errors
    /// The store's.
    pub fn lease(&self, run: RunId, needs: Needs) -> Result<Option<Lease>, StoreError> {
        let renewed = Arc::new(Mutex::new(Renewed {
            last: uptime(),
            lapsed: false,
        }));
        let mut renewal = Renewal {
            repository: self.clone(),
            run,
            needs,
            number: 0,
            renewed: Arc::clone(&renewed),
        };
        match renewal.renew() {
            Err(error)
                if matches!(error.kind, ErrorKind::PermissionDenied | ErrorKind::NoSpace) =>
            {
                tracing::debug!("no lease is taken: {error}");
                return Ok(None);
            }
            renewed => renewed?,
        }
        let (end, ended) = mpsc::channel();
        let renewing = thread::spawn(move || renewal.run(&ended));
        Ok(Some(Lease {
            run,
            renewed,
            end: Some(end),
            renewing: Some(renewing),
        }))
    }

    /// Leaves a lease behind that holds for a time and is not renewed.
    ///
    /// # Errors
    /// The store's.
    pub fn leave_lease(&self, needs: Needs, holds_for: Duration) -> Result<(), StoreError> {
        let key = self.layout.key(&Key::Lease(RunId::random(), 1));
        let content = content(needs, holds_for);
        self.session.put(&key, content.into(), PutMode::Create)
    }

    /// The leases in the store at `now`, by the store's clock.
    ///
    /// # Errors
    /// The store's; [`Error::Unknown`] for what cannot be read: nobody knows what it guards.
    pub fn leases(&self, now: Timestamp) -> Result<Leases, Error> {
        let mut attempts = 1..MOST_ATTEMPTS;
        loop {
            match self.leases_once(now) {
                // One ended or was renewed after it was listed.
                Err(Error::Object(ObjectError::Store(error)))
                    if error.is_not_found() && attempts.next().is_some() => {}
                leases => return leases,
            }
        }
    }

    fn leases_once(&self, now: Timestamp) -> Result<Leases, Error> {
        let mut leases = Leases::default();
        let mut newest: BTreeMap<RunId, (u32, ObjectInfo)> = BTreeMap::new();
        for info in self.session.list(&self.layout.leases(), None)? {
            let Key::Lease(run, number) = self.layout.parse(&info.key) else {
                return Err(self.unknown(&info.key, LEASE, "its name is none of this version's"));
            };
            // Numbers have more digits from some day on, so that the last one listed need not be the greatest.
            let is_newer = newest.get(&run).is_none_or(|known| known.0 < number);
            let older = if is_newer {
                newest.insert(run, (number, info))
            } else {
                Some((number, info))
            };
            leases.spent.extend(older.map(|(_, info)| info.key));
        }
        let is_old = |info: &ObjectInfo| now.duration_since(info.modified) > HOLDS_AT_MOST;
        let (old, newest): (Vec<_>, Vec<_>) =
            { newest.into_iter() }.partition(|(_, (_, info))| is_old(info));
        leases
            .spent
            .extend(old.into_iter().map(|(_, (_, info))| info.key));
        let keys = newest.iter().map(|(_, (_, info))| info.key.clone());
        let texts = self
            .session
            .get_all(keys, LEASE_LIMIT_BYTES, READ_AT_A_TIME);
        for ((run, (_, info)), text) in newest.into_iter().zip(texts) {
            let content = self.lease_content(&info.key, &text?)?;
            let holds_for =
                SignedDuration::try_from(Duration::from_secs(content.holds_for_seconds));
            // What ended by itself holds for no time.
            let is_over = |holds_for| now.duration_since(info.modified) > holds_for;
            if content.holds_for_seconds == 0 || holds_for.is_ok_and(is_over) {
                leases.spent.push(info.key);
            } else {
                let needs = content.needs;
                leases.held.push(HeldLease { run, needs });
            }
        }
        Ok(leases)
    }

    /// Whether the lease of a run holds at `now`. One that cannot be read does as long as a usual one would.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn lease_holds(&self, run: RunId, now: Timestamp) -> Result<bool, StoreError> {
        let found = self.session.list(&self.layout.lease_folder(run), None)?;
        let Some(newest) = found.into_iter().max_by_key(|info| info.modified) else {
            return Ok(false);
        };
        let text = match self.session.get(&newest.key, LEASE_LIMIT_BYTES) {
            Err(error) if error.is_not_found() => return Ok(false),
            text => text?,
        };
        let content = self.lease_content(&newest.key, &text);
        let seconds = content.map_or(HOLDS_FOR.as_secs(), |content| content.holds_for_seconds);
        let holds_for = SignedDuration::try_from(Duration::from_secs(seconds));
        let is_held = |holds_for| now.duration_since(newest.modified) <= holds_for;
        Ok(seconds > 0 && holds_for.is_ok_and(is_held))
    }

    fn lease_content(&self, key: &ObjectKey, text: &[u8]) -> Result<Content, Error> {
        let content: Content =
            serde_json::from_slice(text).map_err(|error| self.unknown(key, LEASE, error))?;
        if content.format > FORMAT {
            let reason = format!("it has the format {}", content.format);
            return Err(self.unknown(key, LEASE, reason));
        }
        Ok(content)
    }
}

fn content(needs: Needs, holds_for: Duration) -> String {
    let content = Content {
        format: FORMAT,
        needs,
        holds_for_seconds: holds_for.as_secs(),
        walhalla_version: crate::VERSION.to_owned(),
    };
    let json = serde_json::to_string(&content).expect("ids, names and numbers are JSON");
    format!("{json}\n")
}
