//! What is to be backed up, and how.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use walhalla_postgres::ControlFile;
use walhalla_providers::transfer::Rate;

use super::Error;
use crate::pipeline::Pipeline;
use crate::progress::Show;
use crate::repository::Repository;
use crate::repository::entry::ChangeSource;
use crate::wal::archiver::Archiver;
use crate::wal::mirror::Mirror;

/// What the user says of a backup.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Free text.
    pub label: Option<String>,
    /// Free pairs.
    pub annotations: BTreeMap<String, String>,
    /// Kept by every retention rule.
    pub permanent: bool,
    /// Whether it is to be a delta, and to what; a full backup without.
    pub delta: Option<DeltaOptions>,
    /// Whether its WAL is received while it is taken, so that the server need not archive.
    pub with_wal: bool,
    /// How long a missing WAL segment is waited for, from the last one that arrived.
    pub archive_timeout: Duration,
    /// Files that are packed at a time.
    pub threads: usize,
    /// How many bytes a second are read from the data directory.
    pub read_rate: Option<Rate>,
    /// How progress is shown.
    pub show: Show,
}

/// What the user says of a delta.
#[derive(Clone, Debug, Default)]
pub struct DeltaOptions {
    /// The parent's id; without, the newest usable one.
    pub parent: Option<String>,
    /// What may tell the changed blocks; without, whatever can.
    pub source: Option<ChangeSource>,
    /// How many deltas may stand on a full backup.
    pub max_chain: usize,
}

/// Where a backup comes from and goes to.
pub struct Backup<'a> {
    /// The data directory.
    pub pgdata: &'a Path,
    /// Its control file.
    pub control: &'a ControlFile,
    /// Where it goes.
    pub repository: &'a Repository,
    /// Compresses and encrypts it.
    pub pipeline: &'a Pipeline,
    /// The second store, which is owed it when it is taken.
    pub mirror: Option<&'a Mirror>,
    /// What the user says of it.
    pub options: Options,
}

impl Backup<'_> {
    pub(super) fn wait<T, E: Into<Error>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        self.repository.session().wait(future).map_err(Into::into)
    }

    pub(super) fn archiver(&self) -> Archiver<'_> {
        Archiver {
            // What a backup needs follows it.
            mirror: None,
            repository: self.repository,
            pipeline: self.pipeline,
            origin: self.control.into(),
            in_recovery: false,
        }
    }
}
