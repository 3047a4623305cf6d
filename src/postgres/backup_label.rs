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
}

impl BackupLabel {
    /// Reads the label's text; a backup history file begins with the same lines.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the start is missing.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let start = || {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("START WAL LOCATION: "))?;
            let (lsn, rest) = line.split_once(" (file ")?;
            let segment: SegmentName = rest.trim_end().strip_suffix(')')?.parse().ok()?;
            Some(Self {
                start_lsn: lsn.parse().ok()?,
                start_segment: segment,
                timeline: segment.timeline,
            })
        };
        start().ok_or_else(|| Error::invalid("backup label", text))
    }
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
        assert!(BackupLabel::parse("CHECKPOINT LOCATION: 0/2000060\n").is_err());
    }
}
