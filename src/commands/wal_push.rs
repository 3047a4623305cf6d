//! `walhalla wal-push PATH`

use walhalla_postgres::WalFileName;

use super::waiting_server::{PATIENCE, times};
use super::wal_fetch::{self, RecoveryMode};
use super::{Context, Outcome};
use crate::cli::WalPush;
use crate::error::Error;
use crate::output;
use crate::server::{self, control_file};
use crate::wal::archiver::{Archiver, Pushed};

pub(super) fn run(context: &Context, arguments: &WalPush) -> Result<Outcome, Error> {
    let path = &arguments.path;
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let file: WalFileName = name.parse().map_err(server::Error::from)?;
    let pgdata = control_file::find_data_directory(arguments.pgdata.as_deref(), path)?;
    let control = control_file::read(&pgdata)?;
    let most = context.settings.retry_timeout.min(PATIENCE);
    let repository = context.hasty_repository_of(&control, &times(&pgdata, most))?;
    let pipeline = context.segment_pipeline(&repository)?;
    let archiver = Archiver {
        repository: &repository,
        pipeline: &pipeline,
        origin: (&control).into(),
        in_recovery: wal_fetch::mode_of(&pgdata) != RecoveryMode::None,
    };
    let pushed = archiver.push(path, file)?;
    match &pushed {
        Pushed::Stored(stored) => {
            tracing::debug!("{file} is archived, {} bytes", stored.stored_bytes);
        }
        Pushed::AlreadyThere => tracing::info!("{file} was archived before, with the same content"),
    }
    if context.global.json {
        let stored = matches!(pushed, Pushed::Stored(_));
        output::json(&serde_json::json!({ "file": file.to_string(), "already_there": !stored }))?;
    }
    Ok(Outcome::Done)
}
