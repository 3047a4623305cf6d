//! Which backups stay, why, and which WAL stays with them. Nothing here asks the store.
//!
//! ```text
//! backups, timelines, what is in use, now ─▶ request ─▶ the fate of each backup ─▶ the WAL that stays
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use walhalla_postgres::{History, SegmentName, SegmentNo, TimelineId};

use crate::config::policy::{Counted, Policy};
use crate::repository::leases::Needs;
use crate::repository::ranges::{Range, Ranges};
use crate::repository::{BackupEntry, BackupId};

/// What a user wants deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What a policy does not keep.
    Retain(Policy),
    /// What was taken before a backup, which stays.
    BeforeBackup(BackupId),
    /// What is only of use for moments before this one: from here on every moment stays reachable.
    BeforeTime(Timestamp),
    /// These backups.
    Backups(Vec<BackupId>),
    /// No backup: only what nothing can use.
    Garbage,
    /// Every object of the cluster.
    Everything,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retain(policy) => write!(f, "retain {policy}"),
            Self::BeforeBackup(id) => write!(f, "before {id}"),
            Self::BeforeTime(time) => write!(f, "before {time}"),
            Self::Backups(ids) => {
                f.write_str("backup")?;
                ids.iter().try_for_each(|id| write!(f, " {id}"))
            }
            Self::Garbage => f.write_str("garbage"),
            Self::Everything => f.write_str("everything"),
        }
    }
}

/// A backup as a decision sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its entry.
    pub entry: &'a BackupEntry,
    /// Whether it can be restored: its chain, its objects and the WAL that makes it consistent are there.
    pub is_usable: bool,
    /// Whether it stays whatever the rules say.
    pub is_permanent: bool,
}

/// A timeline of which WAL is archived, or was.
#[derive(Clone, Debug)]
pub struct ArchivedTimeline {
    /// Where it comes from, if that is known here.
    pub history: Option<History>,
    /// When the store received the newest of its files.
    pub newest: Timestamp,
}

/// What a decision is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Every backup.
    pub backups: Vec<Candidate<'a>>,
    /// Every timeline of which WAL is archived, or was.
    pub timelines: BTreeMap<TimelineId, ArchivedTimeline>,
    /// What runs now, and what it needs.
    pub in_use: Vec<Needs>,
    /// WAL that earlier deletions said they take.
    pub condemned: Ranges,
    /// The time from which a policy's days count back.
    pub now: Timestamp,
    /// How much WAL goes.
    pub wal: WalThatGoes,
}

/// Which WAL goes that no backup needs to be consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalThatGoes {
    /// What the decision does not promise, between backups too.
    Unpromised,
    /// Only what lies before every backup that stays: nothing can be written that tells of holes that were meant.
    BeforeAll,
}

/// What happens to a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes.
    Goes,
    /// It stays.
    Stays(Stay),
}

/// How a backup stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stay {
    /// Why.
    pub reasons: Vec<Reason>,
    /// How much WAL stays with it.
    pub wal: Extent,
}

/// How much WAL stays with a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// What makes it consistent.
    Consistency,
    /// All from its start on: every moment after it stays reachable.
    Everything,
}

/// Why a backup stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is the newest one that can be restored.
    Newest,
    /// It is within the number that stays.
    Count,
    /// It is needed for a moment of the last days, or after the one that was named.
    Window,
    /// A timeline that went on after the newest one comes from it.
    Branch,
    /// It is the last one of its day.
    Daily,
    /// It is the last one of its week.
    Weekly,
    /// It is the last one of its month.
    Monthly,
    /// It was marked so.
    Permanent,
    /// Something that runs now uses it.
    InUse,
    /// Another backup that stays stands on it.
    Ancestor,
    /// Nobody asked for it to go.
    NotNamed,
    /// It cannot be restored as it is, and is newer than the oldest one that stays: it may be mended.
    Broken,
    /// There is none that can be restored: nothing goes.
    NoneUsable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Newest => "newest",
            Self::Count => "count",
            Self::Window => "window",
            Self::Branch => "a timeline that went on comes from it",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Permanent => "permanent",
            Self::InUse => "in use",
            Self::Ancestor => "a delta stands on it",
            Self::NotNamed => "not named",
            Self::Broken => "cannot be restored, and may be mended",
            Self::NoneUsable => "no backup can be restored",
        })
    }
}

