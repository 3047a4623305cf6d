//! The command that starts what was restored, as it works on this host.
//!
//! Distributions keep `pg_ctl` outside of PATH, and Debian keeps `postgresql.conf` outside of the data directory, in
//! `/etc/postgresql/VERSION/NAME`, where `pg_ctlcluster` finds it (postgresql-common, `pg_ctlcluster(1)`).

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walhalla_postgres::Version;

use super::leading_out::{other_data_directory, outside_pid_file};
use super::recovery::quoted_for_sh;
use super::site::real_path;
use super::target::{Action, Point, Target, shell_bytes};
use crate::server::conf::Configuration;

/// Where distributions have the programs of a version: Debian and its relatives, and PostgreSQL's own RPMs.
const PROGRAM_DIRECTORIES: [(&str, &str); 2] =
    [("/usr/lib/postgresql/", "/bin"), ("/usr/pgsql-", "/bin")];
/// Where Debian has the settings of its clusters.
const DEBIAN: &str = "/etc/postgresql";
const SETTINGS: &str = "postgresql.conf";

/// The command that starts what was restored into `pgdata`, and writes nothing elsewhere, as a shell takes it.
pub fn start_command(settings: &Configuration, pgdata: &Path, version: Version) -> String {
    command(settings, pgdata, version, Path::new(DEBIAN))
}

fn command(settings: &Configuration, pgdata: &Path, version: Version, debian: &Path) -> String {
    let mut options: Vec<Vec<u8>> = Vec::new();
    let elsewhere = if pgdata.join(SETTINGS).exists() {
        Vec::new()
    } else {
        debian_settings(debian, version)
    };
    let is_own = |file: &&PathBuf| {
        let named = Configuration::read(file).ok();
        let named = named.and_then(|settings| Some(settings.get("data_directory")?.to_owned()));
        named.is_some_and(|named| {
            real_path(Path::new(std::ffi::OsStr::from_bytes(&named))) == real_path(pgdata)
        })
    };
    if let Some(name) = elsewhere
        .iter()
        .find(is_own)
        .and_then(|file| file.parent()?.file_name())
    {
        return as_owner(
            pgdata,
            &format!(
                "pg_ctlcluster {version} {} start",
                shell_bytes(name.as_bytes())
            ),
        );
    }
    if let [file, ..] = elsewhere.as_slice() {
        options.push([b"config_file=", file.as_os_str().as_bytes()].concat());
    }
    let leads_away = other_data_directory(settings, pgdata).is_some();
    if leads_away || !elsewhere.is_empty() {
        options.push([b"data_directory=", pgdata.as_os_str().as_bytes()].concat());
    }
    if outside_pid_file(settings, pgdata) || !elsewhere.is_empty() {
        options.push(b"external_pid_file=".to_vec());
    }
    let program = program(version).map_or_else(
        || "pg_ctl".to_owned(),
        |path| shell_bytes(path.as_os_str().as_bytes()),
    );
    let path = shell_bytes(pgdata.as_os_str().as_bytes());
    if options.is_empty() {
        return as_owner(pgdata, &format!("{program} -D {path} start"));
    }
    // pg_ctl gives them to a shell of its own (pg_ctl.c, `start_postmaster`).
    let options = options
        .iter()
        .map(|option| [b"-c ".as_slice(), &quoted_for_sh(option)].concat());
    let options = options.collect::<Vec<_>>().join(&b' ');
    as_owner(
        pgdata,
        &format!("{program} -D {path} -o {} start", shell_bytes(&options)),
    )
}

/// What one must know before the start of a server whose settings are not in its data directory.
pub fn notes(pgdata: &Path, version: Version) -> Vec<String> {
    if pgdata.join(SETTINGS).exists() {
        return Vec::new();
    }
    let found = debian_settings(Path::new(DEBIAN), version);
    vec![match found.as_slice() {
        [] => format!(
            "there is no {SETTINGS} in {}: the backup has none, as the original keeps it elsewhere. Put one there, and pg_hba.conf, \
             before you start the server",
            pgdata.display()
        ),
        [file, ..] => format!(
            "the settings are not in the data directory: the command below starts the server with {}, on the same port; beside a \
             running server add -c port=N to the options",
            file.display()
        ),
    }]
}

