//! The `backup_label` and backup history files.

use super::{Error, Lsn, SegmentName, TimelineId};

/// Where a backup begins, as `pg_backup_stop` returns it for the file `backup_label` (xlogbackup.c, `build_backup_content`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Redo position of the backup's checkpoint: replay begins here.
    pub start_lsn: Lsn,
    /// The segment that holds `start_lsn`.
    pub start_segment: SegmentName,
    /// The timeline of the start.
    pub timeline: TimelineId,
    /// Where the record of the backup's checkpoint is.
    pub checkpoint_lsn: Option<Lsn>,
    /// Whether a standby was backed up; before 9.6 nothing told.
    pub of_standby: Option<bool>,
}

impl BackupLabel {
    /// Reads the label's text; a backup history file begins with the same lines.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the start is missing.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let start = || {
            let line = value("START WAL LOCATION: ")?;
            let (lsn, rest) = line.split_once(" (file ")?;
            let segment: SegmentName = rest.trim_end().strip_suffix(')')?.parse().ok()?;
            Some(Self {
                start_lsn: lsn.parse().ok()?,
                start_segment: segment,
                timeline: segment.timeline,
                checkpoint_lsn: value("CHECKPOINT LOCATION: ")
                    .and_then(|lsn| lsn.trim().parse().ok()),
                of_standby: value("BACKUP FROM: ").map(|from| from.trim() == "standby"),
            })
        };
        start().ok_or_else(|| Error::invalid("backup label", text))
    }
}

/// What begins the lines that only a delta's label has (xlogbackup.c, `build_backup_content`).
const DELTA_LINES: &str = "INCREMENTAL FROM ";

/// The label of a delta to a backup that starts at `start`, as PostgreSQL 17 writes it. A server from 17 on refuses to
/// start with it.
pub fn of_delta(label: &str, start: Lsn, timeline: TimelineId) -> String {
    let end = if label.ends_with('\n') { "" } else { "\n" };
    let timeline = timeline.number();
    format!("{label}{end}{DELTA_LINES}LSN: {start}\n{DELTA_LINES}TLI: {timeline}\n")
}

/// The label of the backup that a delta and what it stands on make together.
pub fn of_whole(label: &str) -> String {
    let lines = label.split_inclusive('\n');
    lines
        .filter(|line| !line.starts_with(DELTA_LINES))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_label_tells_where_replay_begins() {
        let text = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
                    CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\n";
        let label = BackupLabel::parse(text).unwrap();
        assert_eq!(label.start_lsn, Lsn(0x200_0028));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000002");
        assert_eq!(label.checkpoint_lsn, Some(Lsn(0x200_0060)));
        assert_eq!(label.of_standby, None);
        let of_standby = BackupLabel::parse(&format!("{text}BACKUP FROM: standby\n")).unwrap();
        assert_eq!(of_standby.of_standby, Some(true));
        assert!(BackupLabel::parse("CHECKPOINT LOCATION: 0/2000060\n").is_err());
        let delta = of_delta(text, Lsn(0x100_0028), TimelineId::FIRST);
        assert!(delta.ends_with("INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n"));
        assert_eq!(of_whole(&delta), text);
    }
}
