//! Snapshots, as PostgreSQL prints them.

/// What a snapshot sees: `xmin:xmax:xip,…` in 64-bit numbers (`pg_current_snapshot`; before 13 `txid_current_snapshot`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The oldest transaction that was running; the next one where none was (`xmin`).
    pub oldest_running: u64,
    /// The next transaction that was to begin (`xmax`).
    pub next: u64,
    /// Transactions that were running.
    pub running: Vec<u64>,
}

impl Snapshot {
    /// Reads the text; `None` for what is no snapshot.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let mut number = || fields.next()?.parse().ok();
        let (oldest_running, next) = (number()?, number()?);
        let running = fields
            .next()?
            .split(',')
            .filter(|number| !number.is_empty());
        Some(Self {
            oldest_running,
            next,
            running: running
                .map(|number| number.parse().ok())
                .collect::<Option<_>>()?,
        })
    }

    /// Whether transaction `xid` ends after the snapshot was taken, as far as it tells. Of the 64-bit numbers that `xid` may
    /// stand for, the one nearest to the snapshot is meant (transam.h, `TransactionIdPrecedes`).
    pub fn is_before_the_end_of(&self, xid: u32) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "transaction numbers are compared modulo 2^32"
        )]
        let short = |number: u64| number as u32;
        let is_later = xid.wrapping_sub(short(self.next)) < 1 << 31;
        is_later || self.running.iter().any(|number| short(*number) == xid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_a_snapshot_does_not_see_ends_after_it() {
        for (snapshot, xid, later) in [
            ("700:700:", 700, true),
            ("700:700:", 699, false),
            ("700:705:700,703", 703, true),
            ("700:705:700,703", 702, false),
            ("4294967290:4294967300:", 3, false),
            ("4294967290:4294967300:", 5, true),
        ] {
            let parsed = Snapshot::parse(snapshot).unwrap();
            assert_eq!(
                parsed.is_before_the_end_of(xid),
                later,
                "{xid} in {snapshot}"
            );
        }
    }

    #[test]
    fn what_is_no_snapshot_tells_nothing() {
        for text in ["", "700", "700:705", "700:705:x", "a:b:"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
