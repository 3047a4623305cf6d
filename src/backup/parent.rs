//! Choosing the backup that a delta stands on.

use std::path::{Path, PathBuf};

use walhalla_postgres::{ControlFile, History, Lsn, Version};

use super::Error;
use crate::contents;
use crate::contents::relations::Relations;
use crate::failure::Failure as _;
use crate::repository::entry::Place;
use crate::repository::{self, BackupEntry, BackupId, Repository};

/// More corrupt blocks than an entry tells of are no base.
pub(super) const KEPT_CORRUPT_BLOCKS: usize = 1000;

/// A backup that a delta can stand on.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    /// Its entry.
    pub entry: BackupEntry,
    /// What it stands on, and itself.
    pub chain: Vec<BackupId>,
    /// The files of relations that it holds.
    pub relations: Relations,
}

/// Why a backup cannot be a delta's parent.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It was taken on a branch that this server did not come along.
    #[error(
        "it ends at {stop} on timeline {timeline}, and this server left that timeline at {left}: it is a backup of an abandoned branch"
    )]
    Abandoned {
        /// Its end.
        stop: Lsn,
        /// Its timeline.
        timeline: u32,
        /// Where this server's history leaves it.
        left: Lsn,
    },
    /// The same of a timeline that this server never was on.
    #[error(
        "it was taken on timeline {timeline}, which is not in the history of this server's timeline {own}"
    )]
    OtherTimeline {
        /// Its timeline.
        timeline: u32,
        /// This server's.
        own: u32,
    },
    /// The server is behind it.
    #[error("it ends at {stop}, and this server is at {own} only")]
    Later {
        /// Its end.
        stop: Lsn,
        /// Start of the backup that is being taken.
        own: Lsn,
    },
    /// `pg_checksums` writes every page anew without a trace in WAL or LSNs.
    #[error("data checksums were switched {} since it was taken", if *.now { "on" } else { "off" })]
    Checksums {
        /// Whether they are on.
        now: bool,
    },
    /// `pg_resetwal --wal-segsize`.
    #[error("the WAL segment size was another when it was taken")]
    SegmentSize,
    /// Another major version.
    #[error("it is of PostgreSQL {0}")]
    Version(Version),
    /// Its chain is as long as it may be.
    #[error("{deltas} deltas stand on its full backup, and delta_max_chain is {most}")]
    ChainTooLong {
        /// How many there are.
        deltas: usize,
        /// How many there may be.
        most: usize,
    },
    /// A file of the data directory has a name that changed blocks have in a delta.
    #[error("the name of {} is one that changed blocks have in a delta", .0.display())]
    Named(PathBuf),
    /// Neither the WAL since then nor `pg_wal` tells of it.
    #[error(
        "nothing shows that it is in this server's past: pg_wal has no backup history file of it, and the WAL since then cannot be read to its end"
    )]
    NotShown,
    /// It holds more corrupt blocks than are known by number.
    #[error("it holds too many corrupt blocks")]
    Corrupt,
    /// An older program took it.
    #[error("it was taken by walhalla {0}, which did not store what a delta needs of its parent")]
    NoIndex(String),
    /// An object of it or of its ancestors is gone.
    #[error("{0} is missing or of another length")]
    Missing(String),
    /// What it takes cannot be read.
    #[error(transparent)]
    Contents(#[from] contents::Error),
    /// Its chain is broken.
    #[error(transparent)]
    Chain(repository::Error),
}

/// The server whose backup is being taken.
pub(super) struct BackedUpServer<'a> {
    /// What its control file says now.
    pub(super) control: &'a ControlFile,
    /// The way of its timeline.
    pub(super) history: &'a History,
    /// Where the backup starts.
    pub(super) start: Lsn,
    /// How many deltas may stand on a full backup.
    pub(super) max_chain: usize,
    /// Whether its pages have checksums; `None` where only its control file tells it, which is sent last.
    pub(super) data_checksums: Option<bool>,
}

