//! What a plan is made from.

use super::reach::Search;
use super::target::Target;
use super::way::Way;
use crate::archive::Archive;
use crate::repository::{BackupEntry, Catalog, Repository};

/// Everything the choice is made from.
pub(super) struct Planner<'a> {
    pub(super) archive: &'a Archive<'a>,
    /// All backups, of which `backups` may be the start.
    pub(super) catalog: &'a Catalog,
    pub(super) repository: &'a Repository,
    pub(super) target: &'a Target,
    pub(super) backups: &'a [BackupEntry],
    /// Whether the user named the backup.
    pub(super) is_chosen: bool,
    /// Whether what can be reached instead is told; not of a plan that only answers whether a hint holds.
    pub(super) gives_hints: bool,
    pub(super) search: Option<Search<'a>>,
    /// Ways that end in a gap and do not have the target, the newest backup's of each gap.
    pub(super) gapped: Vec<Way<'a>>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        archive: &'a Archive<'a>,
        catalog: &'a Catalog,
        target: &'a Target,
        backups: &'a [BackupEntry],
        is_chosen: bool,
    ) -> Self {
        let size = backups.first().map(|backup| backup.wal_segment_size);
        Self {
            archive,
            catalog,
            repository: archive.repository,
            target,
            backups,
            is_chosen,
            gives_hints: true,
            gapped: Vec::new(),
            search: size.map(|size| Search::new(archive, target, size)),
        }
    }
}