/// What the server does at the target, and how to go on.
pub fn at_the_target(target: &Target, version: Version) -> Option<String> {
    if target.point == Point::End {
        return None;
    }
    let resume = if version.wal_folder() == "pg_wal" {
        "pg_wal_replay_resume"
    } else {
        "pg_xlog_replay_resume"
    };
    Some(match target.action {
        Action::Pause => format!(
            "at the target the server waits, and may be read (hot_standby = on): look whether it is the right moment, then go on with: \
             psql -c 'select {resume}()'; it opens for writing, and WAL after the target is never replayed. If it is the wrong \
             moment, stop the server and restore again with another target"
        ),
        Action::Promote => "at the target the server opens for writing, on a new timeline".to_owned(),
        Action::Shutdown => {
            "at the target the server shuts down; started again as it is, it goes on to recover from there".to_owned()
        }
    })
}

/// `pg_ctl` of the version, where a distribution has it outside of PATH.
fn program(version: Version) -> Option<PathBuf> {
    let paths = PROGRAM_DIRECTORIES
        .map(|(before, after)| PathBuf::from(format!("{before}{version}{after}/pg_ctl")));
    paths.into_iter().find(|path| path.exists())
}

/// Debian's settings of this version's clusters, by name.
fn debian_settings(debian: &Path, version: Version) -> Vec<PathBuf> {
    let clusters = std::fs::read_dir(debian.join(version.to_string()));
    let clusters = clusters.into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = clusters.map(|entry| entry.path().join(SETTINGS)).collect();
    files.retain(|file| file.exists());
    files.sort();
    files
}

/// The command as root runs it: PostgreSQL does not start as root.
fn as_owner(pgdata: &Path, command: &str) -> String {
    let owner = pgdata.metadata().map_or(0, |metadata| metadata.uid());
    if !rustix::process::geteuid().is_root() || owner == 0 || command.starts_with("pg_ctlcluster") {
        return command.to_owned();
    }
    match name_of(owner) {
        Some(name) => format!("runuser -u {} -- {command}", shell_bytes(name.as_bytes())),
        None => format!("setpriv --reuid {owner} --regid {owner} --clear-groups {command}"),
    }
}

fn name_of(user: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut words| {
        let name = words.next()?;
        (words.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_settings_are_named_and_its_own_cluster_is_started_by_its_program() {
        let dir = tempfile::tempdir().unwrap();
        let (debian, pgdata) = (dir.path().join("etc"), dir.path().join("data"));
        let version = Version::parse("16").unwrap();
        std::fs::create_dir_all(debian.join("16/main")).unwrap();
        std::fs::create_dir(&pgdata).unwrap();
        let settings = debian.join("16/main/postgresql.conf");
        let started = |names: &Path| {
            let text = format!("data_directory = '{}'\n", names.display());
            std::fs::write(&settings, text).unwrap();
            command(&Configuration::default(), &pgdata, version, &debian)
        };
        assert_eq!(started(&pgdata), "pg_ctlcluster 16 main start");
        let copy = started(Path::new("/var/lib/postgresql/16/main"));
        let named = format!("config_file={}", settings.display());
        let own = format!("data_directory={}", pgdata.display());
        assert!(copy.contains(&named) && copy.contains(&own), "{copy}");
        assert!(copy.contains("external_pid_file="), "{copy}");
        // What is in the directory itself needs no help.
        std::fs::write(pgdata.join("postgresql.conf"), "").unwrap();
        let plain = started(&pgdata);
        assert!(
            plain.ends_with(&format!("-D {} start", pgdata.display())),
            "{plain}"
        );
    }

    #[test]
    fn a_server_that_pauses_is_said_to_pause_and_how_it_goes_on() {
        let target = |point| Target {
            point,
            timeline: super::super::target::TargetTimeline::Latest,
            bound: super::super::target::Bound::Inclusive,
            action: Action::Pause,
        };
        let said = |version: &str| {
            at_the_target(&target(Point::Xid(7)), Version::parse(version).unwrap()).unwrap()
        };
        assert!(said("17").contains("pg_wal_replay_resume()"));
        assert!(said("9.6").contains("pg_xlog_replay_resume()"));
        assert_eq!(
            at_the_target(&target(Point::End), Version::parse("17").unwrap()),
            None
        );
    }
}
