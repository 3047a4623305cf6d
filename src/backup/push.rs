//! The course of a base backup.
//!
//! ```text
//! begin: server, directory, parent, id ─▶ copy ─▶ end: label, pg_control, checks ─▶ lists ─▶ WAL is archived ─▶ backup.json
//! ```

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use jiff::Timestamp;
use walhalla_postgres::backup_label::{self, BackupLabel};
use walhalla_postgres::{Lsn, TimelineId, WalFileName, control};

use super::Error;
use super::begin::{Begun, Guard};
use super::copy::{Copied, owner_of};
use super::delta::Delta;
use super::moved_databases::databases;
use super::own_server::{check_pages, must_be_on};
use super::own_wal;
use super::parent::KEPT_CORRUPT_BLOCKS;
use super::request::Backup;
use crate::contents::Owner;
use crate::contents::assembly::{Assembly, Base, Facts};
use crate::contents::manifest::WalRange;
use crate::contents::relations::Relations;
use crate::repository::BackupEntry;
use crate::repository::entry::{CorruptBlock, LeftOut};
use crate::repository::owed::Owed;
use crate::server::data_directory::{Listing, Tablespace};
use crate::server::session::{ArchiverState, StoppedBackup};
use crate::server::{self, control_file};
use crate::wal;

/// A backup that is copied and that the server knows to be over.
pub(super) struct Ended {
    pub(super) stopped: StoppedBackup,
    pub(super) label: BackupLabel,
    pub(super) corrupt_blocks: Vec<CorruptBlock>,
}

/// What a server said of itself before a backup.
pub(super) struct ServerClock {
    /// What its clock showed.
    pub(super) start: Timestamp,
    /// `server_version`
    pub(super) version: String,
}

