//! Deleting what is not to be kept.
//!
//! ```text
//! store ─▶ survey ─▶ decide: the fate of each backup, the WAL that stays ─▶ plan, sealed ─▶ sweep ─▶ store
//!                                                                             └─▶ said in the store before anything goes
//! ```
//!
//! A deletion and those who use what it could take see each other by [leases](crate::repository::leases): each writes first
//! what it is about to do, and then looks what others wrote.

pub mod amounts;
pub mod decide;
pub mod plan;
mod survey;
pub mod sweep;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use walhalla_providers::ErrorKind;

use crate::failure::{Advice, Class, Failure};
use crate::progress::{Progress, Show};
use crate::repository::deletions::Record;
use crate::repository::layout::{Key, RunId};
use crate::repository::leases::{Lease, Needs};
use crate::repository::{self, BackupId, Repository};
use crate::wal;
use decide::{Refusal, Request, WalThatGoes, decide};
use plan::Plan;
use survey::{Clock, Survey};
use sweep::{Sweep, Swept};

/// How far the clocks of this host and of the store may be apart: a policy counts days.
pub const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(10);

/// Why nothing was deleted, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog, a lease or a history cannot be read, or the store failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The archived WAL cannot be listed.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// The request cannot be followed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A backup of which nobody knows what it needs.
    #[error("nothing was deleted, because the entry of backup {id} cannot be read")]
    Unreadable {
        /// The backup.
        id: BackupId,
        /// Why.
        #[source]
        source: Arc<repository::Error>,
    },
    /// A backup of which the entry is listed and cannot be had.
    #[error(
        "nothing was deleted, because backup.json of backup {0} is listed and could not be read"
    )]
    EntryLost(BackupId),
    /// Days would be counted from a wrong time.
    #[error("nothing was deleted, because the clock of this host and that of the store are {} apart", in_words(*.0))]
    Clocks(SignedDuration),
    /// Others could take this deletion for dead.
    #[error(
        "the deletion was broken off, because its lease in the store could not be renewed for some minutes"
    )]
    LeaseLost,
    /// Something is left.
    #[error("the store refused to delete {}", if *.0 == 1 { "an object".to_owned() } else { format!("{} objects", .0) })]
    Kept(usize),
    /// Another thread failed first.
    #[error("the deletion was broken off")]
    BrokenOff,
}

impl From<walhalla_providers::Error> for Error {
    fn from(error: walhalla_providers::Error) -> Self {
        Self::Repository(error.into())
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Repository(error) => error.class(),
            Self::Wal(error) => error.class(),
            Self::Refused(_)
            | Self::Unreadable { .. }
            | Self::EntryLost(_)
            | Self::Clocks(_)
            | Self::LeaseLost
            | Self::Kept(_)
            | Self::BrokenOff => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Repository(error) => return error.hint(),
            Self::Wal(error) => return error.hint(),
            Self::Refused(Refusal::Unknown(_)) => "`walhalla backup-list` shows the backups",
            Self::Refused(Refusal::Newest(_)) => {
                "take another backup first; `walhalla delete everything` gives up the whole cluster"
            }
            Self::Refused(Refusal::Branch { .. }) => "take a backup on that timeline first",
            Self::Refused(Refusal::Permanent(id)) => {
                return Some(
                    format!("`walhalla backup-mark {id} --impermanent` gives it up, and what it stands on").into(),
                );
            }
            Self::Refused(Refusal::InUse { .. } | Refusal::ClusterInUse(_)) => {
                "wait until that has ended; the lease of a process that was killed ends after 15 minutes, that of a restore on demand after a day"
            }
            Self::Refused(Refusal::Ancestor { .. }) => "name both, or keep both",
            Self::Unreadable { .. } => {
                "what it needs is not known, so that nothing goes: bring its backup.json back from a copy of the store"
            }
            Self::EntryLost(_) => "try again: it may have been written just then",
            Self::Clocks(_) => "set the clock of this host: a policy's days are counted from now",
            Self::LeaseLost => {
                "see whether the store can be reached, and run the same command again: it goes on where this one ended"
            }
            Self::Kept(_) => "the lines above tell why; the same command goes on with what is left",
            Self::BrokenOff => return None,
        };
        Some(text.into())
    }
}

/// What `delete` would do now.
///
/// # Errors
/// Why it would do nothing.
pub fn plan(repository: &Repository, request: Request) -> Result<Plan, Error> {
    let survey = Survey::read(repository, Clock::Host(Timestamp::now()))?;
    let plan = planned(&survey, request, WalThatGoes::Unpromised)?;
    Ok(with_what_is_retained(repository, plan))
}

