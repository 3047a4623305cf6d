//! The settings with which a restored server recovers.
//!
//! From 12 on: `recovery.signal` or `standby.signal`, and settings at the end of
//! `postgresql.auto.conf`; before 12: `recovery.conf`.

use std::path::{Path, PathBuf};

use super::Error;
use super::plan::Plan;
use super::target::{Bound, Point, shell_word};
use crate::postgres::Version;
use crate::wal::fetcher::NewFile;

/// Where the server's WAL comes from while it recovers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalSource {
    /// The stage; the sealed plan's path.
    Staged(PathBuf),
    /// The store, asked for each file; the settings file's path, and the store if it is not in the file.
    OnDemand {
        /// Absolute path of the settings file.
        config: PathBuf,
        /// Store URL.
        store: Option<String>,
    },
}

/// Whether the restored server archives its WAL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ArchiveMode {
    /// As the original did; nothing archived is ever overwritten.
    #[default]
    Preserve,
    /// Not at all.
    Off,
}

/// What the server becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It recovers to the target.
    Primary,
    /// It goes on following the archive.
    Standby,
}

/// The restored server's way.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The running program, absolute.
    pub program: PathBuf,
    /// Where WAL comes from.
    pub wal: WalSource,
    /// Whether it archives.
    pub archive_mode: ArchiveMode,
    /// What it becomes.
    pub role: Role,
    /// Whether databases come up empty, whose pages WAL may ask for.
    pub has_empty_files: bool,
}

const SIGNALS: [&str; 3] = ["recovery.signal", "standby.signal", "recovery.conf"];
const AUTO_CONF: &str = "postgresql.auto.conf";
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

impl Settings {
    /// Writes the settings into `pgdata`, durably; settings of an earlier recovery are taken out.
    pub fn write(&self, plan: &Plan, pgdata: &Path) -> Result<(), Error> {
        for signal in SIGNALS {
            match std::fs::remove_file(pgdata.join(signal)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::local("remove", pgdata.join(signal))(error));
                }
                _ => {}
            }
        }
        let version = plan.backup.postgres_version;
        let recovery = self.recovery(plan, version);
        let mut auto_conf = without_recovery(&read_or_empty(&pgdata.join(AUTO_CONF))?);
        if version.has_recovery_signal() {
            auto_conf.extend_from_slice(&recovery);
            let signal = if self.role == Role::Standby {
                "standby.signal"
            } else {
                "recovery.signal"
            };
            write(&pgdata.join(signal), b"")?;
        } else {
            write(&pgdata.join("recovery.conf"), &recovery)?;
        }
        if self.has_empty_files && version.can_ignore_invalid_pages() {
            // Records without an image of a page want it to be there (xlogutils.c, `XLogCheckInvalidPages`).
            auto_conf.extend_from_slice(b"ignore_invalid_pages = 'on'\n");
        }
        if self.archive_mode == ArchiveMode::Off {
            auto_conf.extend_from_slice(b"archive_mode = 'off'\n");
        }
        write(&pgdata.join(AUTO_CONF), &auto_conf)
    }

    fn recovery(&self, plan: &Plan, version: Version) -> Vec<u8> {
        let mut text = Vec::new();
        let mut set_bytes = |name: &str, value: &[u8]| {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b" = ");
            text.extend_from_slice(&quote(value));
            text.push(b'\n');
        };
        let mut set = |name: &str, value: &str| set_bytes(name, value.as_bytes());
        set("restore_command", &self.restore_command());
        if let WalSource::Staged(sealed) = &self.wal {
            let words = [
                &*self.program.to_string_lossy(),
                "restore-end",
                &sealed.to_string_lossy(),
            ];
            set("recovery_end_command", &command(&words));
        }
        if version.has_recovery_signal() {
            // What postgresql.conf may still say of an earlier recovery. The one target that is wanted
            // comes after these: PostgreSQL takes them in order and refuses a second one (xlogrecovery.c,
            // `assign_recovery_target_*`).
            for name in TARGETS {
                set(name, "");
            }
            set("archive_cleanup_command", "");
            if !matches!(self.wal, WalSource::Staged(_)) {
                set("recovery_end_command", "");
            }
        }
        if self.role == Role::Standby {
            if !version.has_recovery_signal() {
                set("standby_mode", "on");
            }
            set("recovery_target_timeline", "latest");
            return text;
        }
        set("recovery_min_apply_delay", "0");
        match plan.history.timeline {
            // Before 12 this is what no setting means.
            own if own == plan.backup.timeline && !version.has_recovery_signal() => {}
            own if own == plan.backup.timeline => set("recovery_target_timeline", "current"),
            other => set("recovery_target_timeline", &other.number().to_string()),
        }
        let point = match &plan.target.point {
            Point::End => return text,
            Point::Immediate => ("recovery_target", b"immediate".to_vec()),
            Point::Time(time) => (
                "recovery_target_time",
                time.strftime("%Y-%m-%d %H:%M:%S%.6f+00")
                    .to_string()
                    .into_bytes(),
            ),
            Point::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string().into_bytes()),
            Point::Xid(xid) => ("recovery_target_xid", xid.to_string().into_bytes()),
            Point::Name(name) => ("recovery_target_name", name.as_bytes().to_vec()),
        };
        set_bytes(point.0, &point.1);
        let mut set = |name: &str, value: &str| set_bytes(name, value.as_bytes());
        let inclusive = if plan.target.bound == Bound::Inclusive {
            "on"
        } else {
            "off"
        };
        set("recovery_target_inclusive", inclusive);
        set("recovery_target_action", &plan.target.action.to_string());
        text
    }

    fn restore_command(&self) -> String {
        let program = self.program.to_string_lossy();
        let front = match &self.wal {
            WalSource::Staged(sealed) => {
                command(&[&program, "wal-fetch", "--plan", &sealed.to_string_lossy()])
            }
            WalSource::OnDemand {
                config,
                store: None,
            } => command(&[&program, "--config", &config.to_string_lossy(), "wal-fetch"]),
            WalSource::OnDemand {
                config,
                store: Some(store),
            } => command(&[
                &program,
                "--config",
                &config.to_string_lossy(),
                "--store",
                store,
                "wal-fetch",
            ]),
        };
        format!("{front} \"%f\" \"%p\"")
    }
}

