//! A random moment that can be reached.

use jiff::Timestamp;
use walhalla_postgres::TimelineId;

use super::Error;
use crate::archive::{Archive, Reading, Tails};
use crate::repository::Repository;
use crate::restore::window::{Span, spans, windows};

/// A moment on a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub time: Timestamp,
    /// The timeline that leads there.
    pub timeline: TimelineId,
}

/// A moment that can be reached, each with the same chance; from the backup `chosen`, or from any. `None` where no time can be
/// reached.
///
/// # Errors
/// The repository's.
pub fn random(
    repository: &Repository,
    chosen: Option<&str>,
    reading: Reading,
) -> Result<Option<Moment>, Error> {
    let catalog = repository.catalog()?;
    let all = catalog.usable();
    let archive = Archive::new(repository, &all, reading)?.with_tails(Tails::Used);
    let windows = match chosen {
        Some(id) => {
            let chosen = repository.named_backup(&catalog, id)?.clone();
            windows(&archive, &[chosen])?
        }
        None => windows(&archive, &all)?,
    };
    Ok(within(&spans(&windows)))
}

fn within(spans: &[Span]) -> Option<Moment> {
    let length = |span: &Span| {
        let to = span.to?.as_microsecond();
        u64::try_from(to - span.from.as_microsecond()).ok()
    };
    let lengths = spans
        .iter()
        .map(|span| length(span).map_or(0, |length| length + 1));
    let total: u64 = lengths.clone().sum();
    let mut at = (total > 0).then(|| fastrand::u64(..total))?;
    for (span, length) in spans.iter().zip(lengths) {
        if at < length {
            let micros = span.from.as_microsecond().checked_add_unsigned(at)?;
            return Some(Moment {
                time: Timestamp::from_microsecond(micros).ok()?,
                timeline: TimelineId::new(span.timeline)?,
            });
        }
        at -= length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(timeline: u32, from: i64, to: Option<i64>) -> Span {
        let at = |micros| Timestamp::from_microsecond(micros).unwrap();
        Span {
            timeline,
            from: at(from),
            to: to.map(at),
            is_end_unknown: false,
            missing: None,
        }
    }

    #[test]
    fn every_moment_of_every_span_can_come_and_no_other() {
        let spans = [
            span(1, 10, Some(12)),
            span(1, 100, None),
            span(2, 20, Some(20)),
            span(3, 40, Some(30)),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let moment = within(&spans).unwrap();
            seen.insert((moment.timeline.number(), moment.time.as_microsecond()));
        }
        let all = [(1, 10), (1, 11), (1, 12), (2, 20)];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
        assert_eq!(within(&[span(1, 100, None)]), None);
        assert_eq!(within(&[]), None);
    }
}