impl Backup<'_> {
    /// Takes the backup. After `Ok` it is in the catalog, and everything that restoring it takes is in the store.
    ///
    /// # Errors
    /// Whatever stopped it; the catalog does not show it then, and the server has left backup mode.
    pub fn push(&self) -> Result<BackupEntry, Error> {
        let (mut begun, listing) = self.begin()?;
        let left_out = self.left_out(&listing);
        let tablespaces = listing.tablespaces.clone();
        let databases = databases(&listing.directories);
        let relations = Relations::of(&listing, self.control);
        let copied = self.copy(&begun, &listing, &relations)?;
        let relations = relations.with_files(&listing, |position| copied.holds(position));
        drop(listing);
        let ended = self.end(&mut begun, copied)?;
        let range = ended.range();
        self.archive_histories(range.timeline)?;
        let Begun {
            mut server,
            facts,
            delta,
            assembly,
            guard,
            ..
        } = begun;
        let clock = ServerClock {
            start: facts.now,
            version: facts.version_text,
        };
        let base = delta.map(|(delta, _)| delta.base());
        let facts = self.facts(clock, base, ended, tablespaces, left_out)?;
        let ask = &mut || self.wait(server.archiver_state());
        let entry = self.conclude(assembly, &facts, &relations, ask)?;
        self.wait(async {
            server.close().await;
            Ok::<_, Error>(())
        })?;
        self.check_databases(&databases, &entry)?;
        self.commit(entry, guard)
    }

    /// Stores what goes with the parts while the WAL comes into the archive, and sees that it is this server's. `ask` tells of
    /// the server's archiver, which has the end of the WAL since the backup ended.
    pub(super) fn conclude(
        &self,
        assembly: Assembly,
        facts: &Facts,
        relations: &Relations,
        ask: &mut dyn FnMut() -> Result<ArchiverState, Error>,
    ) -> Result<BackupEntry, Error> {
        let has_failed = AtomicBool::new(false);
        let (stored, proven) = thread::scope(|scope| {
            let stored = scope.spawn(|| {
                let stored = assembly.finish(facts.clone(), relations);
                has_failed.store(stored.is_err(), Ordering::Relaxed);
                stored
            });
            let has_failed = || has_failed.load(Ordering::Relaxed);
            let proven = self
                .wait_for_wal(ask, facts.range, &has_failed)
                .and_then(|()| self.prove(facts));
            (stored.join(), proven)
        });
        let stored = stored.unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(with_last_transaction(stored, proven?))
    }

    /// Makes the backup visible.
    pub(super) fn commit(&self, entry: BackupEntry, guard: Guard) -> Result<BackupEntry, Error> {
        let lease = guard.taken()?;
        // A deletion that may write no record is seen here at the latest.
        self.repository.chain(&entry)?;
        if let Some(mirror) = self.mirror {
            // Who is killed now has not forgotten it.
            mirror.owe(self.repository, &Owed::Backup(entry.id.clone()))?;
        }
        self.repository.commit_backup(&entry)?;
        drop(lease);
        Ok(entry)
    }

    /// Ends the backup on the server, and packs what comes last.
    fn end(&self, begun: &mut Begun, copied: Copied) -> Result<Ended, Error> {
        let (copied_control, pg_control) = control_file::read_bytes(self.pgdata)?;
        let stopped = self.wait(begun.server.stop_backup())?;
        let label = BackupLabel::parse(&stopped.label).map_err(server::Error::from)?;
        let last = self.check_directory(&mut begun.server, label.start_lsn)?;
        if label.of_standby == Some(true) {
            must_be_on(label.timeline, &last)?;
        }
        // What was on disk before had its WAL on disk, or replayed, before.
        let wal_end = self.wait(begun.server.wal_end())?.max(stopped.stop_lsn);
        check_pages(&label, &copied.newest, &copied_control, wal_end)?;
        let mut corrupt_blocks = copied.corrupt_blocks;
        corrupt_blocks.extend(copied.newest.beyond(wal_end));
        corrupt_blocks.truncate(KEPT_CORRUPT_BLOCKS);
        let text = match &begun.delta {
            Some((Delta { parent, .. }, _)) => {
                let (start, timeline) = (parent.entry.start_lsn, parent.entry.timeline);
                backup_label::of_delta(&stopped.label, start, timeline)
            }
            None => stopped.label.clone(),
        };
        let owner = owner_of(self.pgdata)?;
        pack_last(&begun.assembly, owner, &text, &pg_control, &stopped)?;
        Ok(Ended {
            stopped,
            label,
            corrupt_blocks,
        })
    }

    /// What the backup leaves out, of which the user hears.
    fn left_out(&self, listing: &Listing) -> Vec<LeftOut> {
        let left_out = |path: &Path| {
            let target = std::fs::read_link(self.pgdata.join(path)).ok();
            LeftOut {
                path: path.to_string_lossy().into_owned(),
                link_to: target.map(|target| target.to_string_lossy().into_owned()),
            }
        };
        let all: Vec<LeftOut> = listing.left_out.iter().map(|path| left_out(path)).collect();
        for left_out in &all {
            tracing::warn!(
                "{left_out}: it is neither file nor directory and is left out, as PostgreSQL does"
            );
        }
        all
    }

    /// Archives the histories of the backup's timeline and its ancestors, which an archive that was
    /// begun on this timeline does not have and recovery asks for.
    pub(super) fn archive_histories(&self, timeline: TimelineId) -> Result<(), Error> {
        let folder = self.pgdata.join(self.control.version.wal_folder());
        let archiver = self.archiver();
        let history = wal::history_beside(self.repository, &folder.join("any"), timeline)?;
        for (timeline, ..) in history.spans() {
            let file = WalFileName::History(timeline);
            let path = folder.join(file.to_string());
            if path.exists() {
                archiver.push(&path, file)?;
            }
        }
        Ok(())
    }

    pub(super) fn facts(
        &self,
        clock: ServerClock,
        base: Option<Base>,
        ended: Ended,
        tablespaces: Vec<Tablespace>,
        left_out: Vec<LeftOut>,
    ) -> Result<Facts, Error> {
        let range = ended.range();
        let wal_folder = self.pgdata.join(self.control.version.wal_folder());
        let history =
            wal::history_beside(self.repository, &wal_folder.join("any"), range.timeline)?;
        let Ended {
            stopped,
            label,
            corrupt_blocks,
        } = ended;
        Ok(Facts {
            system_identifier: self.control.system_identifier,
            range,
            history: history.ancestors,
            base,
            merged_from: None,
            of_standby: label.of_standby,
            checkpoint_lsn: label.checkpoint_lsn,
            times: (clock.start, stopped.time),
            replayed: (stopped.replayed_time, None),
            stop_snapshot: stopped.snapshot,
            postgres_version: self.control.version,
            server_version: clock.version,
            limits: Some(self.control.limits),
            wal_segment_size: self.control.segment_size,
            wal_block_size: self.control.wal_block_size_bytes,
            data_checksums: self.control.data_checksums,
            corrupt_blocks,
            tablespaces,
            left_out,
            permanent: self.options.permanent,
            label: self.options.label.clone(),
            annotations: self.options.annotations.clone(),
        })
    }

    /// Makes sure that the archived WAL of a backup is this server's; returns the last transaction in a standby's.
    fn prove(&self, backup: &Facts) -> Result<Option<(Lsn, Timestamp)>, Error> {
        let wal_folder = self.pgdata.join(self.control.version.wal_folder());
        own_wal::check(&self.archiver(), &wal_folder, backup)
    }
}

/// The last part: what must not be in place before everything else is.
pub(super) fn pack_last(
    assembly: &Assembly,
    owner: Owner,
    label: &str,
    pg_control: &[u8],
    stopped: &StoppedBackup,
) -> Result<(), Error> {
    let (number, now) = (assembly.next_number(), stopped.time.as_second());
    let mut part = assembly.begin_part(number, owner)?;
    part.bytes("backup_label", label.as_bytes(), now)?;
    if !stopped.tablespace_map.is_empty() {
        // Restoring makes the links itself.
        part.unlisted("tablespace_map", stopped.tablespace_map.as_bytes(), now)?;
    }
    part.bytes(control::PATH, pg_control, now)?;
    Ok(assembly.close_part(part, number)?)
}

fn with_last_transaction(entry: BackupEntry, last: Option<(Lsn, Timestamp)>) -> BackupEntry {
    match last {
        Some((lsn, time)) => BackupEntry {
            replayed_lsn: Some(lsn),
            replayed_time: Some(time),
            ..entry
        },
        None => entry,
    }
}

impl Ended {
    /// The WAL that makes the backup consistent.
    pub(super) fn range(&self) -> WalRange {
        WalRange {
            timeline: self.label.timeline,
            start: self.label.start_lsn,
            end: self.stopped.stop_lsn,
        }
    }
}
