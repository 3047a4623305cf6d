//! `walhalla daemon`

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::signal::unix::SignalKind;
use walhalla_providers::transfer::Rates;

use super::{Context, Outcome, cores, malloc};
use crate::cli::Daemon;
use crate::daemon::server::{Loaded, Service};
use crate::daemon::{client, metrics, sockets};
use crate::error::Error;
use crate::output;
use crate::pipeline::Pipeline;

/// How long what is on its way is waited for at the end. systemd's own time is 90 s.
const MOST_ENDING: Duration = Duration::from_secs(20);
/// How long nothing is done while nothing happens.
const IDLE: Duration = Duration::from_hours(1);

/// Where the socket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// systemd opened it.
    Activated,
    /// This process.
    Made,
}

/// What somebody wants of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Reload,
    End,
}

pub(super) fn run(context: &Context, arguments: &Daemon) -> Result<Outcome, Error> {
    malloc::start_anew_with(malloc::FOR_THE_DAEMON);
    let service = Arc::new(Service::new(loaded(context, None)?));
    // Before the socket is there: who sees it may send a signal.
    let wishes = wishes(context)?;
    let path = &context.settings.socket;
    let (listener, origin) = listener(path)?;
    let own = sockets::identity(path);
    if let Some(address) = arguments.metrics {
        let pages = Arc::clone(&service);
        let served = metrics::serve(context.network()?, address, move || pages.page());
        served.map_err(|source| Error::System {
            doing: "listen for Prometheus",
            source,
        })?;
        let looking = Arc::clone(&service);
        thread::spawn(move || looking.look_at_archives());
    }
    let accepting = Arc::clone(&service);
    thread::spawn(move || accepting.accept(&listener));
    let paying = Arc::clone(&service);
    thread::spawn(move || paying.pay_debts());
    tracing::info!("the daemon listens on {}", path.display());
    notify(&[NotifyState::Ready]);
    until_the_end(context, &service, &wishes);
    notify(&[NotifyState::Stopping]);
    service.end(MOST_ENDING);
    // Neither one of systemd's, which goes on listening on it, nor another daemon's.
    if origin == Origin::Made && own.is_some() && sockets::identity(path) == own {
        drop(std::fs::remove_file(path));
    }
    Ok(Outcome::Done)
}

/// Serves until it is told to end; tells systemd that it lives.
fn until_the_end(context: &Context, service: &Service, wishes: &Receiver<Wish>) {
    let interval = sd_notify::watchdog_enabled().map_or(IDLE, |most| most / 3);
    loop {
        match wishes.recv_timeout(interval) {
            Ok(Wish::End) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Wish::Reload) => reload(context, service),
            Err(RecvTimeoutError::Timeout) if client::answers(&context.settings.socket) => {
                notify(&[NotifyState::Watchdog]);
            }
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("the daemon does not answer on its own socket");
            }
        }
    }
}

/// Reads the settings again. Wrong ones change nothing.
fn reload(context: &Context, service: &Service) {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now().ok());
    notify(&states);
    let settings = super::load(&context.global, None);
    match settings.and_then(|settings| loaded(context, Some(settings))) {
        Ok(loaded) => {
            service.reload(loaded);
            tracing::info!("the settings were read again");
        }
        Err(error) => tracing::error!("the settings stay as they were: {}", output::chain(&error)),
    }
    notify(&[NotifyState::Ready]);
}

/// What is opened with the settings: those of the command line, or others.
fn loaded(context: &Context, settings: Option<crate::config::Settings>) -> Result<Loaded, Error> {
    let settings = settings.unwrap_or_else(|| context.settings.clone());
    let rates = Rates::new(settings.upload_rate, settings.download_rate);
    let session = super::open(
        context.network()?,
        &settings,
        &rates,
        settings.retry_timeout,
    )?;
    let recipients = settings.recipients()?.map(Arc::new);
    let pipeline = Pipeline::new(session.clone(), settings.compression, recipients, cores());
    let (network, global) = (context.network()?, &context.global);
    let deadline = settings.retry_timeout;
    let second = super::second(network, (global, &settings), &rates, deadline, cores())?;
    let reading = match second {
        Some(_) => super::open_reading(network, global, &settings, &rates, deadline)?,
        None => session.clone(),
    };
    Ok(Loaded {
        settings,
        session,
        pipeline,
        second,
        reading,
    })
}

/// The socket that systemd opened, or a new one.
fn listener(path: &Path) -> Result<(UnixListener, Origin), Error> {
    let activated = ListenFd::from_env().take_unix_listener(0);
    let listener = match activated {
        Ok(Some(listener)) => Ok((listener, Origin::Activated)),
        Ok(None) => sockets::listen(path).map(|listener| (listener, Origin::Made)),
        Err(error) => Err(error),
    };
    listener.map_err(|source| Error::Socket {
        path: path.to_owned(),
        source,
    })
}

/// Signals, as they come.
fn wishes(context: &Context) -> Result<Receiver<Wish>, Error> {
    let (sender, receiver) = channel();
    let signals = [
        (SignalKind::terminate(), Wish::End),
        (SignalKind::interrupt(), Wish::End),
        (SignalKind::hangup(), Wish::Reload),
    ];
    context.on_signals(&signals, move |wish| {
        if sender.send(wish).is_err() {
            tracing::debug!("the daemon is ending, and does not {wish:?}");
        }
    })?;
    Ok(receiver)
}

/// Without systemd nobody listens.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd was not told: {error}");
    }
}
