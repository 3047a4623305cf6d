//! After each round: what the archive promises is what a restored server holds.
//!
//! ```text
//! model ─▶ goals: the end, three targets, the end from each backup ─▶ plan ═ restore ═ server ─▶ rows ═ model
//! archive ─▶ verify --all, wal-verify --deep                                            └─▶ pg_amcheck, pg_checksums
//! ```

use std::time::Instant;

use walhalla_postgres::Lsn;

use crate::client::Client;
use crate::life::Life;
use crate::model::{Backup, Bound, Commit, Moment, Stop};
use crate::support::{Cluster, host, run};

/// Targets in each round, beside the end.
const TARGETS: usize = 3;

/// Where a restore goes to, and whether it can get there.
#[derive(Clone)]
pub struct Goal {
    pub timeline: u32,
    pub point: Point,
    pub bound: Bound,
    pub backup: Option<String>,
    /// Whether `--target-timeline` names the timeline; otherwise it is what `latest` has to be.
    pub names_timeline: bool,
}

/// A stop that owns what it names.
#[derive(Clone, Debug)]
pub enum Point {
    End,
    Lsn(Lsn),
    Time(jiff::Timestamp),
    Xid(Commit),
    Name(String),
    /// As soon as the backup, which ends there, is consistent.
    Immediate(Lsn),
    /// What was never written.
    Nowhere(Vec<&'static str>),
    /// A time before there was a backup.
    BeforeAll(jiff::Timestamp),
}

/// How a restore is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Rows are compared.
    Rows,
    /// `pg_amcheck` and `pg_checksums` look at it, too.
    Thorough,
}

impl Goal {
    /// The end of the timeline that counts.
    pub fn end(life: &Life) -> Self {
        Self {
            timeline: life.timeline,
            point: Point::End,
            bound: Bound::Inclusive,
            backup: None,
            names_timeline: false,
        }
    }

    pub fn args(&self) -> Vec<String> {
        let mut args = match &self.point {
            Point::End => Vec::new(),
            Point::Lsn(lsn) => vec!["--target-lsn".to_owned(), lsn.to_string()],
            Point::Time(time) | Point::BeforeAll(time) => {
                vec!["--target-time".to_owned(), time.to_string()]
            }
            Point::Xid(commit) => {
                vec!["--target-xid".to_owned(), commit.xid.unwrap().to_string()]
            }
            Point::Name(name) => vec!["--target-name".to_owned(), name.clone()],
            Point::Immediate(_) => vec!["--target-immediate".to_owned()],
            Point::Nowhere(words) => words.iter().map(|word| (*word).to_owned()).collect(),
        };
        if self.bound == Bound::Exclusive {
            args.push("--target-exclusive".to_owned());
        }
        if self.names_timeline {
            args.extend(["--target-timeline".to_owned(), self.timeline.to_string()]);
        }
        if let Some(id) = &self.backup {
            args.extend(["--backup".to_owned(), id.clone()]);
        }
        args
    }

    pub fn is_reachable(&self) -> bool {
        !matches!(self.point, Point::Nowhere(_) | Point::BeforeAll(_))
    }

    fn stop<'a>(&'a self, life: &'a Life) -> Stop<'a> {
        match &self.point {
            Point::End | Point::Nowhere(_) | Point::BeforeAll(_) => Stop::End,
            Point::Lsn(lsn) | Point::Immediate(lsn) => Stop::Lsn(*lsn),
            Point::Time(time) => Stop::Time(*time, self.bound),
            Point::Xid(commit) => Stop::Xid(commit, self.bound),
            Point::Name(name) => {
                let mut points = life.model.points.iter();
                Stop::Name(points.find(|point| point.name == *name).unwrap())
            }
        }
    }
}

impl Life {
    /// Everything that has to hold after a round.
    pub fn judge(&mut self) {
        self.archive();
        self.verify();
        let end = Goal::end(self);
        self.reach(&end, Effort::Thorough);
        for turn in 0..TARGETS {
            if let Some(goal) = self.draw_goal() {
                let effort = if turn == 0 {
                    Effort::Thorough
                } else {
                    Effort::Rows
                };
                self.reach(&goal, effort);
            }
        }
        for id in self.others_than_newest() {
            if let Some(goal) = self.end_from(&id) {
                self.reach(&goal, Effort::Rows);
            }
        }
        self.score.rounds += 1;
    }

    fn verify(&mut self) {
        let begun = Instant::now();
        self.run(&["verify", "--all"]);
        self.run(&["wal-verify", "--deep"]);
        self.list_backups();
        self.score.took("verify", begun);
    }

