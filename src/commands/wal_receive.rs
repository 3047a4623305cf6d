//! `walhalla wal-receive`

use std::time::Duration;

use super::{Context, Outcome, cores, spool};
use crate::cli::WalReceive;
use crate::error::Error;
use crate::pipeline::QUEUED_BLOCKS;
use crate::receive::{self, OnFailure, Options, Receiver, SlotCreation, Storing};

pub(super) fn run(context: &Context, arguments: WalReceive) -> Result<Outcome, Error> {
    let options = Options {
        slot: arguments.slot,
        slot_creation: if arguments.create_slot {
            SlotCreation::IfMissing
        } else {
            SlotCreation::Never
        },
        storing: if arguments.synchronous {
            Storing::AtOnce
        } else {
            Storing::Every(Duration::from_secs(arguments.interval))
        },
        on_failure: if arguments.no_loop {
            OnFailure::End
        } else {
            OnFailure::TryAgain
        },
        spool: spool(&context.settings)?.ok_or(receive::Error::NoSpool)?,
        system_identifier: arguments.cluster.system_identifier,
    };
    let session = context.session()?;
    let pipeline = context.pipeline_into(&session, cores().min(QUEUED_BLOCKS))?;
    let identities = context.settings.identities.clone();
    let second = context.second(context.settings.retry_timeout, 1)?;
    let stop = receive::stopped_by_signals(&session);
    Receiver::new(session, identities, pipeline, second, options, stop).run()?;
    Ok(Outcome::Done)
}
