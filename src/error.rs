//! The one error of all commands: its exit code and its hint.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walhalla_postgres::WalFileName;
use walhalla_postgres::wal::Mismatch;
use walhalla_providers::{Error as StoreError, ErrorKind, Operation};

use crate::contents;
use crate::pipeline::Locked;
use crate::pipeline::encryption::IdentityError;
use crate::restore::target::shell_bytes;
use crate::verify::receipts;
use crate::{backup, config, output, pipeline, repository, restore, server, verify, wal};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong settings.
    #[error(transparent)]
    Settings(#[from] config::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog or archive.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] server::Error),
    /// A WAL file.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// A backup.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// A restore.
    #[error(transparent)]
    Restore(#[from] restore::Error),
    /// A verification.
    #[error(transparent)]
    Verify(#[from] verify::Error),
    /// A file that was asked for, and why it did not come.
    #[error("could not fetch {name}")]
    Fetch {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A file of keys.
    #[error("could not {doing} {}", path.display())]
    Keys {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Output(#[from] output::Error),
    /// The runtime could not be started.
    #[error("could not {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Failed.
pub const FAILED: u8 = 1;
/// Wrong usage or settings.
pub const USAGE: u8 = 2;
/// It ran, and found a problem.
pub const PROBLEM: u8 = 3;
/// The recovery target cannot be reached.
pub const UNREACHABLE: u8 = 4;
/// Proven not in the archive.
pub const ABSENT: u8 = 74;
/// In archive recovery: could not tell, so PostgreSQL must not go on.
pub const STOP_RECOVERY: u8 = 200;

impl Error {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) => USAGE,
            Self::Fetch { source, .. } => source.exit_code(),
            Self::Store(error) if error.kind == ErrorKind::Invalid => USAGE,
            Self::Restore(error) => match error {
                restore::Error::Unreachable(_) => UNREACHABLE,
                restore::Error::NoSuchTablespace(_)
                | restore::Error::NoSuchDatabase { .. }
                | restore::Error::SharedPlace(..)
                | restore::Error::NeedsConfig
                | restore::Error::IdentityBesideFile => USAGE,
                restore::Error::Wal(wal::Error::NotArchived { .. }) => ABSENT,
                _ => FAILED,
            },
            Self::Wal(wal::Error::NotArchived { .. }) => ABSENT,
            _ => FAILED,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Settings(error) => settings_hint(error),
            Self::Store(error) => store_hint(error),
            Self::Repository(error) => repository_hint(error),
            Self::Postgres(error) => postgres_hint(error),
            Self::Wal(error) => wal_hint(error),
            Self::Backup(error) => backup_hint(error),
            Self::Restore(error) => restore_hint(error),
            Self::Verify(error) => verify_hint(error),
            Self::Fetch { source, .. } => source.hint(),
            Self::Keys { .. } | Self::Output(_) | Self::System { .. } => None,
        }
    }
}

fn settings_hint(error: &config::Error) -> Option<String> {
    match error {
        config::Error::NoStore => {
            Some("set `store` in the settings file, WALHALLA_STORE, or --store file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix".to_owned())
        }
        config::Error::UnknownKey { nearest, .. } => Some(format!("did you mean `{nearest}`?")),
        config::Error::UnknownVariable { name, nearest } => Some(format!(
            "did you mean {nearest}? If {name} is not meant for Walhalla, unset it or give it another name"
        )),
        config::Error::InvalidValue { .. } => Some("`walhalla config` lists the settings and where they come from".to_owned()),
        config::Error::Read { .. } | config::Error::Toml { .. } => None,
    }
}

fn store_hint(error: &StoreError) -> Option<String> {
    let text = match error.kind {
        ErrorKind::PermissionDenied => {
            "`walhalla check` names the right that is missing; the book's page of each store has the policy that suffices"
        }
        ErrorKind::Unauthenticated => {
            "check the credentials: `walhalla config` shows where the store's settings come from"
        }
        ErrorKind::StoreMissing => {
            "create it, mount it, or correct `store`; nothing was taken as absent"
        }
        ErrorKind::NoSpace => "free space in the store and try again; nothing was lost",
        ErrorKind::DeadlineExceeded | ErrorKind::Unavailable | ErrorKind::TimedOut => {
            "see whether the store can be reached from here; `retry_timeout` sets how long requests are tried again"
        }
        ErrorKind::Corrupted if error.operation == Operation::Put => {
            "nothing was stored; bytes change on the way again and again: look at this host's memory and its network"
        }
        ErrorKind::Corrupted => {
            "try again; if it stays, the object is damaged in the store: restore from another backup"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn repository_hint(error: &repository::Error) -> Option<String> {
    match error {
        repository::Error::Store(error) => store_hint(error),
        repository::Error::SeveralClusters { .. } => Some("choose one with --system-identifier".to_owned()),
        repository::Error::NoCluster { .. } => {
            Some("archive WAL and take a backup first, or correct `store`: `walhalla config` shows it".to_owned())
        }
        repository::Error::NothingOfCluster { .. } => Some(
            "see that `store` is right and, for a directory, mounted; nothing was taken as absent"
                .to_owned(),
        ),
        repository::Error::NoSuchBackup { .. } => Some("`walhalla backup-list` shows the backups".to_owned()),
        repository::Error::BrokenChain { .. } => Some(
            "`walhalla backup-list` shows the backups and what each stands on; take another one, or bring back what is \
             missing from a copy of the store"
                .to_owned(),
        ),
        repository::Error::KeptByDelta { delta, .. } => Some(format!(
            "first: walhalla backup-mark {delta} --impermanent"
        )),
        repository::Error::MarkedByOthers { .. } => Some("try again".to_owned()),
        repository::Error::Denied(_) => Some(
            "give it back to the user whose store it is (chown), and run every command as that user".to_owned(),
        ),
        repository::Error::Damaged { .. } => {
            Some("the object cannot be used; restore from another backup, or bring the object back from a copy of the store".to_owned())
        }
        repository::Error::Locked { reason, .. } => Some(locked_hint(reason).to_owned()),
        repository::Error::TwoContents { .. } => {
            Some("two servers archived to this store; keep the one that belongs to the history you want".to_owned())
        }
    }
}

const PLUGIN_HINT: &str = "the program age-plugin-NAME must be in the PATH of whoever opens it, the server too, and reach the key it holds";

fn locked_hint(reason: &Locked) -> &'static str {
    match reason {
        Locked::NoIdentity => {
            "name the file that holds the identity (AGE-SECRET-KEY-…, AGE-PLUGIN-… or an SSH private key) with \
             `age_identity_file` or WALHALLA_AGE_IDENTITY_FILE"
        }
        Locked::OtherRecipients(_) => {
            "set `age_identity_file` to the identity of a recipient it was encrypted to (`walhalla backup-show` lists \
             a backup's recipients); if that is the one, the object's header is damaged"
        }
        Locked::Plugin { .. } => PLUGIN_HINT,
        Locked::Unusable { source, .. } if matches!(**source, IdentityError::NoPlugin(_)) => {
            PLUGIN_HINT
        }
        Locked::Unusable { .. } => {
            "correct `age_identity_file`: lines AGE-SECRET-KEY-… or AGE-PLUGIN-…, or an SSH private key without a passphrase"
        }
    }
}

fn postgres_hint(error: &server::Error) -> Option<String> {
    match error {
        server::Error::NotADataDirectory { .. } => Some(
            "name the data directory with --pgdata or PGDATA, or run in it, as PostgreSQL does"
                .to_owned(),
        ),
        server::Error::LinkedData { .. } => Some(
            "stop the server, move the data to where the link is, and start it; to have a table on another disk, use a tablespace"
                .to_owned(),
        ),
        server::Error::NoTablespace { .. } => Some(
            "see whether its file system is mounted".to_owned(),
        ),
        server::Error::NotUtf8 { .. } => Some(
            "it has to be written down as text; give it, or what it lies in, another name"
                .to_owned(),
        ),
        server::Error::NoConnection { .. } | server::Error::ConnectionTimeout { .. } => {
            Some("PGHOST, PGPORT, PGUSER and PGPASSFILE say how to connect, as for psql".to_owned())
        }
        _ => None,
    }
}

fn pipeline_hint(error: &pipeline::Error) -> Option<String> {
    match error {
        pipeline::Error::Store(error) => store_hint(error),
        pipeline::Error::Encrypt { .. } => Some(
            "see `age_recipients` and `age_recipients_file`; a plugin must be in the PATH of the server too"
                .to_owned(),
        ),
        pipeline::Error::Compress { .. } | pipeline::Error::BrokenOff { .. } => None,
    }
}

fn wal_hint(error: &wal::Error) -> Option<String> {
    match error {
        wal::Error::Postgres(error) => postgres_hint(error),
        wal::Error::Repository(error) => repository_hint(error),
        wal::Error::Pipeline(error) => pipeline_hint(error),
        wal::Error::OtherContent { file: WalFileName::History(_), .. } => Some(
            "another server was promoted to this timeline first: restore again, or promote again, \
             to get a number of its own"
                .to_owned(),
        ),
        wal::Error::OtherContent { .. } => Some(
            "two servers are archiving to this store: stop the one that should not, or give it a \
             store of its own"
                .to_owned(),
        ),
        wal::Error::OtherSegmentSize { .. } => Some(
            "pg_resetwal --wal-segsize names WAL files anew, and their names meet those of before: give the cluster a store, \
             or a prefix in it, of its own from now on, and take a full backup there"
                .to_owned(),
        ),
        wal::Error::Hole { .. } => Some(
            "bring it back from a copy of the store or from the server's pg_wal, or recover to a target before it; \
             `walhalla wal-show` lists the gaps"
                .to_owned(),
        ),
        wal::Error::Mismatch { mismatch: Mismatch::Cut { .. }, .. } => Some(
            "it was cut, perhaps by a lost write: take a base backup of the server, and look at its disk; PostgreSQL tries again"
                .to_owned(),
        ),
        wal::Error::Mismatch { .. } => Some(
            "it is not what its name promises and was not taken; see which server wrote it, and whether `store` and the data directory are the right ones".to_owned(),
        ),
        wal::Error::Records { .. } => Some("restore to a point before it, or bring the object back from a copy of the store".to_owned()),
        wal::Error::Content { .. } => Some("a newer Walhalla may; please report it".to_owned()),
        wal::Error::Local { .. } | wal::Error::NotArchived { .. } | wal::Error::Superseded(_) => None,
    }
}

fn backup_hint(error: &backup::Error) -> Option<String> {
    match error {
        backup::Error::Postgres(error) => postgres_hint(error),
        backup::Error::Repository(error)
        | backup::Error::Contents(contents::Error::Repository(error)) => repository_hint(error),
        backup::Error::Pipeline(error) => pipeline_hint(error),
        backup::Error::Wal(error) => wal_hint(error),
        backup::Error::OtherCluster { .. } | backup::Error::OtherServer(_) => {
            Some("set PGHOST and PGPORT to the server whose data directory this is".to_owned())
        }
        backup::Error::NotArchiving(_) => {
            Some("set archive_mode = on and archive_command = 'walhalla wal-push %p'; a change of archive_mode needs a restart".to_owned())
        }
        backup::Error::ArchiverFails { .. } => Some("the server's log has the reason; once it is mended the archiver gets through within a minute (at once after `SELECT pg_reload_conf()`, from PostgreSQL 14 on), and a backup can begin".to_owned()),
        backup::Error::MovedDatabase(_) => Some("take the backup again".to_owned()),
        backup::Error::PageAfterEnd { .. } => Some("PostgreSQL would open such a copy too early; take the backup again after the standby's next restartpoint, or from the primary".to_owned()),
        backup::Error::TimelineSwitch { .. } => Some("run CHECKPOINT on the primary and, some seconds later, on the standby; then take the backup again: it begins on the new timeline".to_owned()),
        backup::Error::NotOwnWal { .. } => Some("two servers with the same identity archive to this store, or the server's clock was set while the backup was taken: see that this is the only server that archives here, and take the backup again".to_owned()),
        backup::Error::WalMissing { failing, .. } => Some(match failing {
            Some(file) => format!("the server's archiver fails on {file}; the server's log has walhalla's message"),
            None => "see that archive_command is 'walhalla wal-push %p' with this store; `archive_timeout` sets the wait".to_owned(),
        }),
        backup::Error::Contents(_) => {
            Some("`walhalla verify` tells what else is damaged".to_owned())
        }
        backup::Error::NothingToMerge => {
            Some("name a delta: `walhalla backup-list` shows them".to_owned())
        }
        backup::Error::WouldBeOpen(_) => {
            Some("set `age_recipients` to whom the merged backup is to be encrypted".to_owned())
        }
        backup::Error::BrokenOff => None,
        backup::Error::Parent { .. } => Some(
            "leave out --parent for the newest backup of this server's past, or --delta for a full one"
                .to_owned(),
        ),
        backup::Error::Changes { .. } => Some(
            "leave out --changed-blocks for whatever source there is, or take a full backup"
                .to_owned(),
        ),
        backup::Error::Read { .. } => Some("run as the user that owns the data directory".to_owned()),
    }
}

fn verify_hint(error: &verify::Error) -> Option<String> {
    match error {
        verify::Error::Repository(error)
        | verify::Error::Contents(contents::Error::Repository(error)) => repository_hint(error),
        verify::Error::Wal(error) => wal_hint(error),
        verify::Error::Receipts(receipts::Error::NotReceipts { .. }) => {
            Some("name a new file with --receipts, or the one that an earlier run made".to_owned())
        }
        verify::Error::Receipts(_) | verify::Error::Contents(_) | verify::Error::BrokenOff => None,
    }
}

/// What helps where a directory cannot be restored into.
fn place_hint(error: &restore::Error) -> Option<String> {
    let text = match error {
        restore::Error::NotEmpty(_, occupant) => return Some(occupant.hint()),
        restore::Error::Restoring(_) => "wait until it has ended, or end it; nothing was written",
        restore::Error::InUse(..) => {
            "name directories that no server uses (--tablespace-map OID=DIR for a tablespace), or stop the server; nothing was written"
        }
        restore::Error::UnprovenTablespace { tablespace, place } => {
            return Some(format!(
                "where no other data directory uses it, say so: --tablespace-map {}; otherwise name an empty directory in the same way. Nothing was written",
                map_option(*tablespace, place)
            ));
        }
        restore::Error::StandbysTablespace {
            tablespace, place, ..
        } => {
            return Some(format!(
                "say where each tablespace is to be, with --tablespace-map OID=DIR; for the same place as on the standby: \
                 --tablespace-map {}. Nothing was written",
                map_option(*tablespace, place)
            ));
        }
        restore::Error::WalIsALink(_, target) => {
            return Some(format!(
                "where no other data directory uses it, say so: --waldir {}; otherwise name an empty directory in the same way. Nothing was written",
                shell_bytes(target.as_os_str().as_bytes())
            ));
        }
        restore::Error::NotTheOwners {
            tablespace, place, ..
        } => {
            return Some(format!(
                "create it and give it to that user, or name it: --tablespace-map {}; nothing was written",
                map_option(*tablespace, place)
            ));
        }
        restore::Error::OtherOwner { .. } => {
            "restore as the user to whom it belongs, or give the directory to the right user (chown) first; nothing was written"
        }
        restore::Error::ForeignLink(_) => {
            "name the directory itself, without the link; nothing was written"
        }
        restore::Error::LeadsNowhere(_) => {
            "create what it leads to, or remove the link; nothing was written"
        }
        restore::Error::Look { .. } => {
            "see to the rights there, or name another directory; nothing was written"
        }
        restore::Error::LongCommand(_) => {
            "put the settings into the settings file, choose shorter paths, or stage the WAL (without --wal on-demand); nothing was written"
        }
        restore::Error::Needed(..) | restore::Error::NestedCluster(_) => {
            "move it elsewhere, or restore into a new directory; nothing was written"
        }
        restore::Error::MountInside(_) => {
            "unmount it for the restore, or restore into a new directory; for WAL on a disk of its own, --waldir names a directory on it. Nothing was written"
        }
        restore::Error::NoRight { .. } => {
            "give the user who restores the right to write there, or restore elsewhere; nothing was written"
        }
        restore::Error::NoStage { .. } => {
            "set `spool_dir` (WALHALLA_SPOOL_DIR) to a directory that is there and can be written to, or let the server fetch its WAL itself (--wal on-demand); nothing was written"
        }
        restore::Error::NoRoomAside(_) => "look at them, and remove what is not wanted",
        restore::Error::NoRoomForStage(_) => {
            "remove the stages whose data directories are gone, or that have recovered; nothing was written"
        }
        restore::Error::StrangePath(_) => {
            "nothing of it was written; somebody may have changed the backup in the store: `walhalla verify`, or another backup with --backup"
        }
        restore::Error::NoInodes { .. } => {
            "remove files, or restore on another file system; nothing was written"
        }
        restore::Error::NotAStage(_) => {
            "remove it yourself, or set `spool_dir` (WALHALLA_SPOOL_DIR) to another directory; nothing was written"
        }
        _ => return None,
    };
    Some(text.to_owned())
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

fn restore_hint(error: &restore::Error) -> Option<String> {
    let text = match error {
        restore::Error::Repository(error) => return repository_hint(error),
        restore::Error::Wal(error) => return wal_hint(error),
        restore::Error::Postgres(error) => return postgres_hint(error),
        restore::Error::Unreachable(unreachable) => {
            return Some(match &unreachable.nearest {
                Some(nearest) => format!("nothing was written; what can be reached: {nearest}"),
                None => {
                    "nothing was written; `walhalla wal-show` shows what can be reached".to_owned()
                }
            });
        }
        restore::Error::ReplayPlace { tablespace, unfit } => return Some(unfit.hint(tablespace)),
        restore::Error::NotThisCluster { path, reason } => return Some(reason.hint(path)),
        restore::Error::SharedPlace(..) => {
            "give each tablespace a directory of its own; nothing was written"
        }
        restore::Error::NoRoom { .. } => {
            "free space, or restore elsewhere; the WAL can be staged on another file system (`spool_dir`) or fetched as needed (--wal on-demand); nothing was written"
        }
        restore::Error::Local { .. } => {
            "the restore is not finished and the directory will not start; the same command with --delta takes it up"
        }
        restore::Error::Contents(contents::Error::Repository(error)) => {
            return repository_hint(error);
        }
        restore::Error::Contents(_) => {
            "the restore is not finished and the directory will not start; choose another backup with --backup"
        }
        restore::Error::NoSuchTablespace(_) => "`walhalla backup-show` lists the tablespaces",
        restore::Error::NoSuchDatabase { known, .. } => {
            return Some(match known.as_slice() {
                [] => {
                    "the backup was taken by an older program and does not tell its databases apart"
                        .to_owned()
                }
                _ => format!("it has: {}", known.join(", ")),
            });
        }
        restore::Error::NeedsConfig => {
            "put the settings into a file and name it with --config, or stage the WAL (--wal staged)"
        }
        restore::Error::IdentityBesideFile => {
            "put `age_identity_file` into the settings file, or stage the WAL (--wal staged)"
        }
        restore::Error::SealedPlan { .. }
        | restore::Error::NoSealedPlan { .. }
        | restore::Error::OtherSeal(_)
        | restore::Error::Staged(_) => {
            "restore again, into a new directory or with --delta over this one"
        }
        _ => return place_hint(error),
    };
    Some(text.to_owned())
}

impl From<walhalla_postgres::Error> for Error {
    fn from(error: walhalla_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}