/// A shell command whose `%` PostgreSQL leaves alone.
fn command(words: &[&str]) -> String {
    let quoted = words.iter().map(|word| shell_word(word));
    quoted.collect::<Vec<_>>().join(" ").replace('%', "%%")
}

/// A value as `postgresql.conf` wants it (guc-file.l, `DeescapeQuotedString`).
fn quote(value: &[u8]) -> Vec<u8> {
    let escaped = value.iter().flat_map(|byte| match byte {
        b'\\' => b"\\\\".to_vec(),
        b'\'' => b"''".to_vec(),
        b'\n' => b"\\n".to_vec(),
        _ => vec![*byte],
    });
    let mut quoted = vec![b'\''];
    quoted.extend(escaped);
    quoted.push(b'\'');
    quoted
}

/// The text, in whatever encoding, without the settings of an earlier recovery.
fn without_recovery(text: &[u8]) -> Vec<u8> {
    let is_recovery = |line: &&[u8]| {
        let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
        let name: Vec<u8> = line
            .trim_ascii_start()
            .iter()
            .take_while(is_part)
            .copied()
            .collect();
        let name = String::from_utf8_lossy(&name).to_ascii_lowercase();
        let own = [
            "restore_command",
            "archive_cleanup_command",
            "recovery_end_command",
            "recovery_min_apply_delay",
            // Left by a restore of single databases.
            "ignore_invalid_pages",
        ];
        name.starts_with("recovery_target") || own.contains(&name.as_str())
    };
    let lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !is_recovery(line));
    let mut kept = lines.collect::<Vec<_>>().concat();
    if kept.last().is_some_and(|byte| *byte != b'\n') {
        kept.push(b'\n');
    }
    kept
}

fn read_or_empty(path: &Path) -> Result<Vec<u8>, Error> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(Error::local("read", path)),
    }
}

fn write(path: &Path, text: &[u8]) -> Result<(), Error> {
    let mut file = NewFile::create(path)?;
    file.write(text)?;
    Ok(file.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_earlier_recovery_are_taken_out() {
        let text = "work_mem = '1GB'\nrestore_command = 'x'\n Recovery_Target_Time='y'\nrecovery_end_command='z'\nignore_invalid_pages = 'on'\nrecovery_prefetch = off\n# restore_command\n";
        assert_eq!(
            without_recovery(text.as_bytes()),
            b"work_mem = '1GB'\nrecovery_prefetch = off\n# restore_command\n"
        );
    }

    #[test]
    fn commands_survive_the_shell_and_postgresql() {
        assert_eq!(
            command(&["/usr/bin/walhalla", "a b", "it's", "50%"]),
            "/usr/bin/walhalla 'a b' 'it'\\''s' '50%%'"
        );
        assert_eq!(quote(b"a'b\\c\n\xe9"), b"'a''b\\\\c\\n\xe9'");
    }
}
