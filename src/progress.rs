//! Progress of long work: a bar on a terminal, a plain line every ten seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{
    HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle,
};

/// How far apart plain lines are.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Whether the user wants this process to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Tells everything that counts its progress to stop. Returns whether it was told so before.
pub fn interrupt() -> bool {
    INTERRUPTED.swap(true, Ordering::Relaxed)
}

/// Whether the user wants this process to end.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// When progress is shown (`--progress`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Show {
    /// A bar on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// As auto, even with --quiet.
    Always,
    /// Nothing.
    Never,
}

/// Bytes or items done of a known total, counted from any thread, and the word to stop.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
    plain: Option<Arc<Plain>>,
    stopped: Arc<AtomicBool>,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Bytes,
    Items,
}

impl Unit {
    fn shown(self, count: u64) -> String {
        match self {
            Self::Bytes => HumanBytes(count).to_string(),
            Self::Items => HumanCount(count).to_string(),
        }
    }
}

#[derive(Debug)]
struct Plain {
    what: &'static str,
    unit: Unit,
    begun: Instant,
    /// Lines printed, which is also when the next one is due.
    lines: AtomicU64,
}

impl Progress {
    /// Shows `what` as it advances to `total_bytes`.
    pub fn new(show: Show, what: &'static str, total_bytes: u64) -> Self {
        Self::of(show, what, total_bytes, Unit::Bytes)
    }

    /// Shows `what` as it advances to `total` items.
    pub fn of_items(show: Show, what: &'static str, total: u64) -> Self {
        Self::of(show, what, total, Unit::Items)
    }

    fn of(show: Show, what: &'static str, total: u64, unit: Unit) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let (target, plain) = match (show, on_terminal) {
            (Show::Never, _) => (ProgressDrawTarget::hidden(), None),
            (Show::Auto | Show::Always, true) => (ProgressDrawTarget::stderr(), None),
            (Show::Auto | Show::Always, false) => {
                (ProgressDrawTarget::hidden(), Some(Plain::new(what, unit)))
            }
        };
        let template = match unit {
            Unit::Bytes => "{msg:20} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            Unit::Items => "{msg:20} [{wide_bar}] {human_pos}/{human_len} {per_sec} {eta} left",
        };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), target)
            .with_style(style.progress_chars("=> "));
        bar.set_message(what);
        Self {
            bar,
            plain: plain.map(Arc::new),
            stopped: Arc::default(),
        }
    }

    /// The same display for other work, which is not told to stop with this.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self {
            stopped: Arc::default(),
            ..self.clone()
        }
    }

    /// Counts as many bytes or items as done; answers whether the work should go on.
    pub fn add(&self, bytes: u64) -> bool {
        self.bar.inc(bytes);
        if let Some(plain) = &self.plain {
            plain.line_if_due(&self.bar);
        }
        !self.stopped.load(Ordering::Relaxed) && !is_interrupted()
    }

    /// Tells every thread that counts here to stop.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Ends the display.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Plain {
    fn new(what: &'static str, unit: Unit) -> Self {
        Self {
            what,
            unit,
            begun: Instant::now(),
            lines: AtomicU64::new(0),
        }
    }

    fn line_if_due(&self, bar: &ProgressBar) {
        let elapsed = self.begun.elapsed();
        let due = elapsed.as_secs() / PLAIN_INTERVAL.as_secs();
        if due == 0 || self.lines.fetch_max(due, Ordering::Relaxed) >= due {
            return;
        }
        let (done, total) = (bar.position(), bar.length().unwrap_or(0));
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        let left = Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / rate.max(1.0))
            .unwrap_or_default();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "for display"
        )]
        let rate = self.unit.shown(rate as u64);
        let (done, total) = (self.unit.shown(done), self.unit.shown(total));
        let left = HumanDuration(left);
        crate::output::message(&format!(
            "{}: {done} of {total}, {rate}/s, {left} left",
            self.what
        ));
    }
}
