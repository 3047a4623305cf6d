//! `walhalla wal-show`

use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde::Serialize;
use walhalla_postgres::wal::event::Outcome as End;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, SegmentSize, WalFileName};

use super::{Context, Outcome};
use crate::cli::Cluster;
use crate::error::Error;
use crate::output;
use crate::repository::ArchivedFile;
use crate::restore::window::{self, Span, Window, spans};
use crate::wal;
use crate::wal::archive::{Archive, Needed};

/// `wal-show --json`
#[derive(Debug, Serialize)]
struct Report {
    timelines: Vec<Branch>,
    windows: Vec<Window>,
    reachable: Vec<Span>,
}

/// What is archived of a timeline.
#[derive(Debug, Serialize)]
struct Branch {
    timeline: u32,
    parent_timeline: Option<u32>,
    switch_lsn: Option<Lsn>,
    first_segment: Option<SegmentName>,
    last_segment: Option<SegmentName>,
    segments: u64,
    stored_bytes: u64,
    gaps: Vec<Gap>,
    without_summary: u64,
    partial_segments: Vec<String>,
    first_commit_time: Option<Timestamp>,
    last_commit_time: Option<Timestamp>,
}

/// Segments that are missing between others.
#[derive(Debug, Serialize)]
struct Gap {
    first: SegmentName,
    last: SegmentName,
    segments: u64,
}

pub(super) fn run(context: &Context, cluster: &Cluster) -> Result<Outcome, Error> {
    let repository = context.repository(cluster)?;
    repository.must_be_known()?;
    let backups = repository.usable_backups()?;
    let archive = Archive::new(&repository, &backups, context.reading())?;
    let known = archive.histories.known.values();
    let timelines = known.map(|history| timeline(&archive, history));
    let mut timelines = timelines.collect::<Result<Vec<_>, Error>>()?;
    for lost in &archive.histories.unknown {
        let number = lost.number();
        tracing::warn!("the archive holds WAL of timeline {number} and not its history");
        timelines.push(timeline(&archive, &History::root(*lost))?);
    }
    let windows = window::windows(&archive, &backups)?;
    let reachable = spans(&windows);
    let report = Report {
        timelines,
        windows,
        reachable,
    };
    if context.global.json {
        output::json(&report)?;
    } else {
        output::block(&table(&report.timelines).to_string())?;
        print_gaps(&report.timelines)?;
        print_partial_segments(&report.timelines)?;
        print_spans(&report.reachable)?;
    }
    Ok(Outcome::Done)
}

fn timeline(archive: &Archive, history: &History) -> Result<Branch, Error> {
    let (parent, listing) = (
        history.ancestors.last(),
        archive.listing(history.timeline, None)?,
    );
    let own = own_segments(archive, history)?;
    let commits = |needed: &Needed| commits(archive, history, needed).transpose();
    let first = own.iter().find_map(commits).transpose()?;
    let last = own.iter().rev().find_map(commits).transpose()?;
    Ok(Branch {
        timeline: history.timeline.number(),
        parent_timeline: parent.map(|parent| parent.timeline.number()),
        switch_lsn: parent.map(|parent| parent.switch_lsn),
        first_segment: listing.segments.keys().next().copied(),
        last_segment: listing.segments.keys().next_back().copied(),
        segments: listing.segments.len() as u64,
        stored_bytes: listing
            .segments
            .values()
            .map(|file| file.stored_bytes)
            .sum(),
        gaps: match archive.segment_size(history) {
            Ok(Some(size)) => gaps(&own, size, history),
            _ => Vec::new(),
        },
        without_summary: archive.without_summary(history.timeline)?,
        partial_segments: partial_segments(&listing.others),
        first_commit_time: first.map(|(first, _)| first),
        last_commit_time: last.map(|(_, last)| last),
    })
}

/// The names of unfinished segments, in order.
fn partial_segments(others: &[(WalFileName, ArchivedFile)]) -> Vec<String> {
    let partial = others.iter().filter_map(|(file, _)| match file {
        WalFileName::Partial(name, number) => Some((*name, *number, file.to_string())),
        WalFileName::Segment(_) | WalFileName::History(_) | WalFileName::BackupHistory(..) => None,
    });
    let mut partial: Vec<_> = partial.collect();
    partial.sort();
    partial.dedup();
    partial.into_iter().map(|(.., shown)| shown).collect()
}

/// The segments of a timeline; none where nothing tells how long they are.
fn own_segments(archive: &Archive, history: &History) -> Result<Vec<Needed>, Error> {
    match archive.runs(history) {
        Err(error) if error.is_locked() || error.is_damage() => {
            tracing::warn!("{error}");
            Ok(Vec::new())
        }
        runs => {
            let all = runs?.into_iter().flatten();
            Ok(all
                .filter(|needed| needed.name.timeline == history.timeline)
                .collect())
        }
    }
}

