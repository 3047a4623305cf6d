//! The command line.

#![expect(
    missing_docs,
    reason = "what a command does is said at its name in `Command`; said at its flags, clap would take it for another help"
)]

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use walhalla_postgres::{Lsn, SystemIdentifier};

use crate::durability::Durability;
use crate::output::LogFormat;
use crate::pipeline::Compression;
use crate::progress::Show;
use crate::repository::entry::ChangeSource;
use crate::restore::recovery::ArchiveMode;
use crate::restore::target::{self, Action, Bound, Point, Target, TargetTimeline};

/// WAL archiver and backup tool for PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "walhalla", version = crate::LONG_VERSION, max_term_width = 100, propagate_version = true)]
#[command(
    after_help = "Settings come from a TOML file, WALHALLA_* variables and flags; `walhalla config` prints them."
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Flags of every command")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Global {
    /// Settings file [default: /etc/walhalla/walhalla.toml if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Store: file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<String>,
    /// Look at the store as it was at a time, where it keeps versions; for commands that read
    #[arg(long, global = true, value_name = "TIME")]
    pub store_as_of: Option<String>,
    /// Bytes a second that go to the store, such as 10MiB [default: no limit]
    #[arg(long, global = true, value_name = "BYTES")]
    pub upload_rate: Option<String>,
    /// Bytes a second that come from the store, such as 10MiB [default: no limit]
    #[arg(long, global = true, value_name = "BYTES")]
    pub download_rate: Option<String>,
    /// Take settings from the file and the command line, and none from WALHALLA_* variables
    #[arg(long, global = true, hide = true)]
    pub no_environment: bool,
    /// A setting, which wins over the file; may be given more than once
    #[arg(long = "set", global = true, hide = true, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors; of a command that does work, no result either, unless it found a problem
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show times in UTC [default: in this machine's time zone]
    #[arg(long, global = true)]
    pub utc: bool,
    /// Show all columns of a table [default: those that fit the terminal]
    #[arg(long, global = true)]
    pub wide: bool,
    /// How messages are written to standard error
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// When progress is shown: auto is a bar on a terminal and a line every ten seconds elsewhere
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub progress: Show,
}

