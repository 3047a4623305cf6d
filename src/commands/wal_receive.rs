//! `walhalla wal-receive`

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::SignalKind;
use tokio::sync::watch;

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
    let stop = stopped_by_signals(context)?;
    Receiver::new(session, identities, pipeline, second, options, stop).run()?;
    Ok(Outcome::Done)
}

/// Tells of SIGTERM and SIGINT. The second one ends the process at once.
fn stopped_by_signals(context: &Context) -> Result<watch::Receiver<bool>, Error> {
    let (sender, stop) = watch::channel(false);
    let sender = Arc::new(sender);
    let signals = [(SignalKind::terminate(), ()), (SignalKind::interrupt(), ())];
    context.on_signals(&signals, move |()| {
        if sender.send_replace(true) {
            std::process::exit(i32::from(crate::error::FAILED));
        }
    })?;
    Ok(stop)
}
