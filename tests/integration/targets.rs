//! What `plan` says of a target is what PostgreSQL then does.
//!
//! ```text
//! branches ─▶ an archive of three timelines ─▶ draw ─▶ targets ─▶ `plan`, `restore`
//!                        │                                │            ║ the same
//!                        └─▶ truth, by pg_waldump ════════╧══ judge, by the log of a server
//! ```

mod branches;
mod draw;
mod judge;
mod truth;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use walhalla_postgres::Lsn;

use self::branches::{Backup, Branches, LATEST};
use self::draw::{Drawn, Hat, Point};
use self::judge::{EXACT, Recovery, append};
use self::truth::{Logged, Stop, Truth, What};
use crate::support::{Cluster, host, seed_chance};

const TARGETS: usize = 200;
/// How many of the targets that can be reached are restored by `restore`; the others from a copy of their backup.
/// `make test-nightly` draws others ten times.
const RESTORES: usize = 16;
const THREADS: usize = 4;

/// What became of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    ReachedByRestore,
    ReachedByHand,
    RefusedByBoth,
    /// `plan` refuses although PostgreSQL does something, with a reason that tells why.
    RefusedOnPurpose(&'static str),
}

struct Judge<'a> {
    branches: &'a Branches,
    truth: &'a Truth,
    restores: AtomicUsize,
}

#[test]
fn plan_says_of_200_random_targets_what_postgresql_does() {
    seed_chance();
    let branches = Branches::grow();
    let truth = Truth::read(&branches.raw);
    let on_borders = truth.ends_on_borders(1 << 20);
    assert!(on_borders >= 10, "{on_borders} transactions end on borders");
    let hat = Hat::new(&branches, &truth);
    let targets: Vec<Drawn> = (0..TARGETS).map(|_| hat.draw()).collect();
    let judge = Judge {
        branches: &branches,
        truth: &truth,
        restores: AtomicUsize::new(0),
    };
    let (next, verdicts) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let index @ 0..TARGETS = next.fetch_add(1, Ordering::Relaxed) {
                    let verdict = judge.judge_safely(index, &targets[index]);
                    verdicts.lock().unwrap().push((index, verdict));
                }
            });
        }
    });
    report(&targets, verdicts.into_inner().unwrap());
}

/// Prints the score, and fails with what differs.
fn report(targets: &[Drawn], verdicts: Vec<(usize, Result<Verdict, String>)>) {
    let mut score: BTreeMap<Verdict, usize> = BTreeMap::new();
    let mut differences = String::new();
    for (index, verdict) in verdicts {
        match verdict {
            Ok(verdict) => *score.entry(verdict).or_default() += 1,
            Err(what) => {
                let _ = writeln!(differences, "{index}: {}\n  {what}", targets[index]);
            }
        }
    }
    let count = |wanted: &dyn Fn(&Verdict) -> bool| -> usize {
        let counts = score.iter().filter(|(verdict, _)| wanted(verdict));
        counts.map(|(_, count)| count).sum()
    };
    let restored = count(&|verdict| *verdict == Verdict::ReachedByRestore);
    let by_hand = count(&|verdict| *verdict == Verdict::ReachedByHand);
    let refused = count(&|verdict| *verdict == Verdict::RefusedByBoth);
    let on_purpose = count(&|verdict| matches!(verdict, Verdict::RefusedOnPurpose(_)));
    println!(
        "{} targets: {} reached exactly ({restored} of them by restore), {refused} refused by both, \
         {on_purpose} refused on purpose",
        targets.len(),
        restored + by_hand
    );
    for (verdict, count) in &score {
        println!("  {count:4} {verdict:?}");
    }
    assert!(
        differences.is_empty(),
        "plan and PostgreSQL differ; WALHALLA_TEST_SEED draws the same targets from a new archive, and \
         WALHALLA_TEST_KEEP=1 keeps it for `walhalla plan` with these:\n{differences}"
    );
    assert_eq!(restored, RESTORES, "restores that were tried");
}

