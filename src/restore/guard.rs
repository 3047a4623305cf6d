//! Keeping deletions from what a restore needs.

use std::time::Duration;

use super::Error;
use super::choose::must_be_all;
use super::plan::Plan;
use crate::archive::inventory;
use crate::repository::deletions::Guarded;
use crate::repository::leases::{NeededWal, Needs};
use crate::repository::{self, Repository};

/// How long what recovery asks for is guarded after the restore has ended.
const ON_DEMAND_HOLDS_FOR: Duration = Duration::from_hours(24);

/// Who fetches the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The restore, up to the plan's end.
    Staged,
    /// Recovery, which may go on past the plan's end.
    OnDemand,
}

/// Keeps deletions from what the plan needs. Where one that has ended may have taken some of it, it is `planned` once more.
///
/// # Errors
/// [`repository::Error::Deleted`] and [`repository::Error::BeingDeleted`]; those of planning.
pub fn guard(
    repository: &Repository,
    plan: &Plan,
    kind: Kind,
    planned: impl FnOnce() -> Result<Plan, Error>,
) -> Result<Guarded, Error> {
    let needed = needs(plan, kind);
    let guarded = repository.guard(&needed)?;
    must_be_all(repository)?;
    if guarded.may_be_gone && needs(&planned()?, kind) != needed {
        let what = "WAL that the restore needs".to_owned();
        return Err(repository::Error::Deleted { what }.into());
    }
    Ok(guarded)
}

/// Guards for a day what recovery fetches when the restore has ended.
pub fn leave_guarded(repository: &Repository, plan: &Plan, kind: Kind) {
    if kind == Kind::Staged || repository.session().as_of().is_some() {
        return;
    }
    if let Err(error) = repository.leave_lease(needs(plan, kind), ON_DEMAND_HOLDS_FOR) {
        tracing::warn!("a deletion would not see what recovery is going to fetch: {error}");
    }
}

fn needs(plan: &Plan, kind: Kind) -> Needs {
    let wal = match kind {
        Kind::Staged => staged(plan),
        Kind::OnDemand => {
            let size = plan.backup.wal_segment_size;
            let first = size.segment_of(plan.backup.start_lsn);
            let spans = inventory::spans(&plan.history, size, first);
            let open = spans.map(|(timeline, span)| NeededWal {
                first: span.first.on(timeline, size),
                last: None,
            });
            open.collect()
        }
    };
    let backups = plan.chain.iter().map(|backup| backup.id.clone()).collect();
    Needs::of("restore", backups, wal)
}

/// The segments of the plan, which come one after the other on each timeline.
fn staged(plan: &Plan) -> Vec<NeededWal> {
    let mut wal: Vec<NeededWal> = Vec::new();
    for (name, _) in &plan.segments {
        match wal
            .last_mut()
            .filter(|wal| wal.first.timeline == name.timeline)
        {
            Some(wal) => wal.last = Some(*name),
            None => wal.push(NeededWal {
                first: *name,
                last: Some(*name),
            }),
        }
    }
    wal
}