/// The commands. Only the flags of the one that is called are built: PostgreSQL waits for it.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Archive a WAL file: archive_command = 'walhalla wal-push %p'
    #[command(
        after_help = "Example (postgresql.conf):\n  archive_command = 'walhalla wal-push %p'"
    )]
    WalPush(WalPush),
    /// Fetch a WAL file: restore_command = 'walhalla wal-fetch %f %p'
    #[command(
        after_help = "Example (postgresql.conf):\n  restore_command = 'walhalla wal-fetch %f %p'\n\n\
        Exits with 74 when the file is proven not to be in the archive, and with 200 when that cannot be told in archive recovery."
    )]
    WalFetch(WalFetch),
    /// Fetch the next segments in the background; wal-fetch starts it
    #[command(hide = true)]
    WalPrefetch(WalFetch),
    /// Archive and fetch ahead for the servers of this host, with warm connections
    #[command(
        after_help = "Example:\n  walhalla daemon --metrics 127.0.0.1:9187\n\n\
        wal-push and wal-fetch use the daemon if it listens on the setting `socket`, and work alone if not.\n\
        SIGHUP reads the settings again, SIGTERM ends the daemon when what is on its way is done."
    )]
    Daemon(Daemon),
    /// Receive WAL from a running server as it is written
    #[command(
        after_help = "Example (PGHOST, PGUSER and the others say how to connect, as for pg_receivewal):\n  \
        PGHOST=db1 PGUSER=walhalla walhalla wal-receive --slot walhalla --create-slot\n\n\
        With --synchronous and synchronous_standby_names = 'walhalla' in postgresql.conf a commit returns when it is in the store.\n\
        Runs until SIGTERM or SIGINT, and stores what it has before it ends."
    )]
    WalReceive(WalReceive),
    /// Take a base backup of a running server
    #[command(
        after_help = "Example:\n  walhalla backup-push /var/lib/postgresql/17/main --label 'before the upgrade'\n  \
        walhalla backup-push /var/lib/postgresql/17/main --delta\n  \
        PGHOST=db1 PGUSER=walhalla walhalla backup-push --with-wal\n\n\
        Exits with 3 when the backup was taken but blocks with wrong checksums were found."
    )]
    BackupPush(BackupPush),
    /// List the backups, oldest first
    #[command(after_help = "Example:\n  walhalla backup-list --json | jq '.[-1].id'")]
    BackupList(BackupList),
    /// List what is in the store: folders, or with -r objects, and what each one is
    #[command(
        after_help = "Example:\n  walhalla ls\n  walhalla ls 7443178563127885315/backups\n  \
        walhalla ls -r 7443178563127885315/wal/00000001"
    )]
    Ls(Ls),
    /// Show everything about one backup
    #[command(after_help = "Example:\n  walhalla backup-show LATEST")]
    BackupShow(BackupShow),
    /// Keep a backup whatever the retention rules say, or leave it to them again
    #[command(
        after_help = "Example (what a delta stands on is kept with it):\n  walhalla backup-mark LATEST --permanent\n\n\
        A backup on which a permanent delta stands cannot be made impermanent."
    )]
    BackupMark(BackupMark),
    /// Make a full backup out of a delta and what it stands on, in the store
    #[command(after_help = "Example:\n  walhalla backup-merge LATEST\n\n\
        The database host is not needed, the identity of encrypted backups is. The chain stays as it is.")]
    BackupMerge(BackupMerge),
    /// Delete what is not to be kept; shows what would go, and deletes with --confirm
    #[command(
        after_help = "Example (all moments of two weeks, a backup of each of twelve months; --confirm deletes):\n  \
        walhalla delete retain days=14 monthly=12 --confirm\n\n\
        Without a word it follows the setting `retention`. Whatever the rules say, these stay: the newest backup that can be \
        restored, permanent ones, what another one stands on, what is in use now, and the WAL that makes each of them consistent.\n\
        Exits with 1 when the store refused to delete something."
    )]
    Delete(Delete),
    /// Copy backups, and the WAL that goes with them, to another store
    #[command(
        after_help = "Example (every backup and all WAL since the first of them; later runs add what is new):\n  \
        walhalla copy --to s3://acme-elsewhere/postgres\n\n\
        The copy is a store like any other: name it with --store to restore from it. Each object is read back and compared.\n\
        Without --recipients and --compression all stays packed and encrypted as it is, and no identity is needed."
    )]
    Copy(Copy),
    /// Fetch the files of one backup: no WAL, no recovery settings
    #[command(
        after_help = "Example:\n  walhalla backup-fetch /tmp/check LATEST && pg_verifybackup -n /tmp/check"
    )]
    BackupFetch(BackupFetch),
    /// Restore a cluster: the server then starts and recovers to the target
    #[command(
        after_help = "Example:\n  walhalla restore /var/lib/postgresql/17/main --target-time '2026-11-21 04:30:00+00'\n\n\
        Exits with 4 when the target cannot be reached; nothing is written then."
    )]
    Restore(Restore),
    /// Show what restore with the same command line would do; writes nothing
    #[command(
        after_help = "Example:\n  walhalla plan --target-name before_release\n  \
        walhalla plan /var/lib/postgresql/17/main --target-time '2026-11-21 04:30:00+00'\n\n\
        Put plan in the place of restore in any command: with PGDATA it also says what this host would have to hold, \
        and what would be refused."
    )]
    Plan(PlanRestore),
    /// Read backups back and check every file and page in them
    #[command(
        after_help = "Example (every night, reading each object once a month):\n  \
        walhalla verify --all --receipts /var/lib/walhalla/receipts --recheck-days 30\n\n\
        Exits with 3 when a problem was found. Without the identity of an encrypted backup only its stored bytes are compared."
    )]
    Verify(Verify),
    /// Look for gaps in the archived WAL, and with --deep for damage in it
    #[command(
        after_help = "Example:\n  walhalla wal-verify --deep --receipts /var/lib/walhalla/receipts\n\n\
        Exits with 3 when a problem was found."
    )]
    WalVerify(WalVerify),
    /// Restore into a scratch directory, start PostgreSQL there, check the data, and remove it all again
    #[command(
        after_help = "Example (a random moment of the recovery window, with checks of your own, for a CI job):\n  \
        walhalla drill --random-target --sql checks.sql --junit drill.xml\n\n\
        The copy listens on a socket in the scratch directory only, archives nothing, runs no jobs and talks to nobody.\n\
        Exits with 3 when a check failed, and with 4 when the target cannot be reached."
    )]
    Drill(Drill),
    /// Find when something happened: drops, truncations, restore points, transactions
    #[command(after_help = "Example:\n  walhalla find --dropped\n\n\
        Each row comes with the restore command that stops just before it. What was dropped has a name where the last \
        backup before it knows one.")]
    Find(Find),
    /// Show the archived WAL: timelines, gaps, sizes, times, and what can be reached
    #[command(after_help = "Example:\n  walhalla wal-show --json | jq '.reachable'")]
    WalShow(Cluster),
    /// Show how the archive stands: what can be restored, how old it is, what is missing
    #[command(
        after_help = "Example:\n  walhalla status --pgdata /var/lib/postgresql/17/main\n  \
        walhalla status --html /var/www/backups.html\n  \
        walhalla status --nagios --max-age 26h --max-full-age 8d --max-wal-age 15min\n\n\
        Exits with 3 when something is critical; --nagios with 0 (ok), 1 (warning), 2 (critical) or 3 (unknown)."
    )]
    Status(Status),
    /// Make the summaries of archived WAL that are missing
    #[command(after_help = "Example:\n  walhalla wal-summarize\n\n\
        Exits with 3 when a segment could not be summarized.")]
    WalSummarize(WalSummarize),
    /// Check everything that archiving and restoring need: settings, store, host, server, and one segment on its way
    #[command(
        after_help = "Example (on the database host, as the server's user):\n  walhalla check /var/lib/postgresql/17/main\n\
        Example (on a host that only restores):\n  walhalla check --read-only\n\n\
        Stores small objects and one in two parts below walhalla-check/ and deletes them again. With PGDATA it also has the \
        server switch to a new segment, sees the old one arrive in the store, and fetches it back.\n\
        Exits with 3 when a check failed; a warning does not count."
    )]
    Check(Check),
    /// Make a key pair for encryption
    #[command(
        after_help = "Example:\n  walhalla keygen --output /safe/place/walhalla.key\n\n\
        The recipient (public key) that is printed goes into `age_recipients` on every host that archives. The file holds the \
        identity (secret key): without it nobody can restore. Keep copies of it in two places that one fire does not reach, and \
        name it in `age_identity_file` where you restore."
    )]
    Keygen(Keygen),
    /// Print the settings and where each came from
    #[command(after_help = "Example:\n  walhalla config --json")]
    Config,
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  walhalla completions bash > /etc/bash_completion.d/walhalla"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "Example:\n  walhalla man /usr/local/share/man/man1")]
    Man {
        /// The directory; made if it is not there
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Clear the staged WAL when recovery has ended (restore writes this into recovery_end_command)
    #[command(hide = true)]
    RestoreEnd {
        /// The sealed plan
        plan: PathBuf,
        /// Its SHA-256
        #[arg(long, value_name = "SHA256")]
        seal: String,
    },
    /// Become the server of a drill, which ends when the drill does
    #[command(hide = true)]
    DrillServer {
        /// The server and its options
        #[arg(required = true, last = true)]
        command: Vec<std::ffi::OsString>,
    },
}

