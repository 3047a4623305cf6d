//! Choosing backup, timeline and segments.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use jiff::Timestamp;
use walhalla_postgres::summary::{Note, Transaction};
use walhalla_postgres::wal::event::{Event, Outcome};
use walhalla_postgres::wal::text::ServerText;
use walhalla_postgres::{History, Limits, Lsn, SegmentName, SegmentNo, TimelineId, WalFileName};

use super::Error;
use super::branches;
use super::hint::Hint;
use super::plan::{NewTablespace, Plan, Unreachable};
use super::reach::{Found, Place as WalPlace, Search, Seen};
use super::target::{Bound, Point, Target, TargetTimeline};
use crate::repository::backups::Place;
use crate::repository::{ArchivedFile, BackupEntry, Catalog, Repository};
use crate::wal;
use crate::wal::archive::{Archive, Examined, Facts, Needed, Reading, Route};
use crate::wal::proof::Proof;

/// Everything the choice is made from.
pub(super) struct Planner<'a> {
    archive: &'a Archive<'a>,
    /// All backups, of which `backups` may be the start.
    catalog: &'a Catalog,
    repository: &'a Repository,
    target: &'a Target,
    backups: &'a [BackupEntry],
    /// Whether the user named the backup.
    is_chosen: bool,
    /// Whether what can be reached instead is told; not of a plan that only answers whether a hint holds.
    gives_hints: bool,
    search: Option<Search<'a>>,
}

/// Plans a restore to `target`, from the backup `chosen` or the best one.
///
/// # Errors
/// [`Error::Unreachable`] with the reason and the nearest point that can be reached.
pub fn plan(
    repository: &Repository,
    target: &Target,
    chosen: Option<&str>,
    reading: Reading,
) -> Result<Plan, Error> {
    let catalog = repository.catalog()?;
    let all = catalog.usable();
    let archive = Archive::new(repository, &all, reading)?;
    let backups = match chosen {
        Some(id) => {
            let chosen = repository.named_backup(&catalog, id)?;
            catalog.whole_chain(&chosen.id)?;
            vec![chosen.clone()]
        }
        None => all,
    };
    Planner::new(&archive, &catalog, target, &backups, chosen.is_some()).plan()
}

/// What one backup and the WAL after it offer.
enum Offer<'a> {
    Reaches(Box<Plan>),
    /// Not from here.
    Falls(Falls<'a>),
}

/// Why a backup does not lead to the target.
enum Falls<'a> {
    /// For this reason.
    Reason(Unreachable),
    /// It is not whole itself, so that an older one may do.
    Broken(Unreachable),
    /// The target is there, and was rolled back; of all reasons the best.
    RolledBack(Unreachable),
    /// The target is nowhere on the way. What else is there is known when every backup was tried.
    NotFound(Way<'a>),
}

