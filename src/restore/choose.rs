//! Choosing backup, timeline and segments.
//!
//! ```text
//! candidates, newest first ─▶ offer: way, own WAL, breaks, target ─▶ plan
//!                               └─▶ refusal: why not, and what can be reached instead
//! ```

use std::collections::BTreeSet;

use jiff::Timestamp;
use walhalla_postgres::{History, Lsn, Snapshot};

use super::Error;
use super::branches;
use super::hint::Hint;
use super::offer::{Falls, Offer};
use super::plan::{Plan, Unreachable};
use super::planner::Planner;
use super::target::{Point, Target, TargetTimeline};
use crate::archive::{Archive, Reading, Tails};
use crate::failure::Failure as _;
use crate::output::look::precise_time;
use crate::repository::{BackupEntry, Repository};

/// Segments that are searched for another restore point of a name when one is found: those of some days.
const MOST_SEARCHED_FOR_ANOTHER: usize = 2048;

/// Plans a restore to `target`, from the backup `chosen` or the best one.
///
/// # Errors
/// [`Error::Unreachable`] with the reason and the nearest point that can be reached; [`Error::StoreLeftOut`].
pub fn plan(
    repository: &Repository,
    target: &Target,
    chosen: Option<&str>,
    reading: Reading,
) -> Result<Plan, Error> {
    let planned = plan_with(repository, target, chosen, reading);
    must_be_all(repository)?;
    planned
}

/// That no store was left out which may have what is missing.
///
/// # Errors
/// [`Error::StoreLeftOut`]
pub fn must_be_all(repository: &Repository) -> Result<(), Error> {
    match repository.session().left_out() {
        Some(store) => Err(Error::StoreLeftOut(store.to_owned())),
        None => Ok(()),
    }
}

fn plan_with(
    repository: &Repository,
    target: &Target,
    chosen: Option<&str>,
    reading: Reading,
) -> Result<Plan, Error> {
    let catalog = repository.entries()?;
    let all = catalog.usable();
    let archive = Archive::new(repository, &all, reading)?.with_tails(Tails::Used);
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

impl<'a> Planner<'a> {
    pub(super) fn plan(mut self) -> Result<Plan, Error> {
        if self.backups.is_empty() {
            let store = self.repository.store_url();
            return Err(Unreachable::because(format!("{store} holds no backup")).into());
        }
        self.must_be_settable()?;
        let mut refusal: Option<Falls> = None;
        let mut named: BTreeSet<(Lsn, Timestamp)> = BTreeSet::new();
        let (mut reaching, mut left_out): (Option<(Plan, usize)>, _) = (None, None);
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
                Err(error) if reaching.is_some() && error.is_of_the_object() => {
                    tracing::warn!("{error}; older WAL is not searched for another such name");
                    break;
                }
                offer => offer?,
            };
            match offer {
                Offer::Reaches(plan) if self.looks_on() => {
                    let most = self.segments_read() + MOST_SEARCHED_FOR_ANOTHER;
                    let (_, most) = reaching.get_or_insert((*plan, most));
                    if self.segments_read() > *most {
                        tracing::info!(
                            "WAL from before backup {} is not searched for another such name",
                            backup.id
                        );
                        break;
                    }
                }
                Offer::Reaches(plan) => return Ok(*plan),
                Offer::Falls(falls) => {
                    if let Falls::Broken(broken) = &falls {
                        tracing::warn!("{}; backup {} is passed over", broken.reason, backup.id);
                    }
                    goes_on |= matches!(falls, Falls::Broken(_));
                    self.keep_gap(&falls);
                    if refusal.as_ref().is_none_or(|known| falls.outdoes(known)) {
                        refusal = Some(falls);
                    }
                }
            }
            if !goes_on {
                break;
            }
        }
        if let Some((plan, _)) = reaching {
            return self.only(plan, &named);
        }
        let refusal = refusal.map(|falls| self.reason_of(falls)).transpose()?;
        let refusal = refusal.or(left_out);
        match refusal {
            Some(refusal) => Err(refusal.into()),
            None => Err(self.no_candidate()?.into()),
        }
    }

    /// Refuses a target that the cluster's version has no setting for.
    fn must_be_settable(&self) -> Result<(), Error> {
        let newest = self.backups.first().map(|backup| backup.postgres_version);
        match (&self.target.point, newest) {
            (Point::Lsn(_), Some(version)) if !version.has_lsn_target() => {
                Err(Unreachable::because(format!(
                    "PostgreSQL {version} cannot stop at an LSN: recovery_target_lsn came with 10. Name a time, a transaction \
                     or a restore point; `walhalla find` shows them"
                ))
                .into())
            }
            _ => Ok(()),
        }
    }

    /// Keeps a way that ends in a gap, for messages.
    fn keep_gap(&mut self, falls: &Falls<'a>) {
        let Falls::NotFound(way) = falls else { return };
        let mut known = self.gapped.iter();
        let is_known = known.any(|known| known.missing() == way.missing());
        if way.route.gap && !is_known {
            self.gapped.push(way.clone());
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

    /// How many segments were searched.
    fn segments_read(&self) -> usize {
        self.search.as_ref().map_or(0, |search| search.read)
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
            .map(|(lsn, time)| format!("{lsn} ({})", precise_time(*time)))
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
            // Without a snapshot the WAL tells.
            Point::Xid(xid) => Snapshot::parse(&backup.stop_snapshot)
                .is_none_or(|snapshot| snapshot.is_before_the_end_of(*xid)),
        }
    }

    fn reason_of(&self, falls: Falls) -> Result<Unreachable, Error> {
        Ok(match falls {
            Falls::Reason(reason) | Falls::Broken(reason) | Falls::RolledBack(reason) => reason,
            Falls::NotFound(way) => self.not_found(&way)?,
        })
    }
}