    /// All but the one from which the end was restored already.
    fn others_than_newest(&self) -> Vec<String> {
        let ids = self.model.backups.iter().map(|backup| backup.id.clone());
        let mut ids: Vec<String> = ids.collect();
        let timeline = self.timeline;
        let on_path = |id: &String| {
            let mut backups = self.model.backups.iter();
            let backup = backups.find(|backup| backup.id == *id).unwrap();
            self.model.is_on_path(backup, timeline)
        };
        if let Some(newest) = ids.iter().rposition(on_path) {
            ids.remove(newest);
        }
        ids
    }

    /// The end of the path that a backup is on.
    fn end_from(&mut self, id: &str) -> Option<Goal> {
        let backup = self.model.backups.iter().find(|backup| backup.id == id)?;
        let is_current = self.model.is_on_path(backup, self.timeline);
        let timeline = if is_current {
            self.timeline
        } else {
            backup.timeline
        };
        Some(Goal {
            timeline,
            backup: Some(id.to_owned()),
            names_timeline: !is_current,
            ..Goal::end(self)
        })
    }

    /// A random target; sometimes one that is nowhere, and sometimes one on a branch that was left.
    pub fn draw_goal(&mut self) -> Option<Goal> {
        if self.chance(12) {
            return Some(self.draw_nowhere());
        }
        if self.chance(8) {
            return self.draw_immediate();
        }
        let timelines: Vec<u32> = self.model.timelines.keys().copied().collect();
        let other = *self.rng.choice(&timelines).unwrap();
        let timeline = if self.chance(20) {
            other
        } else {
            self.timeline
        };
        let names_timeline = timeline != self.timeline || self.chance(20);
        self.draw_on(timeline, names_timeline)
    }

    pub fn draw_on(&mut self, timeline: u32, names_timeline: bool) -> Option<Goal> {
        let (point, bound) = if self.chance(25) {
            (self.draw_name(timeline)?, Bound::Inclusive)
        } else {
            let commit = self.draw_commit(timeline)?;
            let to = commit.to.unwrap();
            let point = match self.rng.u32(..3) {
                0 => Point::Lsn(to.lsn),
                1 => Point::Time(to.time),
                _ if commit.xid.is_some() => Point::Xid(commit),
                _ => Point::Lsn(to.lsn),
            };
            let is_exclusive = self.chance(25);
            (
                point,
                [Bound::Inclusive, Bound::Exclusive][usize::from(is_exclusive)],
            )
        };
        Some(Goal {
            timeline,
            point,
            bound,
            backup: None,
            names_timeline,
        })
    }

    /// The end of a backup of the primary. That of a standby's is where its control file says, which is not known here.
    fn draw_immediate(&mut self) -> Option<Goal> {
        let of_primaries = self.model.backups.iter().filter(|one| !one.is_of_standby);
        let backups: Vec<Backup> = of_primaries.cloned().collect();
        let backup = self.rng.choice(&backups)?;
        Some(Goal {
            timeline: backup.timeline,
            point: Point::Immediate(backup.stop_lsn),
            bound: Bound::Inclusive,
            backup: Some(backup.id.clone()),
            names_timeline: true,
        })
    }

    fn draw_commit(&mut self, timeline: u32) -> Option<Commit> {
        let targets = self.model.targets(timeline);
        let led_to = targets
            .into_iter()
            .filter(|commit| self.is_led_to(timeline, commit.from));
        let led_to: Vec<Commit> = led_to.cloned().collect();
        self.rng.choice(&led_to).cloned()
    }

    fn draw_name(&mut self, timeline: u32) -> Option<Point> {
        let path = self.model.timeline(timeline);
        let points = self.model.points.iter().filter(|point| {
            let leaves = if point.timeline == timeline {
                Some(path.archived)
            } else {
                let mut ancestors = path.ancestors.iter();
                ancestors
                    .find(|(number, _)| *number == point.timeline)
                    .map(|(_, lsn)| *lsn)
            };
            leaves.is_some_and(|lsn| point.to.lsn <= lsn) && self.is_led_to(timeline, point.from)
        });
        let names: Vec<String> = points.map(|point| point.name.clone()).collect();
        self.rng.choice(&names).cloned().map(Point::Name)
    }

    fn is_led_to(&self, timeline: u32, moment: Moment) -> bool {
        let mut backups = self.model.backups.iter();
        backups.any(|backup| self.model.leads(backup, timeline, moment))
    }