/// Where recovery from a backup goes to.
#[derive(Clone)]
struct Way<'a> {
    backup: &'a BackupEntry,
    history: &'a History,
    route: Route,
    /// The segment that makes the backup consistent.
    consistent: SegmentNo,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        archive: &'a Archive<'a>,
        catalog: &'a Catalog,
        target: &'a Target,
        backups: &'a [BackupEntry],
        is_chosen: bool,
    ) -> Self {
        let size = backups.first().map(|backup| backup.wal_segment_size);
        Self {
            archive,
            catalog,
            repository: archive.repository,
            target,
            backups,
            is_chosen,
            gives_hints: true,
            search: size.map(|size| Search::new(archive, target, size)),
        }
    }

    pub(super) fn plan(mut self) -> Result<Plan, Error> {
        if self.backups.is_empty() {
            let store = self.repository.store.url();
            return Err(Unreachable::because(format!("{store} holds no backup")).into());
        }
        let mut refusal: Option<Falls> = None;
        let mut named: BTreeSet<(Lsn, Timestamp)> = BTreeSet::new();
        let (mut reaching, mut left_out) = (None, None);
        for backup in self.candidates() {
            let Some(history) = branches::followed(self.archive, backup, self.target.timeline)?
            else {
                continue;
            };
            if let Some(left) = self.passed_over(history, backup)? {
                left_out.get_or_insert(left);
                continue;
            }
            let mut goes_on = self.older_may_do();
            let offer = match self.offer(backup, history, &mut named) {
                // A name may be there twice, in WAL that cannot be read; one place of it is known.
                Err(Error::Wal(error)) if reaching.is_some() && error.is_damage() => {
                    tracing::warn!("{error}; older WAL is not searched for another such name");
                    break;
                }
                offer => offer?,
            };
            match offer {
                Offer::Reaches(plan) if self.looks_on() => _ = reaching.get_or_insert(*plan),
                Offer::Reaches(plan) => return Ok(*plan),
                Offer::Falls(falls) => {
                    if let Falls::Broken(broken) = &falls {
                        tracing::warn!("{}; backup {} is passed over", broken.reason, backup.id);
                    }
                    goes_on |= matches!(falls, Falls::Broken(_));
                    if refusal.as_ref().is_none_or(|known| falls.outdoes(known)) {
                        refusal = Some(falls);
                    }
                }
            }
            if !goes_on {
                break;
            }
        }
        if let Some(plan) = reaching {
            return self.only(plan, &named);
        }
        let refusal = refusal.map(|falls| self.told(falls)).transpose()?;
        let refusal = refusal.or(left_out);
        match refusal {
            Some(refusal) => Err(refusal.into()),
            None => Err(self.no_candidate()?.into()),
        }
    }

    /// Backups in the order in which they are tried: the newest first of those that end before the target for all that
    /// the catalog tells.
    fn candidates(&self) -> Vec<&'a BackupEntry> {
        let mut backups: Vec<_> = self
            .backups
            .iter()
            .filter(|backup| self.may_end_before_target(backup))
            .collect();
        // Of a delta and the full backup that was merged out of its chain, the full one.
        backups.sort_by(|a, b| (b.stop_time, &b.id).cmp(&(a.stop_time, &a.id)));
        backups
    }

    /// Whether an older backup may reach what a newer one does not: a point that the catalog cannot place for sure, and
    /// one that may be on the older one's timeline, where backups are on several.
    fn older_may_do(&self) -> bool {
        match self.target.point {
            Point::Name(_) | Point::Xid(_) | Point::Time(_) | Point::Lsn(_) => true,
            Point::End | Point::Immediate => false,
        }
    }

    /// Whether older backups are looked at although one reaches the target: a name may be there twice.
    fn looks_on(&self) -> bool {
        matches!(self.target.point, Point::Name(_))
    }

    /// The plan for a name, if only one restore point has it.
    fn only(&self, plan: Plan, named: &BTreeSet<(Lsn, Timestamp)>) -> Result<Plan, Error> {
        if named.len() < 2 {
            return Ok(plan);
        }
        let places: Vec<String> = named
            .iter()
            .map(|(lsn, time)| format!("{lsn} ({time})"))
            .collect();
        let last = named.last().map(|(lsn, _)| *lsn);
        Err(Unreachable {
            reason: format!(
                "{} restore points have the name: at {}",
                named.len(),
                places.join(", at ")
            ),
            nearest: self.hint(last.map(|lsn| Hint::of(Point::Lsn(lsn))))?,
        }
        .into())
    }

    /// Why `latest` does not begin with `backup`, if it does not: its branch ended before another one did.
    fn passed_over(
        &self,
        history: &History,
        backup: &BackupEntry,
    ) -> Result<Option<Unreachable>, Error> {
        let is_free = self.target.timeline == TargetTimeline::Latest && !self.is_chosen;
        let left_for = is_free
            .then(|| branches::left_for(self.archive, history, backup))
            .transpose()?;
        let (own, id) = (history.timeline.number(), &backup.id);
        let Some(other) = left_for.flatten() else {
            return Ok(None);
        };
        let there = Hint::of(self.target.point.clone()).on(history.timeline);
        let is_reached = self.is_reached(&there)?;
        Ok(Some(Unreachable {
            reason: format!(
                "timeline {} went on after timeline {own} had ended, and no backup leads to it; {id} is one of the branch \
                 that was left",
                other.number()
            ),
            nearest: is_reached.then(|| format!("--target-timeline {own}")),
        }))
    }

    fn may_end_before_target(&self, backup: &BackupEntry) -> bool {
        match &self.target.point {
            Point::End | Point::Immediate | Point::Name(_) => true,
            // What was committed between an earlier time and the backup's end is in its files, whatever PostgreSQL stops at.
            Point::Time(time) => backup.data_end() <= *time,
            Point::Lsn(lsn) => backup.stop_lsn <= *lsn,
            Point::Xid(xid) => ends_after(&backup.stop_snapshot, *xid),
        }
    }

    fn no_candidate(&self) -> Result<Unreachable, Error> {
        let leads = |backup: &&BackupEntry| {
            let followed = branches::followed(self.archive, backup, self.target.timeline);
            followed.is_ok_and(|history| history.is_some())
        };
        let backups = self.backups.iter().filter(leads);
        match backups.min_by_key(|backup| backup.stop_lsn) {
            Some(oldest) => self.before(oldest),
            None => Ok(Unreachable::because(
                "no backup leads to this timeline".to_owned(),
            )),
        }
    }

    /// The target lies before the end of `backup`.
    fn before(&self, backup: &BackupEntry) -> Result<Unreachable, Error> {
        Ok(Unreachable {
            reason: format!(
                "{} is before the end of backup {}, {} ({}), and no older backup leads there",
                self.target.point,
                backup.id,
                backup.stop_lsn,
                backup.data_end()
            ),
            nearest: self.hint([Hint::end_of(backup)])?,
        })
    }

    fn offer(
        &mut self,
        backup: &'a BackupEntry,
        history: &'a History,
        named: &mut BTreeSet<(Lsn, Timestamp)>,
    ) -> Result<Offer<'a>, Error> {
        let chain = self.catalog.whole_chain(&backup.id)?;
        let place = match chain.as_slice() {
            [_] => Place::Alone,
            _ => Place::InChain,
        };
        for member in &chain {
            if let Some(object) = self.repository.missing_object(member, place)? {
                let reason =
                    format!("{object}, a part of the backup, is missing or of another length");
                return Ok(Offer::Falls(Falls::Broken(Unreachable::because(reason))));
            }
        }
        let size = backup.wal_segment_size;
        let first = size.segment_of(backup.start_lsn);
        let way = Way {
            backup,
            history,
            route: self.archive.route(history, size, first)?,
            consistent: size.segment_before(backup.stop_lsn),
        };
        if !way.has(way.consistent) {
            let reason = format!(
                "WAL segment {}, without which backup {} is not consistent, is missing",
                way.missing(),
                backup.id
            );
            return Ok(Offer::Falls(Falls::Broken(Unreachable::because(reason))));
        }
        if let Err(broken) = self.is_own(&way)? {
            return Ok(Offer::Falls(Falls::Broken(broken)));
        }
        let last = match &self.target.point {
            Point::End => self.end(&way)?.map_err(Falls::Reason),
            _ => self.target_segment(&way, named)?,
        };
        let Stop {
            segment: last,
            until,
        } = match last {
            Ok(stop) => stop,
            Err(falls) => return Ok(Offer::Falls(falls)),
        };
        let examined = self.archive.examine(history, way.to(last))?;
        if let Some(gap) = self.break_in(&way, last, until, &examined) {
            let gap = self.at_break(&way, gap)?;
            return Ok(Offer::Falls(Falls::Reason(gap)));
        }
        // Keys may have been changed between a full backup and its deltas.
        { chain.iter() }.try_for_each(|member| self.repository.must_open(member))?;
        let replayed = || replayed(backup, &examined.facts, until);
        let planned = self.planned(way, chain, last)?;
        Ok(Offer::Reaches(Box::new(Plan {
            new_tablespaces: new_tablespaces(replayed()),
            limits: limits(replayed()),
            ..planned
        })))
    }

    /// Whether the archived WAL from the backup's start to its end is of the server that was backed up, and whole.
    fn is_own(&self, way: &Way) -> Result<Result<(), Unreachable>, Error> {
        let (backup, mut proof) = (way.backup, Proof::of(way.backup));
        let examined = self.archive.examine(way.history, way.to(way.consistent))?;
        if let Some(gap) = self.break_in(way, way.consistent, Some(backup.stop_lsn), &examined) {
            let reason = format!("backup {} is not consistent: {}", backup.id, gap.reason);
            return Ok(Err(Unreachable::because(reason)));
        }
        examined
            .facts
            .iter()
            .for_each(|facts| facts.show(&mut proof));
        if proof.holds() {
            return Ok(Ok(()));
        }
        Ok(Err(Unreachable::because(format!(
            "the archived WAL from {} to {} is not that of backup {}: no record in it names the backup; another server \
             archived it under the same names",
            backup.start_lsn, backup.stop_lsn, backup.id
        ))))
    }

    /// Where recovery through the segments up to `last`, and there to `until`, would end before it comes there.
    fn break_in(
        &self,
        way: &Way,
        last: SegmentNo,
        until: Option<Lsn>,
        examined: &Examined,
    ) -> Option<Break> {
        let minimal = minimal(way.backup, &examined.facts, until);
        let gap = self.gap_in(way, last, examined);
        match (minimal, gap) {
            (Some(minimal), Some(gap)) if gap.usable < minimal.usable => Some(gap),
            (minimal, gap) => minimal.or(gap),
        }
    }

    fn gap_in(&self, way: &Way, last: SegmentNo, examined: &Examined) -> Option<Break> {
        let first = way.first();
        let number = |index: usize| SegmentNo(first.0 + index as u64);
        let is_end = matches!(self.target.point, Point::End);
        let cut = examined
            .facts
            .iter()
            .enumerate()
            .find_map(|(index, facts)| {
                // What is looked for in the last one was found before it.
                let lsn = facts.cut.filter(|_| is_end || number(index) < last)?;
                Some((index, lsn))
            });
        let size = way.backup.wal_segment_size;
        if let Some((index, lsn)) = cut {
            let name = way.history.segment_name(number(index), size);
            return Some(Break {
                usable: index + 1,
                reason: format!(
                    "WAL segment {name} was cut: its WAL ends at {lsn}, within the segment and without a switch"
                ),
            });
        }
        let damage = examined.damage.as_ref()?;
        Some(Break {
            usable: examined.facts.len(),
            reason: crate::output::chain(damage),
        })
    }

    /// The target lies behind a break.
    fn at_break(&self, way: &Way, gap: Break) -> Result<Unreachable, Error> {
        let mut way = way.clone();
        way.route.segments.truncate(gap.usable);
        Ok(Unreachable {
            reason: gap.reason,
            nearest: self.before_gap(&way)?,
        })
    }

    fn told(&self, falls: Falls) -> Result<Unreachable, Error> {
        Ok(match falls {
            Falls::Reason(reason) | Falls::Broken(reason) | Falls::RolledBack(reason) => reason,
            Falls::NotFound(way) => self.not_found(&way)?,
        })
    }

    /// Options that reach the last commit on a way that ends in a gap.
    fn before_gap(&self, way: &Way) -> Result<Option<String>, Error> {
        if !self.gives_hints {
            return Ok(None);
        }
        for needed in way.route.segments.iter().rev() {
            let mut last = None;
            let one = std::slice::from_ref(needed);
            let walked = self.archive.walk(way.history, one, |_, resolved| {
                let mut ends = resolved.summary.transactions.iter().rev();
                let is_later = |end: &&Transaction| {
                    end.outcome == Outcome::Committed && end.lsn >= way.backup.stop_lsn
                };
                last = ends.find(is_later).map(|end| end.xid);
                Ok::<_, wal::Error>(false)
            });
            match walked {
                Err(error) if !error.is_damage() => return Err(error.into()),
                _ => {}
            }
            if let Some(xid) = last {
                let hints = [Hint::of(Point::Xid(xid)), Hint::end_of(way.backup)];
                return self.hint(hints);
            }
        }
        self.hint([Hint::end_of(way.backup)])
    }

    /// The first of the hints whose own plan says yes.
    fn hint(&self, hints: impl IntoIterator<Item = Hint>) -> Result<Option<String>, Error> {
        for hint in hints {
            if self.is_reached(&hint)? {
                return Ok(Some(hint.to_string()));
            }
        }
        Ok(None)
    }

    /// Whether the plan that a hint leads to says yes.
    fn is_reached(&self, hint: &Hint) -> Result<bool, Error> {
        if !self.gives_hints {
            return Ok(false);
        }
        let target = hint.target(self.target);
        let chosen: Vec<BackupEntry> = self
            .backups
            .iter()
            .filter(|backup| hint.backup.as_ref().is_none_or(|id| *id == backup.id))
            .cloned()
            .collect();
        let is_chosen = self.is_chosen || hint.backup.is_some();
        let planner = Planner {
            gives_hints: false,
            ..Planner::new(self.archive, self.catalog, &target, &chosen, is_chosen)
        };
        match planner.plan() {
            Ok(_) => Ok(true),
            Err(Error::Unreachable(_)) => Ok(false),
            Err(Error::Wal(error)) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The last segment of the archive.
    fn end(&self, way: &Way) -> Result<Result<Stop, Unreachable>, Error> {
        let missing = way.missing();
        if way.route.gap {
            return Ok(Err(Unreachable {
                reason: format!(
                    "WAL segment {missing} is missing, and it or later ones were there"
                ),
                nearest: self.before_gap(way)?,
            }));
        }
        // The archive ends before the timeline that is followed begins.
        let begins = way.history.spans().next_back();
        let begin = begins.map_or(Lsn::ZERO, |(_, begin, _)| begin);
        if !way.has(way.backup.wal_segment_size.segment_of(begin)) {
            return Ok(Err(Unreachable {
                reason: format!("WAL segment {missing} is missing"),
                nearest: self.before_gap(way)?,
            }));
        }
        Ok(Ok(Stop {
            segment: SegmentNo(way.next().0 - 1),
            until: None,
        }))
    }

    /// The segment in which the record ends at which recovery stops.
    fn target_segment(
        &mut self,
        way: &Way<'a>,
        named: &mut BTreeSet<(Lsn, Timestamp)>,
    ) -> Result<Result<Stop, Falls<'a>>, Error> {
        let Some(search) = &mut self.search else {
            return Ok(Err(Falls::Reason(self.no_candidate()?)));
        };
        let found = match search.find(way.history, &way.route.segments, way.backup) {
            Err(error) if error.is_damage() => {
                let all = self.archive.examine(way.history, &way.route.segments)?;
                let last = SegmentNo(way.next().0 - 1);
                return match self.break_in(way, last, None, &all) {
                    Some(gap) => Ok(Err(Falls::Reason(self.at_break(way, gap)?))),
                    None => Err(error.into()),
                };
            }
            found => found?,
        };
        let places = found
            .iter()
            .filter_map(|found| Some((found.hit.start, found.hit.time?)));
        named.extend(places);
        let Some(first) = found.first() else {
            return Ok(Err(Falls::NotFound(way.clone())));
        };
        if first.hit.outcome == Some(Outcome::Aborted) && matches!(self.target.point, Point::Xid(_))
        {
            return Ok(Err(Falls::RolledBack(self.aborted(way, first)?)));
        }
        // PostgreSQL refuses to stop before it is consistent.
        if first.hit.start < way.backup.stop_lsn {
            return Ok(Err(Falls::Reason(self.before(way.backup)?)));
        }
        let start = first.hit.start;
        let until = match (&self.target.point, self.target.bound) {
            (Point::Immediate, _) | (Point::Lsn(_), Bound::Exclusive) => start,
            // The first record from there on is replayed too.
            (Point::Lsn(_), Bound::Inclusive) => Lsn(start.0.saturating_add(NEXT_RECORD_BYTES)),
            (Point::End | Point::Time(_) | Point::Xid(_) | Point::Name(_), _) => {
                Lsn(start.0.saturating_add(1))
            }
        };
        Ok(Ok(Stop {
            segment: first.segment.max(way.consistent),
            until: Some(until),
        }))
    }

    fn aborted(&self, way: &Way, found: &Found) -> Result<Unreachable, Error> {
        let position = found.hit.start;
        let time = found
            .hit
            .time
            .map_or_else(String::new, |time| format!(" at {time}"));
        Ok(Unreachable {
            reason: format!("{} was rolled back{time}", self.target.point),
            nearest: self.hint([Hint::of(Point::Lsn(position)), Hint::end_of(way.backup)])?,
        })
    }

    fn not_found(&self, way: &Way) -> Result<Unreachable, Error> {
        let point = &self.target.point;
        let seen = self.search.as_ref().map(|search| search.seen.clone());
        let seen = seen.unwrap_or_default();
        if let Some(refusal) = self.elsewhere(way)? {
            return Ok(refusal);
        }
        match point {
            Point::Xid(_) if let Some(parent) = &seen.parent => return self.part_of(parent),
            Point::Name(name) if !way.route.gap => {
                let similar = nearest_names(name, &self.usable(&seen.restore_points));
                if let Some((nearest, _)) = similar.first() {
                    let there = Hint::of(Point::Name(nearest.clone()));
                    let shown = shown(&similar);
                    return Ok(Unreachable {
                        reason: format!("the archive has no {point}; there are {shown}"),
                        nearest: self.hint([there])?,
                    });
                }
            }
            _ => {}
        }
        let absent = match point {
            Point::Immediate => format!(
                "the record after the end of backup {}, at which PostgreSQL stops, is not in the archive",
                way.backup.id
            ),
            Point::Xid(_) if seen.wrote => {
                format!("{point} neither committed nor was rolled back in the archive")
            }
            _ => format!("{point} is not in the archive"),
        };
        self.archive_ends(way, &absent, &seen)
    }

    /// Of a target that is in the archive on another timeline.
    fn elsewhere(&self, way: &Way) -> Result<Option<Unreachable>, Error> {
        let point = &self.target.point;
        let search = self.search.as_ref().filter(|_| self.gives_hints);
        let found = search.map(|search| search.on_another_branch(way.history));
        let Some(found) = found.transpose()?.flatten() else {
            return Ok(None);
        };
        let (own, other) = (way.history.timeline.number(), found.timeline.number());
        let reason = match found.place {
            WalPlace::Shared => format!(
                "the archived WAL of timeline {own} ends before {point}, at segment {}; timeline {other} holds the same WAL",
                way.missing()
            ),
            WalPlace::Apart => {
                format!("{point} is on timeline {other}, and not on the way to {own}")
            }
        };
        let there = Hint::of(point.clone()).on(found.timeline);
        Ok(Some(Unreachable {
            reason,
            nearest: self.hint([there])?,
        }))
    }

    /// The target is `absent`: why no more of the archive can be searched for it.
    fn archive_ends(&self, way: &Way, absent: &str, seen: &Seen) -> Result<Unreachable, Error> {
        let missing = way.missing();
        if way.route.gap {
            return Ok(Unreachable {
                reason: format!("{absent}, which has a gap at WAL segment {missing}"),
                nearest: self.before_gap(way)?,
            });
        }
        let all = self.archive.examine(way.history, &way.route.segments)?;
        let last = SegmentNo(way.next().0 - 1);
        if let Some(gap) = self.break_in(way, last, None, &all) {
            return Ok(Unreachable {
                reason: format!("{absent}, which has a gap: {}", gap.reason),
                nearest: self.at_break(way, gap)?.nearest,
            });
        }
        if let Some(lsn) = seen.minimal {
            return Ok(Unreachable {
                reason: format!(
                    "{} is not in the archive before {lsn}, where the server ran with wal_level = minimal: nothing after \
                     that can be replayed",
                    self.target.point
                ),
                nearest: self.hint([Hint::of(Point::Lsn(lsn)).exclusive()])?,
            });
        }
        let newest = seen.newest.map_or_else(String::new, |newest| {
            let (xid, time) = (newest.xid, newest.time);
            format!("; its newest transaction, {xid}, ended at {time}")
        });
        Ok(Unreachable {
            reason: format!("{absent}, which ends before WAL segment {missing}{newest}"),
            nearest: self.hint([Hint::of(Point::End)])?,
        })
    }

    /// The target is a subtransaction of `parent`.
    fn part_of(&self, parent: &Transaction) -> Result<Unreachable, Error> {
        let (point, xid) = (&self.target.point, parent.xid);
        let (reason, instead) = match parent.outcome {
            Outcome::Committed => (
                format!("{point} is a subtransaction of {xid}"),
                Point::Xid(xid),
            ),
            Outcome::Aborted => (
                format!(
                    "{point} is a subtransaction of {xid}, which was rolled back at {}",
                    parent.time
                ),
                Point::Lsn(parent.lsn),
            ),
        };
        Ok(Unreachable {
            reason,
            nearest: self.hint([Hint::of(instead)])?,
        })
    }

    /// The restore points that can be targets: their names are there once, and a backup ends before them.
    fn usable(
        &self,
        points: &BTreeSet<(ServerText, Lsn, Timestamp)>,
    ) -> Vec<(ServerText, Timestamp)> {
        let oldest = self.backups.iter().map(|backup| backup.stop_lsn).min();
        let mut places: HashMap<&ServerText, usize> = HashMap::new();
        for (name, ..) in points {
            *places.entry(name).or_default() += 1;
        }
        let usable = points
            .iter()
            .filter(|(name, lsn, _)| Some(*lsn) >= oldest && places.get(name) == Some(&1));
        usable
            .map(|(name, _, time)| (name.clone(), *time))
            .collect()
    }

    fn planned(&self, way: Way, chain: Vec<BackupEntry>, last: SegmentNo) -> Result<Plan, Error> {
        let Way {
            backup,
            history,
            route,
            consistent,
        } = way;
        let first = backup.wal_segment_size.segment_of(backup.start_lsn);
        let count = |last: SegmentNo| usize::try_from(last.0 - first.0 + 1).unwrap_or(usize::MAX);
        let segments = route.segments.into_iter().take(count(last));
        Ok(Plan {
            target: self.target.clone(),
            backup: backup.clone(),
            chain,
            history: history.clone(),
            segments: segments
                .map(|needed| (needed.name, needed.archived))
                .collect(),
            segments_to_consistency: count(consistent),
            histories: self.history_files(history)?,
            other_timelines: branches::others(self.archive, history, backup)?,
            new_tablespaces: Vec::new(),
            limits: None,
        })
    }

    /// The history of the timeline that is followed; those of the timelines on the way to it, on which the server reads
    /// prepared transactions that are open from WAL of earlier ones (xlogutils.c, `XLogReadDetermineTimeline`); and those
    /// of all newer ones: the server asks for them to find a number for its own next timeline that is not taken.
    fn history_files(&self, history: &History) -> Result<Vec<(TimelineId, ArchivedFile)>, Error> {
        let mut files = Vec::new();
        let known = self.archive.histories.known.keys();
        let is_asked_for = |timeline: TimelineId| {
            timeline >= history.timeline || history.switch_from(timeline).is_some()
        };
        for timeline in known.filter(|timeline| is_asked_for(**timeline)) {
            if let Some(archived) = self.repository.find_wal(WalFileName::History(*timeline))? {
                files.push((*timeline, archived));
            }
        }
        Ok(files)
    }
}

