//! Beginning a backup: on the server, in its directory, and in the store.

use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};

use walhalla_postgres::{Lsn, TimelineId};

use super::Error;
use super::delta::Delta;
use super::extent::Changed;
use super::own_history;
use super::own_server::must_be_on;
use super::request::Backup;
use crate::contents::assembly::Assembly;
use crate::repository::deletions::Guarded;
use crate::repository::layout::RunId;
use crate::repository::leases::{Lease, NeededWal, Needs};
use crate::repository::{self, BackupId, BackupKind};
use crate::server::data_directory::{self, Listing};
use crate::server::session::{Facts, Server};

/// A backup that the server knows to be running.
pub(super) struct Begun<'a> {
    pub(super) server: Server,
    /// What the server said of itself before.
    pub(super) facts: Facts,
    /// Where replay begins.
    pub(super) start_lsn: Lsn,
    /// What it stands on and what changed since, if it is a delta.
    pub(super) delta: Option<(Delta, Changed<'static>)>,
    pub(super) assembly: Assembly<'a>,
    pub(super) guard: Guard,
}

/// What keeps deletions from taking what the backup needs.
pub(super) struct Guard(JoinHandle<Result<Guarded, repository::Error>>);

impl Backup<'_> {
    /// Begins a backup on the server, finds what a delta stands on, and takes an id.
    pub(super) fn begin(&self) -> Result<(Begun<'_>, Listing), Error> {
        data_directory::check_tablespaces(self.pgdata)?;
        let mut server = self.wait(Server::connect(self.pgdata))?;
        let facts = self.check_server(&mut server)?;
        let label = own_history::label(self.options.label.as_deref(), facts.now);
        // The server makes its checkpoint while the store is asked.
        let run = RunId::random();
        let (second, started) = thread::scope(|scope| {
            let second = scope.spawn(|| self.repository.claim_next_second(facts.now, run));
            let started = self.start(&mut server, &label, facts.in_recovery);
            (second.join(), started)
        });
        let (start_lsn, timeline) = started?;
        let second = second.unwrap_or_else(|panic| resume_unwind(panic))?;
        let listing = data_directory::walk(self.pgdata, self.control.version)?;
        let delta = self.delta(start_lsn, &listing)?;
        let kind = match delta {
            Some(_) => BackupKind::Delta,
            None => BackupKind::Full,
        };
        let id = BackupId::of(&second, kind);
        let parents = delta.as_ref().map(|(delta, _)| delta.parent.chain.clone());
        let guard = self.guard(run, &id, (start_lsn, timeline), parents);
        tracing::info!(
            "backup {id} of PostgreSQL {} in {} begins",
            facts.version_text,
            self.pgdata.display()
        );
        let begun = Begun {
            server,
            facts,
            start_lsn,
            delta,
            assembly: Assembly::new(self.repository, self.pipeline, id),
            guard,
        };
        Ok((begun, listing))
    }

    /// Sees in the background that no deletion takes what the backup needs: the copy need not wait for that.
    pub(super) fn guard(
        &self,
        run: RunId,
        id: &BackupId,
        (start, timeline): (Lsn, TimelineId),
        parents: Option<Vec<BackupId>>,
    ) -> Guard {
        let size = self.control.segment_size;
        let wal = NeededWal {
            first: size.segment_of(start).on(timeline, size),
            last: None,
        };
        let needs = Needs {
            makes: Some(id.clone()),
            ..Needs::of("backup-push", parents.unwrap_or_default(), vec![wal])
        };
        let repository = self.repository.clone();
        Guard(thread::spawn(move || repository.guard_as(run, &needs)))
    }

    /// Has the server begin a backup; returns where its replay begins.
    fn start(
        &self,
        server: &mut Server,
        label: &str,
        in_recovery: bool,
    ) -> Result<(Lsn, TimelineId), Error> {
        let start_lsn = self.wait(server.start_backup(label))?;
        let first = self.check_directory(server, start_lsn)?;
        if in_recovery {
            // What would fail after the copy is told before.
            must_be_on(first.timeline, &first)?;
        }
        Ok((start_lsn, first.timeline))
    }
}

impl Guard {
    /// The lease, once it is taken; it must have held until now.
    pub(super) fn taken(self) -> Result<Option<Lease>, Error> {
        let guarded = self.0.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        match guarded.lease {
            Some(lease) if !lease.has_held() => Err(Error::LeaseLost),
            lease => Ok(lease),
        }
    }
}
