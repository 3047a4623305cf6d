//! The settings with which a restored server recovers.
//!
//! From 12 on: `recovery.signal` or `standby.signal`, and settings at the end of
//! `postgresql.auto.conf`; before 12: `recovery.conf`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use walhalla_postgres::{Limits, Version};

use super::folder::Folder;
use super::plan::Plan;
use super::stage::Seal;
use super::target::{Action, Bound, Point};
use super::{Error, debian};

/// Where the server's WAL comes from while it recovers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalSource {
    /// The stage; its sealed plan.
    Staged(Seal),
    /// The store that the restore was planned with, asked for each file.
    OnDemand(Box<OnDemand>),
}

/// What makes a server ask the store that a restore was planned with, whatever its own environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDemand {
    /// Absolute path of the settings file.
    pub config: PathBuf,
    /// Store URL.
    pub store: String,
    /// URL of the second store, which the settings name.
    pub mirror: Option<String>,
    /// The time as of which the store is looked at.
    pub as_of: Option<Timestamp>,
    /// Settings that are not in the file.
    pub set: Vec<(String, String)>,
    /// Variables of the store's own ecosystem that say which store the URL means, and their values; none is unset.
    pub variables: Vec<(&'static str, Option<String>)>,
}

/// What the server puts in the place of `"%f" "%p"`, with the quotes and spaces: at most the name of a backup history file,
/// and the file that it always asks for.
const FILE_AND_PATH_BYTES: usize = 48 + 32;
/// `MAXPGPATH` (pg_config_manual.h) without the end.
const MOST_COMMAND_BYTES: usize = 1023;

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

/// The program that sets and unsets variables for another.
const ENV: &str = "/usr/bin/env";
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
    /// Writes the settings into the data directory, durably, as files of this mode; settings of an earlier recovery are taken
    /// out.
    pub(super) fn write(&self, plan: &Plan, data: &Folder, mode: u32) -> Result<(), Error> {
        for signal in SIGNALS {
            data.remove(signal.as_ref())?;
        }
        let write = |name: &str, text: &[u8]| data.write(name.as_ref(), text, mode);
        let version = plan.backup.postgres_version;
        let recovery = self.recovery(plan, version);
        let earlier = data.read(AUTO_CONF.as_ref())?.unwrap_or_default();
        let mut auto_conf = without_recovery(&earlier);
        if version.has_recovery_signal() {
            auto_conf.extend_from_slice(&recovery);
            let signal = if self.role == Role::Standby {
                "standby.signal"
            } else {
                "recovery.signal"
            };
            write(signal, b"")?;
        } else {
            write("recovery.conf", &recovery)?;
        }
        if self.has_empty_files && version.can_ignore_invalid_pages() {
            // Records without an image of a page want it to be there (xlogutils.c, `XLogCheckInvalidPages`).
            auto_conf.extend_from_slice(b"ignore_invalid_pages = 'on'\n");
        }
        if self.archive_mode == ArchiveMode::Off {
            auto_conf.extend_from_slice(b"archive_mode = 'off'\n");
        }
        if self.pauses(plan) && !is_hot_standby(data.path(), version) {
            // Without it PostgreSQL shuts down where it should pause (xlogrecovery.c, `validateRecoveryParameters`).
            tracing::info!(
                "hot_standby is set to on: the server could not pause at the target without it"
            );
            auto_conf.extend_from_slice(b"hot_standby = 'on'\n");
        }
        for (name, value) in raised(data.path(), plan) {
            tracing::info!("{name} is set to {value}: replay needs it");
            auto_conf.extend_from_slice(format!("{name} = {value}\n").as_bytes());
        }
        write(AUTO_CONF, &auto_conf)
    }

    fn pauses(&self, plan: &Plan) -> bool {
        self.role == Role::Primary
            && plan.target.point != Point::End
            && plan.target.action == Action::Pause
    }

    fn recovery(&self, plan: &Plan, version: Version) -> Vec<u8> {
        let mut text = Vec::new();
        let mut set_bytes = |name: &str, value: &[u8]| {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b" = ");
            text.extend_from_slice(&quote(value));
            text.push(b'\n');
        };
        set_bytes("restore_command", &self.restore_command());
        if let WalSource::Staged(sealed) = &self.wal {
            let words = [
                self.program.as_os_str(),
                "restore-end".as_ref(),
                "--seal".as_ref(),
                sealed.sha256.as_ref(),
                sealed.plan.as_os_str(),
            ];
            set_bytes("recovery_end_command", &command(&words));
        }
        let mut set = |name: &str, value: &str| set_bytes(name, value.as_bytes());
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

    fn restore_command(&self) -> Vec<u8> {
        let words: Vec<OsString> = match &self.wal {
            WalSource::Staged(sealed) => vec![
                self.program.clone().into(),
                "wal-fetch".into(),
                "--plan".into(),
                sealed.plan.clone().into(),
                "--seal".into(),
                sealed.sha256.clone().into(),
            ],
            WalSource::OnDemand(on_demand) => on_demand.words(&self.program),
        };
        let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let mut command = command(&words);
        command.extend_from_slice(b" \"%f\" \"%p\"");
        command
    }
}