#[derive(Debug, Args)]
pub struct WalPush {
    /// The file, as PostgreSQL gives it for %p
    pub path: PathBuf,
    /// Data directory [default: where the file is, the working directory, or PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Daemon {
    /// Where Prometheus reads what the daemon counts, at /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<std::net::SocketAddr>,
}

#[derive(Debug, Args)]
pub struct WalReceive {
    /// Replication slot, by which the server keeps WAL until it is stored
    #[arg(long, value_name = "NAME", value_parser = slot)]
    pub slot: Option<String>,
    /// Make the slot where there is none of this name
    #[arg(long, requires = "slot")]
    pub create_slot: bool,
    /// Store WAL as soon as it comes, so that a synchronous commit waits for the store
    #[arg(long)]
    pub synchronous: bool,
    /// Seconds after which WAL of the unfinished segment is stored
    #[arg(long, value_name = "SECONDS", default_value_t = 10, conflicts_with = "synchronous", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// End when the connection or the store fails, instead of trying again
    #[arg(long)]
    pub no_loop: bool,
    /// Which cluster the server must be of
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct WalFetch {
    /// The file's name, as PostgreSQL gives it for %f
    pub name: String,
    /// Where to put it, as PostgreSQL gives it for %p
    pub path: PathBuf,
    /// Answer from a restore's sealed plan
    #[arg(long, value_name = "FILE", hide = true, requires = "seal")]
    pub plan: Option<PathBuf>,
    /// The sealed plan's SHA-256
    #[arg(long, value_name = "SHA256", hide = true, requires = "plan")]
    pub seal: Option<String>,
    /// Data directory [default: where the file goes, the working directory, or PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Which cluster, where no data directory tells
    #[command(flatten)]
    pub cluster: Cluster,
}

// Which cluster of the store.
#[derive(Clone, Debug, Args)]
pub struct Cluster {
    /// Cluster in the store [default: the only one]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
}

#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct BackupPush {
    /// Data directory of the running server; without it the server sends its files over the replication protocol, from
    /// whatever host PGHOST names
    #[arg(env = "PGDATA")]
    pub pgdata: Option<PathBuf>,
    /// A text to know the backup by
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// A pair to keep with the backup; may be given more than once
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = pair)]
    pub annotations: Vec<(String, String)>,
    /// Keep the backup whatever the retention rules say
    #[arg(long)]
    pub permanent: bool,
    /// Store only what changed since an earlier backup; a full backup where there is none that it could stand on
    #[arg(long)]
    pub delta: bool,
    // As WAL-G has it: a backup without --delta is full.
    #[arg(long, hide = true, conflicts_with = "delta")]
    pub full: bool,
    /// The earlier backup [default: the newest one of this server's past]
    #[arg(long, value_name = "ID", requires = "delta")]
    pub parent: Option<String>,
    /// What tells which blocks changed: WAL summaries in the archive, the server's own (17 on), or each page's LSN, for
    /// which the whole data directory is read; auto is the first of these that can
    #[arg(
        long,
        value_name = "SOURCE",
        default_value = "auto",
        requires = "delta"
    )]
    pub changed_blocks: ChangedBlocks,
    /// Receive the WAL that makes the backup consistent over the replication protocol too: the backup then stands alone, on a
    /// server that archives nothing
    #[arg(long)]
    pub with_wal: bool,
    /// Bytes a second that are read from the data directory or sent by the server, such as 50MiB [default: no limit]
    #[arg(long, value_name = "BYTES")]
    pub read_rate: Option<String>,
}

