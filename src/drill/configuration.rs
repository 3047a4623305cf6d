//! The configuration of a drill's server.
//!
//! The server reads `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf` of the drill, and of `postgresql.auto.conf` what says
//! how to recover. The original's settings are read by the drill, which carries over those of a short list (`CARRIED`): what
//! replay and queries need. So no setting that leads outside is forgotten: it is not on the list. What must hold whatever the
//! files say is on the server's command line (`pinned`), which wins over every file.
//!
//! `hot_standby` is off, as a drill waits for the end of recovery. Then PostgreSQL does not demand that `max_worker_processes`
//! is as great as the original's (xlogrecovery.c, `CheckRequiredParameterValues`), and the drill sets it to 0: no background
//! worker can start, whichever library wants one (bgworker.c, `RegisterBackgroundWorker`).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use serde::Serialize;
use walhalla_postgres::{Limits, Version};

use super::Error;
use super::account::Account;
use super::binaries::Binaries;
use super::scratch::Scratch;
use crate::restore::leading_out;
use crate::restore::plan::Plan;
use crate::restore::recovery::{only_recovery, quote};
use crate::server::conf::Configuration;

/// Settings of the original that the copy has, too: what replay needs, and by what queries give the same results.
const CARRIED: [&str; 25] = [
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "array_nulls",
    "backslash_quote",
    "bytea_output",
    "default_text_search_config",
    "default_toast_compression",
    "default_transaction_isolation",
    "dynamic_library_path",
    "escape_string_warning",
    "extra_float_digits",
    "from_collapse_limit",
    "join_collapse_limit",
    "max_active_replication_origins",
    "max_files_per_process",
    "max_pred_locks_per_transaction",
    "max_replication_slots",
    "quote_all_identifiers",
    "row_security",
    "search_path",
    "standard_conforming_strings",
    "track_commit_timestamp",
    "transform_null_equals",
    "xmloption",
];

/// Libraries that are there to run jobs, or to talk to other servers.
const JOBS: [&str; 18] = [
    "bdr",
    "pg_auto_failover",
    "pg_background",
    "pg_cron",
    "pg_failover_slots",
    "pg_later",
    "pg_net",
    "pg_partman_bgw",
    "pg_squeeze",
    "pg_task",
    "pgactive",
    "pgautofailover",
    "pglogical",
    "powa",
    "repmgr",
    "spock",
    "vectorize",
    "worker_spi",
];

/// Something of the original that the copy does not have or do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TurnedOff {
    /// What it is.
    pub what: String,
    /// Why, or what is done instead.
    pub why: String,
}

/// How a drill's server is started.
#[derive(Debug)]
pub struct Prepared {
    /// Options of the server.
    pub options: Vec<OsString>,
    /// What was turned off.
    pub turned_off: Vec<TurnedOff>,
}

impl TurnedOff {
    /// A thing and the reason.
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        let (what, why) = (what.into(), why.into());
        Self { what, why }
    }
}

/// Writes the configuration of the server for the directory that `plan` was restored into.
///
/// # Errors
/// [`Error::Local`].
pub fn prepare(
    plan: &Plan,
    scratch: &Scratch,
    binaries: &Binaries,
    account: &Account,
) -> Result<Prepared, Error> {
    let version = plan.backup.postgres_version;
    let auto_conf = scratch.data().join("postgresql.auto.conf");
    let auto_text = std::fs::read(&auto_conf).map_err(Error::local("read", &auto_conf))?;
    let recovery = only_recovery(&auto_text);
    let original = original(&scratch.data(), &auto_text);
    std::fs::write(&auto_conf, recovery).map_err(Error::local("write", &auto_conf))?;
    let libraries = libraries(&original, binaries);
    scratch.write("postgresql.conf", own_text(plan, &original), account)?;
    scratch.write("pg_hba.conf", "local all all trust\n", account)?;
    scratch.write("pg_ident.conf", "", account)?;
    let mut options: Vec<OsString> = vec!["-D".into(), scratch.data().into_os_string()];
    for (name, value) in pinned(version, scratch, &libraries.kept) {
        options.push("-c".into());
        let option = [name.as_bytes(), b"=", &value].concat();
        options.push(OsString::from_vec(option));
    }
    let mut turned_off = turned_off(plan, &original, &scratch.data());
    turned_off.extend(libraries.left_out);
    Ok(Prepared {
        options,
        turned_off,
    })
}

/// The settings of the original, without those that the restore wrote.
fn original(data: &Path, auto_conf: &[u8]) -> Configuration {
    let mut original = Configuration::of_cluster(data);
    let written = crate::server::conf::settings(&only_recovery(auto_conf));
    original.leave_out(&data.join("postgresql.auto.conf"), |name| {
        written.iter().any(|(written, _)| written == name)
    });
    original
}

/// Settings that win over every file.
fn pinned(
    version: Version,
    scratch: &Scratch,
    libraries: &[String],
) -> Vec<(&'static str, Vec<u8>)> {
    let path = |name: &str| scratch.file(name).into_os_string().into_vec();
    let mut pinned = vec![
        ("config_file", path("postgresql.conf")),
        ("hba_file", path("pg_hba.conf")),
        ("ident_file", path("pg_ident.conf")),
        ("data_directory", path("data")),
        ("unix_socket_directories", in_list(scratch.path())),
        ("shared_preload_libraries", libraries.join(",").into_bytes()),
    ];
    pinned.extend(
        ALWAYS
            .iter()
            .map(|(name, value)| (*name, value.as_bytes().to_vec())),
    );
    let of_version = OF_VERSIONS
        .iter()
        .filter(|(_, _, from, to)| (*from..=*to).contains(&version.major()));
    pinned.extend(of_version.map(|(name, value, ..)| (*name, value.as_bytes().to_vec())));
    pinned
}