/// Why a request cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such backup.
    #[error("there is no backup {0}")]
    Unknown(BackupId),
    /// Without it the cluster could not be restored at all, or not to any newer moment.
    #[error("backup {0} is the newest one that can be restored")]
    Newest(BackupId),
    /// A timeline that went on after the newest backup could not be restored without it.
    #[error(
        "backup {id} is the newest from which timeline {timeline} can be restored, and that went on after the newest backup of all"
    )]
    Branch {
        /// The backup.
        id: BackupId,
        /// The timeline.
        timeline: u32,
    },
    /// It is permanent, or a permanent one stands on it.
    #[error("backup {0} is permanent")]
    Permanent(BackupId),
    /// Something uses it.
    #[error("backup {id} is in use: {user}")]
    InUse {
        /// The backup.
        id: BackupId,
        /// What uses it.
        user: String,
    },
    /// Something of the cluster is in use.
    #[error("the cluster is in use: {0}")]
    ClusterInUse(String),
    /// A backup that stays stands on it.
    #[error("backup {delta} stands on backup {id}, and was not named")]
    Ancestor {
        /// The backup.
        id: BackupId,
        /// The one that stands on it.
        delta: BackupId,
    },
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Of each backup, in the order of the facts.
    pub fates: Vec<Fate>,
    /// The WAL that stays,
    pub wal: Ranges,
    /// but for this.
    pub condemned: Ranges,
}

impl Fate {
    /// Whether the backup goes.
    pub fn goes(&self) -> bool {
        *self == Self::Goes
    }
}

/// Decides what goes.
///
/// # Errors
/// Why the request cannot be followed.
pub fn decide(facts: &Facts, request: &Request) -> Result<Decision, Refusal> {
    let mut decider = Decider::new(facts);
    if *request == Request::Everything {
        return decider.everything();
    }
    let Some(newest) = decider.newest() else {
        decider.keep_all(Reason::NoneUsable);
        return Ok(Decision {
            fates: decider.fates(),
            wal: Ranges::all(facts.timelines.keys().copied()),
            condemned: Ranges::default(),
        });
    };
    match request {
        Request::Retain(policy) => decider.retain(policy),
        Request::BeforeTime(time) => decider.window_since(*time),
        Request::BeforeBackup(id) => decider.since(id)?,
        Request::Backups(ids) => decider.all_but(ids, newest)?,
        Request::Garbage => decider.keep_all(Reason::NotNamed),
        Request::Everything => {}
    }
    decider.keep(newest, Reason::Newest, Extent::Everything);
    for (base, _) in decider.branches(newest) {
        if base.id != newest.id {
            decider.keep(base, Reason::Branch, Extent::Everything);
        }
    }
    decider.keep_broken();
    decider.keep_permanent_and_used();
    decider.keep_ancestors();
    Ok(decider.decision())
}

/// A decision in the making.
struct Decider<'a> {
    facts: &'a Facts<'a>,
    by_id: BTreeMap<&'a BackupId, &'a BackupEntry>,
    stays: BTreeMap<&'a BackupId, Stay>,
}

/// The first day of a period.
type Period = fn(Date) -> Date;

impl<'a> Decider<'a> {
    fn new(facts: &'a Facts<'a>) -> Self {
        let entries = facts.backups.iter().map(|backup| backup.entry);
        Self {
            facts,
            by_id: entries.map(|entry| (&entry.id, entry)).collect(),
            stays: BTreeMap::new(),
        }
    }

    /// The backups that can be restored.
    fn usable(&self) -> impl Iterator<Item = &'a BackupEntry> + use<'a> {
        let usable = self.facts.backups.iter().filter(|backup| backup.is_usable);
        usable.map(|backup| backup.entry)
    }