impl Judge<'_> {
    fn judge_safely(&self, index: usize, target: &Drawn) -> Result<Verdict, String> {
        let judged = catch_unwind(AssertUnwindSafe(|| self.judge(index, target)));
        judged.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.unwrap_or_else(|| "a panic without words".to_owned()))
        })
    }

    fn judge(&self, index: usize, target: &Drawn) -> Result<Verdict, String> {
        let (code, plan) = self.plan(&target.args());
        match (plan["reachable"].as_bool(), code) {
            (Some(true), Some(0)) => self.reachable(index, target, &plan),
            (Some(false), Some(4)) => self.refused(index, target, &plan),
            _ => Err(format!("plan answers {code:?} and {plan:#}")),
        }
    }

    fn plan(&self, args: &[String]) -> (Option<i32>, Value) {
        let mut all = vec!["plan", "--json"];
        all.extend(args.iter().map(String::as_str));
        let outcome = self.branches.walhalla.run(&all);
        (outcome.code, outcome.json())
    }

    fn reachable(&self, index: usize, target: &Drawn, plan: &Value) -> Result<Verdict, String> {
        let id = plan["backup_chain"][0].as_str().unwrap();
        let backup = self.branches.backups.iter().find(|backup| backup.id == id);
        let backup = backup.unwrap();
        let timeline = followed(target, backup);
        let last = plan["timelines"].as_array().unwrap().last().unwrap();
        same("timeline", last, &Value::from(timeline))?;
        let stop = self.truth.stop(timeline, backup.start_lsn, target);
        let stop = stop.ok_or_else(|| format!("no record is the target's on {timeline}"))?;
        self.is_newest(backup, timeline, target, &stop)?;
        let by_restore = self.restores.fetch_add(1, Ordering::Relaxed) < RESTORES;
        let name = format!("t{index}");
        let recovery = if by_restore {
            self.restore(index, target, timeline, plan, &stop)?
        } else {
            Recovery::by_hand(self.branches, backup, target, &name)
        };
        same("stop", &recovery.stopped()?, &Some(&stop.logged))?;
        let asked: Vec<Value> = recovery.segments.into_iter().map(Value::from).collect();
        let mut planned = plan["segments"].as_array().unwrap().clone();
        same(
            "number of segments",
            &plan["segments_to_target"],
            &Value::from(planned.len()),
        )?;
        planned.sort_by_key(ToString::to_string);
        same("segments", &planned, &asked)?;
        same(
            "segments to consistency",
            &plan["segments_to_consistency"],
            &Value::from(recovery.segments_to_consistency),
        )?;
        Ok(if by_restore {
            Verdict::ReachedByRestore
        } else {
            Verdict::ReachedByHand
        })
    }

    /// Whether no newer backup would do.
    fn is_newest(
        &self,
        chosen: &Backup,
        timeline: u32,
        target: &Drawn,
        stop: &Stop,
    ) -> Result<(), String> {
        let newest = self.branches.backups.iter().rfind(|backup| {
            let ends_before = match target.point {
                Point::Time(time) => backup.stop_time <= time,
                Point::Lsn(lsn) => backup.stop_lsn <= lsn,
                Point::Xid(_) | Point::Name(_) => true,
            };
            let leads = self
                .truth
                .passes(timeline, backup.timeline, backup.stop_lsn);
            ends_before && leads && backup.stop_lsn <= stop.lsn
        });
        let newest = newest.map(|backup| &backup.id);
        if target.timeline == "current" {
            return Ok(());
        }
        same("backup", &Some(&chosen.id), &newest)
    }

    /// Restores and recovers with what was staged, by turns with each action.
    fn restore(
        &self,
        index: usize,
        target: &Drawn,
        timeline: u32,
        plan: &Value,
        stop: &Stop,
    ) -> Result<Recovery, String> {
        let (name, area) = (format!("t{index}"), &self.branches.area);
        let action = ["shutdown", "pause", "promote"][index % 3];
        let mut args = target.args();
        args.extend(["--target-action".to_owned(), action.to_owned()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut server = self.branches.walhalla.restore(area, 17, &name, &args);
        let staged = self.staged(&name);
        same(
            "staged segments",
            &staged,
            plan["segments"].as_array().unwrap(),
        )?;
        append(&server.data.join("postgresql.auto.conf"), EXACT);
        if action == "shutdown" {
            append(
                &server.data.join("postgresql.auto.conf"),
                "hot_standby = off\n",
            );
            server.run_to_its_end();
        } else {
            server.start();
            if action == "pause" {
                server.wait_until_paused();
            } else {
                server.wait_until_promoted();
            }
            self.holds_what_was_committed(&server, timeline, stop)?;
        }
        let recovery = Recovery::read(&server.log_text());
        drop(server);
        area.remove(&name);
        Ok(recovery)
    }

    /// The segments in the stage, in order; nothing else but histories and the plan is there.
    fn staged(&self, name: &str) -> Vec<Value> {
        let stage = self.branches.area.path(&format!("{name}.walhalla-wal"));
        let entries = std::fs::read_dir(stage).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.retain(|name| !name.ends_with(".history") && name != "plan.json");
        names.sort_by_key(|name| name[8..].to_owned());
        names.into_iter().map(Value::from).collect()
    }

    fn holds_what_was_committed(
        &self,
        server: &Cluster,
        timeline: u32,
        stop: &Stop,
    ) -> Result<(), String> {
        let found = server.sql("select distinct xid from written");
        let found = found.lines().map(|xid| xid.parse().unwrap()).collect();
        let committed = self.truth.committed(timeline, stop);
        let written = &self.branches.written[&timeline];
        let expected = committed.intersection(written).copied().collect();
        same::<std::collections::BTreeSet<u32>>("rows", &found, &expected)
    }

    fn refused(&self, index: usize, target: &Drawn, plan: &Value) -> Result<Verdict, String> {
        self.nearest_can_be_reached(target, plan)?;
        let mut verdict = Verdict::RefusedByBoth;
        for (turn, backup) in self.worth_trying(target).into_iter().enumerate() {
            let name = format!("t{index}-{turn}");
            let recovery = Recovery::by_hand(self.branches, backup, target, &name);
            if let Some(stopped) = recovery.stopped()? {
                let reason = plan["reason"].as_str().unwrap();
                let purpose = self.purpose(reason, target, backup, stopped);
                let purpose = purpose.ok_or_else(|| {
                    let id = &backup.id;
                    format!("plan: {reason}; PostgreSQL from {id}: {stopped:?}")
                })?;
                verdict = Verdict::RefusedOnPurpose(purpose);
            }
        }
        Ok(verdict)
    }

    /// The backups from which PostgreSQL might reach the target: the newest that ends before it, and the oldest.
    fn worth_trying(&self, target: &Drawn) -> Vec<&Backup> {
        let backups = &self.branches.backups;
        let leads = |backup: &&Backup| {
            let timeline = followed(target, backup);
            self.truth
                .passes(timeline, backup.timeline, backup.stop_lsn)
        };
        let leading: Vec<&Backup> = backups.iter().filter(leads).collect();
        let Some(oldest) = leading.first() else {
            return vec![&backups[0]];
        };
        let newest = leading.iter().rfind(|backup| match target.point {
            Point::Time(time) => backup.stop_time <= time,
            Point::Lsn(lsn) => backup.stop_lsn <= lsn,
            Point::Xid(_) | Point::Name(_) => true,
        });
        let newest = newest.unwrap_or(oldest);
        if newest.id == oldest.id {
            vec![newest]
        } else {
            vec![newest, oldest]
        }
    }

    /// Why `plan` refuses what PostgreSQL does.
    fn purpose(
        &self,
        reason: &str,
        target: &Drawn,
        backup: &Backup,
        stopped: &Logged,
    ) -> Option<&'static str> {
        let is_abort = matches!(
            stopped,
            Logged::End {
                is_commit: false,
                ..
            }
        );
        let is_before = reason.contains("is before the end of backup");
        match target.point {
            Point::Xid(_) if is_abort && reason.contains("was rolled back") => Some("an abort"),
            Point::Name(_) if reason.contains("2 restore points have the name") => {
                Some("a name that is there twice")
            }
            // Commits after the target may be in the backup's files, before its redo position.
            Point::Time(time) if is_before && time < backup.stop_time => {
                Some("a time before the end of the oldest backup")
            }
            // PostgreSQL stops after the record that ends the backup, which is no earlier than the backup's end.
            Point::Lsn(lsn) if is_before && lsn < backup.stop_lsn => self
                .ends_with(backup, lsn)
                .then_some("a position in the backup's last record"),
            _ => None,
        }
    }

    /// Whether the first record at or after `lsn` is the one that ends the backup.
    fn ends_with(&self, backup: &Backup, lsn: Lsn) -> bool {
        let mut records = self.truth.path(backup.timeline);
        let record = records.find(|record| record.lsn >= lsn).unwrap();
        matches!(record.what, What::BackupEnd) || record.lsn >= backup.stop_lsn
    }

    /// The options that `plan` offers instead are worth something.
    fn nearest_can_be_reached(&self, target: &Drawn, plan: &Value) -> Result<(), String> {
        let Some(nearest) = plan["nearest"].as_str() else {
            return Ok(());
        };
        let args = if nearest.starts_with("no --target option") {
            vec!["--target-timeline".to_owned(), target.timeline.clone()]
        } else if nearest.contains("--target-timeline") {
            words(nearest)
        } else {
            [words(nearest), target.other_args()].concat()
        };
        let (code, instead) = self.plan(&args);
        if code == Some(0) {
            return Ok(());
        }
        let (reason, why) = (&plan["reason"], &instead["reason"]);
        Err(format!(
            "{reason}: nearest is {nearest:?}, and that is refused: {why}"
        ))
    }
}

/// The timeline that recovery from `backup` follows.
fn followed(target: &Drawn, backup: &Backup) -> u32 {
    match &*target.timeline {
        "latest" => LATEST,
        "current" => backup.timeline,
        number => number.parse().unwrap(),
    }
}

/// The options in a hint, as a shell takes them.
fn words(nearest: &str) -> Vec<String> {
    let script = format!("printf '%s\\n' {nearest}");
    let mut command = host().command("sh");
    let shown = crate::support::run(command.args(["-c", &script])).succeeds();
    shown.stdout.lines().map(str::to_owned).collect()
}

fn same<T: PartialEq + std::fmt::Debug + ?Sized>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found:?}, expected {expected:?}"))
    }
}
