//! Whether the server that answers is the directory's, archives its WAL, and leaves a backup that is whole.

use std::time::{Duration, Instant};

use walhalla_postgres::backup_label::BackupLabel;
use walhalla_postgres::{ControlFile, Lsn, TimelineId};

use super::Error;
use super::newest::Newest;
use super::own_directory;
use super::request::Backup;
use crate::server::session::{Facts, Server};

/// How long a failing archiver is given to succeed before a backup begins: it tries a file three times, a second apart.
const ARCHIVER_RECOVERS: Duration = Duration::from_secs(5);
const ARCHIVER_POLL: Duration = Duration::from_secs(1);

impl Backup<'_> {
    /// What the server says of itself, which is the directory's and archives.
    pub(super) fn check_server(&self, server: &mut Server) -> Result<Facts, Error> {
        let facts = self.wait(server.facts())?;
        if facts.system_identifier != self.control.system_identifier {
            return Err(Error::OtherCluster {
                server: facts.system_identifier,
                directory: self.control.system_identifier,
                pgdata: self.pgdata.to_owned(),
            });
        }
        if !self.wait(server.runs_in(self.pgdata))? {
            return Err(Error::OtherServer(self.pgdata.to_owned()));
        }
        // What a standby replays is archived by its primary.
        if facts.in_recovery || self.options.with_wal {
            return Ok(facts);
        }
        if facts.archive_mode == "off" {
            return Err(Error::NotArchiving("archive_mode is off"));
        }
        if facts.archiver.trim().is_empty() {
            return Err(Error::NotArchiving("archive_command is empty"));
        }
        self.check_archiver(server)?;
        Ok(facts)
    }

    /// Sees that the archiver does not fail. A file that it is no longer to archive was settled otherwise.
    fn check_archiver(&self, server: &mut Server) -> Result<(), Error> {
        let folder = self.pgdata.join(self.control.version.wal_folder());
        let began = Instant::now();
        loop {
            let state = self.wait(server.archiver_state())?;
            let Some(file) = state.failing else {
                return Ok(());
            };
            let mark = folder.join("archive_status").join(format!("{file}.ready"));
            if !mark.exists() {
                return Ok(());
            }
            if began.elapsed() > ARCHIVER_RECOVERS {
                let tried = state.failed_at.unwrap_or_default();
                return Err(Error::ArchiverFails { file, tried });
            }
            std::thread::sleep(ARCHIVER_POLL);
        }
    }

    /// Sees that the directory is the server's.
    pub(super) fn check_directory(
        &self,
        server: &mut Server,
        begin: Lsn,
    ) -> Result<ControlFile, Error> {
        own_directory::check(self.pgdata, begin, || self.wait(server.own_control()))
    }
}

/// A standby's data ends on the timeline of its control file; its backup has one timeline only.
pub(super) fn must_be_on(begin: TimelineId, standby: &ControlFile) -> Result<(), Error> {
    let (begin, end) = (begin.number(), standby.min_recovery_timeline);
    if end != begin {
        return Err(Error::TimelineSwitch { begin, end });
    }
    Ok(())
}

/// A standby's backup is consistent at the end that the control file in it names; PostgreSQL may have written pages that are
/// newer.
pub(super) fn check_pages(
    label: &BackupLabel,
    newest: &Newest,
    control: &ControlFile,
    wal_end: Lsn,
) -> Result<(), Error> {
    let end = control.min_recovery_point;
    match newest.between(end, wal_end) {
        Some((page, path, block)) if label.of_standby == Some(true) => Err(Error::PageAfterEnd {
            path: path.to_owned(),
            block,
            page,
            end,
        }),
        _ => Ok(()),
    }
}
