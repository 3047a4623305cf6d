//! WAL files: pushing them to the archive, fetching them back, reading one record by record.
//!
//! ```text
//! pg_wal/NAME ─▶ check pages ─▶ compress ─▶ create, never replace        archiver
//! archive     ─▶ decompress ─▶ check pages ─▶ temporary file ─▶ rename   fetcher
//! segment     ─▶ summary beside it                                       stored_summary
//! first store ─▶ second store                                            mirror
//! tail        ─▶ the run that leads furthest, as the segment it will be  tail
//! ```

pub mod archiver;
pub mod fetcher;
pub mod mirror;
pub mod segment;
pub mod server_summaries;
pub mod stored_summary;
pub mod tail;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use walhalla_postgres::wal::Mismatch;
use walhalla_postgres::{History, SegmentSize, TimelineId, WalFileName};

use crate::failure::{Advice, Class, Failure};
use crate::pipeline;
use crate::repository::{self, ObjectError, Repository};
use crate::server;

/// Why a WAL file was not pushed or fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of PostgreSQL's is wrong.
    #[error(transparent)]
    Postgres(#[from] server::Error),
    /// The archive is wrong or failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// Writing to the archive failed.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A local file could not be read or written.
    #[error("could not {doing} {}", path.display())]
    Local {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A local file's content does not belong under its name in this cluster.
    #[error("{} {}: {mismatch}", path.display(), wrong_with(*.file, .mismatch))]
    Mismatch {
        /// The local file.
        path: PathBuf,
        /// What it should have been.
        file: WalFileName,
        /// How it differs.
        mismatch: Mismatch,
    },
    /// The archive holds another file under this name.
    #[error("WAL {} {file} is already archived with other content\n  in {object}", kind(*file))]
    OtherContent {
        /// The file.
        file: WalFileName,
        /// The object in the archive.
        object: String,
    },
    /// The archive holds a segment of this name from before the cluster's segments got another length.
    #[error(
        "WAL segment {file} has {} bytes, the archived one of this name has {}: the cluster's segment size was changed\n  in {object}",
        now.bytes(),
        archived.bytes()
    )]
    OtherSegmentSize {
        /// The file.
        file: WalFileName,
        /// The object in the archive.
        object: String,
        /// Length of segments before.
        archived: SegmentSize,
        /// Length of segments now.
        now: SegmentSize,
    },
    /// The first store has it, and the second does not.
    #[error("{what} is in {first}, and not in the mirror {second}")]
    NotMirrored {
        /// A WAL file or a backup.
        what: String,
        /// The URL of the store that has it.
        first: String,
        /// The URL of the other one.
        second: String,
        /// Why.
        #[source]
        source: Box<repository::Error>,
    },
    /// The store that has everything could not be asked.
    #[error("{file} is not in the mirror, and {store} does not answer, which may have it")]
    NotKnown {
        /// The file.
        file: WalFileName,
        /// The URL of the store that does not answer.
        store: String,
    },
    /// Absent, and the archive does not end there.
    #[error("{file} is missing in the archive {archive}, which does not end there: {later}")]
    Hole {
        /// The file.
        file: WalFileName,
        /// The archive.
        archive: String,
        /// What shows that there is more.
        later: String,
    },
    /// A newer process fetches the same file to the same place.
    #[error("another wal-fetch to {} was started since, and this one gives way", .0.display())]
    Superseded(PathBuf),
    /// Proven not to be in the archive.
    #[error("{file} is not in the archive {archive}")]
    NotArchived {
        /// The file.
        file: WalFileName,
        /// The archive.
        archive: String,
    },
    /// Not among the WAL that a restore staged.
    #[error("{0} is not among the WAL that was staged for this recovery")]
    NotStaged(WalFileName),
}

impl Error {
    /// Whether the store did not do what it was asked.
    pub fn is_of_the_store(&self) -> bool {
        let is_of_a_store = matches!(
            self,
            Self::Repository(_) | Self::Pipeline(_) | Self::NotMirrored { .. }
        );
        is_of_a_store && !self.is_of_an_objects_content()
    }
}

/// The history of `timeline`: from the folder of `path`, else from the archive; without ancestors where neither has it.
pub fn history_beside(
    repository: &Repository,
    path: &Path,
    timeline: TimelineId,
) -> Result<History, Error> {
    if timeline == TimelineId::FIRST {
        return Ok(History::root(timeline));
    }
    let beside = path.with_file_name(WalFileName::History(timeline).to_string());
    match std::fs::read(&beside) {
        Ok(text) => Ok(History::parse(timeline, &text).map_err(server::Error::from)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(repository
            .history(timeline)?
            .unwrap_or(History::root(timeline))),
        Err(source) => Err(Error::Local {
            doing: "read",
            path: beside,
            source,
        }),
    }
}

/// The histories that stand in the folder of `path`; what does not read as one is passed over.
///
/// # Errors
/// [`Error::Local`].
pub fn histories_beside(path: &Path) -> Result<Vec<History>, Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut histories = Vec::new();
    for entry in entries.map_err(Error::local("read", folder))? {
        let name = entry.file_name();
        let file = name.to_str().and_then(|name| name.parse().ok());
        let Some(WalFileName::History(timeline)) = file else {
            continue;
        };
        let text = std::fs::read(entry.path()).map_err(Error::local("read", entry.path()))?;
        histories.extend(History::parse(timeline, &text).ok());
    }
    Ok(histories)
}