impl OnDemand {
    /// Refuses a `restore_command` that the server would cut off without a word.
    ///
    /// # Errors
    /// [`Error::LongCommand`].
    pub fn must_fit(&self, program: &Path, version: Version) -> Result<(), Error> {
        let words = self.words(program);
        let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let bytes = command(&words).len() + FILE_AND_PATH_BYTES;
        if version.cuts_commands() && bytes > MOST_COMMAND_BYTES {
            return Err(Error::LongCommand(bytes));
        }
        Ok(())
    }

    fn words(&self, program: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if !self.variables.is_empty() {
            words.push(ENV.into());
            for (name, _) in self.variables.iter().filter(|(_, value)| value.is_none()) {
                words.extend(["-u".into(), (*name).into()]);
            }
            for (name, value) in &self.variables {
                words.extend(value.iter().map(|value| format!("{name}={value}").into()));
            }
        }
        words.push(program.into());
        words.push("--no-environment".into());
        words.extend(["--config".into(), self.config.clone().into()]);
        if self.mirror.is_some() {
            // The flag would mean that store alone.
            words.extend(["--set".into(), format!("store={}", self.store).into()]);
        } else {
            words.extend(["--store".into(), self.store.clone().into()]);
        }
        if let Some(time) = self.as_of {
            words.extend(["--store-as-of".into(), time.to_string().into()]);
        }
        for (key, value) in &self.set {
            words.extend(["--set".into(), format!("{key}={value}").into()]);
        }
        words.push("wal-fetch".into());
        words
    }
}

/// Whether the restored directory's settings let a server in recovery be read.
fn is_hot_standby(data: &Path, version: Version) -> bool {
    match debian::configuration(data, version).get("hot_standby") {
        // All that PostgreSQL takes for true (bool.c, `parse_bool_with_len`) begins so, and nothing else that it takes.
        Some(value) => {
            let value = value.to_ascii_lowercase();
            ["on", "t", "y", "1"]
                .iter()
                .any(|yes| value.starts_with(yes.as_bytes()))
        }
        None => version.is_hot_standby_by_default(),
    }
}

