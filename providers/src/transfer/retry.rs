//! When a failed request is sent again, and when not any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{Error, ErrorKind, Operation, Result};

/// When a failed request is sent again.
///
/// The n-th wait is random between 0 and `first_delay × 2ⁿ`, at most `max_delay` ("full jitter"),
/// or what the store asked for, if that is longer.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Longest wait before the second attempt.
    pub first_delay: Duration,
    /// Longest wait between attempts.
    pub max_delay: Duration,
    /// How long one request is tried, one that sends a body longer by what that takes on a slow line, at most as long
    /// again; a body that is read, how far it may fall behind 1 KiB a second.
    pub deadline: Duration,
    /// How long one attempt may take, besides a second for each 64 KiB that it sends; a body that
    /// is read, how long one chunk may take, and how far one connection may fall behind. At most a
    /// third of the deadline, so that a connection that fell silent does not use all of it up.
    pub attempt_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(10),
            deadline: Duration::from_mins(5),
            attempt_timeout: Duration::from_mins(1),
        }
    }
}

/// The slowest line that is waited for; several parts share it.
const SLOWEST_BYTES_A_SECOND: usize = 64 << 10;

/// The slowest body that counts as coming. Far below a line's pace, as many bodies may share one.
const SLOWEST_BODY_BYTES_A_SECOND: u32 = 1 << 10;

/// Requests without an answer, in a row, that fit into the deadline.
const FEWEST_ATTEMPTS: u32 = 3;

/// How long a host name that does not exist is asked for again: one that was just made takes a while to be known.
const MOST_FOR_A_NAME: Duration = Duration::from_secs(10);

/// How often a body is sent whose bytes do not arrive as they were. A bit that turned on the way
/// does not turn again; one that turned in this host's memory does.
const MOST_DAMAGED_SENDS: u32 = 3;

/// How often a request that goes on failing is told at most.
const TELLING_INTERVAL: Duration = Duration::from_mins(1);

/// How long all requests of a store together may go on failing; it can be cut short while they run.
///
/// Time counts from the first attempt that failed to the next one that was answered, whichever request that is of.
#[derive(Clone, Debug)]
pub struct Patience {
    budget: Arc<Mutex<Budget>>,
    until: Arc<watch::Sender<Option<Instant>>>,
}

#[derive(Debug)]
struct Budget {
    left: Duration,
    failing_since: Option<Instant>,
    /// Requests that wait for something else than the store, and since when there are any: no failing time passes then.
    excused: usize,
    excused_since: Option<Instant>,
}

/// A request that waits for something else than the store, until this is dropped.
struct Excuse<'a>(&'a Patience);

impl Patience {
    /// `most` in all.
    pub fn new(most: Duration) -> Self {
        Self {
            budget: Arc::new(Mutex::new(Budget {
                left: most,
                failing_since: None,
                excused: 0,
                excused_since: None,
            })),
            until: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Ends every request in `time` from now at the latest, also one that is being answered.
    pub fn end_within(&self, time: Duration) {
        let end = Instant::now() + time;
        self.until.send_modify(|until| {
            *until = Some(until.map_or(end, |until| until.min(end)));
        });
    }

    /// Whether anybody else still has it.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.budget) > 1
    }

    fn remaining(&self) -> Duration {
        let budget = self.budget();
        let left = budget.left.saturating_sub(budget.failing());
        drop(budget);
        let until = *self.until.borrow();
        until.map_or(left, |until| {
            left.min(until.saturating_duration_since(Instant::now()))
        })
    }

    fn failed(&self, started: Instant) {
        let since = &mut self.budget().failing_since;
        *since = Some(since.map_or(started, |since| since.min(started)));
    }

    fn answered(&self) {
        let mut budget = self.budget();
        budget.left = budget.left.saturating_sub(budget.failing());
        budget.failing_since = None;
    }

    /// What `wait` returns, which is for something else than the store: meanwhile no time counts. `None` when the time is
    /// over that [`Patience::end_within`] gave.
    pub(super) async fn excused<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let _excuse = Excuse::begin(self);
        tokio::select! {
            waited = wait => Some(waited),
            () = self.ended() => None,
        }
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the time is over that [`Patience::end_within`] gave.
    async fn ended(&self) {
        let mut receiver = self.until.subscribe();
        loop {
            let until = *receiver.borrow_and_update();
            let changed = receiver.changed();
            match until {
                None => drop(changed.await),
                Some(until) => tokio::select! {
                    () = sleep_until(until) => return,
                    _ = changed => {}
                },
            }
        }
    }
}

impl Budget {
    /// How long requests have been failing.
    fn failing(&self) -> Duration {
        let until = self.excused_since.unwrap_or_else(Instant::now);
        let since = self.failing_since;
        since.map_or(Duration::ZERO, |since| {
            until.saturating_duration_since(since)
        })
    }
}

impl<'a> Excuse<'a> {
    fn begin(patience: &'a Patience) -> Self {
        let mut budget = patience.budget();
        budget.excused += 1;
        budget.excused_since.get_or_insert_with(Instant::now);
        drop(budget);
        Self(patience)
    }
}

impl Drop for Excuse<'_> {
    fn drop(&mut self) {
        let mut budget = self.0.budget();
        budget.excused -= 1;
        if budget.excused > 0 {
            return;
        }
        let (Some(begun), Some(failing)) = (budget.excused_since.take(), budget.failing_since)
        else {
            return;
        };
        budget.failing_since = Some(failing + failing.max(begun).elapsed());
    }
}