/// `--changed-blocks`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ChangedBlocks {
    /// Whatever can tell.
    Auto,
    /// WAL summaries in the archive.
    Wal,
    /// The server's own WAL summaries.
    Server,
    /// Page LSNs.
    Pages,
}

impl ChangedBlocks {
    /// The only source that is allowed, if it is one.
    pub fn source(self) -> Option<ChangeSource> {
        match self {
            Self::Auto => None,
            Self::Wal => Some(ChangeSource::Wal),
            Self::Server => Some(ChangeSource::Server),
            Self::Pages => Some(ChangeSource::Pages),
        }
    }
}

#[derive(Debug, Args)]
pub struct BackupShow {
    /// The backup's id, or LATEST
    pub id: String,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct BackupList {
    // As WAL-G has them.
    #[arg(long, hide = true)]
    pub detail: bool,
    #[arg(long, hide = true)]
    pub pretty: bool,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct Ls {
    /// What keys begin with; without -r, a folder
    #[arg(default_value = "")]
    pub prefix: String,
    /// Every object below, not one level
    #[arg(short, long)]
    pub recursive: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("mark").required(true))]
pub struct BackupMark {
    /// The backup's id, or LATEST
    pub id: String,
    /// Keep the backup and those it stands on, whatever the retention rules say
    #[arg(long, group = "mark")]
    pub permanent: bool,
    /// Leave the backup to the retention rules
    #[arg(short, long, group = "mark")]
    pub impermanent: bool,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct BackupMerge {
    /// The delta's id, or LATEST
    pub id: String,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct Copy {
    /// The other store: file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Settings file of the other store [default: the settings of this one]
    #[arg(long, value_name = "FILE")]
    pub to_config: Option<PathBuf>,
    /// A backup, with what it stands on and the WAL that makes it consistent; may be given more than once [default: all]
    #[arg(long, value_name = "ID")]
    pub backup: Vec<String>,
    /// All WAL from the backup on, so that every moment after it can be reached
    #[arg(long, requires = "backup")]
    pub window: bool,
    /// What it takes to reach every moment from a time on
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    pub since: Option<String>,
    /// Encrypt the copy to these recipients, separated by commas, whatever the settings say
    #[arg(long, value_name = "RECIPIENTS")]
    pub recipients: Option<String>,
    /// Compress the copy anew: lz4, zstd, zstd:LEVEL or none
    #[arg(long, value_name = "CODEC")]
    pub compression: Option<Compression>,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// What is to go [default: what the setting `retention` does not keep]
    #[command(subcommand)]
    pub what: Option<WhatGoes>,
    /// Delete, instead of showing what would go
    #[arg(long, global = true)]
    pub confirm: bool,
    /// Cluster in the store [default: the only one]
    #[arg(long, global = true, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
}

impl Delete {
    /// Which cluster is meant.
    pub fn cluster(&self) -> Cluster {
        Cluster {
            system_identifier: self.system_identifier,
        }
    }
}

// What `delete` is to delete.
#[derive(Debug, Subcommand)]
pub enum WhatGoes {
    /// What none of some rules keeps
    #[command(after_help = "Example:\n  walhalla delete retain 7\n  \
        walhalla delete retain --days 14 --keep-daily 30 --keep-monthly 12\n\n\
        A backup that only --keep-daily, --keep-weekly or --keep-monthly keeps stays with the WAL that makes it consistent. \
        Days, weeks (from Monday) and months are those of UTC.")]
    Retain(Retain),
    /// What was taken before a backup, or is of use only for moments before a time
    #[command(
        after_help = "Example:\n  walhalla delete before '2026-11-01 00:00:00+00'\n\n\
        Every moment from the time on stays reachable."
    )]
    Before {
        /// The backup's id, which stays, or a time
        #[arg(value_name = "ID-OR-TIME", allow_hyphen_values = true)]
        bound: String,
    },
    /// Backups
    #[command(after_help = "Example:\n  walhalla delete backup 20261121T043000Z-F")]
    Backup {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// What nothing can use: parts of backups that were never finished, WAL before the first backup, spent leases
    #[command(after_help = "Example:\n  walhalla delete garbage")]
    Garbage,
    /// Every object of the cluster; refused while a backup is permanent or something is in use
    #[command(
        after_help = "Example:\n  walhalla delete everything --system-identifier 7443178563127885315"
    )]
    Everything,
}