/// What is missing between segments; and before the first, where the timeline began earlier.
fn gaps(segments: &[Needed], size: SegmentSize, history: &History) -> Vec<Gap> {
    let begin = history.ancestors.last();
    let mut next = begin.map(|parent| size.segment_of(parent.switch_lsn));
    let mut gaps = Vec::new();
    for Needed { number, .. } in segments {
        let expected = next.unwrap_or(*number);
        if expected < *number {
            gaps.push(Gap {
                first: expected.on(history.timeline, size),
                last: SegmentNo(number.0 - 1).on(history.timeline, size),
                segments: number.0 - expected.0,
            });
        }
        next = Some(number.next());
    }
    gaps
}

/// First and last commit of the timeline's own in a segment; `None` too where they cannot be read here.
fn commits(
    archive: &Archive,
    history: &History,
    needed: &Needed,
) -> Result<Option<(Timestamp, Timestamp)>, Error> {
    let begin = history
        .ancestors
        .last()
        .map_or(Lsn::ZERO, |parent| parent.switch_lsn);
    let mut found = None;
    let one = std::slice::from_ref(needed);
    let walked = archive.walk(history, one, |_, resolved| {
        let ends = resolved.summary.transactions.into_iter();
        let own = ends.filter(|end| end.lsn >= begin && end.outcome == End::Committed);
        let times: Vec<Timestamp> = own.map(|end| end.time).collect();
        found = times.first().copied().zip(times.last().copied());
        Ok::<_, wal::Error>(false)
    });
    match walked {
        Err(error) if error.is_locked() => Ok(None),
        Err(error) if error.is_damage() => {
            tracing::warn!("{error}");
            Ok(None)
        }
        walked => Ok(walked.map(|()| found)?),
    }
}

fn table(timelines: &[Branch]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "TLI",
        "FROM",
        "SWITCH LSN",
        "FIRST SEGMENT",
        "LAST SEGMENT",
        "SEGMENTS",
        "STORED",
        "FIRST COMMIT",
        "LAST COMMIT",
    ]);
    for row in timelines {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let time = |time: Option<Timestamp>| or_dash(time.map(shown));
        table.add_row([
            row.timeline.to_string(),
            or_dash(row.parent_timeline.map(|parent| parent.to_string())),
            or_dash(row.switch_lsn.map(|lsn| lsn.to_string())),
            or_dash(row.first_segment.map(|name| name.to_string())),
            or_dash(row.last_segment.map(|name| name.to_string())),
            HumanCount(row.segments).to_string(),
            HumanBytes(row.stored_bytes).to_string(),
            time(row.first_commit_time),
            time(row.last_commit_time),
        ]);
    }
    table
}

fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

fn print_gaps(timelines: &[Branch]) -> Result<(), Error> {
    for row in timelines {
        for gap in &row.gaps {
            output::line(&format!(
                "gap on timeline {}: {} to {}, {} segments",
                row.timeline, gap.first, gap.last, gap.segments
            ))?;
        }
        if row.without_summary > 0 {
            output::line(&format!(
                "{} segments of timeline {} have no summary; `walhalla wal-summarize` makes them",
                row.without_summary, row.timeline
            ))?;
        }
    }
    Ok(())
}

fn print_partial_segments(timelines: &[Branch]) -> Result<(), Error> {
    for row in timelines {
        for name in &row.partial_segments {
            output::line(&format!(
                "unfinished end of timeline {}: {name}",
                row.timeline
            ))?;
        }
    }
    Ok(())
}

/// A begin, as a whole second that is not before it.
fn begin(time: Timestamp) -> String {
    let rounding = TimestampRound::new()
        .smallest(Unit::Second)
        .mode(RoundMode::Ceil);
    shown(time.round(rounding).unwrap_or(time))
}

/// Tells from when to when the cluster can be brought back.
pub(super) fn print_spans(spans: &[Span]) -> Result<(), output::Error> {
    if spans.is_empty() {
        return output::line("no moment can be reached: no backup has the WAL that it needs");
    }
    for span in spans {
        let to = match span.to {
            Some(to) => format!("to {}", shown(to)),
            None => "on, to what cannot be told here,".to_owned(),
        };
        let end = match &span.missing {
            Some(missing) => format!("; then WAL segment {missing} is missing"),
            None => String::new(),
        };
        output::line(&format!(
            "any moment from {} {to} can be reached on timeline {}{end}",
            begin(span.from),
            span.timeline
        ))?;
    }
    Ok(())
}
