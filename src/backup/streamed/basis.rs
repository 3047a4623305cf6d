//! What a streamed backup stands on, and who finds the changed blocks.
//!
//! ```text
//! from 17, with summarize_wal: parent's manifest ─▶ server ─▶ changed blocks
//! else: server ─▶ all blocks ─▶ those that the archived WAL names are kept
//! ```

use bytes::Bytes;
use walhalla_postgres::summary::Changes;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::{History, Lsn};

use super::super::delta::Delta;
use super::super::extent::Changed;
use super::super::parent::{BackedUpServer, Parent};
use super::ReplicatedServer;
use crate::archive::changed::{Gap, Interval};
use crate::archive::proof::Proof;
use crate::archive::walk::Reading;
use crate::backup::Error;
use crate::backup::request::Backup;
use crate::contents::read_manifest;
use crate::output;
use crate::repository::entry::ChangeSource;
use crate::server::replication::base_backup::{Begun, Extent, Request};
use crate::wal::stored_summary::Proven;

/// Why page LSNs are no help.
const NEEDS_FILES: &str =
    "what each page's LSN tells is read in the data directory, and this backup has none at hand";

/// What a backup stands on.
pub(super) enum Basis {
    /// Nothing.
    Full,
    /// The server sends what changed.
    Sent(Delta),
    /// The server sends all, and this host keeps what changed.
    Kept(Delta),
}

impl Basis {
    pub(super) fn delta(&self) -> Option<&Delta> {
        match self {
            Self::Full => None,
            Self::Sent(delta) | Self::Kept(delta) => Some(delta),
        }
    }

    pub(super) fn into_delta(self) -> Option<Delta> {
        match self {
            Self::Full => None,
            Self::Sent(delta) | Self::Kept(delta) => Some(delta),
        }
    }

    /// Of a delta of which this host keeps the changed blocks.
    pub(super) fn kept(&self) -> Option<&Delta> {
        match self {
            Self::Full | Self::Sent(_) => None,
            Self::Kept(delta) => Some(delta),
        }
    }
}

impl Backup<'_> {
    /// Finds what the backup stands on, and has the server begin it.
    pub(super) fn begin_on_basis(
        &self,
        server: &mut ReplicatedServer,
        history: &History,
        request: &mut Request,
    ) -> Result<(Begun, Basis), Error> {
        let Some(options) = &self.options.delta else {
            let begun = self.wait(server.connection.begin_backup(request))?;
            return Ok((begun, Basis::Full));
        };
        let own = BackedUpServer {
            control: self.control,
            history,
            start: server.flushed,
            max_chain: options.max_chain,
            data_checksums: (server.knows_checksums).then_some(self.control.data_checksums),
        };
        let Some(parent) = self.parent(options, &own, None)? else {
            let begun = self.wait(server.connection.begin_backup(request))?;
            return Ok((begun, Basis::Full));
        };
        let may = |source| options.source.is_none_or(|only| only == source);
        let mut reason = None;
        if may(ChangeSource::Server) {
            match self.begin_incremental(server, history, &parent, request)? {
                Ok(begun) => {
                    let delta = Delta::new(parent, Changed::Pages, ChangeSource::Server, None);
                    return Ok((begun, Basis::Sent(delta)));
                }
                Err(why) => reason = Some(why),
            }
        }
        let refused = |reason: String, source_name| Error::Changes {
            parent: parent.entry.id.clone(),
            source_name,
            reason,
        };
        if !may(ChangeSource::Wal) {
            let source = options.source.unwrap_or(ChangeSource::Wal);
            return Err(refused(reason.unwrap_or(NEEDS_FILES.to_owned()), source));
        }
        request.extent = Extent::Full;
        let begun = self.wait(server.connection.begin_backup(request))?;
        self.wait_for_wal_before(history, begun.start)?;
        let size = self.control.segment_size;
        let number = size.segment_of(begun.start);
        if begun.start > number.start(size) {
            // The changes end where a record begins at the start or behind it, as the checkpoint's does.
            let flushed = self.flushed()?;
            let until = flushed.min(number.next().start(size));
            self.bring_segment(begun.timeline, number, until)?;
        }
        match self.changes_until(history, &parent, begun.start)? {
            Ok(changes) => {
                let blocks = Changed::Blocks(changes);
                let delta = Delta::new(parent, blocks, ChangeSource::Wal, reason);
                Ok((begun, Basis::Kept(delta)))
            }
            Err(gap) => {
                let reasons: Vec<String> = reason.into_iter().chain([gap.to_string()]).collect();
                Err(refused(reasons.join("; "), ChangeSource::Wal))
            }
        }
    }

    /// Has the server begin an incremental backup, or says why it does not.
    fn begin_incremental(
        &self,
        server: &mut ReplicatedServer,
        history: &History,
        parent: &Parent,
        request: &mut Request,
    ) -> Result<Result<Begun, String>, Error> {
        if !self.control.version.has_wal_summaries() {
            return Ok(Err(format!(
                "PostgreSQL {} takes no incremental backups",
                self.control.version
            )));
        }
        if !server.summarizes {
            return Ok(Err("the server has summarize_wal = off".to_owned()));
        }
        if !parent.entry.corrupt_blocks.is_empty() {
            // It knows the parent's files by their lengths only, and would not send a block that did not change.
            let reason = "the parent holds damaged blocks, of which the server does not know";
            return Ok(Err(reason.to_owned()));
        }
        // Only the archived WAL tells whether the parent is in this server's past.
        let size = self.control.segment_size;
        let segment = size.segment_of(server.flushed).start(size);
        self.wait_for_wal_before(history, segment)?;
        if let Err(gap) = self.changes_until(history, parent, segment)? {
            return Ok(Err(gap.to_string()));
        }
        let manifest = Bytes::from(read_manifest(self.repository, &parent.entry)?);
        request.extent = Extent::Incremental;
        let begun = self.wait(async {
            let connection = &mut server.connection;
            connection.upload_manifest(&manifest).await?;
            connection.begin_backup(request).await
        });
        match begun {
            Ok(begun) => Ok(Ok(begun)),
            Err(Error::Replication(error)) if error.code().is_some() => {
                // The session is in the midst of an answer.
                (server.connection, _) = self.again(|| self.another_session())?;
                Ok(Err(output::chain(&error)))
            }
            Err(error) => Err(error),
        }
    }

    /// What changed from the parent's start until `lsn`, or why the WAL does not tell it.
    fn changes_until(
        &self,
        history: &History,
        parent: &Parent,
        lsn: Lsn,
    ) -> Result<Result<Changes, Gap>, Error> {
        let wal_folder = self.pgdata.join(self.control.version.wal_folder());
        let interval = Interval {
            repository: self.repository,
            wal_folder: &wal_folder,
            cluster: Cluster::from(self.control),
            history,
            parent: Proof::of(&parent.entry),
            from: parent.entry.start_lsn,
            to: lsn,
            reading: Reading {
                threads: self.options.threads,
                show: self.options.show,
            },
            proven: Proven::default(),
        };
        Ok(interval.changes()?)
    }

    /// Up to where the server's WAL is on its disk; its session for the backup is busy.
    fn flushed(&self) -> Result<Lsn, Error> {
        self.again(|| {
            let (connection, identity) = self.another_session()?;
            self.wait(async {
                connection.close().await;
                Ok::<_, Error>(identity.flushed)
            })
        })
    }
}
