//! `walhalla backup-merge ID`

use super::{Context, Outcome, backup_push};
use crate::backup::merge::Merge;
use crate::cli::BackupMerge;
use crate::error::Error;

pub(super) fn run(context: &Context, arguments: &BackupMerge) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    let backup = repository.backup(&arguments.id)?;
    let chain = repository.chain(&backup)?;
    let pipeline = context.pipeline(&repository)?;
    let merge = Merge {
        repository: &repository,
        pipeline: &pipeline,
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
    Ok(Outcome::Done)
}