/// What every version has.
const ALWAYS: [(&str, &str); 26] = [
    ("archive_command", ""),
    ("archive_mode", "off"),
    ("autovacuum", "off"),
    ("default_transaction_read_only", "off"),
    ("external_pid_file", ""),
    ("hot_standby", "off"),
    ("lc_messages", "C"),
    ("listen_addresses", ""),
    ("local_preload_libraries", ""),
    ("log_destination", "stderr"),
    ("log_line_prefix", ""),
    ("log_min_messages", "warning"),
    ("log_statement", "none"),
    ("logging_collector", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("max_wal_senders", "0"),
    ("max_worker_processes", "0"),
    ("port", "5432"),
    ("restart_after_crash", "off"),
    ("session_preload_libraries", ""),
    ("ssl", "off"),
    ("statement_timeout", "0"),
    ("synchronous_standby_names", ""),
    ("unix_socket_group", ""),
    ("unix_socket_permissions", "0700"),
    ("wal_level", "replica"),
];

/// What some versions have: the first and the last of them.
const OF_VERSIONS: [(&str, &str, u32, u32); 9] = [
    ("max_logical_replication_workers", "0", 10, u32::MAX),
    ("archive_cleanup_command", "", 12, u32::MAX),
    ("primary_conninfo", "", 12, u32::MAX),
    ("primary_slot_name", "", 12, u32::MAX),
    ("promote_trigger_file", "", 12, 15),
    ("archive_library", "", 15, u32::MAX),
    ("event_triggers", "off", 17, u32::MAX),
    ("summarize_wal", "off", 17, u32::MAX),
    ("sync_replication_slots", "off", 17, u32::MAX),
];

/// A directory in a list of directories (varlena.c, `SplitDirectoriesString`).
fn in_list(path: &Path) -> Vec<u8> {
    let inside = path.as_os_str().as_bytes().iter();
    let inside = inside.flat_map(|byte| match byte {
        b'"' => b"\"\"".to_vec(),
        _ => vec![*byte],
    });
    let mut quoted = vec![b'"'];
    quoted.extend(inside);
    quoted.push(b'"');
    quoted
}

/// The text of the server's own `postgresql.conf`.
fn own_text(plan: &Plan, original: &Configuration) -> Vec<u8> {
    let mut text = b"# Written by walhalla drill.\n".to_vec();
    let mut set = |name: &str, value: &[u8]| {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b" = ");
        text.extend_from_slice(&quote(value));
        text.push(b'\n');
    };
    for name in CARRIED {
        if let Some(value) = original.get(&name.to_ascii_lowercase()) {
            set(name, value);
        }
    }
    let of_backup = plan.backup.limits.unwrap_or_default();
    let needed = of_backup.max(plan.limits.unwrap_or_default());
    for (name, needed) in needed
        .max(Limits::default_of(plan.backup.postgres_version))
        .named()
    {
        // The others are pinned.
        if [
            "max_connections",
            "max_prepared_transactions",
            "max_locks_per_transaction",
        ]
        .contains(&name)
        {
            let configured = original
                .get(name)
                .and_then(|value| std::str::from_utf8(value).ok());
            let configured = configured.and_then(|value| value.trim().parse().ok());
            set(
                name,
                needed.max(configured.unwrap_or(0)).to_string().as_bytes(),
            );
        }
    }
    text
}

/// Libraries of the original's `shared_preload_libraries`.
#[derive(Debug, Default)]
struct Libraries {
    kept: Vec<String>,
    left_out: Vec<TurnedOff>,
}

fn libraries(original: &Configuration, binaries: &Binaries) -> Libraries {
    let mut libraries = Libraries::default();
    let value = original.get("shared_preload_libraries").unwrap_or_default();
    let is_found_elsewhere = original.get("dynamic_library_path").is_some();
    for name in String::from_utf8_lossy(value).split(',') {
        let name = name.trim().trim_matches('"').to_owned();
        let base = Path::new(&name)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let base = base.strip_suffix(".so").unwrap_or(&base).to_owned();
        let why = if base.is_empty() {
            continue;
        } else if JOBS.contains(&base.as_str()) {
            "it runs jobs or talks to other servers"
        } else if !is_found_elsewhere && !binaries.has_library(&name) {
            "it is not installed here"
        } else {
            libraries.kept.push(format!("\"{name}\""));
            continue;
        };
        let what = format!("the library {name} of shared_preload_libraries");
        libraries.left_out.push(TurnedOff::new(what, why));
    }
    libraries
}

fn turned_off(plan: &Plan, original: &Configuration, data: &Path) -> Vec<TurnedOff> {
    let mut all: Vec<TurnedOff> = { leading_out::reaching_out(original).into_iter() }
        .map(|name| {
            TurnedOff::new(
                format!("the setting {name}"),
                "the copy does not use the original's value",
            )
        })
        .collect();
    let outside = original
        .files()
        .into_iter()
        .filter(|file| !file.starts_with(data));
    all.extend(outside.map(|file| {
        TurnedOff::new(
            format!("the settings in {}", file.display()),
            "the file is not in the data directory",
        )
    }));
    let unread = original.unread().iter();
    all.extend(unread.map(|file| {
        TurnedOff::new(
            format!("the settings in {}", file.display()),
            "the file is not here",
        )
    }));
    all.extend(plan.backup.tablespaces.iter().map(|tablespace| {
        TurnedOff::new(
            format!(
                "tablespace {} at {}",
                tablespace.oid,
                tablespace.location.display()
            ),
            "its files are in the scratch directory",
        )
    }));
    all.push(TurnedOff::new(
        "background workers, parallel workers and autovacuum",
        "the copy runs no jobs",
    ));
    all
}
