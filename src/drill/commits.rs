//! The newest commit that is archived.

use jiff::Timestamp;
use walhalla_postgres::wal::event::Outcome;
use walhalla_postgres::{History, SegmentNo};

use super::Error;
use crate::archive::{Archive, Reading, Stretch, Tails};
use crate::repository::Repository;

/// When the newest archived commit along a history was made, whether it can be reached or not; `None` where there is none, or
/// none whose time can be read here.
///
/// # Errors
/// The repository's.
pub fn newest(
    repository: &Repository,
    history: &History,
    reading: Reading,
) -> Result<Option<Timestamp>, Error> {
    let backups = repository.catalog()?.usable();
    let archive = Archive::new(repository, &backups, reading)?.with_tails(Tails::Used);
    let stretches = archive.stretches(history, SegmentNo(0))?;
    let each = stretches.iter().flat_map(Stretch::each);
    let found = archive.seek(each.rev(), |_, resolved| {
        let ends = resolved.summary.transactions.iter();
        let committed = ends.filter(|end| end.outcome == Outcome::Committed);
        committed.map(|end| end.time).max()
    });
    Ok(found?.found())
}
