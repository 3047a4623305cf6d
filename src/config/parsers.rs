//! From the text of a setting to its value. An error says what is wrong with the text.

use std::path::PathBuf;
use std::time::Duration;

use walhalla_postgres::SystemIdentifier;
use walhalla_providers::transfer::{ConditionalWrites, Rate};

use crate::pipeline::encryption::is_secret;

/// The text itself; what it means is checked where it is used.
#[allow(
    clippy::unnecessary_wraps,
    reason = "a parser like the others, which may fail"
)]
pub(super) fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A path, which need not exist.
#[allow(
    clippy::unnecessary_wraps,
    reason = "a parser like the others, which may fail"
)]
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// The path of a file of keys, in whose place one easily puts the key itself.
pub(super) fn key_file(text: &str) -> Result<PathBuf, String> {
    if is_secret(text) {
        Err("it is the path of a file, and a secret key stands there; put the key into a file of its own, mode 600".to_owned())
    } else {
        Ok(PathBuf::from(text))
    }
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=256).contains(count));
    count.ok_or_else(|| format!("{text:?} is no number from 1 to 256"))
}

pub(super) fn system_identifier(text: &str) -> Result<SystemIdentifier, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no system identifier; `pg_controldata` shows one, as \"Database system identifier\"")
    })
}

/// A restore reads from every backup of a chain at the same time, so that it cannot be of any length.
pub(super) fn deltas(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count <= 1000);
    count.ok_or_else(|| format!("{text:?} is no number from 0 to 1000"))
}

/// How many segments at most.
pub(super) fn segments(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count <= 256);
    count.ok_or_else(|| format!("{text:?} is no number from 0 to 256"))
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "on" | "1" | "yes" => Ok(true),
        "false" | "off" | "0" | "no" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn one_of(text: &str, known: &[&str]) -> Result<String, String> {
    if known.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is none of {}", known.join(", ")))
    }
}

pub(super) fn days(text: &str) -> Result<u32, String> {
    // S3 takes no more than a hundred years.
    let days = text.parse().ok().filter(|days| (1..=36_500).contains(days));
    days.ok_or_else(|| format!("{text:?} is no number of days from 1 to 36500"))
}

/// A class whose objects can be read at once.
pub(super) fn storage_class(text: &str) -> Result<String, String> {
    match text {
        "GLACIER" | "DEEP_ARCHIVE" => Err(format!(
            "objects of the class {text} cannot be read before they are restored; GLACIER_IR can"
        )),
        _ => Ok(text.to_owned()),
    }
}

pub(super) fn conditional_writes(text: &str) -> Result<ConditionalWrites, String> {
    match text {
        "probe" => Ok(ConditionalWrites::Probe),
        "trust" => Ok(ConditionalWrites::Trust),
        "off" => Ok(ConditionalWrites::Off),
        _ => Err(format!("{text:?} is none of probe, trust, off")),
    }
}

/// Seconds, or a number with its unit: `90`, `90s`, `5min`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let friendly = || {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|duration| duration.try_into().ok())
    };
    seconds
        .or_else(friendly)
        .ok_or_else(|| format!("{text:?} is no length of time (90s and 5min are)"))
}

/// Bytes, or a number with its unit: `8MiB`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let units = [
        ("TiB", 40),
        ("GiB", 30),
        ("MiB", 20),
        ("KiB", 10),
        ("TB", 40),
        ("GB", 30),
        ("MB", 20),
        ("kB", 10),
        ("", 0),
    ];
    let parsed = units.iter().find_map(|(unit, shift)| {
        let number: usize = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(1_usize.checked_shl(*shift)?)
    });
    parsed.ok_or_else(|| format!("{text:?} is no size (8MiB is one)"))
}

/// A size that holds at least one segment of the usual length.
pub(super) fn backlog(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    let enough = u64::try_from(bytes).ok().filter(|bytes| *bytes >= 16 << 20);
    enough.ok_or_else(|| {
        format!("{text:?} is less than 16MiB; without the setting wal-push drops nothing")
    })
}

/// A size, for each second.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let bytes = size(text)?;
    if bytes == 0 {
        return Err("with 0 bytes a second nothing would ever be done; without the setting there is no limit".to_owned());
    }
    let rate = u64::try_from(bytes).ok().and_then(Rate::new);
    rate.ok_or_else(|| format!("{text:?} is not from 1KiB to 1TiB a second"))
}

pub(super) fn server_side_encryption(text: &str) -> Result<String, String> {
    one_of(text, &["AES256", "aws:kms", "aws:kms:dsse"])
}

pub(super) fn lock_mode(text: &str) -> Result<String, String> {
    one_of(text, &["GOVERNANCE", "COMPLIANCE"])
}
