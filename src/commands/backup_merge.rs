//! `walhalla backup-merge ID`

use super::{Context, Outcome, backup_push, malloc};
use crate::backup::merge::Merge;
use crate::cli::BackupMerge;
use crate::error::Error;
use crate::repository::marks::Permanence;

pub(super) fn run(context: &Context, arguments: &BackupMerge) -> Result<Outcome, Error> {
    malloc::start_anew_with(malloc::FOR_BACKUPS);
    let repository = context.repository(&arguments.cluster)?;
    let catalog = repository.catalog()?;
    let backup = repository.named_backup(&catalog, &arguments.id)?;
    let chain = catalog.whole_chain(&backup.id)?;
    let pipeline = context.pipeline(&repository)?;
    let mirror = context.mirror_of(&repository, None)?;
    let merge = Merge {
        mirror: mirror.as_ref(),
        repository: &repository,
        pipeline: &pipeline,
        permanence: Permanence::of(catalog.is_permanent(&backup.id)),
        threads: backup_push::threads(context),
        show: context.show(),
    };
    let entry = merge.run(&chain)?;
    tracing::info!(
        "backup {} is what {} and its chain make",
        entry.id,
        backup.id
    );
    backup_push::report(context, &entry)?;
    if let Some(following) = context.following(&repository, mirror.as_ref()) {
        following.backup(&entry.id)?;
    }
    Ok(Outcome::Done)
}