impl Falls<'_> {
    /// Whether it says more than `known`, the reason of a newer backup: that the target is there and was rolled back, or
    /// that there is a gap, behind which it may be.
    fn outdoes(&self, known: &Self) -> bool {
        let rank = |falls: &Self| match falls {
            Self::RolledBack(_) => 2,
            Self::NotFound(way) if way.route.gap => 1,
            Self::Reason(_) | Self::Broken(_) | Self::NotFound(_) => 0,
        };
        rank(self) > rank(known)
    }
}

/// Where recovery stops.
struct Stop {
    /// The segment in which the record ends at which it stops.
    segment: SegmentNo,
    /// Records from here on are not replayed, if that is known.
    until: Option<Lsn>,
}

/// Within so many bytes after a position a record begins, but for rare long ones.
const NEXT_RECORD_BYTES: u64 = 16 << 10;

/// Where recovery would end early.
struct Break {
    /// Segments of the route that it goes through.
    usable: usize,
    reason: String,
}

/// Whether recovery from the backup to `until` replays what is at `lsn`.
fn is_replayed(backup: &BackupEntry, until: Option<Lsn>, lsn: Lsn) -> bool {
    lsn >= backup.start_lsn && until.is_none_or(|until| lsn < until)
}

/// What recovery from the backup to `until` meets, in order.
fn replayed<'f>(
    backup: &'f BackupEntry,
    facts: &'f [Rc<Facts>],
    until: Option<Lsn>,
) -> impl Iterator<Item = &'f Note> {
    let notes = facts.iter().flat_map(|facts| &facts.notes);
    notes.filter(move |note| is_replayed(backup, until, note.lsn))
}

