//! Settings of a restored `postgresql.conf` that lead out of the restored directory.
//!
//! `data_directory` is the dangerous one: with it, `pg_ctl -D RESTORED start` starts the server of the directory that it
//! names (guc.c, `SelectConfigFiles`), the original's as a rule. No later setting in the directory can put that right:
//! `postgresql.auto.conf` is read from the directory that `data_directory` names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::folder::{Folder, Kind};
use super::site::real_path;
use crate::server::conf::{self, Configuration};

const DATA_DIRECTORY: &str = "data_directory";
const EXTERNAL_PID_FILE: &str = "external_pid_file";
const READ_FILES: [&str; 2] = ["hba_file", "ident_file"];

/// Settings by which a server reaches other hosts, other programs, or files outside of its data directory. A setting that
/// every server has is not among them.
pub const REACHING_OUT: [&str; 26] = [
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "recovery_end_command",
    "primary_conninfo",
    "primary_slot_name",
    "synchronous_standby_names",
    "promote_trigger_file",
    "listen_addresses",
    "unix_socket_directories",
    "ssl",
    "ssl_passphrase_command",
    "krb_server_keyfile",
    "external_pid_file",
    "data_directory",
    "hba_file",
    "ident_file",
    "log_directory",
    "stats_temp_directory",
    "session_preload_libraries",
    "local_preload_libraries",
    "jit_provider",
    "restore_command",
    "cron.database_name",
    "cron.host",
    "oauth_validator_libraries",
];

/// The settings of [`REACHING_OUT`] that have a value, with it.
pub fn reaching_out(settings: &Configuration) -> Vec<(&'static str, String)> {
    let set = REACHING_OUT.iter().filter_map(|name| {
        let value = settings.get(name).filter(|value| !value.is_empty())?;
        let is_off = conf::boolean(value) == Some(false);
        (!is_off).then(|| (*name, String::from_utf8_lossy(value).into_owned()))
    });
    set.collect()
}

/// The directory that the settings in `pgdata` make a server started there use, if it is another one.
pub fn other_data_directory(settings: &Configuration, pgdata: &Path) -> Option<PathBuf> {
    let named = path_of(settings, DATA_DIRECTORY)?;
    // A relative one is told from where the server is started.
    let is_own = named.is_absolute() && real_path(&named) == real_path(pgdata);
    (!is_own).then_some(named)
}

/// Makes the lines that lead a server of this directory to another one comments, in the files of the directory itself.
pub(super) fn comment_out_data_directory(data: &Folder) -> Result<(), Error> {
    let pgdata = data.path();
    let settings = Configuration::of_cluster(pgdata);
    let Some(named) = other_data_directory(&settings, pgdata) else {
        return Ok(());
    };
    let root = real_path(pgdata);
    let mut files = settings.files_with(DATA_DIRECTORY);
    files.sort_unstable();
    files.dedup();
    for file in files {
        let real = real_path(file);
        let Ok(inside) = real.strip_prefix(&root) else {
            continue;
        };
        if data.kind(inside)? != Some(Kind::File) {
            continue;
        }
        let (Some(text), Some(mode)) = (data.read(inside)?, data.mode(inside)?) else {
            continue;
        };
        data.write(inside, &conf::commented_out(&text, DATA_DIRECTORY), mode)?;
        tracing::warn!(
            "{} set data_directory = {}: a server started with {} would have used that directory, so the line is a comment \
             now",
            inside.display(),
            named.display(),
            pgdata.display()
        );
    }
    Ok(())
}

/// What one must know of settings in `pgdata` that lead out of it.
pub fn notes(settings: &Configuration, pgdata: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(named) = other_data_directory(settings, pgdata) {
        let files = settings.files_with(DATA_DIRECTORY);
        let files: Vec<String> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        notes.push(format!(
            "ATTENTION: data_directory = {} is set in {}, outside of the restored directory: a server started without the \
             options below would use that directory, not this one",
            named.display(),
            files.join(", ")
        ));
    }
    for name in READ_FILES {
        if let Some(path) = outside(settings, pgdata, name) {
            notes.push(format!(
                "{name} = {}: the server reads that file, which is not in the restored directory",
                path.display()
            ));
        }
    }
    if let Some(path) = outside(settings, pgdata, EXTERNAL_PID_FILE) {
        notes.push(format!(
            "external_pid_file = {}: a server that starts replaces that file, which may be a running original's; the command \
             below leaves it alone",
            path.display()
        ));
    }
    notes
}

/// Whether the settings name a file outside of `pgdata` that a server which starts replaces.
pub(super) fn outside_pid_file(settings: &Configuration, pgdata: &Path) -> bool {
    outside(settings, pgdata, EXTERNAL_PID_FILE).is_some()
}

/// The absolute path that a setting has, if it leads out of `pgdata`.
fn outside(settings: &Configuration, pgdata: &Path, name: &str) -> Option<PathBuf> {
    let path = path_of(settings, name)?;
    let is_outside = path.is_absolute() && !real_path(&path).starts_with(real_path(pgdata));
    is_outside.then_some(path)
}

fn path_of(settings: &Configuration, name: &str) -> Option<PathBuf> {
    let value = settings.get(name).filter(|value| !value.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(value)))
}
