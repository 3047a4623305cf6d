//! `walhalla backup-fetch PGDATA ID`

use super::{Context, Outcome};
use crate::cli::BackupFetch;
use crate::error::Error;
use crate::output;
use crate::restore::run::{Destination, fetch_backup};

pub(super) fn run(context: &Context, arguments: BackupFetch) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    let backup = repository.backup(&arguments.id)?;
    let destination = Destination {
        pgdata: super::absolute(&arguments.pgdata)?,
        tablespaces: arguments.tablespaces.map.into_iter().collect(),
        existing: super::restore::existing(arguments.delta),
        only: None,
        threads: context.settings.download_concurrency,
        show: context.show(),
    };
    let chain = repository.chain(&backup)?;
    let kept_bytes = fetch_backup(&repository, &chain, &destination)?;
    tracing::info!(
        "backup {} is in {}",
        backup.id,
        destination.pgdata.display()
    );
    if context.global.json {
        output::json(&serde_json::json!({
            "backup": backup.id,
            "pgdata": destination.pgdata,
            "kept_bytes": kept_bytes,
        }))?;
    }
    Ok(Outcome::Done)
}