/// Where replay ends because changes are not in the WAL.
fn minimal(backup: &BackupEntry, facts: &[Rc<Facts>], until: Option<Lsn>) -> Option<Break> {
    facts.iter().enumerate().find_map(|(index, facts)| {
        let is_minimal = |note: &&Note| {
            matches!(note.event, Event::ParameterChange { wal_level: 0, .. })
                && is_replayed(backup, until, note.lsn)
        };
        let lsn = facts.notes.iter().find(is_minimal)?.lsn;
        Some(Break {
            usable: index + 1,
            reason: format!(
                "the server ran with wal_level = minimal from {lsn} on: changes are missing in the WAL after that, and \
                 PostgreSQL does not replay it"
            ),
        })
    })
}

/// What the server that replays must not be below: the greatest of what the WAL tells.
fn limits<'n>(notes: impl Iterator<Item = &'n Note>) -> Option<Limits> {
    let limits = notes.filter_map(|note| match note.event {
        Event::ParameterChange { limits, .. } => Some(limits),
        _ => None,
    });
    limits.reduce(Limits::max)
}

/// The tablespaces that replay makes, at the places where they were made, in order.
fn new_tablespaces<'n>(notes: impl Iterator<Item = &'n Note>) -> Vec<NewTablespace> {
    let mut new: Vec<NewTablespace> = Vec::new();
    for note in notes {
        match &note.event {
            Event::TablespaceCreated {
                tablespace,
                location,
            } => new.push(NewTablespace {
                oid: *tablespace,
                location: location.clone(),
                lsn: note.lsn,
                is_dropped: false,
            }),
            Event::TablespaceDropped { tablespace } => {
                let mut all = new.iter_mut();
                if let Some(known) = all.find(|known| known.oid == *tablespace) {
                    known.is_dropped = true;
                }
            }
            _ => {}
        }
    }
    new
}