#[derive(Debug, Args)]
pub struct Retain {
    /// How many of the newest backups stay, or rules as the setting `retention` has them [default: that setting]
    #[arg(value_name = "N or RULE=N")]
    pub rules: Vec<String>,
    /// Count full backups; what stands on them stays with them
    #[arg(long)]
    pub full: bool,
    /// Keep every moment of the last N days reachable
    #[arg(long, value_name = "N")]
    pub days: Option<String>,
    /// Keep the last backup of each of the newest N days that have one
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<String>,
    /// The same of weeks
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<String>,
    /// The same of months
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<String>,
}

impl Retain {
    /// The rules, as the setting has them; empty where there are none.
    pub fn text(&self) -> String {
        let flags = [
            ("days", &self.days),
            ("daily", &self.keep_daily),
            ("weekly", &self.keep_weekly),
            ("monthly", &self.keep_monthly),
        ];
        let flags = flags.into_iter();
        let flags = flags
            .filter_map(|(name, number)| number.as_ref().map(|number| format!("{name}={number}")));
        let full = self.full.then(|| "full".to_owned());
        let words: Vec<String> = self
            .rules
            .iter()
            .cloned()
            .chain(full)
            .chain(flags)
            .collect();
        words.join(" ")
    }
}

#[derive(Debug, Args)]
pub struct BackupFetch {
    /// Data directory to make; new or empty, or with --delta one of this cluster
    pub pgdata: PathBuf,
    /// The backup's id, or LATEST
    pub id: String,
    /// Update a data directory of this cluster that is there: fetch and write only what differs, remove everything else
    #[arg(long)]
    pub delta: bool,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
    /// Tablespaces
    #[command(flatten)]
    pub tablespaces: TablespaceMap,
    /// Whether it waits for the disk
    #[command(flatten)]
    pub disk: Disk,
}

