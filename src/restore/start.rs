//! The command that starts what was restored, as it works on this host.
//!
//! Distributions keep `pg_ctl` outside of PATH, and Debian keeps the settings outside of the data directory.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use walhalla_postgres::Version;

use super::debian::{self, Found};
use super::leading_out::{other_data_directory, outside_pid_file};
use super::recovery::quoted_for_sh;
use super::target::{Action, Point, Target, shell_bytes};
use crate::server::conf::Configuration;
use crate::users;

/// Where distributions have the programs of a version: Debian and its relatives, and PostgreSQL's own RPMs.
const PROGRAM_DIRECTORIES: [(&str, &str); 2] =
    [("/usr/lib/postgresql/", "/bin"), ("/usr/pgsql-", "/bin")];
/// Where servers have their sockets: Debian's, and PostgreSQL's own default (pg_config_manual.h, `DEFAULT_PGSOCKET_DIR`).
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
/// PostgreSQL's own (configure, `DEF_PGPORT`).
const DEFAULT_PORT: u16 = 5432;
/// How many ports after the one that is in use are tried.
const PORTS_TRIED: u16 = 100;

/// The command that starts what was restored into `pgdata`, and writes nothing elsewhere, as a shell takes it.
pub fn start_command(settings: &Configuration, pgdata: &Path, version: Version) -> String {
    let elsewhere = debian::settings(Path::new(debian::FOLDER), pgdata, version);
    command(settings, pgdata, version, elsewhere.as_ref(), is_in_use)
}

