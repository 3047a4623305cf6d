//! What a deletion must leave, said again as plainly as possible: each rule is a question about one backup, one moment or one
//! segment, and everything is asked of everything.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use walhalla::config::policy::{Counted, Policy};
use walhalla::retention::decide::Request;
use walhalla_postgres::TimelineId;

use crate::life::{BACKUP_STOP, Life};
use crate::world::{Thing, World};

/// The backups that stay, by their places, and whether all WAL stays with each.
pub type Kept = BTreeMap<usize, bool>;

/// The year and the number of a period in it, of the backup at a place.
type PeriodOf<'a> = &'a dyn Fn(usize) -> (i16, i32);

pub struct Model<'a> {
    world: &'a World,
    life: &'a Life,
}

impl<'a> Model<'a> {
    pub fn of(world: &'a World) -> Self {
        Self {
            world,
            life: &world.life,
        }
    }

    /// The backups that stay; `None` where the request must be refused.
    pub fn kept(&self, request: &Request) -> Option<Kept> {
        let all = 0..self.life.backups.len();
        if *request == Request::Everything {
            let is_used = self
                .world
                .users
                .iter()
                .any(|user| user.is_alive && !(user.backups.is_empty() && user.wal.is_none()));
            let is_permanent = all.clone().any(|backup| self.is_permanent(backup));
            return (!is_used && !is_permanent).then(Kept::new);
        }
        let Some(newest) = all
            .clone()
            .filter(|it| self.is_usable(*it))
            .max_by_key(|it| self.age(*it))
        else {
            return Some(all.map(|backup| (backup, true)).collect());
        };
        let mut kept = Kept::new();
        let mut keep = |backup: usize, with_all: bool| {
            let known = kept.entry(backup).or_default();
            *known |= with_all;
        };
        for backup in all.clone() {
            if !matches!(request, Request::Backups(_)) && self.is_base_of_a_branch(backup, newest) {
                keep(backup, true);
            }
            let named = |id: &walhalla::repository::BackupId| self.life.backups[backup].id == *id;
            match request {
                Request::BeforeBackup(id) => {
                    let bound = all
                        .clone()
                        .find(|it| self.life.backups[*it].id == *id)
                        .unwrap();
                    if self.age(backup) >= self.age(bound) {
                        keep(backup, true);
                    }
                }
                Request::Backups(ids) if ids.iter().any(named) => {
                    let child_stays = |it: usize| {
                        self.life.backups[it].parent == Some(backup)
                            && !ids.contains(&self.life.backups[it].id)
                    };
                    if backup == newest
                        || self.is_base_of_a_branch(backup, newest)
                        || self.is_permanent(backup)
                        || self.is_in_use(backup)
                        || all.clone().any(child_stays)
                    {
                        return None;
                    }
                }
                Request::Backups(_) | Request::Garbage | Request::Everything => keep(backup, true),
                Request::Retain(policy) => {
                    if let Some(days) = policy.days {
                        let since =
                            self.world.now - SignedDuration::from_hours(24 * i64::from(days.get()));
                        if self.is_for_moments_since(backup, since) {
                            keep(backup, true);
                        }
                    }
                    if self.is_counted(backup, policy) {
                        keep(backup, true);
                    }
                    if self.is_last_of_a_period(backup, policy) {
                        keep(backup, false);
                    }
                }
                Request::BeforeTime(time) => {
                    if self.is_for_moments_since(backup, *time) {
                        keep(backup, true);
                    }
                }
            }
        }
        keep(newest, true);
        let oldest = kept
            .iter()
            .filter(|(_, all)| **all)
            .map(|(backup, _)| self.age(*backup))
            .min()
            .unwrap();
        for backup in all.clone() {
            let may_be_mended = !self.is_usable(backup) && self.age(backup) > oldest;
            if may_be_mended || self.is_permanent(backup) || self.is_in_use(backup) {
                kept.entry(backup).or_default();
            }
        }
        let stays: Vec<usize> = kept.keys().copied().collect();
        for backup in stays.into_iter().flat_map(|backup| self.chain(backup)) {
            kept.entry(backup).or_default();
        }
        Some(kept)
    }

