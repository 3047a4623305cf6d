//! When a failed request is sent again, and when not any more.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

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
    /// How long one request is tried; a body that is read, how long it is tried without a byte coming.
    pub deadline: Duration,
    /// How long one attempt may take, besides a second for each 64 KiB that it sends; a body that
    /// is read, how long one chunk may take.
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

/// The attempts at one request.
#[derive(Debug)]
pub(super) struct Retries {
    policy: RetryPolicy,
    times_out: bool,
    started: Instant,
    attempts: u32,
}

impl Retries {
    /// `times_out` as in [`Limits`](crate::Limits): otherwise an attempt may take until the deadline.
    pub(super) fn new(policy: RetryPolicy, times_out: bool) -> Self {
        Self {
            policy,
            times_out,
            started: Instant::now(),
            attempts: 0,
        }
    }

    /// The same with the time that `body_bytes` take on a slow line.
    pub(super) fn sending(mut self, body_bytes: usize) -> Self {
        let seconds = u64::try_from(body_bytes / SLOWEST_BYTES_A_SECOND).unwrap_or(u64::MAX);
        self.policy.attempt_timeout = self
            .policy
            .attempt_timeout
            .saturating_add(Duration::from_secs(seconds));
        self
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
            remaining.min(self.policy.attempt_timeout)
        } else {
            remaining
        };
        match timeout(limit, request).await {
            Ok(answer) => answer,
            Err(elapsed) => {
                Err(Error::new(operation, object(), ErrorKind::TimedOut).with_source(elapsed))
            }
        }
    }

    /// Waits until the next attempt.
    ///
    /// # Errors
    /// `error` itself when it would not pass, [`ErrorKind::DeadlineExceeded`] with it as source
    /// when there is no time for another attempt.
    pub(super) async fn wait_after(&mut self, error: Error) -> Result<()> {
        if !error.is_retryable() {
            return Err(error);
        }
        let delay = self.delay(error.kind);
        if delay >= self.remaining() {
            let kind = ErrorKind::DeadlineExceeded;
            return Err(Error::new(error.operation, error.object.clone(), kind).with_source(error));
        }
        self.tell(&error, delay);
        sleep(delay).await;
        Ok(())
    }

    fn remaining(&self) -> Duration {
        self.policy.deadline.saturating_sub(self.started.elapsed())
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

    /// The first failures are everyday; those that last are worth a look.
    fn tell(&self, error: &Error, delay: Duration) {
        let cause = error.source.as_ref().map(tracing::field::display);
        let attempt = self.attempts;
        if attempt <= 3 {
            tracing::debug!(%error, cause, attempt, ?delay, "the request failed and is sent again");
        } else {
            tracing::warn!(%error, cause, attempt, ?delay, "the request still fails and is sent again");
        }
    }
}