// `--tablespace-map` and `--waldir`
#[derive(Clone, Debug, Args)]
pub struct TablespaceMap {
    /// Put a tablespace elsewhere; may be given more than once
    #[arg(long = "tablespace-map", value_name = "OID=DIR", value_parser = tablespace)]
    pub map: Vec<(u32, PathBuf)>,
    /// Put the WAL folder into this directory, with a link to it in the data directory
    #[arg(long, value_name = "DIR", value_parser = absolute_directory)]
    pub waldir: Option<PathBuf>,
}

// `--no-sync`
#[derive(Clone, Copy, Debug, Args)]
pub struct Disk {
    /// For tests that throw the cluster away: do not wait until the files are on the disk. A crash of the machine afterwards
    /// can leave a damaged directory that nothing marks as damaged. Never for data that you want to keep
    #[arg(long)]
    no_sync: bool,
}

impl Disk {
    /// Whether the restore waits for the disk.
    pub fn durability(self) -> Durability {
        if self.no_sync {
            Durability::Unsynced
        } else {
            Durability::Durable
        }
    }
}

#[derive(Debug, Args)]
pub struct Restore {
    /// Data directory to make; new or empty, or with --delta one of this cluster
    pub pgdata: PathBuf,
    /// Where to, and how
    #[command(flatten)]
    pub options: RestoreOptions,
}

#[derive(Debug, Args)]
pub struct PlanRestore {
    /// Data directory that restore would make [default: what this host has to do with it is not looked at]
    pub pgdata: Option<PathBuf>,
    /// Where to, and how
    #[command(flatten)]
    pub options: RestoreOptions,
}

// What `restore` takes besides the directory, and `plan` too.
#[derive(Debug, Args)]
pub struct RestoreOptions {
    /// Where to
    #[command(flatten)]
    pub plan: Plan,
    /// Tablespaces
    #[command(flatten)]
    pub tablespaces: TablespaceMap,
    /// Come up as a standby that goes on following the archive
    #[arg(long, conflicts_with_all = ["target_time", "target_lsn", "target_xid", "target_name", "target_immediate"])]
    pub standby: bool,
    /// Stage the WAL beside the data directory, or let the server ask the store for each file
    #[arg(long, value_name = "HOW", default_value = "staged")]
    pub wal: WalMode,
    /// Update a data directory of this cluster that is there: fetch and write only what differs, remove everything else
    #[arg(long)]
    pub delta: bool,
    /// Restore this database only, and what every cluster has; may be given more than once. The others come up empty, to be
    /// dropped
    #[arg(long = "only-database", value_name = "NAME")]
    pub only_databases: Vec<String>,
    /// Whether the restored server archives its WAL
    #[arg(long, value_name = "MODE", default_value = "preserve")]
    pub archive_mode: ArchiveMode,
    /// Whether it waits for the disk
    #[command(flatten)]
    pub disk: Disk,
}

/// `--wal`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WalMode {
    /// Downloaded before the server starts.
    Staged,
    /// Fetched by the server.
    OnDemand,
}

// Where to restore to: `plan`, and part of `restore`.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Stop after the last commit at or before this time; it needs a UTC offset
    #[arg(long, value_name = "TIME", value_parser = target::parse_time, group = "point", allow_hyphen_values = true)]
    target_time: Option<jiff::Timestamp>,
    /// Stop at this WAL position
    #[arg(long, value_name = "LSN", group = "point")]
    target_lsn: Option<Lsn>,
    /// Stop at the end of this transaction
    #[arg(long, value_name = "XID", group = "point")]
    target_xid: Option<u32>,
    /// Stop at this restore point
    #[arg(long, value_name = "NAME", group = "point")]
    target_name: Option<std::ffi::OsString>,
    /// Stop as soon as the backup is consistent
    #[arg(long, group = "point")]
    target_immediate: bool,
    /// Timeline to follow: latest, current (the backup's), or its number
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    target_timeline: TargetTimeline,
    /// Stop just before the target instead of just after it
    #[arg(long, requires = "point")]
    target_exclusive: bool,
    /// What the server does at the target
    #[arg(long, value_name = "ACTION", default_value = "pause")]
    target_action: Action,
    /// Backup to begin with [default: the newest that ends before the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