    /// The newest backup that can be restored, by time: neither timelines nor positions tell age.
    fn newest(&self) -> Option<&'a BackupEntry> {
        self.usable().max_by_key(|entry| age(entry))
    }

    fn keep(&mut self, entry: &'a BackupEntry, reason: Reason, wal: Extent) {
        let stay = self.stays.entry(&entry.id).or_insert(Stay {
            reasons: Vec::new(),
            wal,
        });
        stay.wal = stay.wal.max(wal);
        if !stay.reasons.contains(&reason) {
            stay.reasons.push(reason);
        }
    }

    fn keep_all(&mut self, reason: Reason) {
        for backup in &self.facts.backups {
            self.keep(backup.entry, reason, Extent::Everything);
        }
    }

    fn retain(&mut self, policy: &Policy) {
        if let Some(count) = policy.count {
            self.keep_newest(count.get() as usize, policy.counted);
        }
        if let Some(days) = policy.days {
            let window = SignedDuration::from_hours(24 * i64::from(days.get()));
            // A window that reaches back before all time holds everything.
            let since = self.facts.now.checked_sub(window).unwrap_or(Timestamp::MIN);
            self.window_since(since);
        }
        self.keep_last_of_each(policy.daily, Reason::Daily, |date| date);
        self.keep_last_of_each(policy.weekly, Reason::Weekly, monday);
        self.keep_last_of_each(policy.monthly, Reason::Monthly, Date::first_of_month);
    }

    /// Keeps the newest `count`; where full ones are counted, each with what stands on it.
    fn keep_newest(&mut self, count: usize, counted: Counted) {
        let counts_as = |entry: &'a BackupEntry| match counted {
            Counted::All => entry,
            Counted::Full => self.root(entry),
        };
        let units: Vec<_> = { self.usable() }
            .map(|entry| (age(counts_as(entry)), entry))
            .collect();
        let newest_first: BTreeSet<_> = units.iter().map(|(unit, _)| Reverse(*unit)).collect();
        let counted: BTreeSet<_> = newest_first.into_iter().take(count).collect();
        for (unit, entry) in units {
            if counted.contains(&Reverse(unit)) {
                self.keep(entry, Reason::Count, Extent::Everything);
            }
        }
    }

    /// The full backup at the end of the chain of one that can be restored.
    fn root(&self, entry: &'a BackupEntry) -> &'a BackupEntry {
        let parent = |entry: &&'a BackupEntry| self.parent(entry);
        std::iter::successors(Some(entry), parent)
            .last()
            .unwrap_or(entry)
    }

    fn parent(&self, entry: &BackupEntry) -> Option<&'a BackupEntry> {
        self.by_id.get(entry.parent.as_ref()?).copied()
    }

    /// Keeps what it takes to reach every moment since `since`, on each timeline that went on after it.
    fn window_since(&mut self, since: Timestamp) {
        for entry in self.usable().filter(|entry| entry.data_end() > since) {
            self.keep(entry, Reason::Window, Extent::Everything);
        }
        for (base, _) in self.bases_of_those_that_went_on(since) {
            self.keep(base, Reason::Window, Extent::Everything);
        }
    }

    /// The backups without which a timeline that went on after the newest backup could not be restored. A server that was restored
    /// to the past, and promoted, may have no backup of its own yet.
    fn branches(&self, newest: &BackupEntry) -> Vec<(&'a BackupEntry, TimelineId)> {
        self.bases_of_those_that_went_on(newest.data_end())
    }

    /// Of each timeline that went on after `since`, with what its recovery to that moment begins.
    fn bases_of_those_that_went_on(&self, since: Timestamp) -> Vec<(&'a BackupEntry, TimelineId)> {
        let went_on = self.facts.timelines.iter();
        let went_on = went_on.filter(|(_, timeline)| timeline.newest > since);
        went_on
            .flat_map(|(id, timeline)| {
                let bases = self.bases(*id, timeline.history.as_ref(), since);
                bases.into_iter().map(|base| (base, *id))
            })
            .collect()
    }

    /// The newest backup before `since` from which recovery comes to a timeline. Where nothing tells where the timeline comes
    /// from, it may be any lower one.
    fn bases(
        &self,
        id: TimelineId,
        history: Option<&History>,
        since: Timestamp,
    ) -> Vec<&'a BackupEntry> {
        let mut newest: BTreeMap<TimelineId, &'a BackupEntry> = BTreeMap::new();
        for entry in self.usable().filter(|entry| entry.data_end() <= since) {
            let (leads_there, line) = match history {
                Some(history) => (entry.leads_to(history), id),
                None => (entry.timeline <= id, entry.timeline),
            };
            if leads_there {
                let known = newest.entry(line).or_insert(entry);
                *known = later(known, entry);
            }
        }
        newest.into_values().collect()
    }

    /// Keeps the last backup of each of the newest `number` periods that have one.
    fn keep_last_of_each(&mut self, number: Option<NonZeroU32>, reason: Reason, period: Period) {
        let Some(number) = number else {
            return;
        };
        let mut last: BTreeMap<Date, &'a BackupEntry> = BTreeMap::new();
        for entry in self.usable() {
            let date = entry.data_end().to_zoned(TimeZone::UTC).date();
            let known = last.entry(period(date)).or_insert(entry);
            *known = later(known, entry);
        }
        for entry in last.into_values().rev().take(number.get() as usize) {
            self.keep(entry, reason, Extent::Consistency);
        }
    }

    /// Keeps a backup and all that are not older.
    fn since(&mut self, id: &BackupId) -> Result<(), Refusal> {
        let since = age(self.named(id)?.entry);
        for backup in &self.facts.backups {
            if age(backup.entry) >= since {
                self.keep(backup.entry, Reason::NotNamed, Extent::Everything);
            }
        }
        Ok(())
    }

    /// Keeps all but these, if they may go.
    fn all_but(&mut self, ids: &[BackupId], newest: &BackupEntry) -> Result<(), Refusal> {
        for id in ids {
            self.must_be_free(id, newest)?;
        }
        for backup in &self.facts.backups {
            if ids.contains(&backup.entry.id) {
                continue;
            }
            let parent = backup.entry.parent.as_ref();
            if let Some(parent) = parent.filter(|parent| ids.contains(parent)) {
                let (id, delta) = (parent.clone(), backup.entry.id.clone());
                return Err(Refusal::Ancestor { id, delta });
            }
            self.keep(backup.entry, Reason::NotNamed, Extent::Everything);
        }
        Ok(())
    }

    /// Refuses to delete a backup without which something would be lost.
    fn must_be_free(&self, id: &BackupId, newest: &BackupEntry) -> Result<(), Refusal> {
        if self.named(id)?.is_permanent {
            return Err(Refusal::Permanent(id.clone()));
        }
        let mut users = self.facts.in_use.iter();
        if let Some(needs) = users.find(|needs| needs.backups.contains(id)) {
            let (id, user) = (id.clone(), needs.user.clone());
            return Err(Refusal::InUse { id, user });
        }
        if *id == newest.id {
            return Err(Refusal::Newest(id.clone()));
        }
        let mut branches = self.branches(newest).into_iter();
        match branches.find(|(base, _)| base.id == *id) {
            Some((_, timeline)) => Err(Refusal::Branch {
                id: id.clone(),
                timeline: timeline.number(),
            }),
            None => Ok(()),
        }
    }

    fn named(&self, id: &BackupId) -> Result<&'a Candidate<'a>, Refusal> {
        let mut backups = self.facts.backups.iter();
        let found = backups.find(|backup| backup.entry.id == *id);
        found.ok_or_else(|| Refusal::Unknown(id.clone()))
    }

    /// Keeps what cannot be restored and is newer than the oldest backup of which all WAL stays.
    fn keep_broken(&mut self) {
        let with_all_wal = self.stays.iter();
        let with_all_wal = with_all_wal.filter(|(_, stay)| stay.wal == Extent::Everything);
        let entries = with_all_wal.filter_map(|(id, _)| self.by_id.get(id));
        let Some(oldest) = entries.map(|entry| age(entry)).min() else {
            return;
        };
        for backup in &self.facts.backups {
            if !backup.is_usable && age(backup.entry) > oldest {
                self.keep(backup.entry, Reason::Broken, Extent::Consistency);
            }
        }
    }

    fn keep_permanent_and_used(&mut self) {
        let used = self.facts.in_use.iter().flat_map(|needs| &needs.backups);
        let used: BTreeSet<&BackupId> = used.collect();
        for backup in &self.facts.backups {
            if backup.is_permanent {
                self.keep(backup.entry, Reason::Permanent, Extent::Consistency);
            }
            if used.contains(&backup.entry.id) {
                self.keep(backup.entry, Reason::InUse, Extent::Consistency);
            }
        }
    }

    /// Keeps what stands below what stays.
    fn keep_ancestors(&mut self) {
        let mut children: Vec<&'a BackupEntry> = { self.stays.keys() }
            .filter_map(|id| self.by_id.get(id).copied())
            .collect();
        while let Some(child) = children.pop() {
            let Some(parent) = self.parent(child) else {
                continue;
            };
            if !self.stays.contains_key(&parent.id) {
                children.push(parent);
            }
            self.keep(parent, Reason::Ancestor, Extent::Consistency);
        }
    }

    fn fates(&self) -> Vec<Fate> {
        let backups = self.facts.backups.iter();
        backups
            .map(|backup| match self.stays.get(&backup.entry.id) {
                Some(stay) => Fate::Stays(stay.clone()),
                None => Fate::Goes,
            })
            .collect()
    }

    fn decision(mut self) -> Decision {
        if self.facts.wal == WalThatGoes::BeforeAll {
            for stay in self.stays.values_mut() {
                stay.wal = Extent::Everything;
            }
        }
        let mut wal = Ranges::default();
        for (id, stay) in &self.stays {
            if let Some(entry) = self.by_id.get(id) {
                self.keep_wal(entry, stay.wal, &mut wal);
            }
        }
        let condemned = self.keep_wal_of_unknown(&mut wal);
        for range in self.facts.in_use.iter().flat_map(|needs| &needs.wal) {
            wal.add(range.first.timeline, Range::of(range.first, range.last));
        }
        Decision {
            fates: self.fates(),
            wal,
            condemned,
        }
    }

    fn keep_wal(&self, entry: &BackupEntry, extent: Extent, wal: &mut Ranges) {
        let (first, last) = own_wal(entry);
        if extent == Extent::Consistency {
            wal.add(entry.timeline, Range::through(first, last));
            return;
        }
        wal.add(entry.timeline, Range::since(first));
        for (id, timeline) in &self.facts.timelines {
            let history = timeline.history.as_ref();
            let leads_there = history.is_some_and(|history| entry.leads_to(history));
            if *id != entry.timeline && leads_there {
                wal.add(*id, Range::ALL);
            }
        }
    }

    /// Keeps the WAL of timelines of which nothing tells where they come from: any backup may need it. Returns what goes of it all
    /// the same, as an earlier deletion, which knew more, began to take it.
    fn keep_wal_of_unknown(&self, wal: &mut Ranges) -> Ranges {
        let mut condemned = Ranges::default();
        let timelines = self.facts.timelines.iter();
        for (id, _) in timelines.filter(|(_, timeline)| timeline.history.is_none()) {
            wal.add(*id, Range::ALL);
            let earlier = self.facts.condemned.iter();
            let earlier = earlier.filter(|(timeline, _)| timeline == id);
            earlier.for_each(|(timeline, range)| condemned.add(timeline, *range));
        }
        let mut used = self.facts.in_use.iter().flat_map(|needs| &needs.wal);
        if used.any(|wal| condemned.meets(wal.first, wal.last)) {
            return Ranges::default();
        }
        condemned
    }

    fn everything(self) -> Result<Decision, Refusal> {
        let mut backups = self.facts.backups.iter();
        if let Some(backup) = backups.find(|backup| backup.is_permanent) {
            return Err(Refusal::Permanent(backup.entry.id.clone()));
        }
        // A deletion itself needs nothing.
        let mut users = self.facts.in_use.iter();
        if let Some(needs) = users.find(|needs| !needs.is_empty()) {
            return Err(Refusal::ClusterInUse(needs.user.clone()));
        }
        Ok(Decision {
            fates: self.fates(),
            wal: Ranges::default(),
            condemned: Ranges::default(),
        })
    }
}

/// The one of two backups that ends later.
fn later<'a>(one: &'a BackupEntry, other: &'a BackupEntry) -> &'a BackupEntry {
    if (other.data_end(), &other.id) > (one.data_end(), &one.id) {
        other
    } else {
        one
    }
}

/// The first and the last segment of the WAL that makes a backup consistent.
pub(super) fn own_wal(entry: &BackupEntry) -> (SegmentName, SegmentName) {
    let size = entry.wal_segment_size;
    let on_timeline = |number: SegmentNo| number.on(entry.timeline, size);
    let last = size.segment_before(entry.stop_lsn);
    (
        on_timeline(size.segment_of(entry.start_lsn)),
        on_timeline(last),
    )
}

/// What tells of two backups which one is older.
fn age(entry: &BackupEntry) -> (Timestamp, &BackupId) {
    (entry.stop_time, &entry.id)
}

/// The Monday of a date's week.
fn monday(date: Date) -> Date {
    let days = i64::from(date.weekday().to_monday_zero_offset());
    date.saturating_sub(jiff::Span::new().days(days))
}