    /// Whether an object stays.
    pub fn stays(&self, thing: &Thing, kept: &Kept, request: &Request) -> bool {
        match thing {
            Thing::Fixed => true,
            _ if *request == Request::Everything => false,
            Thing::Young | Thing::History(_) => true,
            Thing::Spent => false,
            // Whatever may be mended is left where nothing can be restored.
            Thing::GivenUp => !(0..self.life.backups.len()).any(|backup| self.is_usable(backup)),
            Thing::Backup(backup) => kept.contains_key(backup),
            Thing::Wal(at) => self.wal_stays(*at, kept),
            Thing::Summary(at) => {
                let is_later = |it: &usize| {
                    let (one, other) = (self.life.segments[*it], self.life.segments[*at]);
                    one.timeline == other.timeline && one.number > other.number
                };
                let shows_a_loss = self.world.lost.contains(at);
                let loss_is_plain = self.archived().any(|it| is_later(&it));
                let is_garbage = *request == Request::Garbage && shows_a_loss && loss_is_plain;
                self.wal_stays(*at, kept) && !is_garbage
            }
        }
    }

    fn wal_stays(&self, at: usize, kept: &Kept) -> bool {
        let segment = self.life.segments[at];
        let is_usable = (0..self.life.backups.len()).any(|backup| self.is_usable(backup));
        let needs = |(backup, with_all): (&usize, &bool)| {
            let [start, stop] = [
                self.life.backups[*backup].start,
                self.life.backups[*backup].stop,
            ];
            let own = self.life.segments[start].timeline;
            let is_after_start = segment.timeline == own && at >= start;
            let is_own = is_after_start && at <= stop;
            let comes_after = segment.timeline != own && self.leads_to(*backup, segment.timeline);
            is_own || (*with_all && (is_after_start || comes_after))
        };
        let is_used = self
            .world
            .users
            .iter()
            .filter(|user| user.is_alive)
            .any(|user| {
                user.wal.is_some_and(|(first, last)| {
                    let same = self.life.segments[first].timeline == segment.timeline;
                    same && first <= at && last.is_none_or(|last| at <= last)
                })
            });
        !is_usable || !self.is_known(segment.timeline) || is_used || kept.iter().any(needs)
    }

    /// Whether a backup is what a restore to some moment since `since` begins with, on any timeline that went on after it; and
    /// every backup since then is kept, too.
    fn is_for_moments_since(&self, backup: usize, since: Timestamp) -> bool {
        (self.is_usable(backup) && self.end(backup) > since) || self.is_base(backup, since)
    }

    /// Whether a timeline that went on after the newest backup comes from a backup, and from none that is newer.
    fn is_base_of_a_branch(&self, backup: usize, newest: usize) -> bool {
        self.is_base(backup, self.end(newest))
    }

    /// Whether a restore to `since` begins with a backup, on any timeline that went on after it.
    fn is_base(&self, backup: usize, since: Timestamp) -> bool {
        let is_young = |it: usize| self.end(it) > since;
        let went_on = |timeline: TimelineId| {
            let own = |at: &usize| self.life.segments[*at].timeline == timeline;
            let companions = self.life.backups.iter();
            let archived = self
                .archived()
                .filter(own)
                .map(|at| self.life.archived_time(at));
            let companions = companions
                .filter(|it| own(&it.start))
                .map(|it| self.life.archived_time(it.stop));
            let has_history =
                timeline != TimelineId::FIRST && !self.world.lost_histories.contains(&timeline);
            let history = has_history.then(|| self.life.promoted_time(timeline));
            archived
                .chain(companions)
                .chain(history)
                .any(|time| time > since)
        };
        let timelines = self.life.histories().iter().map(|history| history.timeline);
        let mut lived_on = timelines.filter(|timeline| went_on(*timeline));
        lived_on.any(|timeline| {
            let comes = |it: usize| {
                if self.is_known(timeline) {
                    self.leads_to(it, timeline)
                } else {
                    // It may come from any timeline before it.
                    self.timeline(it) == self.timeline(backup) && self.timeline(it) <= timeline
                }
            };
            let all = (0..self.life.backups.len())
                .filter(|it| self.is_usable(*it) && !is_young(*it) && comes(*it));
            all.max_by_key(|it| self.age(*it)) == Some(backup)
        })
    }

