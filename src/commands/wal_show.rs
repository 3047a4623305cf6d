//! `walhalla wal-show`

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Outcome};
use crate::archive::{Archive, Tails};
use crate::cli::Cluster;
use crate::error::Error;
use crate::output;
use crate::output::look::{bytes, count, counted, exact_time, time};
use crate::output::table::{Table, number, text};
use crate::restore::window::{self, Span, Window, spans};
use crate::status::timelines::{Gap, Reason, Timeline, timelines};

/// `wal-show --json`
#[derive(Debug, Serialize)]
struct ArchiveReport {
    timelines: Vec<Timeline>,
    windows: Vec<Window>,
    reachable: Vec<Span>,
}

pub(super) fn run(context: &Context, cluster: &Cluster) -> Result<Outcome, Error> {
    let repository = context.repository(cluster)?;
    repository.must_be_known()?;
    let backups = repository.usable_backups()?;
    let archive = Archive::new(&repository, &backups, context.reading())?.with_tails(Tails::Used);
    let windows = window::windows(&archive, &backups)?;
    let report = ArchiveReport {
        timelines: timelines(&archive, &backups)?,
        reachable: spans(&windows),
        windows,
    };
    if context.global.json {
        output::json(&report)?;
        return Ok(Outcome::Done);
    }
    table(&report.timelines).print()?;
    print_gaps(&report.timelines)?;
    print_partial_segments(&report.timelines)?;
    print_spans(&report.reachable)?;
    Ok(Outcome::Done)
}

fn table(timelines: &[Timeline]) -> Table {
    let mut table = Table::new(&[
        number("TLI", 0),
        number("FROM", 3),
        text("SWITCH LSN", 6),
        text("FIRST SEGMENT", 5),
        text("LAST SEGMENT", 4),
        number("SEGMENTS", 1),
        number("STORED", 2),
        text("FIRST COMMIT", 1),
        text("LAST COMMIT", 0),
    ]);
    for row in timelines {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let commit = |at: Option<Timestamp>| or_dash(at.map(time));
        table.row([
            row.timeline.to_string(),
            or_dash(row.parent_timeline.map(|parent| parent.to_string())),
            or_dash(row.switch_lsn.map(|lsn| lsn.to_string())),
            or_dash(row.first_segment.map(|name| name.to_string())),
            or_dash(row.last_segment.map(|name| name.to_string())),
            count(row.segments),
            bytes(row.stored_bytes),
            commit(row.first_commit_time),
            commit(row.last_commit_time),
        ]);
    }
    table
}

fn print_gaps(timelines: &[Timeline]) -> Result<(), Error> {
    for row in timelines {
        for gap in &row.gaps {
            print_gap(row, gap)?;
        }
        if row.without_summary > 0 {
            output::line(&format!(
                "{} of timeline {} have no summary; `walhalla wal-summarize` makes them",
                counted(row.without_summary, "segment"),
                row.timeline
            ))?;
        }
    }
    Ok(())
}

fn print_gap(row: &Timeline, gap: &Gap) -> Result<(), Error> {
    let deleted = match gap.reason {
        Some(Reason::Deleted) => "; a deletion took them, or this copy left them out",
        Some(Reason::Earlier) => "; no backup begins before them",
        Some(Reason::Dropped) | None => "",
    };
    let segments = if gap.segments == 1 {
        gap.first.to_string()
    } else {
        let number = counted(gap.segments, "segment");
        format!("{} to {}, {number}", gap.first, gap.last)
    };
    let what = if gap.reason.is_some_and(Reason::is_harmless) {
        "not there"
    } else {
        "gap"
    };
    output::line(&format!(
        "{what} on timeline {}: {segments}{deleted}",
        row.timeline
    ))?;
    for dropped in &gap.dropped {
        output::line(&format!("  {}", dropped.record))?;
        if !dropped.is_before_a_backup {
            output::line("  no backup begins after it: take one now, `walhalla backup-push`")?;
        }
    }
    Ok(())
}

fn print_partial_segments(timelines: &[Timeline]) -> Result<(), Error> {
    for row in timelines {
        if let (Some(segment), Some(end)) = (row.tail_segment, row.tail_end) {
            output::line(&format!(
                "timeline {} goes on in {segment}, which is not finished: wal-receive stored its WAL up to {end}",
                row.timeline
            ))?;
        }
        for name in &row.partial_segments {
            output::line(&format!(
                "unfinished end of timeline {}: {name}",
                row.timeline
            ))?;
        }
    }
    Ok(())
}

/// Says from when to when the cluster can be restored.
pub(super) fn print_spans(spans: &[Span]) -> Result<(), output::Error> {
    if spans.is_empty() {
        return output::line("no moment can be reached: no backup has the WAL that it needs");
    }
    for span in spans {
        output::line(&span_in_words(span))?;
    }
    Ok(())
}

/// From when to when, in words.
pub(super) fn span_in_words(span: &Span) -> String {
    let missing = match &span.missing {
        Some(missing) => format!("; then WAL segment {missing} is missing"),
        None => String::new(),
    };
    let begin = output::look::begin(span.from);
    let window = match span.to {
        None if span.is_end_unknown => format!(
            "moments from {} on can be reached on timeline {}; the time of the last commit cannot be read here",
            time(begin),
            span.timeline
        ),
        None => format!(
            "the moment {} can be reached on timeline {}; no commit is archived after it yet",
            time(begin),
            span.timeline
        ),
        // It begins and ends within one second.
        Some(to) if begin > to => between(&exact_time(span.from), &exact_time(to), span),
        Some(to) => between(&time(begin), &time(to), span),
    };
    format!("{window}{missing}")
}

fn between(from: &str, to: &str, span: &Span) -> String {
    format!(
        "any moment from {from} to {to} can be reached on timeline {}",
        span.timeline
    )
}
