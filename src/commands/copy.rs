//! `walhalla copy`

use std::sync::Arc;

use indicatif::{HumanBytes, HumanCount};

use super::{Context, Outcome, cores};
use crate::cli::Copy;
use crate::config::{self, Settings};
use crate::copying::select::{Extent, Which};
use crate::copying::{self, Copied, CopyExtent, Count};
use crate::error::Error;
use crate::output;
use crate::pipeline::{Pipeline, Recipients};
use crate::repository::Repository;
use crate::session::StoreSession;

pub(super) fn run(context: &Context, arguments: &Copy) -> Result<Outcome, Error> {
    let source = context.repository(&arguments.cluster)?;
    let to = context.settings_for(&arguments.to, arguments.to_config.as_deref())?;
    let session = context.session_with(&to)?;
    let is_of_one_profile = to.stores.s3.profile == context.settings.stores.s3.profile;
    if session.url() == source.store_url() && is_of_one_profile {
        return Err(copying::Error::SameStore(session.url().to_owned()).into());
    }
    let copy = Repository::new(
        session.clone(),
        context.settings.identities.clone(),
        source.layout().system_identifier(),
    );
    let pipeline = pipeline(arguments, &to, &session)?;
    let which = which(&source, arguments)?;
    let copied = copying::Copy {
        source: &source,
        copy: &copy,
        pipeline: pipeline.as_ref(),
        extent: CopyExtent::Selected,
        threads: to.upload_concurrency,
        show: context.show(),
    }
    .run(&which)?;
    report(context, &copied)?;
    match copied.backups.left_out + copied.wal.left_out {
        0 => Ok(Outcome::Done),
        left_out => Err(copying::Error::LeftOut(left_out).into()),
    }
}

/// What packs everything anew, if that is wanted: who names recipients or a codec, or settings of the other store's own that
/// have them, does not want it as it is.
fn pipeline(
    arguments: &Copy,
    to: &Settings,
    session: &StoreSession,
) -> Result<Option<Pipeline>, Error> {
    let named = arguments.recipients.as_deref();
    let has_own = arguments.to_config.is_some() && to.say_how_to_pack();
    if named.is_none() && arguments.compression.is_none() && !has_own {
        return Ok(None);
    }
    let recipients = match named {
        Some(list) => Recipients::load(Some(list), None).map_err(|error| config::Error::Flag {
            flag: "--recipients",
            value: list.to_owned(),
            problem: error.to_string(),
        })?,
        None => to.recipients()?,
    };
    let compression = arguments.compression.unwrap_or(to.compression);
    let pipeline = Pipeline::new(
        session.clone(),
        compression,
        recipients.map(Arc::new),
        cores(),
    );
    Ok(Some(pipeline.hashing_all()))
}

fn which(source: &Repository, arguments: &Copy) -> Result<Which, Error> {
    if let Some(time) = &arguments.since {
        return Ok(Which::Since(super::past("--since", time)?));
    }
    if arguments.backup.is_empty() {
        return Ok(Which::All);
    }
    let ids = arguments.backup.iter();
    let ids = ids.map(|id| Ok(source.backup(id)?.id));
    let extent = if arguments.window {
        Extent::Onward
    } else {
        Extent::Consistency
    };
    Ok(Which::Backups(ids.collect::<Result<_, Error>>()?, extent))
}

fn report(context: &Context, copied: &Copied) -> Result<(), Error> {
    if context.global.json {
        output::json(copied)?;
        return Ok(());
    }
    let line = |what: &str, count: Count| {
        output::line(&format!(
            "{what:<16}{} copied ({}), {} there before",
            HumanCount(count.copied),
            HumanBytes(count.bytes),
            HumanCount(count.there)
        ))
    };
    line("backups", copied.backups)?;
    line("WAL files", copied.wal)?;
    Ok(())
}
