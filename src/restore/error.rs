//! Why a restore is refused or fails, and what helps.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::existing::Unproven;
use super::occupant::{Occupant, RunningServer};
use super::outside::Unfit;
use super::plan::{NewTablespace, Unreachable};
use super::target::shell_bytes;
use crate::failure::{Advice, Class, Failure};
use crate::output::look;
use crate::repository::BackupId;
use crate::{contents, repository, server, wal};

/// Why a restore was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog or the archive is wrong or failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// A WAL file is wrong.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// Something of PostgreSQL's is wrong.
    #[error(transparent)]
    Postgres(#[from] server::Error),
    /// The target cannot be reached with what the archive holds.
    #[error("the recovery target cannot be reached: {}", .0.reason)]
    Unreachable(Unreachable),
    /// A directory that must be empty is not.
    #[error("{} is not empty: {}", .0.display(), .1)]
    NotEmpty(PathBuf, Box<Occupant>),
    /// Another restore is at work in a directory.
    #[error("another restore is at work in {}", .0.display())]
    Restoring(PathBuf),
    /// A running server uses a directory.
    #[error("{} is used by the server in {} (process {})", .0.display(), .1.data.display(), .1.process)]
    InUse(PathBuf, RunningServer),
    /// A tablespace's place has files, and nothing but a link shows that they are those of the directory that is restored.
    #[error("tablespace {tablespace} has files in {}, and a link to them does not show that they belong to this data directory: a copy of it has the same link", place.display())]
    UnprovenTablespace {
        /// The tablespace.
        tablespace: u32,
        /// Its place.
        place: PathBuf,
    },
    /// A standby has its tablespaces where it was told to, not where its primary has them.
    #[error("backup {backup} was taken of a standby, and {} is where that standby has tablespace {tablespace}; its primary may have it elsewhere", place.display())]
    StandbysTablespace {
        /// The backup.
        backup: BackupId,
        /// The first tablespace that no place was named for.
        tablespace: u32,
        /// Where the standby has it.
        place: PathBuf,
    },
    /// The WAL folder is a link, and nothing else shows that what it leads to belongs to the directory that is restored.
    #[error("{} is a link to {}, and a link does not show that the WAL there belongs to this data directory: a copy of it has the same link", .0.display(), .1.display())]
    WalIsALink(PathBuf, PathBuf),
    /// A place that only the backup names, and that the server's user could not write to.
    #[error("the backup puts tablespace {tablespace} into {}, which is not a directory of the server's user; the restored cluster will belong to the user with uid {user}", place.display())]
    NotTheOwners {
        /// The tablespace.
        tablespace: u32,
        /// Its place.
        place: PathBuf,
        /// The user.
        user: u32,
    },
    /// A directory of somebody else.
    #[error("{} belongs to the user with uid {user}, and must belong to the user with uid {wanted}", path.display())]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        user: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// A link in a path that root was given would lead root to where the link's owner may not write.
    #[error("a link in the path {} belongs to another user than what it leads to", .0.display())]
    ForeignLink(PathBuf),
    /// A link whose target is missing.
    #[error("{} is a link that leads nowhere", .0.display())]
    LeadsNowhere(PathBuf),
    /// Something is mounted inside of a directory that is to be restored over.
    #[error("{} is mounted there, inside of what is to be restored over", .0.display())]
    MountInside(PathBuf),
    /// More than the data directory itself is missing: the path is misspelt, or its file system is not mounted.
    #[error("{} does not exist", .0.display())]
    NoFolder(PathBuf),
    /// Nothing can be created there.
    #[error("nothing can be created in {}", path.display())]
    NoRight {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The directory for the staged WAL cannot be made.
    #[error("the WAL cannot be staged in {}", path.display())]
    NoStage {
        /// The stage.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Too many folders of WAL that was moved out of the way.
    #[error("{}.walhalla-old-wal.1 and on: too many of these folders are there already", .0.display())]
    NoRoomAside(PathBuf),
    /// Too many stages that data directories recover from.
    #[error("{} and those numbered after it hold WAL that other data directories are to recover from", .0.display())]
    NoRoomForStage(PathBuf),
    /// A backup names a file that lies in no place of the restored cluster.
    #[error("the backup holds {}, which does not belong into a data directory", .0.display())]
    StrangePath(PathBuf),
    /// Not enough files can be created.
    #[error("{} has room for {available} more files, the restore needs {needed} there", path.display())]
    NoInodes {
        /// On this file system.
        path: PathBuf,
        /// What there is.
        available: u64,
        /// What it takes.
        needed: u64,
    },
    /// A directory for staged WAL that holds something else.
    #[error("{} holds something else than staged WAL", .0.display())]
    NotAStage(PathBuf),
    /// A directory that is to be brought up to date is not, for all that can be seen, one of the cluster.
    #[error("{} is not proven to be a data directory of this cluster: {reason}", path.display())]
    NotThisCluster {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: Unproven,
    },
    /// Two places of the restored cluster that would share their files.
    #[error("{} and {} cannot both be places of the restored cluster", .0.display(), .1.display())]
    SharedPlace(PathBuf, PathBuf),
    /// Replay makes a tablespace where it must not, or cannot.
    #[error("replay creates tablespace {} at {}, but {unfit}", tablespace.oid, tablespace.location)]
    ReplayPlace {
        /// The tablespace.
        tablespace: Box<NewTablespace>,
        /// Why.
        unfit: Unfit,
    },
    /// Not enough room.
    #[error("{} has {} free, the restore needs {} there", path.display(), look::bytes(*available_bytes), look::bytes(*needed_bytes))]
    NoRoom {
        /// On this file system.
        path: PathBuf,
        /// What there is.
        available_bytes: u64,
        /// What it takes.
        needed_bytes: u64,
    },
    /// A local file could not be written.
    #[error("could not {doing} {}", path.display())]
    Local {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The same before anything was written.
    #[error("could not {doing} {}", path.display())]
    Look {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// What the restore itself needs lies in a directory that it goes over.
    #[error("{} lies in {}, from which everything is removed that the backup does not have", .0.display(), .1.display())]
    Needed(PathBuf, PathBuf),
    /// Servers before 13 cut longer ones off.
    #[error("restore_command would have {0} bytes, and PostgreSQL before 13 reads 1,023 of it")]
    LongCommand(usize),
    /// A cluster within the one that is gone over.
    #[error("{} is a data directory of its own", .0.display())]
    NestedCluster(PathBuf),
    /// The backup's content is wrong.
    #[error(transparent)]
    Contents(#[from] contents::Error),
    /// The same before anything was written.
    #[error(transparent)]
    UnusableBackup(contents::Error),
    /// `--tablespace-map` names a tablespace that the backup does not have.
    #[error("the backup has no tablespace {0}")]
    NoSuchTablespace(u32),
    /// `--only-database` names a database that the backup does not have.
    #[error("the backup has no database {name:?}")]
    NoSuchDatabase {
        /// What was asked for.
        name: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// A sealed plan that cannot be read.
    #[error("the sealed plan {} cannot be read", path.display())]
    SealedPlan {
        /// The plan.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is no sealed plan any more.
    #[error("the sealed plan {} that this directory recovers from cannot be read", path.display())]
    NoSealedPlan {
        /// The plan.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The stage was made anew.
    #[error("{} is not the plan that this directory was restored with: another restore has the stage now, or somebody changed the plan", .0.display())]
    OtherSeal(PathBuf),
    /// A staged file is not what was staged.
    #[error("the staged file {} is not what the restore put there", .0.display())]
    Staged(PathBuf),
    /// The server will ask the store, but nothing tells it which and how.
    #[error("the server could not reach the store without a settings file")]
    NeedsConfig,
    /// The plan ends in a tail that `wal-fetch` does not hand over: it cannot know how far the timeline is wanted.
    #[error(
        "the server could not fetch the last WAL by itself: it is the begin of a segment that wal-receive stored, and there is \
         later WAL"
    )]
    TailOnDemand,
    /// What would be restored may not be all that was acknowledged.
    #[error(
        "{0} does not answer, or holds nothing of the cluster, and the mirror may lack what is newest"
    )]
    StoreLeftOut(String),
    /// The server will open encrypted WAL, and does not have the variable that says with what.
    #[error(
        "the server could not open encrypted WAL: age_identity_file is not in the settings file"
    )]
    IdentityBesideFile,
    /// Another thread failed first.
    #[error("the restore was broken off")]
    BrokenOff,
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

    /// The error where nothing was written yet.
    pub(super) fn before_writing(self) -> Self {
        match self {
            Self::Local {
                doing,
                path,
                source,
            } => Self::Look {
                doing,
                path,
                source,
            },
            Self::Contents(error) => Self::UnusableBackup(error),
            error => error,
        }
    }
}

impl From<walhalla_providers::Error> for Error {
    fn from(error: walhalla_providers::Error) -> Self {
        Self::Repository(error.into())
    }
}

impl From<Unreachable> for Error {
    fn from(unreachable: Unreachable) -> Self {
        Self::Unreachable(unreachable)
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Unreachable(_) => Class::Unreachable,
            Self::NoSuchTablespace(_)
            | Self::NoSuchDatabase { .. }
            | Self::SharedPlace(..)
            | Self::NeedsConfig
            | Self::TailOnDemand
            | Self::IdentityBesideFile => Class::Usage,
            Self::Repository(error) => error.class(),
            Self::Wal(error) => error.class(),
            Self::Postgres(error) => error.class(),
            Self::Contents(error) | Self::UnusableBackup(error) => error.class(),
            _ => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Repository(error) => return error.hint(),
            Self::Wal(error) => return error.hint(),
            Self::Postgres(error) => return error.hint(),
            Self::Contents(error) | Self::UnusableBackup(error) if !is_unusable(error) => {
                return error.hint();
            }
            Self::Contents(_) => {
                "the restore is not finished and the directory will not start; choose another backup with --backup"
            }
            Self::UnusableBackup(_) => {
                "nothing was written; choose another backup with --backup, or bring the object back from a copy of the store"
            }
            Self::Unreachable(Unreachable {
                nearest: Some(nearest),
                ..
            }) => {
                let hint = format!("nothing was written; use instead: {nearest}");
                return Some(hint.into());
            }
            Self::Unreachable(_) => {
                "nothing was written; `walhalla wal-show` shows what can be reached"
            }
            Self::Local { .. } => {
                "the restore is not finished and the directory will not start; the same command with --delta takes it up"
            }
            Self::NoSuchTablespace(_) => "`walhalla backup-show` lists the tablespaces",
            Self::NoSuchDatabase { known, .. } if known.is_empty() => {
                "the backup was taken by an older program and does not tell its databases apart"
            }
            Self::NoSuchDatabase { known, .. } => {
                return Some(format!("it has: {}", known.join(", ")).into());
            }
            Self::NeedsConfig => {
                "put the settings into a file and name it with --config, or stage the WAL (--wal staged)"
            }
            Self::TailOnDemand => "stage the WAL (--wal staged)",
            Self::StoreLeftOut(_) => {
                "wait until it answers; if it is gone for good, name the mirror: the same command with --store URL takes what that one has"
            }
            Self::IdentityBesideFile => {
                "put `age_identity_file` into the settings file, or stage the WAL (--wal staged)"
            }
            Self::SealedPlan { .. }
            | Self::NoSealedPlan { .. }
            | Self::OtherSeal(_)
            | Self::Staged(_) => {
                "restore again, into a new directory or with --delta over this one"
            }
            _ => return self.place_hint(),
        };
        Some(text.into())
    }
}

/// Whether the backup is at fault, and not the way to it.
fn is_unusable(error: &contents::Error) -> bool {
    match error {
        contents::Error::NoIndex(_) => true,
        contents::Error::Repository(_) => error.class() == Class::Damaged,
    }
}

impl Error {
    /// What helps where a directory cannot be restored into.
    fn place_hint(&self) -> Option<Advice> {
        let text = match self {
            Self::NotEmpty(_, occupant) => return Some(occupant.hint().into()),
            Self::ReplayPlace { tablespace, unfit } => return Some(unfit.hint(tablespace).into()),
            Self::NotThisCluster { path, reason } => return Some(reason.hint(path).into()),
            Self::Restoring(_) => "wait until it has ended, or end it; nothing was written",
            Self::InUse(..) => {
                "name directories that no server uses (--tablespace-map OID=DIR for a tablespace), or stop the server and move its directory away (mv); nothing was written"
            }
            Self::OtherOwner { .. } => {
                "restore as the user to whom it belongs, or give the directory to the right user (chown) first; nothing was written"
            }
            Self::ForeignLink(_) => {
                "name the directory itself, without the link; nothing was written"
            }
            Self::LeadsNowhere(_) => {
                "create what it leads to, or remove the link; nothing was written"
            }
            Self::SharedPlace(..) => {
                "give each tablespace a directory of its own; nothing was written"
            }
            Self::Look { source, .. } if source.kind() == std::io::ErrorKind::NotADirectory => {
                "it is a file, and not a directory: name another path; nothing was written"
            }
            Self::Look { .. } => {
                "see to the rights there, or name another directory; nothing was written"
            }
            Self::LongCommand(_) => {
                "put the settings into the settings file, choose shorter paths, or stage the WAL (without --wal on-demand); nothing was written"
            }
            Self::Needed(..) | Self::NestedCluster(_) => {
                "move it elsewhere, or restore into a new directory; nothing was written"
            }
            Self::MountInside(_) => {
                "unmount it for the restore, or restore into a new directory; for WAL on a disk of its own, --waldir names a directory on it. Nothing was written"
            }
            Self::StrangePath(_) => {
                "nothing of it was written; somebody may have changed the backup in the store: `walhalla verify`, or another backup with --backup"
            }
            _ => return self.map_hint().or_else(|| self.room_hint()),
        };
        Some(text.into())
    }

    /// The option by which the user says that a place is the right one.
    fn map_hint(&self) -> Option<Advice> {
        let text = match self {
            Self::UnprovenTablespace { tablespace, place } => format!(
                "where no other data directory uses it, say so: --tablespace-map {}; otherwise name an empty directory in the same way. Nothing was written",
                map_option(*tablespace, place)
            ),
            Self::StandbysTablespace {
                tablespace, place, ..
            } => format!(
                "say where each tablespace is to be, with --tablespace-map OID=DIR; for the same place as on the standby: \
                 --tablespace-map {}. Nothing was written",
                map_option(*tablespace, place)
            ),
            Self::WalIsALink(_, target) => format!(
                "where no other data directory uses it, say so: --waldir {}; otherwise name an empty directory in the same way. Nothing was written",
                shell_bytes(target.as_os_str().as_bytes())
            ),
            Self::NotTheOwners {
                tablespace, place, ..
            } => format!(
                "create it and give it to that user, or name it: --tablespace-map {}; nothing was written",
                map_option(*tablespace, place)
            ),
            _ => return None,
        };
        Some(text.into())
    }

    /// What helps where files cannot be created.
    fn room_hint(&self) -> Option<Advice> {
        let text = match self {
            Self::NoRoom { .. } => {
                "free space, or restore elsewhere; the WAL can be staged on another file system (`spool_dir`) or fetched as needed (--wal on-demand); nothing was written"
            }
            Self::NoFolder(_) => {
                "correct the path, or create this directory and give it to the server's user; nothing was written"
            }
            Self::NoRight { .. } => {
                "give the user who restores the right to write there, or restore elsewhere; nothing was written"
            }
            Self::NoStage { .. } => {
                "set `spool_dir` (WALHALLA_SPOOL_DIR) to a directory that is there and can be written to, or let the server fetch its WAL itself (--wal on-demand); nothing was written"
            }
            Self::NoRoomAside(_) => "look at them, and remove what is not wanted",
            Self::NoRoomForStage(_) => {
                "remove the stages whose data directories are gone, or that have recovered; nothing was written"
            }
            Self::NoInodes { .. } => {
                "remove files, or restore on another file system; nothing was written"
            }
            Self::NotAStage(_) => {
                "remove it yourself, or set `spool_dir` (WALHALLA_SPOOL_DIR) to another directory; nothing was written"
            }
            _ => return None,
        };
        Some(text.into())
    }
}

/// What `--tablespace-map` takes for this place, as a shell takes it.
fn map_option(tablespace: u32, place: &Path) -> String {
    let option = [
        format!("{tablespace}=").as_bytes(),
        place.as_os_str().as_bytes(),
    ]
    .concat();
    shell_bytes(&option)
}