/// Settings that are lower in the restored directory than replay needs them, and what it needs.
fn raised(data: &Path, plan: &Plan) -> Vec<(&'static str, u32)> {
    let of_backup = plan.backup.limits.unwrap_or_default();
    let needed = of_backup.max(plan.limits.unwrap_or_default());
    let files = debian::configuration(data, plan.backup.postgres_version);
    let is_low = |(name, needed): (&'static str, u32), default: u32| {
        let configured = files.get(name).map(|value| std::str::from_utf8(value));
        let configured = configured.map_or(Some(default), |value| value.ok()?.trim().parse().ok());
        // What is not a plain number PostgreSQL reads in its own way.
        (configured.is_some_and(|configured| configured < needed)).then_some((name, needed))
    };
    let defaults = Limits::default_of(plan.backup.postgres_version);
    let defaults = defaults.named().map(|(_, value)| value);
    let needed = needed.named().into_iter().zip(defaults);
    needed
        .filter_map(|(named, default)| is_low(named, default))
        .collect()
}

/// A shell command whose `%` PostgreSQL leaves alone.
fn command(words: &[&OsStr]) -> Vec<u8> {
    let quoted: Vec<Vec<u8>> = words
        .iter()
        .map(|word| quoted_for_sh(word.as_bytes()))
        .collect();
    let doubled = quoted.join(&b' ').into_iter().flat_map(|byte| match byte {
        b'%' => vec![byte, byte],
        _ => vec![byte],
    });
    doubled.collect()
}

/// A word of any bytes as every shell takes it.
pub(super) fn quoted_for_sh(word: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(byte);
    if !word.is_empty() && word.iter().all(is_plain) {
        return word.to_vec();
    }
    let inside = word.iter().flat_map(|byte| match byte {
        b'\'' => b"'\\''".to_vec(),
        _ => vec![*byte],
    });
    let mut quoted = vec![b'\''];
    quoted.extend(inside);
    quoted.push(b'\'');
    quoted
}

/// A value as `postgresql.conf` wants it (guc-file.l, `DeescapeQuotedString`).
pub fn quote(value: &[u8]) -> Vec<u8> {
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
    lines_of(text, |line| !is_recovery(line))
}

/// The lines of the text, in whatever encoding, that say how to recover: those that [`Settings`] wrote at the end of
/// `postgresql.auto.conf`.
pub fn only_recovery(text: &[u8]) -> Vec<u8> {
    lines_of(text, is_recovery)
}

fn lines_of(text: &[u8], is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| is_wanted(line));
    let mut kept = lines.collect::<Vec<_>>().concat();
    if kept.last().is_some_and(|byte| *byte != b'\n') {
        kept.push(b'\n');
    }
    kept
}

/// Whether a line is a setting of recovery.
fn is_recovery(line: &[u8]) -> bool {
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
        assert_eq!(
            only_recovery(text.as_bytes()),
            b"restore_command = 'x'\n Recovery_Target_Time='y'\nrecovery_end_command='z'\nignore_invalid_pages = 'on'\n"
        );
    }

    #[test]
    fn commands_survive_the_shell_and_postgresql() {
        let words = ["/usr/bin/walhalla", "a b", "it's", "50%"].map(OsStr::new);
        assert_eq!(
            command(&words),
            b"/usr/bin/walhalla 'a b' 'it'\\''s' '50%%'"
        );
        assert_eq!(quote(b"a'b\\c\n\xe9"), b"'a''b\\\\c\\n\xe9'");
        // Through the settings file, PostgreSQL's percent signs and a shell, any bytes come back.
        let any: Vec<u8> = (1..=255).collect();
        let quoted = quote(&command(&[OsStr::from_bytes(&any)]));
        let text = [b"restore_command = ".as_slice(), &quoted, b"\n"].concat();
        let read = crate::server::conf::last(&text, "restore_command").unwrap();
        let mut script = b"printf %s ".to_vec();
        let mut bytes = read.iter();
        while let Some(byte) = bytes.next() {
            script.push(*byte);
            if *byte == b'%' {
                assert_eq!(bytes.next(), Some(&b'%'));
            }
        }
        let mut shell = std::process::Command::new("sh");
        let output = shell.arg("-c").arg(OsStr::from_bytes(&script)).output();
        assert_eq!(output.unwrap().stdout, any);
    }
}