    /// What cannot be reached, and has to be refused before anything is written.
    fn draw_nowhere(&mut self) -> Goal {
        let oldest = self
            .model
            .backups
            .iter()
            .map(|backup| backup.stop_time)
            .min();
        let before = oldest.unwrap() - jiff::Span::new().hours(1);
        let point = match self.rng.u32(..5) {
            0 => Point::Nowhere(vec!["--target-name", "was never made"]),
            1 => Point::Nowhere(vec!["--target-lsn", "7F/0"]),
            2 => Point::Nowhere(vec!["--target-xid", "1000000000"]),
            3 => Point::Nowhere(vec!["--target-time", "2099-01-01T00:00:00Z"]),
            _ => Point::BeforeAll(before),
        };
        Goal {
            point,
            ..Goal::end(self)
        }
    }

    /// Plans, restores, starts and compares.
    pub fn reach(&mut self, goal: &Goal, effort: Effort) {
        let begun = Instant::now();
        self.note(&format!(
            "reach {} on timeline {}",
            goal.args().join(" "),
            goal.timeline
        ));
        let can = self.plan(goal);
        assert_eq!(
            can,
            goal.is_reachable(),
            "whether {:?} on timeline {} can be reached",
            goal.args(),
            goal.timeline
        );
        let name = self.new_name("restored");
        let action = if self.chance(50) { "pause" } else { "promote" };
        let server = self.restore(goal, &name, action, can);
        self.score.took("restores", begun);
        if let Some(server) = server {
            self.look_into(goal, server, action, effort);
            self.score.restores += 1;
        } else {
            self.score.refusals += 1;
        }
        self.remove(&name);
    }

    /// What `plan` says.
    pub fn plan(&self, goal: &Goal) -> bool {
        let mut args = vec!["plan".to_owned(), "--json".to_owned()];
        args.extend(goal.args());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let outcome = self.depot.walhalla.run(&args);
        let plan = outcome.json();
        match (plan["reachable"].as_bool(), outcome.code) {
            (Some(true), Some(0)) => {
                let last = plan["timelines"].as_array().unwrap().last().unwrap();
                assert_eq!(
                    last.as_u64(),
                    Some(goal.timeline.into()),
                    "the timeline of {outcome}"
                );
                true
            }
            (Some(false), Some(4)) => {
                assert!(
                    !goal.is_reachable(),
                    "refused, and timeline {} leads there: {outcome}",
                    goal.timeline
                );
                false
            }
            _ => panic!("plan says one thing and its exit status another: {outcome}"),
        }
    }

    /// Restores if the plan says so; is refused otherwise.
    fn restore(&mut self, goal: &Goal, name: &str, action: &str, can: bool) -> Option<Cluster> {
        let mut args = goal.args();
        args.extend(["--archive-mode".to_owned(), "off".to_owned()]);
        // Along a timeline that was left within its tail wal-fetch cannot tell how far it is wanted, and gives nothing.
        let may_end_in_a_tail = goal.timeline != self.timeline && self.beside.has_received();
        if self.chance(20) && !may_end_in_a_tail {
            args.extend(["--wal".to_owned(), "on-demand".to_owned()]);
        }
        if !matches!(goal.point, Point::End) {
            args.extend(["--target-action".to_owned(), action.to_owned()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let outcome = run(&mut self.restore_command(name, &args));
        if !can {
            outcome.exits_with(4);
            let data = self.area.path(name);
            assert!(!data.exists(), "a refused restore wrote {}", data.display());
            return None;
        }
        outcome.succeeds();
        Some(self.server_in(name))
    }

    fn look_into(&mut self, goal: &Goal, mut server: Cluster, action: &str, effort: Effort) {
        let begun = Instant::now();
        server.start();
        if action == "pause" && !matches!(goal.point, Point::End) {
            server.wait_until_paused();
        } else {
            server.wait_until_promoted();
        }
        self.score.took("recovery", begun);
        self.compare(goal, &server);
        let begun = Instant::now();
        if effort == Effort::Thorough {
            server.amcheck();
        }
        server.stop();
        if effort == Effort::Thorough {
            let program = host().server_program(self.version, "pg_checksums");
            run(host()
                .command(program)
                .arg("--check")
                .arg("-D")
                .arg(&server.data))
            .succeeds();
        }
        self.score.took("amcheck and checksums", begun);
    }

    /// The rows of a server are those that the model knows of the goal.
    pub fn compare(&mut self, goal: &Goal, server: &Cluster) {
        let rows = Client::connect(server).expect("it runs").rows();
        let compared = self.model.compare(&rows, goal.timeline, goal.stop(self));
        match compared {
            Ok(checked) => self.score.checks += checked,
            Err(difference) => panic!("restored with {:?}: {difference}", goal.args()),
        }
    }
}
