//! What is brought from the server into a directory of the backup's own: histories of timelines, and WAL.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use walhalla_postgres::{History, Lsn, SegmentNo, TimelineId, WalFileName};
use walhalla_providers::ErrorKind;

use super::super::parent;
use super::ReplicatedServer;
use crate::backup::Error;
use crate::backup::request::Backup;
use crate::contents::manifest::WalRange;
use crate::output;
use crate::server::replication::{self, Replication, Started};
use crate::server::session::ArchiverState;

impl Backup<'_> {
    /// Brings the histories of the server's timeline and of those that it comes from into the WAL folder.
    pub(super) fn bring_histories(&self, server: &mut ReplicatedServer) -> Result<History, Error> {
        let folder = self.pgdata.join(self.control.version.wal_folder());
        let made = std::fs::create_dir_all(&folder);
        made.map_err(|source| Error::Scratch {
            path: folder.clone(),
            source,
        })?;
        let own = self.control.timeline;
        if own == TimelineId::FIRST {
            return Ok(History::root(own));
        }
        let mut bring = |timeline: TimelineId| -> Result<(), Error> {
            let text = self.wait(server.connection.history(timeline))?;
            let path = folder.join(WalFileName::History(timeline).to_string());
            std::fs::write(&path, text).map_err(|source| Error::Scratch { path, source })
        };
        bring(own)?;
        let history = parent::history(self.repository, self.pgdata, self.control)?;
        for (timeline, ..) in history.spans() {
            if timeline == own || timeline == TimelineId::FIRST {
                continue;
            }
            match bring(timeline) {
                // The server need not have those of ancestors any more.
                Err(Error::Replication(error)) if error.code().is_some() => {
                    self.warn_of_lost_history(timeline, &error)?;
                }
                brought => brought?,
            }
        }
        Ok(history)
    }

    /// Says what it means that the server does not send a history, if the archive does not have it.
    fn warn_of_lost_history(
        &self,
        timeline: TimelineId,
        reason: &replication::Error,
    ) -> Result<(), Error> {
        let file = WalFileName::History(timeline);
        match self.repository.find_wal(file) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) if error.kind == ErrorKind::StoreMissing => {}
            Err(error) => return Err(error.into()),
        }
        let number = timeline.number();
        tracing::warn!(
            "neither the server nor the archive has {file} ({}): this backup is complete without it, but no restore from an \
             earlier timeline can go to timeline {number} itself; if another server of this cluster has the file, run \
             `walhalla wal-push` for it there",
            output::chain(reason)
        );
        Ok(())
    }

    /// Brings the segment in which the backup ends.
    pub(super) fn bring_last_segment(
        &self,
        timeline: TimelineId,
        stop: Lsn,
        of_standby: bool,
    ) -> Result<(), Error> {
        let size = self.control.segment_size;
        let number = size.segment_before(stop);
        // A primary went on to a new segment; a standby has what it has.
        let until = if of_standby {
            stop
        } else {
            number.next().start(size)
        };
        self.bring_segment(timeline, number, until)
    }

    /// Brings a segment of the server's own WAL into the WAL folder, up to `until`.
    pub(super) fn bring_segment(
        &self,
        timeline: TimelineId,
        number: SegmentNo,
        until: Lsn,
    ) -> Result<(), Error> {
        let size = self.control.segment_size;
        let folder = self.pgdata.join(self.control.version.wal_folder());
        let path = folder.join(number.on(timeline, size).to_string());
        self.again(|| {
            let (mut connection, _) = self.another_session()?;
            self.write_wal(&mut connection, timeline, number.start(size)..until, &path)?;
            self.wait(async {
                connection.close().await;
                Ok::<_, Error>(())
            })
        })
    }

    /// Writes what the server has of this WAL to a file, as it comes. The file has a segment's length from the beginning, as
    /// the server's own has.
    fn write_wal(
        &self,
        connection: &mut Replication,
        timeline: TimelineId,
        wal: Range<Lsn>,
        path: &Path,
    ) -> Result<(), Error> {
        let failed = |source| Error::Scratch {
            path: path.to_owned(),
            source,
        };
        let mut new = File::options();
        new.write(true).create(true).truncate(true).mode(0o600);
        let file = new.open(path).map_err(failed)?;
        let length = self.control.segment_size.bytes();
        file.set_len(length).map_err(failed)?;
        if self.wait(connection.start(None, wal.start, timeline))? != Started::Streaming {
            return Ok(());
        }
        let mut at = wal.start;
        while at < wal.end {
            let Some(mut bytes) = self.wait(connection.next_wal(at))? else {
                break;
            };
            // A message may go beyond what is wanted, and into the next segment.
            bytes.truncate(usize::try_from(wal.end.0 - at.0).unwrap_or(usize::MAX));
            let written = file.write_all_at(&bytes, at.0 - wal.start.0);
            written.map_err(failed)?;
            at = Lsn(at.0 + bytes.len() as u64);
        }
        Ok(())
    }

    /// Waits until the archive has the WAL up to the segment before `lsn`. Soon after a switch, that segment is one of the
    /// timeline before.
    pub(super) fn wait_for_wal_before(&self, history: &History, lsn: Lsn) -> Result<(), Error> {
        let size = self.control.segment_size;
        let begin = size.segment_of(lsn).start(size);
        let before = Lsn(begin.0.saturating_sub(size.bytes()));
        let range = WalRange {
            timeline: history.timeline_at(Lsn(begin.0.saturating_sub(1))),
            start: before,
            end: begin,
        };
        let ask = &mut || Ok(ArchiverState::default());
        self.wait_for_wal(ask, range, &|| false)
    }
}
