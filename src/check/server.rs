//! The running server: its version, how it archives, what the role may do.

use std::path::Path;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use walhalla_postgres::Version;

use super::Finding;
use crate::output::look::{counted, duration};
use crate::server::conditions::{Archiver, Rights, ServerSettings};
use crate::server::conf::without_values;
use crate::server::session::Facts;
use crate::status::judge::MOST_WAITING;

/// A server's clock that is further off makes the times of backups and of commits hard to compare.
const MAX_SKEW: SignedDuration = SignedDuration::from_secs(30);

/// What was learned of a server.
#[derive(Debug)]
pub struct Learned<'a> {
    /// Where it was reached.
    pub place: String,
    /// Its data directory.
    pub pgdata: &'a Path,
    /// Its version.
    pub version: Version,
    /// What it says of itself.
    pub facts: Facts,
    /// Its settings.
    pub settings: ServerSettings,
    /// What the role may do.
    pub rights: Rights,
    /// What its archiver did.
    pub archiver: Archiver,
    /// Whether it runs in `pgdata`.
    pub is_own: bool,
    /// Segments that wait for it.
    pub waiting: u64,
    /// The clock of this host when it answered.
    pub now: Timestamp,
    /// Whether objects are encrypted and cannot be opened here.
    pub is_sealed: bool,
}

impl Learned<'_> {
    /// What is to be said of the server.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.version(), self.clock(), self.wal_level()];
        if self.facts.in_recovery && self.facts.archive_mode != "always" {
            findings.push(
                self.ok("archive")
                    .noting("it is a standby: its primary archives"),
            );
        } else {
            findings.extend([self.archive_mode(), self.archive_command(), self.archiver()]);
        }
        // A standby does not switch segments.
        if !self.facts.in_recovery {
            findings.push(self.archive_timeout());
        }
        findings.extend([self.backup_right(), self.switch_right(), self.checksums()]);
        findings.push(self.outside());
        findings.extend(self.summaries());
        findings
    }

    fn ok(&self, check: &'static str) -> Finding {
        Finding::ok(check, &self.place)
    }

    fn failed(&self, check: &'static str, problem: impl Into<String>) -> Finding {
        Finding::failed(check, &self.place, problem)
    }

    fn warning(&self, check: &'static str, problem: impl Into<String>) -> Finding {
        Finding::warning(check, &self.place, problem)
    }

    fn version(&self) -> Finding {
        let version = &self.facts.version_text;
        self.ok("version supported")
            .noting(format!("PostgreSQL {version}"))
    }

    fn clock(&self) -> Finding {
        let check = "the server's clock";
        let off = self.facts.now.duration_since(self.now);
        if off.abs() <= MAX_SKEW {
            return self.ok(check);
        }
        let direction = if off.is_positive() {
            "ahead of"
        } else {
            "behind"
        };
        let off = duration(off);
        self.warning(
            check,
            format!("it is {off} {direction} this host's clock; let both take their time from NTP"),
        )
    }

    fn wal_level(&self) -> Finding {
        match self.settings.get("wal_level") {
            Some("minimal") => self.failed(
                "wal_level",
                "it is minimal, with which no base backup can be recovered; set wal_level = replica and restart the server",
            ),
            Some(level) => self.ok("wal_level").noting(level),
            None => self.ok("wal_level").noting("not visible to this role"),
        }
    }

    fn archive_mode(&self) -> Finding {
        match self.facts.archive_mode.as_str() {
            "off" => self.failed(
                "archive_mode",
                "it is off; set archive_mode = on and restart the server",
            ),
            mode => self.ok("archive_mode").noting(mode),
        }
    }

    /// Whether `archive_command` calls this program. The switch of a segment shows whether it reaches this store.
    fn archive_command(&self) -> Finding {
        let check = "archive_command";
        let wanted = || {
            let program = std::env::current_exe().unwrap_or_else(|_| "walhalla".into());
            format!("archive_command = '{} wal-push %p'", program.display())
        };
        if let Some(library) = self
            .settings
            .get("archive_library")
            .filter(|it| !it.is_empty())
        {
            let text = format!(
                "archive_library = {library} is used instead of it; set archive_library = '' and {}",
                wanted()
            );
            return self.failed(check, text);
        }
        let command = match self.settings.get("archive_command") {
            None => {
                return self.warning(
                    check,
                    format!(
                        "role {} may not see it; GRANT pg_read_all_settings TO {}",
                        self.rights.role, self.rights.role
                    ),
                );
            }
            Some("" | "(disabled)") => {
                return self.failed(check, format!("it is empty; set {}", wanted()));
            }
            Some(command) => command,
        };
        match misfit(command) {
            None => self.ok(check).noting(without_values(command)),
            Some(Misfit::Else(what)) => {
                let command = without_values(command);
                self.failed(check, format!("{what}: {command}\nset {}", wanted()))
            }
            Some(Misfit::Unclear(what)) => {
                self.warning(check, format!("{what}: {}", without_values(command)))
            }
        }
    }

    fn archiver(&self) -> Finding {
        let check = "archiver";
        if let Some(file) = &self.archiver.failing {
            let when = self.archiver.failed_at.as_deref().unwrap_or("a while ago");
            return self.failed(
                check,
                format!("it failed to archive {file} at {when}; the server's log has the message of archive_command"),
            );
        }
        if self.waiting > MOST_WAITING {
            let waiting = counted(self.waiting, "segment");
            return self.warning(
                check,
                format!("{waiting} wait to be archived: it does not keep up, or has just begun"),
            );
        }
        let archived = u64::try_from(self.archiver.archived).unwrap_or(0);
        self.ok(check)
            .noting(format!("{} archived", counted(archived, "file")))
    }

    fn archive_timeout(&self) -> Finding {
        let seconds = self
            .settings
            .get("archive_timeout")
            .and_then(|it| it.parse().ok());
        match seconds {
            Some(0) => self.warning(
                "archive_timeout",
                "it is 0: a quiet server archives a segment only when it is full, which may take days; set archive_timeout = 60",
            ),
            Some(seconds) => self.ok("archive_timeout").noting(format!(
                "about {} of commits are lost with this host",
                duration(SignedDuration::from_secs(seconds))
            )),
            None => self.ok("archive_timeout"),
        }
    }

    fn backup_right(&self) -> Finding {
        let role = &self.rights.role;
        if self.rights.may_back_up {
            return self
                .ok("right to take a backup")
                .noting(format!("role {role}"));
        }
        let functions = if self.version.has_backup_start() {
            "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
        } else {
            "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
        };
        self.failed(
            "right to take a backup",
            format!(
                "role {role} has none; in database {}: GRANT EXECUTE ON FUNCTION {functions} TO {role}",
                self.rights.database
            ),
        )
    }

    fn switch_right(&self) -> Finding {
        let (check, role) = ("right to switch segments", &self.rights.role);
        if self.rights.may_switch {
            return self.ok(check);
        }
        self.warning(
            check,
            format!(
                "role {role} has none, so that check cannot see a segment arrive; in database {}: \
                 GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {role}",
                self.rights.database
            ),
        )
    }

    fn checksums(&self) -> Finding {
        match self.settings.is_on("data_checksums") {
            Some(false) => self.warning(
                "data checksums",
                "they are off: a backup cannot tell a damaged page from a sound one; pg_checksums --enable turns them on while the server is stopped",
            ),
            Some(true) | None => self.ok("data checksums"),
        }
    }

    /// Files of the configuration that no base backup holds.
    fn outside(&self) -> Finding {
        let check = "configuration in the data directory";
        let names = ["config_file", "hba_file", "ident_file"];
        let paths = names.iter().filter_map(|name| self.settings.get(name));
        let outside = paths.filter(|path| !Path::new(path).starts_with(self.pgdata));
        let outside: Vec<&str> = outside.collect();
        if outside.is_empty() {
            return self.ok(check);
        }
        self.warning(
            check,
            format!(
                "no base backup holds {}; back up the folder too, as the restored server needs it",
                outside.join(", ")
            ),
        )
    }

    /// Where deltas learn which blocks changed, on a host that cannot open its own archive.
    fn summaries(&self) -> Option<Finding> {
        if !self.is_sealed || !self.version.has_wal_summaries() {
            return None;
        }
        let check = "summaries for deltas";
        Some(if self.settings.is_on("summarize_wal") == Some(false) {
            self.warning(
                check,
                "this host has no identity and cannot read its own archive; with summarize_wal = on a delta need not read the whole data directory",
            )
        } else {
            self.ok(check)
        })
    }
}