impl Way<'_> {
    /// Its first segment.
    fn first(&self) -> SegmentNo {
        self.backup
            .wal_segment_size
            .segment_of(self.backup.start_lsn)
    }

    /// Its segments up to `last`.
    fn to(&self, last: SegmentNo) -> &[Needed] {
        let count = usize::try_from((last.0 + 1).saturating_sub(self.first().0));
        let segments = self.route.segments.as_slice();
        segments
            .get(..count.unwrap_or(usize::MAX))
            .unwrap_or(segments)
    }

    /// The segment after the last one of the route.
    fn next(&self) -> SegmentNo {
        SegmentNo(self.first().0 + self.route.segments.len() as u64)
    }

    /// Its name, for messages.
    fn missing(&self) -> SegmentName {
        self.history
            .segment_name(self.next(), self.backup.wal_segment_size)
    }

    fn has(&self, segment: SegmentNo) -> bool {
        segment < self.next()
    }
}

/// The restore points whose names are most like `name`, the most alike first.
fn nearest_names(
    name: &ServerText,
    points: &[(ServerText, Timestamp)],
) -> Vec<(ServerText, Timestamp)> {
    const SHOWN: usize = 3;
    let mut points: Vec<_> = points.to_vec();
    let distance =
        |other: &ServerText| strsim::generic_damerau_levenshtein(name.as_bytes(), other.as_bytes());
    points.sort_by_key(|(other, _)| distance(other));
    points.truncate(SHOWN);
    points
}

