//! A drawing of time in letters: a line for each timeline, with its backups, its WAL and its gaps.
//!
//! ```text
//!              2026-11-01 04:30:00+00                 2026-11-30 10:40:00+00
//! timeline 1   F━━D━━D━━D━━F━━D━━×  ━━D━━┐
//! timeline 2                             └━━F━━D━━D
//! ```

use jiff::Timestamp;

use super::timelines::{Reason, Timeline};
use super::{Backup, Status};
use crate::output::look;
use crate::repository::BackupKind;
use crate::restore::window::{Span, joined};

/// Columns before the drawing.
const MARGIN: usize = 13;
/// Fewest columns that a drawing takes.
const FEWEST: usize = 20;

/// What is known of a piece of time, from the least to what hides everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Nothing,
    /// WAL is archived.
    Wal,
    /// Every moment can be reached.
    Reachable,
    /// WAL is missing, or was deleted on purpose.
    Deleted,
    Gap,
    Delta,
    Full,
}

impl Cell {
    fn letter(self) -> char {
        match self {
            Self::Nothing => ' ',
            Self::Wal => '─',
            Self::Reachable => '━',
            Self::Deleted => '·',
            Self::Gap => '×',
            Self::Delta => 'D',
            Self::Full => 'F',
        }
    }
}

/// What the letters of a drawing mean.
pub const LEGEND: &str =
    "F full  D delta  ━ every moment can be restored  ─ WAL only  × missing  · deleted  └ branch";

/// The lines of a drawing that is as wide as the terminal; none where no time is known.
pub fn lines(status: &Status) -> Vec<String> {
    let columns = look::columns().unwrap_or(120);
    let width = columns.saturating_sub(MARGIN).max(FEWEST);
    let Some(scale) = Scale::of(status, width) else {
        return Vec::new();
    };
    let mut lines = vec![scale.axis()];
    lines.extend(status.timelines.iter().map(|timeline| {
        let name = format!("timeline {}", timeline.timeline);
        let cells = cells(status, timeline, &scale);
        format!("{name:<MARGIN$}{}", drawn(timeline, &cells, &scale))
    }));
    lines
}

/// Where times are.
struct Scale {
    from: Timestamp,
    to: Timestamp,
    width: usize,
}

impl Scale {
    fn of(status: &Status, width: usize) -> Option<Self> {
        let commits = { status.timelines.iter() }
            .flat_map(|timeline| [timeline.first_commit_time, timeline.last_commit_time]);
        let backups = { status.backups.iter() }
            .flat_map(|backup| [Some(backup.start_time), Some(backup.stop_time)]);
        let times: Vec<Timestamp> = commits.chain(backups).flatten().collect();
        let (from, to) = (times.iter().min()?, times.iter().max()?);
        Some(Self {
            from: *from,
            to: *to,
            width,
        })
    }

    /// The column of a time.
    fn column(&self, time: Timestamp) -> usize {
        let whole = self.to.duration_since(self.from).as_secs_f64();
        let part = time.duration_since(self.from).as_secs_f64();
        if whole <= 0.0 {
            return 0;
        }
        let last = self.width - 1;
        let place = (part / whole).clamp(0.0, 1.0);
        // The scale has fewer columns than a u32 has numbers.
        let last_f64 = f64::from(u32::try_from(last).unwrap_or(u32::MAX));
        (0..=last)
            .rev()
            .find(|column| f64::from(u32::try_from(*column).unwrap_or(0)) <= place * last_f64)
            .unwrap_or(0)
    }

    fn axis(&self) -> String {
        let (from, to) = (look::time(self.from), look::time(self.to));
        let room = self.width.saturating_sub(from.len() + to.len()).max(2);
        format!("{:MARGIN$}{from}{:room$}{to}", "", "")
    }
}

fn cells(status: &Status, timeline: &Timeline, scale: &Scale) -> Vec<Cell> {
    let mut cells = vec![Cell::Nothing; scale.width];
    let mut mark = |from: Timestamp, to: Timestamp, cell: Cell| {
        let (first, last) = (scale.column(from), scale.column(to));
        for known in cells.iter_mut().take(last + 1).skip(first) {
            *known = cell.max(*known);
        }
    };
    for run in &timeline.coverage {
        if let (Some(from), Some(to)) = (run.from, run.to) {
            mark(from, to, Cell::Wal);
        }
    }
    let spans = joined(&status.reachable);
    for (from, to) in
        { spans.iter() }.filter_map(|span| on_timeline(span, timeline.timeline, &status.timelines))
    {
        mark(from, to, Cell::Reachable);
    }
    for gap in &timeline.gaps {
        if let Some(at) = gap.after.or(gap.before) {
            let cell = if gap.reason.is_some_and(Reason::is_harmless) {
                Cell::Deleted
            } else {
                Cell::Gap
            };
            mark(at, gap.before.unwrap_or(at), cell);
        }
    }
    let own = |backup: &&Backup| backup.timeline == timeline.timeline;
    for backup in status.backups.iter().filter(own) {
        let cell = match backup.kind {
            BackupKind::Full => Cell::Full,
            BackupKind::Delta => Cell::Delta,
        };
        mark(backup.stop_time, backup.stop_time, cell);
    }
    cells
}

/// The part of a span that lies on a timeline: a span of a branch begins on the timelines that it left.
fn on_timeline(span: &Span, wanted: u32, timelines: &[Timeline]) -> Option<(Timestamp, Timestamp)> {
    let (mut number, mut end) = (span.timeline, span.to.unwrap_or(span.from));
    // Parents have smaller numbers, so that this ends.
    loop {
        let timeline = timelines.iter().find(|it| it.timeline == number)?;
        let begin = timeline
            .switch_time
            .map_or(span.from, |at| at.max(span.from));
        if number == wanted {
            return (begin <= end).then_some((begin, end));
        }
        end = end.min(timeline.switch_time?);
        number = timeline.parent_timeline.filter(|parent| *parent < number)?;
    }
}

/// The cells, with a corner where the timeline left its parent.
fn drawn(timeline: &Timeline, cells: &[Cell], scale: &Scale) -> String {
    let corner = timeline.switch_time.map(|at| scale.column(at));
    let letters = cells.iter().enumerate().map(|(column, cell)| {
        if Some(column) == corner && *cell < Cell::Deleted {
            '└'
        } else {
            cell.letter()
        }
    });
    letters.collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u32) -> Timestamp {
        format!("2026-11-30T{hour:02}:00:00Z").parse().unwrap()
    }

    #[test]
    fn times_have_columns_from_the_first_to_the_last() {
        let scale = Scale {
            from: at(0),
            to: at(10),
            width: 11,
        };
        for hour in 0..=10 {
            assert_eq!(scale.column(at(hour)), hour as usize);
        }
        assert_eq!(scale.column(at(20)), 10);
        let moment = Scale { to: at(0), ..scale };
        assert_eq!(moment.column(at(5)), 0);
    }

    #[test]
    fn what_hides_is_what_matters_more() {
        let order = [
            Cell::Nothing,
            Cell::Wal,
            Cell::Reachable,
            Cell::Gap,
            Cell::Full,
        ];
        assert!(order.is_sorted());
        assert!(Cell::Delta < Cell::Full);
    }
}
