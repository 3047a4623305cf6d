//! A base backup over the replication protocol: the server sends its files, and nothing of it need be on this host.
//!
//! ```text
//! server ─▶ tar streams ─▶ archives: whole files, changed blocks; pages checked ─▶ parts ─▶ store
//! ```
//!
//! What a backup of a data directory finds beside it is brought into a directory of its own: the histories of timelines,
//! and the server's own WAL where the backup begins and ends. So the same checks are made.

mod archives;
mod basis;
mod brought;
mod server;
mod sessions;

use jiff::Timestamp;
use walhalla_postgres::backup_label::{self, BackupLabel};
use walhalla_postgres::{ControlFile, History, Lsn};

use super::Error;
use super::begin::Guard;
use super::delta::Delta;
use super::moved_databases::lost_database;
use super::own_history;
use super::own_server::{check_pages, must_be_on};
use super::parent::{self, KEPT_CORRUPT_BLOCKS};
use super::push::{Ended, ServerClock, pack_last};
use super::request::Backup;
use crate::contents::assembly::Assembly;
use crate::failure::Failure as _;
use crate::progress::Show;
use crate::repository::layout::RunId;
use crate::repository::{BackupEntry, BackupId, BackupKind};
use crate::server as postgres;
use crate::server::data_directory::{Tablespace, check_utf8};
use crate::server::replication::base_backup::{self, Extent, Request, Sizes};
use crate::server::session::{ArchiverState, StoppedBackup};
use archives::Streamed;
use basis::Basis;
pub use server::ReplicatedServer;

/// A backup that the server sends.
struct Begun<'a> {
    server: base_backup::Begun,
    /// What the server's clock showed before.
    time: Timestamp,
    basis: Basis,
    assembly: Assembly<'a>,
    guard: Guard,
}

