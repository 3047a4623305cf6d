//! What a retention policy says: which backups stay, and how much WAL stays with them.
//!
//! `7`, `3 full`, `days=14 daily=30 weekly=8 monthly=12`: as the setting `retention` and `walhalla delete retain` take it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::Serialize;

/// Rules of which each keeps backups. A backup stays that one of them keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The newest so many stay, with all WAL from the oldest of them on.
    pub count: Option<NonZeroU32>,
    /// What `count` counts.
    pub counted: Counted,
    /// Every moment of the last so many days stays reachable.
    pub days: Option<NonZeroU32>,
    /// The last backup of each of so many days stays, with the WAL that makes it consistent.
    pub daily: Option<NonZeroU32>,
    /// The same of weeks, which begin on Monday.
    pub weekly: Option<NonZeroU32>,
    /// The same of months.
    pub monthly: Option<NonZeroU32>,
}

/// Which backups are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// Full ones and deltas alike.
    #[default]
    All,
    /// Full ones, each with the deltas that stand on it.
    Full,
}

impl Policy {
    /// Whether it says anything.
    pub fn is_empty(&self) -> bool {
        let Self {
            count,
            counted: _,
            days,
            daily,
            weekly,
            monthly,
        } = self;
        [count, days, daily, weekly, monthly]
            .into_iter()
            .all(Option::is_none)
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut policy = Self::default();
        for word in text.split_ascii_whitespace() {
            let (name, number) = word.split_once('=').unwrap_or(("", word));
            let rule = match name {
                "" if number == "full" => {
                    policy.counted = Counted::Full;
                    continue;
                }
                "" => &mut policy.count,
                "days" => &mut policy.days,
                "daily" => &mut policy.daily,
                "weekly" => &mut policy.weekly,
                "monthly" => &mut policy.monthly,
                _ => {
                    return Err(format!(
                        "{word:?} is none of days=N, daily=N, weekly=N, monthly=N, a number of backups, and full"
                    ));
                }
            };
            let number = number
                .parse()
                .map_err(|_| format!("{word:?} has no whole number from 1 on"))?;
            if rule.replace(number).is_some() {
                return Err(format!("{text:?} has two numbers for the same rule"));
            }
        }
        if policy.is_empty() {
            return Err(format!("{text:?} keeps nothing: give days=14, for example"));
        }
        if policy.counted == Counted::Full && policy.count.is_none() {
            return Err(format!("{text:?} does not say how many full backups stay"));
        }
        Ok(policy)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = match self.counted {
            Counted::All => "",
            Counted::Full => " full",
        };
        let rules = [
            ("days", self.days),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
        ];
        let count = self.count.map(|count| format!("{count}{full}"));
        let rules = { rules.into_iter() }
            .filter_map(|(name, number)| number.map(|number| format!("{name}={number}")));
        let words: Vec<String> = count.into_iter().chain(rules).collect();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        for text in [
            "7",
            "3 full",
            "days=14",
            "days=14 daily=30 weekly=8 monthly=12",
            "2 days=1 monthly=4294967295",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        assert_eq!("full 3".parse::<Policy>(), "3 full".parse());
        assert_eq!(
            " monthly=2  days=1 ".parse::<Policy>(),
            "days=1 monthly=2".parse()
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in [
            "",
            " ",
            "0",
            "-1",
            "3.5",
            "seven",
            "full",
            "days",
            "days=",
            "days=0",
            "days=14d",
            "day=14",
            "14 7",
            "days=1 days=2",
            "full days=3",
            "days=4294967296",
            "days =14",
        ] {
            assert!(text.parse::<Policy>().is_err(), "{text:?}");
        }
    }
}
