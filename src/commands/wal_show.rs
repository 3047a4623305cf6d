//! `walhalla wal-show`

use std::sync::Arc;

use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde::Serialize;
use walhalla_postgres::wal::event::Outcome as End;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, WalFileName};

use super::{Context, Outcome};
use crate::archive::{Archive, Resolved, Run, Stretch, Tails};
use crate::cli::Cluster;
use crate::error::Error;
use crate::failure::Failure as _;
use crate::output;
use crate::repository::gaps::RecordedGap;
use crate::repository::layout::DroppedSegments;
use crate::repository::{ArchivedFile, BackupEntry};
use crate::restore::window::{self, Span, Window, spans};

/// `wal-show --json`
#[derive(Debug, Serialize)]
struct ArchiveReport {
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
    /// The segment after the last one, as far as it was received.
    tail_segment: Option<SegmentName>,
    /// Where its WAL ends.
    tail_end: Option<Lsn>,
    first_commit_time: Option<Timestamp>,
    last_commit_time: Option<Timestamp>,
}

/// Segments that are missing between others.
#[derive(Debug, Serialize)]
struct Gap {
    first: SegmentName,
    last: SegmentName,
    segments: u64,
    /// What wal-push dropped of it, as the setting max_backlog allows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dropped: Vec<Dropped>,
}

/// Segments that wal-push dropped.
#[derive(Debug, Serialize)]
struct Dropped {
    first: SegmentName,
    last: SegmentName,
    recorded: Timestamp,
    /// Whether a backup begins after them, so that what came later can be reached.
    is_before_a_backup: bool,
    #[serde(skip)]
    told: RecordedGap,
}