/// When a failing request was told last.
pub(super) type Told = Arc<Mutex<Option<Instant>>>;

/// The attempts at one request.
#[derive(Debug)]
pub(super) struct Retries {
    patience: Option<Patience>,
    told: Told,
    /// What the store calls its address, for messages.
    place: Option<Arc<str>>,
    policy: RetryPolicy,
    times_out: bool,
    /// What an attempt may take on top for the body that it sends.
    sending: Duration,
    /// Whether a body that did not arrive as it was is sent again.
    sends_again: bool,
    /// What was used up of the deadline before.
    spent: Duration,
    started: Instant,
    attempts: u32,
    damaged_sends: u32,
}

/// How far a body is behind the slowest pace that counts as coming; what came faster does not count later.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    behind: Duration,
}

/// An attempt took its time and brought nothing.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {:.1} s", limit.as_secs_f32())]
struct NoAnswer {
    limit: Duration,
}

impl Pace {
    /// Counts bytes and the time that was waited for them.
    pub(super) fn count(&mut self, waited: Duration, bytes: usize) {
        let worth = Duration::from_secs(1) / SLOWEST_BODY_BYTES_A_SECOND;
        let worth = worth.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.behind = (self.behind + waited).saturating_sub(worth);
    }

    /// How much more was waited than the bytes are worth.
    pub(super) fn behind(&self) -> Duration {
        self.behind
    }
}

impl Retries {
    /// `times_out` as in [`Limits`](crate::Limits): otherwise an attempt may take until the deadline.
    pub(super) fn new(
        policy: RetryPolicy,
        times_out: bool,
        patience: Option<Patience>,
        told: Told,
    ) -> Self {
        Self {
            patience,
            told,
            place: None,
            policy,
            times_out,
            sending: Duration::ZERO,
            sends_again: false,
            spent: Duration::ZERO,
            started: Instant::now(),
            attempts: 0,
            damaged_sends: 0,
        }
    }

    /// The same with the store's address in what fails.
    pub(super) fn at(mut self, place: Option<Arc<str>>) -> Self {
        self.place = place;
        self
    }

    /// The same with the time that `body_bytes` take on a slow line, and further tries for a damaged body.
    pub(super) fn sending(self, body_bytes: usize) -> Self {
        Self {
            sends_again: true,
            ..self.with_time_for(body_bytes)
        }
    }

    /// The same with the time that `body_bytes` take on a slow line, for one attempt and, so that another one has
    /// time left, on top of the deadline; at most the deadline once more.
    pub(super) fn with_time_for(mut self, body_bytes: usize) -> Self {
        let seconds = u64::try_from(body_bytes / SLOWEST_BYTES_A_SECOND).unwrap_or(u64::MAX);
        self.sending = Duration::from_secs(seconds).min(self.policy.deadline);
        self.policy.deadline += self.sending;
        self
    }

    /// The same with so much of the deadline used up.
    pub(super) fn having_spent(mut self, spent: Duration) -> Self {
        self.spent = spent;
        self
    }