    fn is_counted(&self, backup: usize, policy: &Policy) -> bool {
        let Some(count) = policy.count else {
            return false;
        };
        // Where full ones are counted, a backup counts as the one at the end of its chain.
        let counts_as = |it: usize| match policy.counted {
            Counted::All => it,
            Counted::Full => *self.chain(it).last().unwrap(),
        };
        let usable = (0..self.life.backups.len()).filter(|it| self.is_usable(*it));
        let is_newer = |it: &usize| self.age(*it) > self.age(counts_as(backup));
        let newer: BTreeSet<usize> = usable.map(counts_as).filter(is_newer).collect();
        self.is_usable(backup) && newer.len() < count.get() as usize
    }

    fn is_last_of_a_period(&self, backup: usize, policy: &Policy) -> bool {
        let date = |it: usize| self.end(it).to_zoned(TimeZone::UTC).date();
        let day = |it: usize| (date(it).year(), i32::from(date(it).day_of_year()));
        let week = |it: usize| {
            let week = date(it).iso_week_date();
            (week.year(), i32::from(week.week()))
        };
        let month = |it: usize| (date(it).year(), i32::from(date(it).month()));
        let rules: [(_, PeriodOf); 3] = [
            (policy.daily, &day),
            (policy.weekly, &week),
            (policy.monthly, &month),
        ];
        let usable: Vec<usize> = (0..self.life.backups.len())
            .filter(|it| self.is_usable(*it))
            .collect();
        let is_usable = usable.contains(&backup);
        is_usable
            && rules.into_iter().any(|(number, period)| {
                let same = usable.iter().filter(|it| period(**it) == period(backup));
                let is_last = same.max_by_key(|it| self.age(**it)) == Some(&backup);
                let newer: BTreeSet<_> = usable
                    .iter()
                    .map(|it| period(*it))
                    .filter(|it| *it > period(backup))
                    .collect();
                number.is_some_and(|number| is_last && newer.len() < number.get() as usize)
            })
    }

    /// What a backup stands on, and itself, which comes first.
    fn chain(&self, backup: usize) -> Vec<usize> {
        std::iter::successors(Some(backup), |it| self.life.backups[*it].parent).collect()
    }

    pub fn is_usable(&self, backup: usize) -> bool {
        let own = self.life.backups[backup].start..=self.life.backups[backup].stop;
        let is_whole = self
            .chain(backup)
            .iter()
            .all(|it| !self.world.torn.contains(it));
        is_whole && own.into_iter().all(|at| !self.world.lost.contains(&at))
    }

    fn is_permanent(&self, backup: usize) -> bool {
        (0..self.life.backups.len())
            .any(|it| self.life.backups[it].is_permanent && self.chain(it).contains(&backup))
    }

    fn is_in_use(&self, backup: usize) -> bool {
        let mut users = self.world.users.iter().filter(|user| user.is_alive);
        users.any(|user| user.backups.contains(&backup))
    }

    /// Whether anything tells where a timeline comes from.
    fn is_known(&self, timeline: TimelineId) -> bool {
        let has_backup = (0..self.life.backups.len()).any(|it| self.timeline(it) == timeline);
        has_backup || !self.world.lost_histories.contains(&timeline)
    }

    pub fn leads_to(&self, backup: usize, timeline: TimelineId) -> bool {
        let end = self.life.lsn(self.life.backups[backup].stop, BACKUP_STOP);
        self.is_known(timeline)
            && self
                .life
                .history(timeline)
                .contains(self.timeline(backup), end)
    }

    fn archived(&self) -> impl Iterator<Item = usize> {
        (0..self.life.segments.len()).filter(|at| !self.world.lost.contains(at))
    }

    fn timeline(&self, backup: usize) -> TimelineId {
        self.life.segments[self.life.backups[backup].start].timeline
    }

    pub fn end(&self, backup: usize) -> Timestamp {
        self.life.backup_stop_time(self.life.backups[backup].stop)
    }

    fn age(&self, backup: usize) -> (Timestamp, &walhalla::repository::BackupId) {
        (self.end(backup), &self.life.backups[backup].id)
    }
}