pub(super) fn run(context: &Context, cluster: &Cluster) -> Result<Outcome, Error> {
    let repository = context.repository(cluster)?;
    repository.must_be_known()?;
    let backups = repository.usable_backups()?;
    let archive = Archive::new(&repository, &backups, context.reading())?.with_tails(Tails::Used);
    let ledger = Ledger {
        gaps: archive.recorded_gaps(),
        backups: &backups,
    };
    let known = archive.histories.known.values();
    let timelines = known.map(|history| timeline(&archive, history, &ledger));
    let mut timelines = timelines.collect::<Result<Vec<_>, Error>>()?;
    for lost in &archive.histories.unknown {
        let number = lost.number();
        tracing::warn!("the archive holds WAL of timeline {number} and not its history");
        timelines.push(timeline(&archive, &History::root(*lost), &ledger)?);
    }
    let windows = window::windows(&archive, &backups)?;
    let reachable = spans(&windows);
    let report = ArchiveReport {
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

fn timeline(archive: &Archive, history: &History, ledger: &Ledger) -> Result<Branch, Error> {
    let (parent, files) = (
        history.ancestors.last(),
        archive.files(history.timeline, None)?,
    );
    let own = own_stretches(archive, history)?;
    let each = || own.iter().flat_map(Stretch::each);
    let first = archive.seek(each(), |_, resolved| commits(history, &resolved))?;
    let last = archive.seek(each().rev(), |_, resolved| commits(history, &resolved))?;
    let stored_bytes = files.segments.values().map(|file| file.stored_bytes);
    let whole = || {
        files
            .segments
            .iter()
            .filter(|(_, file)| file.tail().is_none())
    };
    let tail = files
        .segments
        .values()
        .next_back()
        .and_then(ArchivedFile::tail);
    Ok(Branch {
        timeline: history.timeline.number(),
        parent_timeline: parent.map(|parent| parent.timeline.number()),
        switch_lsn: parent.map(|parent| parent.switch_lsn),
        first_segment: whole().next().map(|(name, _)| *name),
        last_segment: whole().next_back().map(|(name, _)| *name),
        segments: whole().count() as u64,
        tail_segment: tail.map(|tail| tail.segment),
        tail_end: tail.map(|tail| tail.valid_until),
        stored_bytes: stored_bytes.sum(),
        gaps: gaps(&own, history, ledger),
        without_summary: archive.without_summary(history.timeline)?,
        partial_segments: partial_segments(&files.others),
        first_commit_time: first.found().map(|(first, _)| first),
        last_commit_time: last.found().map(|(_, last)| last),
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
fn own_stretches(archive: &Archive, history: &History) -> Result<Vec<Stretch>, Error> {
    let stretches = match archive.stretches(history, SegmentNo(0)) {
        Err(error) if error.is_locked() || error.is_of_the_object() => {
            tracing::warn!("{error}");
            return Ok(Vec::new());
        }
        stretches => stretches?,
    };
    let own = stretches.into_iter().map(|stretch| {
        let first = stretch.run().first;
        if stretch.name(first).timeline == history.timeline {
            stretch
        } else {
            stretch.since(first.next())
        }
    });
    Ok(own.collect())
}

/// What is missing between segments; and before the first, where the timeline began earlier.
fn gaps(own: &[Stretch], history: &History, ledger: &Ledger) -> Vec<Gap> {
    let Some(first) = own.first() else {
        return Vec::new();
    };
    let size = first.segment_size();
    let begin = history.ancestors.last();
    let begin = begin.map(|parent| size.segment_of(parent.switch_lsn));
    let begin = begin.unwrap_or(first.run().first);
    // Of a segment that was received in part and not archived, some is missing.
    let whole_end = |stretch: &Stretch| {
        let run = stretch.run();
        if stretch.ends_in_a_tail() {
            run.last()
        } else {
            run.end
        }
    };
    let ends = std::iter::once(begin).chain(own.iter().map(whole_end));
    let gaps = ends.zip(own).map(|(end, next)| Run {
        first: end,
        end: next.run().first,
    });
    gaps.filter(|gap| !gap.is_empty())
        .map(|gap| {
            let first = gap.first.on(history.timeline, size);
            let last = gap.last().on(history.timeline, size);
            Gap {
                first,
                last,
                segments: gap.len(),
                dropped: ledger.within(first, last),
            }
        })
        .collect()
}

/// What is known of dropped segments, and the backups that may begin after them.
struct Ledger<'a> {
    gaps: Arc<Vec<RecordedGap>>,
    backups: &'a [BackupEntry],
}

impl Ledger<'_> {
    /// What was dropped of the segments from `first` to `last`.
    fn within(&self, first: SegmentName, last: SegmentName) -> Vec<Dropped> {
        let meets = |gap: &&RecordedGap| gap.dropped.meets(DroppedSegments { first, last });
        let met = self.gaps.iter().filter(meets);
        met.map(|gap| Dropped {
            first: gap.dropped.first,
            last: gap.dropped.last,
            recorded: gap.recorded,
            is_before_a_backup: { self.backups.iter() }.any(|backup| {
                let start = backup.wal_segment_size.segment_of(backup.start_lsn);
                start.on(backup.timeline, backup.wal_segment_size) > gap.dropped.last
            }),
            told: *gap,
        })
        .collect()
    }
}

/// First and last commit of the timeline's own in a segment.
fn commits(history: &History, resolved: &Resolved) -> Option<(Timestamp, Timestamp)> {
    let begin = history
        .ancestors
        .last()
        .map_or(Lsn::ZERO, |parent| parent.switch_lsn);
    let ends = resolved.summary.transactions.iter();
    let own = ends.filter(|end| end.lsn >= begin && end.outcome == End::Committed);
    let times: Vec<Timestamp> = own.map(|end| end.time).collect();
    times.first().copied().zip(times.last().copied())
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
            for dropped in &gap.dropped {
                output::line(&format!("  {}", dropped.told))?;
                if !dropped.is_before_a_backup {
                    output::line(
                        "  no backup begins after it: take one now, `walhalla backup-push`",
                    )?;
                }
            }
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
        let (from, to) = match span.to {
            // It begins and ends within one second.
            Some(last) if begin(span.from) > shown(last) => {
                let exactly = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S%.6f%:z");
                (
                    exactly(span.from).to_string(),
                    format!("to {}", exactly(last)),
                )
            }
            _ => (begin(span.from), to),
        };
        output::line(&format!(
            "any moment from {from} {to} can be reached on timeline {}{end}",
            span.timeline
        ))?;
    }
    Ok(())
}