/// The plan, with what the store keeps of an object of the newest backup that goes; it is locked longest.
fn with_what_is_retained(repository: &Repository, mut plan: Plan) -> Plan {
    let newest = plan.backups.iter().rfind(|backup| backup.fate.goes());
    let Some(newest) = newest else {
        return plan;
    };
    let entry = repository.layout().backup_json(&newest.id);
    match repository.session().retained(&entry) {
        Ok(retained) => plan.retained = Some(retained),
        Err(error) => {
            tracing::debug!("what the store keeps of what is deleted is not known: {error}");
        }
    }
    plan
}

/// Deletes what a request asks for. Returns the plan that was carried out, and what became of it.
///
/// # Errors
/// Why nothing was deleted, or not everything; what the store refused is part of the answer.
pub fn delete(
    repository: &Repository,
    request: Request,
    threads: usize,
    show: Show,
) -> Result<(Plan, Swept), Error> {
    let lease = repository.lease(RunId::random(), Needs::of("delete", Vec::new(), Vec::new()))?;
    let clock = match &lease {
        Some(lease) => Clock::Store(store_time(repository, lease.run())?, lease.run()),
        None => Clock::HostBounded(Timestamp::now()),
    };
    let survey = Survey::read(repository, clock)?;
    let plan = planned(&survey, request.clone(), WalThatGoes::Unpromised)?;
    // Asked before anybody is kept from using what goes.
    let mut plan = with_what_is_retained(repository, plan);
    let is_said = match &lease {
        Some(lease) => say(repository, lease.run(), &plan, &survey)?,
        None => false,
    };
    let lease = lease.filter(|_| is_said);
    let own = lease.as_ref().map(Lease::run);
    if !is_said {
        tracing::warn!(
            "nothing can be written to the store here, so that no more WAL goes than what lies before all backups that stay"
        );
        let retained = plan.retained;
        plan = planned(&survey, request, WalThatGoes::BeforeAll)?;
        plan.retained = retained;
    }
    let progress = Progress::of_items(show, "deleting", plan.totals.goes().objects);
    let sweep = Sweep::new(
        repository,
        (&plan, &survey),
        lease.as_ref(),
        threads,
        &progress,
    );
    let swept = sweep.run();
    if let (Some(own), Err(Error::Refused(_))) = (own, &swept) {
        // Nothing went, and nothing will.
        repository.remove(&[repository.layout().key(&Key::Deletion(own))])?;
    }
    let swept = swept?;
    progress.finish();
    if is_said {
        survey.forget_earlier(repository)?;
    }
    Ok((plan, swept))
}

fn planned(survey: &Survey, request: Request, wal: WalThatGoes) -> Result<Plan, Error> {
    let decision = decide(&survey.facts(wal), &request)?;
    Ok(Plan::new(request, survey, decision))
}

/// The time by the store's clock, which is about this host's.
fn store_time(repository: &Repository, own: RunId) -> Result<Timestamp, Error> {
    let now = repository.lease_time(own)?;
    let apart = Timestamp::now().duration_since(now).abs();
    if apart > CLOCKS_APART {
        return Err(Error::Clocks(apart));
    }
    Ok(now)
}

/// Says in the store what goes, before it does; `false` where the store takes no record.
fn say(repository: &Repository, run: RunId, plan: &Plan, survey: &Survey) -> Result<bool, Error> {
    let user = Needs::of("delete", Vec::new(), Vec::new()).user;
    let mut record = Record::new(user, plan.request.to_string());
    record.everything = plan.request == Request::Everything;
    record.backups = plan.levels().into_iter().flatten().collect();
    record.unfinished.clone_from(&plan.leftovers);
    record.wal = plan.deleted_wal(survey);
    let says_nothing =
        record.backups.is_empty() && record.unfinished.is_empty() && plan.takes_no_wal();
    if says_nothing && !record.everything && survey.deletions.is_empty() {
        return Ok(true);
    }
    match repository.record_deletion(run, &record) {
        Err(error) if matches!(error.kind, ErrorKind::PermissionDenied | ErrorKind::NoSpace) => {
            Ok(false)
        }
        said => Ok(said.map(|()| true)?),
    }
}

fn in_words(duration: SignedDuration) -> String {
    format!("{duration:#}")
}