impl Backup<'_> {
    /// Takes the backup of `server`, whose control file this has as far as the server told it. `pgdata` is an empty directory
    /// for what is brought for the time of the backup.
    ///
    /// # Errors
    /// As [`Backup::push`].
    pub fn push_streamed(&self, mut server: ReplicatedServer) -> Result<BackupEntry, Error> {
        let history = self.bring_histories(&mut server)?;
        let begun = self.begin_streamed(&mut server, &history)?;
        let streamed = self.receive(&mut server, &begun)?;
        let stopped = self.wait(server.connection.end_backup())?;
        if let Some(damage) = &stopped.damage {
            tracing::warn!("the server says: {damage}");
        }
        let time = self.wait(server.connection.clock())?;
        let wal_end = self.wait(server.connection.identify())?.flushed;
        let control = ControlFile::parse(&streamed.pg_control)
            .map_err(|reason| Error::SentControl { reason })?;
        server.must_have_sent(&control)?;
        if let Some(delta) = begun.basis.delta() {
            let parent = &delta.parent.entry;
            let same = parent::same_checksums(parent, control.data_checksums);
            same.map_err(|reason| Error::Parent {
                id: parent.id.clone(),
                reason,
            })?;
        }
        let own = Backup {
            control: &control,
            options: self.options.clone(),
            ..*self
        };
        let stopped = StoppedBackup {
            stop_lsn: stopped.stop,
            label: streamed.label.clone(),
            tablespace_map: streamed.tablespace_map.clone(),
            time,
            // The protocol tells none. Who looks for a transaction looks into the WAL.
            snapshot: String::new(),
            replayed_time: None,
        };
        own.conclude_streamed(server, begun, streamed, stopped, wal_end)
    }

    fn begin_streamed(
        &self,
        server: &mut ReplicatedServer,
        history: &History,
    ) -> Result<Begun<'_>, Error> {
        let time = self.wait(server.connection.clock())?;
        let request = Request {
            version: self.control.version,
            label: own_history::label(self.options.label.as_deref(), time),
            most_kilobytes_a_second: self.options.read_rate.map(archives::kilobytes_a_second),
            sizes: match self.options.show {
                Show::Never => Sizes::Unknown,
                _ => Sizes::Counted,
            },
            extent: Extent::Full,
        };
        let (begun, basis) = self.begin_on_basis(server, history, &request)?;
        let run = RunId::random();
        let second = self.repository.claim_next_second(time, run)?;
        let delta = basis.delta();
        let kind = match delta {
            None => BackupKind::Full,
            Some(_) => BackupKind::Delta,
        };
        let id = BackupId::of(&second, kind);
        let parents = delta.map(|delta| delta.parent.chain.clone());
        let guard = self.guard(run, &id, (begun.start, begun.timeline), parents);
        tracing::info!(
            "backup {id} of PostgreSQL {} at {} begins",
            server.connection.version_text(),
            server.connection.place()
        );
        for Tablespace { location, .. } in &begun.tablespaces {
            check_utf8("a tablespace", location)?;
        }
        Ok(Begun {
            server: begun,
            time,
            basis,
            assembly: Assembly::new(self.repository, self.pipeline, id),
            guard,
        })
    }

    /// All that comes after the last file.
    fn conclude_streamed(
        &self,
        server: ReplicatedServer,
        begun: Begun,
        streamed: Streamed,
        stopped: StoppedBackup,
        wal_end: Lsn,
    ) -> Result<BackupEntry, Error> {
        let label = BackupLabel::parse(&stopped.label).map_err(postgres::Error::from)?;
        if label.of_standby == Some(true) {
            must_be_on(label.timeline, self.control)?;
        }
        let wal_end = wal_end.max(stopped.stop_lsn);
        check_pages(&label, &streamed.newest, self.control, wal_end)?;
        let mut corrupt_blocks = streamed.corrupt_blocks;
        if !self.control.data_checksums && !server.knows_checksums {
            // They were looked for as if there were checksums.
            corrupt_blocks.clear();
        }
        corrupt_blocks.extend(streamed.newest.beyond(wal_end));
        corrupt_blocks.truncate(KEPT_CORRUPT_BLOCKS);
        let text = match &begun.basis {
            Basis::Full | Basis::Sent(_) => stopped.label.clone(),
            Basis::Kept(delta, _) => {
                let parent = &delta.parent.entry;
                backup_label::of_delta(&stopped.label, parent.start_lsn, parent.timeline)
            }
        };
        pack_last(
            &begun.assembly,
            streamed.owner,
            &text,
            &streamed.pg_control,
            &stopped,
        )?;
        let ended = Ended {
            stopped,
            label,
            corrupt_blocks,
        };
        let range = ended.range();
        self.archive_histories(range.timeline)?;
        let of_standby = ended.label.of_standby == Some(true);
        self.bring_last_segment(range.timeline, range.end, of_standby)?;
        let clock = ServerClock {
            start: begun.time,
            version: server.connection.version_text().to_owned(),
        };
        let base = begun.basis.delta().map(Delta::base);
        let tablespaces = outside(begun.server.tablespaces);
        let facts = self.facts(clock, base, ended, tablespaces, streamed.left_out)?;
        // What the archiver says of itself is told to sessions for SQL only.
        let ask = &mut || Ok(ArchiverState::default());
        let entry = self.conclude(begun.assembly, &facts, &streamed.relations, ask)?;
        self.wait(async {
            server.connection.close().await;
            Ok::<_, Error>(())
        })?;
        self.must_have_all_databases(&entry)?;
        self.commit(entry, begun.guard)
    }

    /// Refuses a backup whose replay may copy a database that was removed while it ran.
    fn must_have_all_databases(&self, entry: &BackupEntry) -> Result<(), Error> {
        match self.notes(entry) {
            Ok(notes) => match lost_database(&notes) {
                Some(database) => Err(Error::MovedDatabase(database)),
                None => Ok(()),
            },
            Err(error) if error.is_locked() => {
                tracing::warn!(
                    "without an identity it cannot be seen here whether a database was copied and removed while the backup ran \
                     (ALTER DATABASE … SET TABLESPACE): run `walhalla drill` where the identity is"
                );
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The tablespaces that are not in the data directory: the others come with it.
fn outside(tablespaces: Vec<Tablespace>) -> Vec<Tablespace> {
    let all = tablespaces.into_iter();
    all.filter(|tablespace| tablespace.location.is_absolute())
        .collect()
}