/// Why a command is not what it should be.
#[derive(Debug, PartialEq, Eq)]
enum Misfit {
    /// It does something else.
    Else(String),
    /// It may do what it should.
    Unclear(String),
}

/// What is wrong with an `archive_command`.
fn misfit(command: &str) -> Option<Misfit> {
    let words: Vec<&str> = command
        .split_whitespace()
        .map(|word| word.trim_matches(['\'', '"']))
        .collect();
    if !words.contains(&"wal-push") {
        return Some(Misfit::Else(
            "it does not call walhalla wal-push".to_owned(),
        ));
    }
    if !words.iter().any(|word| word.contains("%p")) {
        return Some(Misfit::Else(
            "it has no %p, the path of the segment".to_owned(),
        ));
    }
    let program = { words.iter() }.find(|word| {
        let name = Path::new(word).file_name();
        name.is_some_and(|name| name.to_string_lossy().contains("walhalla"))
    });
    let Some(program) = program else {
        let what =
            "it names no program called walhalla, so that it cannot be compared with this one";
        return Some(Misfit::Unclear(what.to_owned()));
    };
    if !Path::new(program).is_absolute() {
        let what = format!("it names {program} without its folder: the server's PATH is not yours");
        return Some(Misfit::Unclear(what));
    }
    other_program(program)
}

/// What is wrong with the program at a path, compared with this one.
fn other_program(program: &str) -> Option<Misfit> {
    let same = |path: &Path| std::fs::canonicalize(path).ok();
    let own = std::env::current_exe().ok().and_then(|own| same(&own));
    if own.is_some() && same(Path::new(program)) == own {
        return None;
    }
    let output = Command::new(program).arg("--version").output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.trim().strip_prefix("walhalla ").unwrap_or(text.trim());
            (version != crate::LONG_VERSION).then(|| {
                Misfit::Unclear(format!(
                    "{program} is another version ({version}; this is {})",
                    crate::LONG_VERSION
                ))
            })
        }
        Err(error) => Some(Misfit::Else(format!("{program} cannot be run: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_archives_elsewhere_is_found() {
        let what = |command: &str| match misfit(command) {
            Some(Misfit::Else(what) | Misfit::Unclear(what)) => what,
            None => String::new(),
        };
        assert!(what("cp %p /archive/%f").contains("does not call walhalla wal-push"));
        assert!(what("/usr/bin/walhalla wal-push").contains("no %p"));
        assert!(what("walhalla wal-push %p").contains("without its folder"));
        assert!(what("/nowhere/walhalla wal-push %p").contains("cannot be run"));
        assert!(what("/usr/local/bin/archive wal-push %p").contains("names no program"));
    }

    #[test]
    fn this_program_under_another_name_is_itself() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("walhalla");
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &link).unwrap();
        let command = format!("'{}' --config /etc/x.toml wal-push \"%p\"", link.display());
        assert_eq!(misfit(&command), None);
    }
}