    /// The same with an earlier deadline.
    pub(super) fn within(mut self, deadline: Duration) -> Self {
        self.policy.deadline = self.policy.deadline.min(deadline);
        self
    }

    /// Does not count so much of the time until now.
    pub(super) fn excuse(&mut self, waited: Duration) {
        self.started += waited;
    }

    /// Whether an earlier attempt may have done what it was asked without saying so.
    pub(super) fn is_repeated(&self) -> bool {
        self.attempts > 1
    }

    /// One attempt within its time.
    pub(super) async fn attempt<T>(
        &mut self,
        operation: Operation,
        object: impl Fn() -> String,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.attempts += 1;
        let remaining = self.remaining();
        let limit = if self.times_out {
            remaining.min(self.unanswered_limit().saturating_add(self.sending))
        } else {
            remaining
        };
        let started = Instant::now();
        let timed = timeout(limit, request);
        let answer = match &self.patience {
            None => timed.await.ok(),
            Some(patience) => tokio::select! {
                answer = timed => answer.ok(),
                () = patience.ended() => None,
            },
        };
        let outcome = answer.unwrap_or_else(|| {
            let limit = limit.min(started.elapsed());
            Err(Error::new(operation, object(), ErrorKind::TimedOut)
                .with_source(NoAnswer { limit }))
        });
        if let Some(patience) = &self.patience {
            match &outcome {
                Err(error) if error.is_retryable() => patience.failed(started),
                _ => patience.answered(),
            }
        }
        outcome
    }

    /// Waits until the next attempt.
    ///
    /// # Errors
    /// `error` itself when it would not pass, [`ErrorKind::DeadlineExceeded`] with it as source
    /// when there is no time for another attempt.
    pub(super) async fn wait_after(&mut self, error: Error) -> Result<()> {
        let error = error.at(self.place.as_ref());
        if !self.may_pass(&error) {
            return Err(error);
        }
        let delay = self.delay(error.kind);
        if delay >= self.remaining() {
            return Err(error.after_the_deadline());
        }
        self.tell(&error, delay);
        match &self.patience {
            None => sleep(delay).await,
            Some(patience) => tokio::select! {
                () = sleep(delay) => {}
                () = patience.ended() => {}
            },
        }
        Ok(())
    }

    /// How long an attempt that sends nothing may take.
    pub(super) fn unanswered_limit(&self) -> Duration {
        let fair = self.policy.deadline / FEWEST_ATTEMPTS;
        self.policy.attempt_timeout.min(fair)
    }

    /// What is left of the deadline.
    pub(super) fn remaining(&self) -> Duration {
        let spent = self.spent.saturating_add(self.started.elapsed());
        let own = self.policy.deadline.saturating_sub(spent);
        let patience = self.patience.as_ref().map(Patience::remaining);
        patience.map_or(own, |patience| own.min(patience))
    }

    fn may_pass(&mut self, error: &Error) -> bool {
        if error.kind == ErrorKind::Corrupted && self.sends_again {
            self.damaged_sends += 1;
            return self.damaged_sends < MOST_DAMAGED_SENDS;
        }
        match error.kind {
            ErrorKind::NoSuchHost => self.started.elapsed() < MOST_FOR_A_NAME,
            _ => error.is_retryable(),
        }
    }

    fn delay(&self, kind: ErrorKind) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(31);
        let ceiling = self
            .policy
            .first_delay
            .saturating_mul(1 << doublings)
            .min(self.policy.max_delay);
        let jittered = ceiling.mul_f64(fastrand::f64());
        match kind {
            ErrorKind::Throttled(Some(asked)) => jittered.max(asked),
            _ => jittered,
        }
    }

    /// The first failures are everyday; those that last are worth a look, once a minute for all requests.
    fn tell(&self, error: &Error, delay: Duration) {
        let cause = error.source.as_ref().map(tracing::field::display);
        let attempt = self.attempts;
        if attempt <= 3 || !self.may_tell() {
            tracing::debug!(%error, cause, attempt, ?delay, "the request failed and is sent again");
        } else {
            tracing::warn!(%error, cause, attempt, ?delay, "the request still fails and is sent again");
        }
    }

    fn may_tell(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let may = told.is_none_or(|told| told.elapsed() >= TELLING_INTERVAL);
        if may {
            *told = Some(Instant::now());
        }
        may
    }
}
