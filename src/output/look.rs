//! How values look: one form of time, one of sizes, one of ages.

use std::sync::OnceLock;

use indicatif::{HumanBytes, HumanCount};
use jiff::tz::TimeZone;
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};

/// Columns of a line where no terminal tells how wide it is.
const COLUMNS: usize = 80;

/// What the user asked of the output.
static ASKED: OnceLock<(Clock, Width)> = OnceLock::new();
/// What came of it when something was first shown: an archived segment shows nothing, and reads no zone for it.
static LOOK: OnceLock<Look> = OnceLock::new();

#[derive(Debug)]
struct Look {
    zone: TimeZone,
    /// Columns that a line may have.
    width: Option<usize>,
}

/// In which zone times are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// This machine's.
    Local,
    /// UTC.
    Utc,
}

/// How much of a table is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The columns that fit into the terminal.
    Fitting,
    /// All columns.
    Wide,
}

/// Sets how values look from now on. The first call counts; without one, times are in UTC.
pub fn start(clock: Clock, width: Width) {
    ASKED.get_or_init(|| (clock, width));
}

fn look() -> &'static Look {
    LOOK.get_or_init(|| {
        let (clock, width) = ASKED.get().copied().unwrap_or((Clock::Utc, Width::Fitting));
        Look {
            zone: match clock {
                Clock::Local => TimeZone::system(),
                Clock::Utc => TimeZone::UTC,
            },
            width: match width {
                Width::Fitting => Some(terminal_columns()),
                Width::Wide => None,
            },
        }
    })
}

/// Columns that a line may have; `None` where the user wants all.
pub fn columns() -> Option<usize> {
    look().width
}

/// The width of the terminal, else `COLUMNS`, else 80.
fn terminal_columns() -> usize {
    let of_terminal = terminal_size::terminal_size_of(std::io::stdout());
    let of_variable = || std::env::var("COLUMNS").ok()?.parse().ok();
    let columns = of_terminal.map(|(terminal_size::Width(columns), _)| usize::from(columns));
    columns
        .or_else(of_variable)
        .filter(|it| *it > 0)
        .unwrap_or(COLUMNS)
}

/// A time to the second, in the user's zone, with its offset: `2026-11-30 10:40:00+01`.
pub fn time(time: Timestamp) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S%:::z")
}

/// A time to the microsecond, as PostgreSQL keeps it.
pub fn exact_time(time: Timestamp) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S%.6f%:::z")
}

/// A time to the second, or with as many digits as it has.
pub fn precise_time(time: Timestamp) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S%.f%:::z")
}

/// The first whole second that is not before a time.
pub fn begin(time: Timestamp) -> Timestamp {
    let rounding = TimestampRound::new()
        .smallest(Unit::Second)
        .mode(RoundMode::Ceil);
    time.round(rounding).unwrap_or(time)
}

fn in_zone(time: Timestamp, format: &str) -> String {
    time.to_zoned(look().zone.clone())
        .strftime(format)
        .to_string()
}

/// A number of bytes: `12.50 MiB`.
pub fn bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// A number of things: `12,345`.
pub fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

/// A number of things with their name: `1 segment`, `2,000 segments`.
pub fn counted(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {one}{plural}", count(number))
}

/// A length of time in its two largest units: `3 d 4 h`, `12 min 5 s`, `0 s`.
pub fn duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().unsigned_abs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let parts = units.iter().scan(seconds, |left, (length, name)| {
        let number = *left / length;
        *left %= length;
        Some((number, *name))
    });
    let shown: Vec<String> = parts
        .skip_while(|(number, _)| *number == 0)
        .take(2)
        .filter(|(number, _)| *number > 0)
        .map(|(number, name)| format!("{number} {name}"))
        .collect();
    if shown.is_empty() {
        "0 s".to_owned()
    } else {
        shown.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_form() {
        let at: Timestamp = "2026-11-30T10:40:00.25Z".parse().unwrap();
        assert_eq!(time(at), "2026-11-30 10:40:00+00");
        assert_eq!(exact_time(at), "2026-11-30 10:40:00.250000+00");
        assert_eq!(time(begin(at)), "2026-11-30 10:40:01+00");
        let whole: Timestamp = "2026-11-30T10:40:00Z".parse().unwrap();
        assert_eq!(begin(whole), whole);
    }

    #[test]
    fn a_length_of_time_has_its_two_largest_units() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3_600, "1 h"),
            (3_601, "1 h"),
            (90_000, "1 d 1 h"),
            (86_400 * 400 + 3_599, "400 d"),
            (-61, "1 min 1 s"),
        ] {
            assert_eq!(duration(SignedDuration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!(counted(1, "segment"), "1 segment");
        assert_eq!(counted(2_000, "segment"), "2,000 segments");
        assert_eq!(counted(0, "gap"), "0 gaps");
    }
}