fn shown(points: &[(ServerText, Timestamp)]) -> String {
    let shown = points
        .iter()
        .map(|(name, time)| format!("{name:?} ({time})"));
    shown.collect::<Vec<_>>().join(", ")
}

/// Whether transaction `xid` ends after the snapshot `xmin:xmax:xip,…` was taken, as far as the snapshot tells.
fn ends_after(snapshot: &str, xid: u32) -> bool {
    let mut fields = snapshot.split(':').map(|field| {
        field
            .split(',')
            .filter_map(|number| number.parse::<u64>().ok())
    });
    let (_, xmax) = (
        fields.next(),
        fields.next().and_then(|mut numbers| numbers.next()),
    );
    let running: Vec<u64> = fields.next().map(Iterator::collect).unwrap_or_default();
    // Of the 64-bit numbers that the target may stand for, the one nearest to the snapshot (transam.h, `TransactionIdPrecedes`).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "transaction numbers are compared modulo 2^32"
    )]
    let is_later = xmax.is_some_and(|xmax| xid.wrapping_sub(xmax as u32) < 1 << 31);
    #[expect(clippy::cast_possible_truncation, reason = "as above")]
    let is_running = running.iter().any(|number| *number as u32 == xid);
    is_later || is_running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_a_snapshot_does_not_see_ends_after_it() {
        for (snapshot, xid, later) in [
            ("700:700:", 700, true),
            ("700:700:", 699, false),
            ("700:705:700,703", 703, true),
            ("700:705:700,703", 702, false),
            ("4294967290:4294967300:", 3, false),
            ("4294967290:4294967300:", 5, true),
        ] {
            assert_eq!(ends_after(snapshot, xid), later, "{xid} in {snapshot}");
        }
    }
}