fn command(
    settings: &Configuration,
    pgdata: &Path,
    version: Version,
    elsewhere: Option<&Found>,
    is_in_use: impl Fn(u16) -> bool,
) -> String {
    let mut options: Vec<(&str, Vec<u8>)> = Vec::new();
    if let Some(name) = elsewhere.and_then(|found| found.own_name.as_ref()) {
        let name = shell_bytes(name.as_bytes());
        return as_owner(pgdata, &format!("pg_ctlcluster {version} {name} start"));
    }
    if let Some(found) = elsewhere {
        options.push(("config_file", found.file.as_os_str().as_bytes().to_vec()));
    }
    let leads_away = other_data_directory(settings, pgdata).is_some();
    if leads_away || elsewhere.is_some() {
        options.push(("data_directory", pgdata.as_os_str().as_bytes().to_vec()));
    }
    if outside_pid_file(settings, pgdata) || elsewhere.is_some() {
        let own = pgdata.join("external.pid");
        options.push(("external_pid_file", own.as_os_str().as_bytes().to_vec()));
    }
    if let Some((_, free)) = other_port(settings, elsewhere, is_in_use) {
        options.push(("port", free.to_string().into_bytes()));
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
        .map(|(name, value)| [b"-c ", name.as_bytes(), b"=", &quoted_for_sh(value)].concat());
    let options = options.collect::<Vec<_>>().join(&b' ');
    as_owner(
        pgdata,
        &format!("{program} -D {path} -o {} start", shell_bytes(&options)),
    )
}

/// What one must know before the start of a server whose settings are not in its data directory.
pub fn notes(settings: &Configuration, pgdata: &Path, version: Version) -> Vec<String> {
    let found = debian::settings(Path::new(debian::FOLDER), pgdata, version);
    let mut notes = Vec::new();
    match &found {
        Some(Found { own_name: Some(_), .. }) => return notes,
        Some(found) => notes.push(format!(
            "the settings are not in the data directory: the command below starts the server with {}",
            found.file.display()
        )),
        None if pgdata.join(debian::SETTINGS).exists() => {}
        None => notes.push(format!(
            "there is no {} in {}: the backup has none, as the original keeps it elsewhere. Put one there, and pg_hba.conf, \
             before you start the server",
            debian::SETTINGS,
            pgdata.display()
        )),
    }
    if let Some((port, free)) = other_port(settings, found.as_ref(), is_in_use) {
        notes.push(format!(
            "port {port} is in use on this host: the command below starts the server on port {free}"
        ));
    }
    notes
}

/// The port of the settings, if something listens there, and a free one after it.
fn other_port(
    settings: &Configuration,
    elsewhere: Option<&Found>,
    is_in_use: impl Fn(u16) -> bool,
) -> Option<(u16, u16)> {
    let port = port_of(settings, elsewhere);
    if !is_in_use(port) {
        return None;
    }
    let later = port.checked_add(1)?..=port.saturating_add(PORTS_TRIED);
    let free = { later }.find(|port| !is_in_use(*port))?;
    Some((port, free))
}

/// The port that the settings name.
fn port_of(settings: &Configuration, elsewhere: Option<&Found>) -> u16 {
    let named = |settings: &Configuration| {
        let text = std::str::from_utf8(settings.get("port")?).ok()?;
        text.parse().ok()
    };
    let debians = || named(&Configuration::read(&elsewhere?.file).ok()?);
    named(settings).or_else(debians).unwrap_or(DEFAULT_PORT)
}

/// Whether a server of this host listens at the port, or at the socket that is named after it.
fn is_in_use(port: u16) -> bool {
    let is_taken = |address| {
        let bound = TcpListener::bind((address, port));
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    let answers = |directory| {
        let socket = Path::new(directory).join(format!(".s.PGSQL.{port}"));
        UnixStream::connect(socket).is_ok()
    };
    is_taken(Ipv4Addr::UNSPECIFIED)
        || is_taken(Ipv4Addr::LOCALHOST)
        || SOCKET_DIRECTORIES.into_iter().any(answers)
}

/// What the server does at the target, and how to go on.
pub fn at_the_target(
    settings: &Configuration,
    pgdata: &Path,
    version: Version,
    target: &Target,
) -> String {
    let elsewhere = debian::settings(Path::new(debian::FOLDER), pgdata, version);
    let configured = port_of(settings, elsewhere.as_ref());
    let port = match &elsewhere {
        // Its own cluster is started on its own port.
        Some(Found {
            own_name: Some(_), ..
        }) => configured,
        elsewhere => {
            other_port(settings, elsewhere.as_ref(), is_in_use).map_or(configured, |(_, free)| free)
        }
    };
    let psql = if port == DEFAULT_PORT {
        "psql".to_owned()
    } else {
        format!("psql -p {port}")
    };
    then(target, version, &psql)
}

/// The same with the `psql` that reaches the server, and not another one of this host.
fn then(target: &Target, version: Version, psql: &str) -> String {
    let has_all = format!(
        "It answers queries before that, with less than it will have: wait until {psql} -c 'select pg_is_in_recovery()' says f"
    );
    if target.point == Point::End {
        return format!(
            "at the end of the archive the server opens for writing, on a new timeline. {has_all}"
        );
    }
    let resume = version.replay_resume();
    match target.action {
        Action::Pause => format!(
            "at the target the server waits, and may be read (hot_standby = on): look whether it is the right moment, then go on with: \
             {psql} -c 'select {resume}'; it opens for writing, and WAL after the target is never replayed. If it is the wrong \
             moment, stop the server and restore again with another target"
        ),
        Action::Promote => {
            format!("at the target the server opens for writing, on a new timeline. {has_all}")
        }
        Action::Shutdown => {
            "at the target the server shuts down; started again as it is, it goes on to recover from there".to_owned()
        }
    }
}

/// `pg_ctl` of the version, where a distribution has it outside of PATH.
fn program(version: Version) -> Option<PathBuf> {
    let paths = PROGRAM_DIRECTORIES
        .map(|(before, after)| PathBuf::from(format!("{before}{version}{after}/pg_ctl")));
    paths.into_iter().find(|path| path.exists())
}

/// The command as root runs it: PostgreSQL does not start as root.
fn as_owner(pgdata: &Path, command: &str) -> String {
    let owner = pgdata.metadata().map_or(0, |metadata| metadata.uid());
    if !rustix::process::geteuid().is_root() || owner == 0 || command.starts_with("pg_ctlcluster") {
        return command.to_owned();
    }
    match users::name(owner) {
        Some(name) => format!("runuser -u {} -- {command}", shell_bytes(name.as_bytes())),
        None => format!("setpriv --reuid {owner} --regid {owner} --clear-groups {command}"),
    }
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
        let unset = Configuration::default();
        let started = |names: &Path| {
            let text = format!("data_directory = '{}'\n", names.display());
            std::fs::write(&settings, text).unwrap();
            let found = debian::settings(&debian, &pgdata, version);
            command(&unset, &pgdata, version, found.as_ref(), |_| false)
        };
        assert_eq!(started(&pgdata), "pg_ctlcluster 16 main start");
        let copy = started(Path::new("/var/lib/postgresql/16/main"));
        let named = format!("config_file={}", settings.display());
        let own = format!("data_directory={}", pgdata.display());
        assert!(copy.contains(&named) && copy.contains(&own), "{copy}");
        let pid = format!("external_pid_file={}/external.pid", pgdata.display());
        assert!(copy.contains(&pid), "{copy}");
        // What is in the directory itself needs no help.
        std::fs::write(pgdata.join("postgresql.conf"), "").unwrap();
        let plain = started(&pgdata);
        assert!(
            plain.ends_with(&format!("-D {} start", pgdata.display())),
            "{plain}"
        );
    }

    #[test]
    fn a_port_that_is_in_use_is_not_named_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("postgresql.conf");
        std::fs::write(&file, "port = 5433\n").unwrap();
        let found = Found {
            file: file.clone(),
            own_name: None,
        };
        let unset = Configuration::default();
        let none = other_port(&unset, None, |port| port == 5433);
        assert_eq!(none, None);
        let next = other_port(&unset, Some(&found), |port| port == 5433);
        assert_eq!(next, Some((5433, 5434)));
        let own = Configuration::read(&file).unwrap();
        let third = other_port(&own, None, |port| port < 5440);
        assert_eq!(third, Some((5433, 5440)));
        assert_eq!(other_port(&own, None, |_| true), None);
    }

    #[test]
    fn a_server_that_pauses_is_said_to_pause_and_how_it_goes_on() {
        let target = |point| Target {
            point,
            timeline: super::super::target::TargetTimeline::Latest,
            bound: super::super::target::Bound::Inclusive,
            action: Action::Pause,
        };
        let said = |point, version: &str| {
            let version = Version::parse(version).unwrap();
            then(&target(point), version, "psql -p 5433")
        };
        let paused = said(Point::Xid(7), "17");
        assert!(paused.contains("psql -p 5433 -c 'select pg_wal_replay_resume()'"));
        assert!(said(Point::Xid(7), "9.6").contains("pg_xlog_replay_resume()"));
        let end = said(Point::End, "17");
        assert!(end.contains("psql -p 5433 -c 'select pg_is_in_recovery()'"));
    }
}
