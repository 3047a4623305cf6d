//! Recovery targets, named as PostgreSQL's settings `recovery_target_*`.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use walhalla_postgres::wal::text::ServerText;
use walhalla_postgres::{Lsn, TimelineId};

use crate::output;

/// Where recovery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The place.
    pub point: Point,
    /// The timeline to follow.
    pub timeline: TargetTimeline,
    /// Whether the place itself is replayed.
    pub bound: Bound,
    /// What the server does there.
    pub action: Action,
}

/// The place where recovery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// The end of the archive.
    End,
    /// As soon as the backup is consistent.
    Immediate,
    /// The last commit at or before this time.
    Time(Timestamp),
    /// This position.
    Lsn(Lsn),
    /// The end of this transaction.
    Xid(u32),
    /// A named restore point.
    Name(ServerText),
}

/// `recovery_target_timeline`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The newest that a backup leads to.
    #[default]
    Latest,
    /// The backup's.
    Current,
    /// This one.
    Id(TimelineId),
}

/// `recovery_target_inclusive`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// Stop just after the target.
    #[default]
    Inclusive,
    /// Stop just before it.
    Exclusive,
}

/// `recovery_target_action`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Wait for `pg_wal_replay_resume()`, open for reading (PostgreSQL's default).
    #[default]
    Pause,
    /// Open for writing, on a new timeline.
    Promote,
    /// Shut down.
    Shutdown,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("the end of the archive"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(time) => write!(f, "time {time}"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

impl Point {
    /// The target with its time in the user's zone.
    pub fn in_words(&self) -> String {
        match self {
            Self::Time(time) => format!("time {}", output::look::precise_time(*time)),
            Self::End | Self::Immediate | Self::Lsn(_) | Self::Xid(_) | Self::Name(_) => {
                self.to_string()
            }
        }
    }
}

impl std::str::FromStr for TargetTimeline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self::Latest),
            "current" => Ok(Self::Current),
            _ => {
                let digits = text.strip_prefix("0x").map_or_else(
                    || text.parse().ok(),
                    |hex| u32::from_str_radix(hex, 16).ok(),
                );
                digits
                    .and_then(TimelineId::new)
                    .map(Self::Id)
                    .ok_or_else(|| {
                        format!("{text:?} is none of latest, current, and a timeline's number")
                    })
            }
        }
    }
}

/// A word of any bytes as bash, ksh and zsh take it: where it is no printable text, with escapes.
pub fn shell_bytes(word: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(word)
        && output::in_a_line(text) == text
    {
        return shell_word(text);
    }
    let letters = word.iter().map(|byte| match byte {
        b'\'' | b'\\' => format!("\\{}", char::from(*byte)),
        b' '..=b'~' => char::from(*byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    });
    format!("$'{}'", letters.collect::<String>())
}

/// A word as a shell takes it.
pub fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A time with its UTC offset: RFC 3339, or as PostgreSQL writes it (`2026-11-21 04:30:00.5+01`).
///
/// # Errors
/// A time without an offset is refused with the two readings that it could have.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    let stem = text
        .strip_suffix("UTC")
        .or_else(|| text.strip_suffix("GMT"))
        .map(str::trim_end);
    let normal = match (stem, text.rsplit_once(' ')) {
        (Some(stem), _) => format!("{stem}Z"),
        (None, Some((stem, offset))) if offset.starts_with(['+', '-']) => format!("{stem}{offset}"),
        _ => text.to_owned(),
    };
    if let Ok(time) = normal.parse::<Timestamp>() {
        return Ok(time);
    }
    match text.parse::<DateTime>() {
        Ok(time) => Err(without_offset(time)),
        Err(_) => Err(format!(
            "{text:?} is no time; write it like '2026-11-21 04:30:00+00'"
        )),
    }
}

fn without_offset(time: DateTime) -> String {
    let reading = |zone: TimeZone| {
        let zoned = time.to_zoned(zone);
        zoned.map_or_else(
            |error| error.to_string(),
            |zoned| zoned.strftime("%Y-%m-%d %H:%M:%S%.f%:z").to_string(),
        )
    };
    let (utc, local) = (reading(TimeZone::UTC), reading(TimeZone::system()));
    format!(
        "the time has no UTC offset\n\
         hint: write '{utc}' if it is UTC, or '{local}' if it is this machine's time"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_bytes_come_back_from_a_shell() {
        let words: [&[u8]; 8] = [
            b"plain",
            b"it's $HOME",
            b"caf\xe9",
            b"a\nb",
            b"\xff\\'",
            b"\x1b[0m41",
            "caf\u{e9}".as_bytes(),
            "\u{202e}evil".as_bytes(),
        ];
        for word in words {
            let quoted = shell_bytes(word);
            assert_eq!(output::in_a_line(&quoted), quoted);
            let mut shell = std::process::Command::new("bash");
            let output = shell.args(["-c", &format!("printf %s {quoted}")]).output();
            assert_eq!(output.unwrap().stdout, word, "{quoted}");
        }
        assert_eq!(shell_bytes(b"caf\xe9"), "$'caf\\xe9'");
    }

    #[test]
    fn times_are_read_as_rfc_3339_and_as_postgresql_writes_them() {
        let expected: Timestamp = "2026-11-21T04:30:00.5Z".parse().unwrap();
        for text in [
            "2026-11-21T04:30:00.5Z",
            "2026-11-21 04:30:00.5+00",
            "2026-11-21 05:30:00.5+01:00",
            "2026-11-21 06:30:00.500000 +02",
            "2026-11-20 23:30:00.5-05",
            "2026-11-21 04:30:00.5 UTC",
        ] {
            assert_eq!(parse_time(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_time_without_an_offset_is_refused_with_both_readings() {
        let refusal = parse_time("2026-11-21 04:30:00").unwrap_err();
        assert!(refusal.contains("2026-11-21 04:30:00+00:00"), "{refusal}");
        assert!(refusal.contains("this machine's time"), "{refusal}");
        assert!(parse_time("yesterday").is_err());
    }
}