impl BackedUpServer<'_> {
    /// The parent named `id`.
    ///
    /// # Errors
    /// [`Error::Parent`] when it cannot be one.
    pub(super) fn named(&self, repository: &Repository, id: &str) -> Result<Parent, Error> {
        let entry = repository.backup(id)?;
        let id = entry.id.clone();
        self.parent(repository, entry)?
            .map_err(|reason| Error::Parent { id, reason })
    }

    /// The newest backup of this server's own past, or why it cannot be a parent; `None` when there is none.
    pub(super) fn newest(
        &self,
        repository: &Repository,
        backups: Vec<BackupEntry>,
    ) -> Result<Option<Result<Parent, Error>>, Error> {
        let mut backups = backups;
        // Of a delta and the full backup that was merged out of its chain, the full one.
        backups.sort_by(|a, b| (b.stop_time, &b.id).cmp(&(a.stop_time, &a.id)));
        for entry in backups {
            if let Err(reason) = self.is_ancestor(&entry) {
                tracing::debug!("backup {} is no parent: {reason}", entry.id);
                continue;
            }
            let id = entry.id.clone();
            let parent = self.parent(repository, entry)?;
            return Ok(Some(parent.map_err(|reason| Error::Parent { id, reason })));
        }
        Ok(None)
    }

    fn parent(
        &self,
        repository: &Repository,
        entry: BackupEntry,
    ) -> Result<Result<Parent, Unusable>, Error> {
        if let Err(reason) = self.is_ancestor(&entry).and_then(|()| self.fits(&entry)) {
            return Ok(Err(reason));
        }
        let chain = match repository.chain(&entry) {
            Ok(chain) => chain,
            Err(error) if error.is_of_the_object() => return Ok(Err(Unusable::Chain(error))),
            Err(error) => return Err(error.into()),
        };
        if chain.len() > self.max_chain {
            return Ok(Err(Unusable::ChainTooLong {
                deltas: chain.len() - 1,
                most: self.max_chain,
            }));
        }
        for backup in &chain {
            if let Some(object) = repository.missing_object(backup, Place::InChain)? {
                return Ok(Err(Unusable::Missing(object)));
            }
        }
        match Relations::read(repository, &entry) {
            Ok(Some(relations)) => Ok(Ok(Parent {
                entry,
                chain: chain.into_iter().map(|backup| backup.id).collect(),
                relations,
            })),
            Ok(None) => Ok(Err(Unusable::NoIndex(entry.walhalla_version))),
            Err(error) if !error.is_of_the_object() => Err(error.into()),
            Err(error) => Ok(Err(error.into())),
        }
    }

    /// Whether all of the backup is in this server's own past.
    fn is_ancestor(&self, entry: &BackupEntry) -> Result<(), Unusable> {
        if !entry.leads_to(self.history) {
            let timeline = entry.timeline.number();
            return Err(match self.history.switch_from(entry.timeline) {
                Some(left) => Unusable::Abandoned {
                    stop: entry.stop_lsn,
                    timeline,
                    left,
                },
                None => Unusable::OtherTimeline {
                    timeline,
                    own: self.history.timeline.number(),
                },
            });
        }
        if entry.stop_lsn > self.start {
            return Err(Unusable::Later {
                stop: entry.stop_lsn,
                own: self.start,
            });
        }
        Ok(())
    }

    fn fits(&self, entry: &BackupEntry) -> Result<(), Unusable> {
        let control = self.control;
        if entry.postgres_version != control.version {
            return Err(Unusable::Version(entry.postgres_version));
        }
        self.data_checksums
            .map_or(Ok(()), |now| same_checksums(entry, now))?;
        if entry.wal_segment_size != control.segment_size {
            return Err(Unusable::SegmentSize);
        }
        if entry.corrupt_blocks.len() >= KEPT_CORRUPT_BLOCKS {
            return Err(Unusable::Corrupt);
        }
        if entry.index.is_none() {
            return Err(Unusable::NoIndex(entry.walhalla_version.clone()));
        }
        Ok(())
    }
}

/// Refuses a parent whose pages had checksums where now they have none, or the other way round.
pub(super) fn same_checksums(entry: &BackupEntry, now: bool) -> Result<(), Unusable> {
    if entry.data_checksums == now {
        Ok(())
    } else {
        Err(Unusable::Checksums { now })
    }
}

/// The history of the timeline that a server is on.
pub(super) fn history(
    repository: &Repository,
    pgdata: &Path,
    control: &ControlFile,
) -> Result<History, Error> {
    let folder = pgdata.join(control.version.wal_folder());
    let history = crate::wal::history_beside(repository, &folder.join("any"), control.timeline)?;
    Ok(history)
}