impl Plan {
    /// The target.
    pub fn target(&self) -> Target {
        let point = match self {
            Self {
                target_time: Some(time),
                ..
            } => Point::Time(*time),
            Self {
                target_lsn: Some(lsn),
                ..
            } => Point::Lsn(*lsn),
            Self {
                target_xid: Some(xid),
                ..
            } => Point::Xid(*xid),
            Self {
                target_name: Some(name),
                ..
            } => Point::Name(name.clone().into()),
            Self {
                target_immediate: true,
                ..
            } => Point::Immediate,
            _ => Point::End,
        };
        let bound = if self.target_exclusive {
            Bound::Exclusive
        } else {
            Bound::Inclusive
        };
        Target {
            point,
            timeline: self.target_timeline,
            bound,
            action: self.target_action,
        }
    }
}

#[derive(Debug, Args)]
pub struct Verify {
    /// The backups' ids [default: LATEST]
    pub ids: Vec<String>,
    /// Every backup
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
    /// Receipts
    #[command(flatten)]
    pub receipts: Receipts,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct WalVerify {
    /// Read every file and check headers and records, across the borders of segments too
    #[arg(long)]
    pub deep: bool,
    /// Pay what the mirror is owed, and fill what one of both stores lacks from the other
    #[arg(long)]
    pub repair: bool,
    /// Receipts
    #[command(flatten)]
    pub receipts: Receipts,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct Drill {
    /// Where to; the server always promotes at the target
    #[command(flatten)]
    pub plan: Plan,
    /// Restore a random moment that can be reached; it is printed, so that the drill can be repeated
    #[arg(long, conflicts_with = "point")]
    pub random_target: bool,
    /// Where the drill makes its own directory, which it removes again [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Keep the drill's directory; the server is stopped all the same
    #[arg(long)]
    pub keep: bool,
    /// Directory of PostgreSQL's programs [default: PATH, /usr/lib/postgresql/N/bin, /usr/pgsql-N/bin]
    #[arg(long, value_name = "DIR")]
    pub pgbin: Option<PathBuf>,
    /// User that runs PostgreSQL where root starts the drill [default: postgres]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Superuser of the restored cluster [default: postgres, or the name of the user that runs PostgreSQL]
    #[arg(long, value_name = "NAME")]
    pub role: Option<String>,
    /// Seconds that recovery may take
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
    /// pg_amcheck
    #[command(flatten)]
    pub amcheck: Amcheck,
    /// SQL to run in the copy; may be given more than once. A file fails when a query fails or a result holds false
    #[arg(long = "sql", value_name = "FILE")]
    pub sql: Vec<PathBuf>,
    /// Database in which the files of --sql run
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub dbname: String,
    /// Write the result to FILE as JUnit XML, for continuous integration
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

// Whether pg_amcheck runs.
#[derive(Clone, Copy, Debug, Args)]
pub struct Amcheck {
    /// Run pg_amcheck, and fail where it cannot run [default: run it where it can]
    #[arg(long = "amcheck", conflicts_with = "without")]
    pub wanted: bool,
    /// Do not run pg_amcheck
    #[arg(long = "no-amcheck", id = "without")]
    pub without: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct Find {
    /// Relations and databases that were dropped
    #[arg(long, group = "what")]
    pub dropped: bool,
    /// Relations that were truncated
    #[arg(long, group = "what")]
    pub truncated: bool,
    /// Restore points
    #[arg(long, group = "what")]
    pub restore_points: bool,
    /// The end of a transaction
    #[arg(long, value_name = "XID", group = "what")]
    pub xid: Option<u32>,
    /// Nothing before this time, which needs a UTC offset; alone: every transaction from then on
    #[arg(long, value_name = "TIME", value_parser = target::parse_time, group = "what", allow_hyphen_values = true)]
    pub from: Option<jiff::Timestamp>,
    /// Nothing after this time; alone: every transaction up to then
    #[arg(long, value_name = "TIME", value_parser = target::parse_time, group = "what", allow_hyphen_values = true)]
    pub to: Option<jiff::Timestamp>,
    /// Directory that the printed restore commands make
    #[arg(long, value_name = "DIR", default_value = "restored")]
    pub into: PathBuf,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Data directory of this host's server, to see also whether it archives
    #[arg(value_name = "PGDATA")]
    pub directory: Option<PathBuf>,
    /// The same
    #[arg(long, value_name = "DIR", env = "PGDATA")]
    pub pgdata: Option<PathBuf>,
    /// Write metrics for Prometheus, to FILE in one step for the textfile collector [default: standard output]
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-", group = "form")]
    pub prometheus: Option<PathBuf>,
    /// Answer as a plugin of Nagios: one line, and the state as the exit code
    #[arg(long, group = "form")]
    pub nagios: bool,
    /// Write one page with a picture of time, in which each moment has its restore command
    #[arg(long, value_name = "FILE", group = "form")]
    pub html: Option<PathBuf>,
    /// Critical when the newest backup ended longer ago, such as 26h or 2d
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub max_age: Option<jiff::SignedDuration>,
    /// Critical when the newest full backup ended longer ago
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub max_full_age: Option<jiff::SignedDuration>,
    /// Critical when the newest WAL in the store arrived longer ago
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub max_wal_age: Option<jiff::SignedDuration>,
    /// Which cluster [default: all]
    #[command(flatten)]
    pub cluster: Cluster,
}

impl Status {
    /// The data directory, however it was named.
    pub fn data_directory(&self) -> Option<&Path> {
        self.directory.as_deref().or(self.pgdata.as_deref())
    }
}

#[derive(Debug, Args)]
pub struct WalSummarize {
    /// Read every segment, and make those stored summaries anew too that are damaged or another content's
    #[arg(long)]
    pub check: bool,
    /// Which cluster
    #[command(flatten)]
    pub cluster: Cluster,
}

// What was verified before.
#[derive(Clone, Debug, Args)]
pub struct Receipts {
    /// Keep note in FILE of what was found sound, and pass over what it vouches for
    #[arg(long, value_name = "FILE")]
    pub receipts: Option<PathBuf>,
    /// Days after which an object is read again all the same
    #[arg(long, value_name = "N", default_value_t = 30, requires = "receipts")]
    pub recheck_days: u16,
}

#[derive(Debug, Args)]
pub struct Keygen {
    /// File for the identity, readable by its owner only; never overwritten [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print the recipients of the identities in FILE instead
    #[arg(short = 'y', long, value_name = "FILE", conflicts_with = "output")]
    pub recipients_of: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Check {
    /// Data directory of the running server [default: only the settings and the store are checked]
    #[arg(env = "PGDATA")]
    pub pgdata: Option<PathBuf>,
    /// This host only restores: write nothing to the store
    #[arg(long, conflicts_with = "append_only")]
    pub read_only: bool,
    /// Do not have the server switch to a new segment
    #[arg(long)]
    pub no_switch: bool,
    /// Seconds in which a segment must arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// The credentials must not be able to delete: that they can is the problem
    #[arg(long)]
    pub append_only: bool,
}

/// A slot's name, as servers take it (slot.c, `ReplicationSlotValidateName`).
fn slot(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..64).contains(&text.len()) && text.bytes().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err("it may have up to 63 lower case letters, digits and underscores".to_owned())
    }
}

/// Seconds, or numbers with their units: `90`, `15min`, `26h`, `2d`.
fn age(text: &str) -> Result<jiff::SignedDuration, String> {
    let seconds = text.parse().ok().map(jiff::SignedDuration::from_secs);
    let units = || {
        let span: jiff::Span = text.parse().ok()?;
        span.to_duration(jiff::SpanRelativeTo::days_are_24_hours())
            .ok()
    };
    let age = seconds
        .or_else(units)
        .filter(jiff::SignedDuration::is_positive);
    age.ok_or_else(|| format!("{text:?} is no length of time (90s, 15min, 26h and 2d are)"))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "write it as KEY=VALUE".to_owned())
}

fn tablespace(text: &str) -> Result<(u32, PathBuf), String> {
    let (oid, directory) = text.split_once('=').ok_or("write it as OID=DIR")?;
    let oid = oid.parse().map_err(|_| format!("{oid:?} is no OID"))?;
    Ok((oid, absolute_directory(directory)?))
}

fn absolute_directory(text: &str) -> Result<PathBuf, String> {
    let directory = PathBuf::from(text);
    if directory.is_absolute() {
        Ok(directory)
    } else {
        Err("the directory must be absolute".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_commands_help_begins_with_what_the_list_of_commands_says() {
        let (listed, mut built) = (Cli::command(), Cli::command());
        built.build();
        for command in listed.get_subcommands() {
            let built = built.find_subcommand(command.get_name()).unwrap();
            let about = |command: &clap::Command| command.get_about().map(ToString::to_string);
            assert_eq!(about(built), about(command), "{}", command.get_name());
        }
    }
}