fn wrong_with(file: WalFileName, mismatch: &Mismatch) -> String {
    if mismatch.is_damage() {
        "is damaged".to_owned()
    } else {
        format!("is not WAL file {file} of this cluster")
    }
}

fn kind(file: WalFileName) -> &'static str {
    match file {
        WalFileName::Segment(_) | WalFileName::Partial(..) => "segment",
        WalFileName::History(_) | WalFileName::BackupHistory(..) => "file",
    }
}

impl Error {
    pub(crate) fn local(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Local {
            doing,
            path,
            source,
        }
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Postgres(error) => error.class(),
            Self::Repository(error) => error.class(),
            Self::Pipeline(error) => error.class(),
            Self::NotMirrored { source, .. } => source.class(),
            Self::NotArchived { .. } | Self::NotStaged(_) => Class::Absent,
            Self::Local { .. }
            | Self::Mismatch { .. }
            | Self::OtherContent { .. }
            | Self::OtherSegmentSize { .. }
            | Self::Hole { .. }
            | Self::NotKnown { .. }
            | Self::Superseded(_) => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Postgres(error) => return error.hint(),
            Self::Repository(error) => return error.hint(),
            Self::Pipeline(error) => return error.hint(),
            Self::OtherContent {
                file: WalFileName::History(_),
                ..
            } => {
                "another server was promoted to this timeline first: restore again, or promote again, \
                 to get a number of its own"
            }
            Self::OtherContent { .. } => {
                "two servers are archiving to this store: stop the one that should not, or give it a \
                 store of its own"
            }
            Self::NotMirrored { source, .. } if source.is_of_the_object() => {
                "another server, or another Walhalla, wrote to the mirror: see which of the two objects is right, and keep the other one elsewhere"
            }
            Self::NotMirrored { .. } => {
                "it is tried again as long as `mirror_mode` is \"both\"; with \"owed\" archiving goes on, and the mirror gets it later"
            }
            Self::NotKnown { .. } => {
                "wait until the store answers; `--store` with the URL of the mirror asks that one alone"
            }
            Self::OtherSegmentSize { .. } => {
                "pg_resetwal --wal-segsize names WAL files anew, and their names meet those of before: give the cluster a store, \
                 or a prefix in it, of its own from now on, and take a full backup there"
            }
            Self::Hole { .. } => {
                "bring it back from a copy of the store or from the server's pg_wal, or recover to a target before it; \
                 `walhalla wal-show` lists the gaps"
            }
            Self::Mismatch { mismatch, .. } => return Some(about(mismatch).into()),
            Self::Local { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => {
                    "see whether the path is right: archive_command = 'walhalla wal-push %p' gives the path of the file, %f its name alone"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "run the command as the user to whom the file or its directory belongs, as a rule postgres"
                }
                _ => return None,
            },
            Self::NotArchived { .. } | Self::NotStaged(_) | Self::Superseded(_) => return None,
        };
        Some(text.into())
    }
}

/// What to do about a local file that is not archived.
fn about(mismatch: &Mismatch) -> &'static str {
    match mismatch {
        Mismatch::Cut { .. } => {
            "it was not archived. Its end was cut off, perhaps by a lost write: take a full backup of the server now, and look at its \
             disk; PostgreSQL hands the file over again"
        }
        mismatch if mismatch.is_damage() => {
            "it was not archived. It is this cluster's file, and the WAL in it has changed, on the disk or in memory: a restore could \
             not go past it. Take a full backup of the server now, and look at its disk and memory; PostgreSQL hands the file over \
             again"
        }
        Mismatch::Cluster { .. } => {
            "it was not archived. It is another cluster's: name the data directory that it belongs to (--pgdata), or move it out of this \
             pg_wal"
        }
        Mismatch::Magic { .. } | Mismatch::Sizes { .. } | Mismatch::Text => {
            "it was not archived. It is no WAL file of this server; archive_command = 'walhalla wal-push %p' hands over the right ones"
        }
        _ => {
            "it was not archived. Its content belongs to another place in the WAL than its name: see which server wrote it, and whether \
             somebody renamed it"
        }
    }
}

impl From<ObjectError> for Error {
    fn from(error: ObjectError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<walhalla_providers::Error> for Error {
    fn from(error: walhalla_providers::Error) -> Self {
        Self::Repository(error.into())
    }
}
