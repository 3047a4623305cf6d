//! What a streamed backup stands on, and who finds the changed blocks.
//!
//! ```text
//! from 17, with summarize_wal: parent's manifest ─▶ server ─▶ changed blocks
//! else: server ─▶ all blocks ─▶ those that the archived WAL names are kept
//! ```

use bytes::Bytes;
use walhalla_postgres::summary::Changes;
use walhalla_postgres::{History, Lsn};

use super::super::delta::Delta;
use super::super::parent::{BackedUpServer, Parent};
use super::ReplicatedServer;
use crate::backup::Error;
use crate::backup::request::Backup;
use crate::contents::read_manifest;
use crate::output;
use crate::repository::entry::ChangeSource;
use crate::server::replication::base_backup::{Begun, Extent, Request};

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
    Kept(Delta, Changes),
}

impl Basis {
    pub(super) fn delta(&self) -> Option<&Delta> {
        match self {
            Self::Full => None,
            Self::Sent(delta) | Self::Kept(delta, _) => Some(delta),
        }
    }
}

impl Backup<'_> {
    /// Finds what the backup stands on, and has the server begin it. `full` is what it is asked for if it is to send all.
    pub(super) fn begin_on_basis(
        &self,
        server: &mut ReplicatedServer,
        history: &History,
        full: &Request,
    ) -> Result<(Begun, Basis), Error> {
        let parent = self.streamed_parent(server, history)?;
        let incremental = parent
            .as_ref()
            .map(|parent| self.begin_incremental(server, history, parent, full));
        match (parent, incremental.transpose()?) {
            (Some(parent), Some(Ok(begun))) => {
                let delta = Delta::new(parent, ChangeSource::Server, None);
                Ok((begun, Basis::Sent(delta)))
            }
            (parent, incremental) => {
                let begun = self.wait(server.connection.begin_backup(full))?;
                let reason = incremental.and_then(Result::err).flatten();
                let basis = match parent {
                    Some(parent) => self.kept(history, parent, &begun, reason)?,
                    None => Basis::Full,
                };
                Ok((begun, basis))
            }
        }
    }

    /// The backup that a delta will stand on; `None` for a full backup.
    fn streamed_parent(
        &self,
        server: &ReplicatedServer,
        history: &History,
    ) -> Result<Option<Parent>, Error> {
        let Some(options) = &self.options.delta else {
            return Ok(None);
        };
        let own = BackedUpServer {
            control: self.control,
            history,
            start: server.flushed,
            max_chain: options.max_chain,
            data_checksums: (server.knows_checksums).then_some(self.control.data_checksums),
        };
        self.parent(options, &own, None)
    }

    /// Has the server begin an incremental backup. Where it does not, and this host may find the changed blocks: why not, if
    /// it was asked.
    fn begin_incremental(
        &self,
        server: &mut ReplicatedServer,
        history: &History,
        parent: &Parent,
        full: &Request,
    ) -> Result<Result<Begun, Option<String>>, Error> {
        let only = self.options.delta.as_ref().and_then(|delta| delta.source);
        let may = |source| only.is_none_or(|only| only == source);
        let mut reason = None;
        if may(ChangeSource::Server) {
            match self.sent_changes(server, history, parent, full)? {
                Ok(begun) => return Ok(Ok(begun)),
                Err(why) => reason = Some(why),
            }
        }
        if may(ChangeSource::Wal) {
            return Ok(Err(reason));
        }
        Err(Error::Changes {
            parent: parent.entry.id.clone(),
            source_name: only.unwrap_or(ChangeSource::Wal),
            reason: reason.unwrap_or_else(|| NEEDS_FILES.to_owned()),
        })
    }

    /// Has the server begin to send what changed, or says why it does not.
    fn sent_changes(
        &self,
        server: &mut ReplicatedServer,
        history: &History,
        parent: &Parent,
        full: &Request,
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
        if let Err(gap) = self.changes_in_wal(parent, history, segment)? {
            return Ok(Err(gap.to_string()));
        }
        let manifest = Bytes::from(read_manifest(self.repository, &parent.entry)?);
        let request = Request {
            extent: Extent::Incremental,
            ..full.clone()
        };
        let begun = self.wait(async {
            let connection = &mut server.connection;
            connection.upload_manifest(&manifest).await?;
            connection.begin_backup(&request).await
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

    /// A delta of a backup in which the server sends all; `reason` is why it does not send the changes only.
    fn kept(
        &self,
        history: &History,
        parent: Parent,
        begun: &Begun,
        reason: Option<String>,
    ) -> Result<Basis, Error> {
        self.wait_for_wal_before(history, begun.start)?;
        let size = self.control.segment_size;
        let number = size.segment_of(begun.start);
        if begun.start > number.start(size) {
            // The changes end where a record begins at the start or behind it, as the checkpoint's does.
            let flushed = self.flushed()?;
            let until = flushed.min(number.next().start(size));
            self.bring_segment(begun.timeline, number, until)?;
        }
        match self.changes_in_wal(&parent, history, begun.start)? {
            Ok(changes) => {
                let delta = Delta::new(parent, ChangeSource::Wal, reason);
                Ok(Basis::Kept(delta, changes))
            }
            Err(gap) => {
                let reasons: Vec<String> = reason.into_iter().chain([gap.to_string()]).collect();
                Err(Error::Changes {
                    parent: parent.entry.id,
                    source_name: ChangeSource::Wal,
                    reason: reasons.join("; "),
                })
            }
        }
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
