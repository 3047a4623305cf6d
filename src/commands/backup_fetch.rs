//! `walhalla backup-fetch PGDATA ID`

use super::{Context, Outcome};
use crate::cli::BackupFetch;
use crate::durability::Durability;
use crate::error::Error;
use crate::output;
use crate::repository::LATEST;
use crate::repository::leases::Needs;
use crate::restore::choose::must_be_all;
use crate::restore::leading_out;
use crate::restore::run::{Destination, fetch_backup};
use crate::server::conf::Configuration;

pub(super) fn run(context: &Context, arguments: BackupFetch) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    repository.session().prepare_creates();
    let chain = repository.named_chain(&arguments.id)?;
    let backup = chain.last().expect("a chain ends in its backup");
    if arguments.id == LATEST {
        must_be_all(&repository)?;
    }
    let destination = Destination {
        pgdata: super::absolute(&arguments.pgdata)?,
        tablespaces: arguments.tablespaces.map.into_iter().collect(),
        wal: arguments.tablespaces.waldir,
        spool: super::spool(&context.settings)?,
        existing: super::restore::existing(arguments.delta),
        durability: arguments.disk.durability(),
        only: None,
        needed: super::needed(context)?,
        threads: context.settings.download_concurrency,
        show: context.show(),
    };
    let ids = chain.iter().map(|backup| backup.id.clone()).collect();
    let needs = Needs::of("backup-fetch", ids, Vec::new());
    let guard = || Ok(repository.guard(&needs)?);
    let (files, guarded) = destination.open_guarded(&repository, &chain, guard)?;
    let kept_bytes = fetch_backup(&repository, backup, files, &destination)?;
    drop(guarded);
    tracing::info!(
        "backup {} is in {}",
        backup.id,
        destination.pgdata.display()
    );
    if let Some(caution) = destination.durability.caution() {
        tracing::warn!("{caution}");
    }
    let settings = Configuration::of_cluster(&destination.pgdata);
    if let Some(named) = leading_out::other_data_directory(&settings, &destination.pgdata) {
        tracing::warn!(
            "data_directory = {} is set there, as in the backup: a server started with this directory would use that one; \
             take the line out before you start it",
            named.display()
        );
    }
    for left_out in &backup.left_out {
        tracing::warn!(
            "not in the backup: {left_out}; put what the server needs of that in place before you start it"
        );
    }
    if context.global.json {
        output::json(&serde_json::json!({
            "backup": backup.id,
            "pgdata": destination.pgdata,
            "kept_bytes": kept_bytes,
            "durable": destination.durability == Durability::Durable,
        }))?;
    }
    Ok(Outcome::Done)
}
