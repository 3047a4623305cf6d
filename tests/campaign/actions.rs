//! What happens to a cluster in its life that is nobody's fault: promotions, returns to the past, merges, other users.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Duration;

use crate::client::Client;
use crate::depot::PATIENCE;
use crate::judge::Goal;
use crate::life::Life;
use crate::model::Stop;
use crate::support::{Cluster, Ending, Outcome, Walhalla, eventually, host, run};

/// How a standby follows: by the archive alone, or by streaming too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Following {
    Archive,
    Stream,
}

impl Life {
    /// Work, restore points, and now and then a backup.
    pub fn live_on(&mut self) {
        let count = self.rng.usize(5..25);
        self.work(count);
        if self.chance(50) {
            self.restore_point();
        }
        if self.chance(25) {
            self.client().ask("checkpoint");
        }
        if self.chance(30) {
            self.burst();
        }
        if self.chance(30) && !self.has_enough_backups() {
            let is_delta = self.chance(60);
            self.back_up(if is_delta { &["--delta"] } else { &[] });
        }
        let count = self.rng.usize(3..15);
        self.work(count);
    }

    /// A standby of the primary, restored from the archive.
    pub fn stand_by(&mut self, following: Following) -> Cluster {
        let name = self.new_name("server");
        self.note(&format!("standby {name}, {following:?}"));
        let archives_too = following == Following::Stream && self.chance(30);
        let mut standby = self.restore_to(&name, &["--standby"]);
        if following == Following::Stream {
            // Over what an earlier life as a rewound server left there.
            self.set_last(&name, &self.primary.standby_settings());
        }
        if archives_too {
            self.journal.note("  with archive_mode = always");
            standby.configure("archive_mode = always");
        }
        standby.start();
        standby
    }

    /// Waits until a standby has all that was committed: by the archive, or in the middle of a segment from the primary.
    pub fn catch_up(&mut self, standby: &Cluster, following: Following) {
        if following == Following::Archive || self.chance(40) {
            self.archive();
        }
        let lsn = match following {
            Following::Archive => self.model.timeline(self.timeline).archived,
            Following::Stream => self.look().lsn,
        };
        let mut client = Client::connect(standby).expect("the standby runs");
        eventually("the standby to catch up", PATIENCE, || {
            client.replayed() >= lsn
        });
    }

    /// A backup from a standby while the primary goes on, so that what makes it whole comes into the archive.
    fn back_up_standby(&mut self, standby: &Cluster) {
        self.note("backup-push from the standby");
        let is_delta = self.chance(50);
        let outcome = self.meanwhile(2, |life| {
            let mut args = vec!["backup-push", standby.data.to_str().unwrap()];
            args.extend(is_delta.then_some("--delta"));
            let mut command = life.depot.walhalla.command(&args);
            command.envs(standby.connection());
            let shown = format!("{command:?}");
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                life.primary.switch_segment();
                std::thread::sleep(Duration::from_millis(100));
            }
            Outcome::of(shown, &child.wait_with_output().unwrap())
        });
        if outcome.code == Some(0) {
            assert_eq!(self.list_backups(), 1, "new backups in the list");
            self.model.backups.last_mut().unwrap().is_of_standby = true;
            self.score.fault("backup from a standby");
            return;
        }
        // Pages may be newer than the standby's control file says, before a restart point.
        self.note(&outcome.to_string());
        outcome.exits_with(1).says(&["error:", "hint:"]);
        assert_eq!(self.list_backups(), 0, "backups that were refused");
        self.score.fault("backup from a standby, refused");
    }

    /// Ends a standby's recovery; it is the server that counts then, and the old one is returned.
    pub fn promote(&mut self, mut standby: Cluster) -> Cluster {
        Client::connect(&standby)
            .expect("the standby runs")
            .ask("select pg_promote(false)::text");
        standby.wait_until_promoted();
        let old = self.take_over(standby);
        self.check_primary(Stop::End, "after the promotion");
        old
    }

    fn draw_following(&mut self) -> Following {
        if self.chance(50) {
            Following::Archive
        } else {
            Following::Stream
        }
    }

    /// The primary ends, in order or not, and a standby takes its place; sometimes twice within one segment.
    pub fn fail_over(&mut self) {
        let following = self.draw_following();
        let standby = self.stand_by(following);
        self.work(5);
        self.catch_up(&standby, following);
        if self.chance(40) && !self.has_enough_backups() {
            self.back_up_standby(&standby);
        }
        // Nobody but the old primary need know of these.
        self.work(3);
        if self.chance(50) {
            self.let_it_archive();
            self.primary.kill();
            self.score.fault("kill -9 of a primary before a promotion");
        } else {
            self.primary.stop();
        }
        let old = self.promote(standby);
        self.score.fault("promotion of a standby");
        self.forget(old);
        self.work(5);
        if self.chance(40) {
            let standby = self.stand_by(Following::Stream);
            self.catch_up(&standby, Following::Stream);
            self.let_it_archive();
            self.primary.kill();
            let old = self.promote(standby);
            self.score.fault("a second promotion at once");
            self.forget(old);
            self.work(5);
        }
    }

    /// Waits until every whole segment is archived. A promoted standby archives none of the timeline that it left, so that
    /// one which dies with the primary is a hole in the archive, whatever archives it.
    fn let_it_archive(&self) {
        let folder = self.primary.data.join("pg_wal/archive_status");
        eventually("whole segments to be archived", PATIENCE, || {
            let entries = std::fs::read_dir(&folder).unwrap().flatten();
            let mut names = entries.map(|entry| entry.file_name());
            !names.any(|name| name.to_string_lossy().ends_with(".ready"))
        });
    }

    /// A stopped server that nobody needs any more.
    pub fn forget(&mut self, cluster: Cluster) {
        let name = cluster
            .data
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        drop(cluster);
        self.remove(&name);
    }

    /// A standby is promoted while the old primary goes on, and both archive; returns the old one and its timeline.
    fn split(&mut self) -> (Cluster, u32) {
        let following = self.draw_following();
        let standby = self.stand_by(following);
        self.catch_up(&standby, following);
        self.work(3);
        let old_timeline = self.timeline;
        let old = self.promote(standby);
        for turn in 0..2 {
            self.work(4);
            self.work_on(&old, old_timeline, 4);
            if turn == 0 {
                self.archive();
                self.archive_of(&old, old_timeline);
            }
        }
        self.score.fault("split brain");
        (old, old_timeline)
    }

    /// The old primary ends after a split, and is never seen again.
    pub fn split_brain(&mut self) {
        let (mut old, _) = self.split();
        if self.chance(50) {
            old.kill();
        } else {
            old.stop();
        }
        self.forget(old);
        self.work(5);
    }

    /// The old primary ends after a split, is made a standby of the new one by `pg_rewind`, and may take over again.
    ///
    /// `pg_rewind` lays tablespaces where the source has them, which on one host is no place for the target's.
    pub fn rewind(&mut self) {
        if self.tablespace.is_some() {
            return self.split_brain();
        }
        let (mut old, _) = self.split();
        old.stop();
        let mut client = self.client();
        // The source's control file tells its timeline (pg_rewind.c), before 16 only after a checkpoint.
        client.ask("checkpoint");
        drop(client);
        self.work(5);
        self.note("pg_rewind of the old primary");
        let program = host().server_program(self.version, "pg_rewind");
        run(host()
            .command(program)
            .args([
                "--no-sync",
                "--source-server",
                &self.primary.conninfo(),
                "-D",
            ])
            .arg(&old.data))
        .succeeds();
        self.score.fault("pg_rewind of an old primary");
        self.follow_again(&old);
        old.start();
        self.work(3);
        self.catch_up(&old, Following::Stream);
        let rows = Client::connect(&old).expect("it runs").rows();
        let compared = self.model.compare(&rows, self.timeline, Stop::End);
        self.score.checks += compared.unwrap_or_else(|difference| panic!("rewound: {difference}"));
        if self.chance(50) {
            self.primary.stop();
            let previous = self.promote(old);
            self.score.fault("promotion of a rewound server");
            self.forget(previous);
        } else {
            old.stop();
            self.forget(old);
        }
        self.work(5);
    }

    /// Makes a rewound server a standby: its settings are now the source's.
    fn follow_again(&self, old: &Cluster) {
        let name = old.data.file_name().unwrap().to_string_lossy().into_owned();
        self.area.write(&format!("{name}/standby.signal"), "");
        let walhalla = &self.depot.walhalla;
        let mut settings = format!(
            "{}\n{}\n",
            walhalla.restore_settings(),
            self.primary.standby_settings()
        );
        for target in ["name", "time", "xid", "lsn"] {
            let _ = writeln!(settings, "recovery_target_{target} = ''");
        }
        settings += "recovery_target_timeline = 'latest'\nrecovery_end_command = ''\n";
        self.set_last(&name, &settings);
    }

    /// Adds settings to those that override all others.
    fn set_last(&self, name: &str, settings: &str) {
        let path = format!("{name}/postgresql.auto.conf");
        let known = std::fs::read_to_string(self.area.path(&path)).unwrap();
        self.area.write(&path, format!("{known}{settings}\n"));
    }

    /// Goes on from an earlier moment, restored from the archive; what came after it is left behind.
    pub fn go_back(&mut self) {
        self.archive();
        let Some(goal) = self.draw_on(self.timeline, false) else {
            return self.note("there is nothing to go back to");
        };
        let name = self.new_name("server");
        self.note(&format!("back to {} as {name}", goal.args().join(" ")));
        assert!(self.plan(&goal), "the goal can be reached");
        if self.chance(50) {
            self.primary.kill();
        } else {
            self.primary.stop();
        }
        let mut args = goal.args();
        args.extend(["--target-action", "promote"].map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut server = self.restore_to(&name, &args);
        server.start();
        server.wait_until_promoted();
        self.compare(&goal, &server);
        let old = self.take_over(server);
        self.score.fault("restore to the past and life after it");
        self.forget(old);
        self.work(8);
    }

    /// Two backups at once.
    pub fn two_backups(&mut self) {
        self.note("two backups at once");
        let kinds: [&[&str]; 2] = if self.chance(50) {
            [&[], &["--delta"]]
        } else {
            [&["--delta"], &["--delta"]]
        };
        let outcomes = self.meanwhile(2, |life| {
            let children = kinds.map(|args| {
                let mut command = life.depot.walhalla.command(&life.push_args(args));
                command.envs(life.primary.connection());
                let shown = format!("{command:?}");
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                (shown, command.spawn().unwrap())
            });
            children.map(|(shown, child)| Outcome::of(shown, &child.wait_with_output().unwrap()))
        });
        for outcome in outcomes {
            outcome.succeeds();
        }
        assert_eq!(self.list_backups(), 2, "new backups in the list");
        self.score.fault("two backups at once");
    }

    /// A full backup out of a chain.
    pub fn merge(&mut self) {
        let delta = self.delta_to_merge();
        self.note(&format!("backup-merge {delta}"));
        if self.chance(60) {
            let moment = self.moment_within(Duration::from_millis(150));
            let mut command = self.depot.walhalla.command(&["backup-merge", &delta]);
            match Walhalla::kill_after(&mut command, moment) {
                Ending::Killed => self.score.fault("kill -9 of backup-merge"),
                Ending::Finished(outcome) => _ = outcome.succeeds(),
            }
            // It may have been killed when all was done.
            if self.list_backups() == 1 {
                return;
            }
        }
        self.run(&["backup-merge", &delta]);
        assert_eq!(self.list_backups(), 1, "new backups in the list");
        self.score.fault("merge of a chain");
    }

    fn delta_to_merge(&mut self) -> String {
        let is_merged = |id: &str| {
            let full = id.replace("-D", "-F");
            self.model.backups.iter().any(|backup| backup.id == full)
        };
        let deltas = self.model.backups.iter();
        let deltas = deltas.filter(|backup| backup.is_delta && !is_merged(&backup.id));
        let ids: Vec<String> = deltas.map(|backup| backup.id.clone()).collect();
        if let Some(id) = self.rng.choice(&ids) {
            return id.clone();
        }
        self.back_up(&["--delta"]);
        self.model.backups.last().unwrap().id.clone()
    }

    /// A restore over a directory that was restored before and has lived since.
    pub fn refresh(&mut self) {
        self.archive();
        let name = self.new_name("copy");
        let end = Goal::end(self);
        let mut copy = self.copy_at(&end, &name);
        copy.start();
        copy.wait_until_promoted();
        // Life of its own, which goes.
        Client::connect(&copy)
            .expect("it runs")
            .ask("update tally set n = n + 1000");
        copy.stop();
        self.work(10);
        self.archive();
        let args = ["--delta", "--archive-mode", "off"];
        if self.chance(60) {
            let moment = self.moment_within(Duration::from_millis(300));
            let mut command = self.restore_command(&name, &args);
            match Walhalla::kill_after(&mut command, moment) {
                Ending::Killed => self.score.fault("kill -9 of restore --delta"),
                Ending::Finished(outcome) => _ = outcome.succeeds(),
            }
        }
        self.note(&format!("restore --delta over {name}"));
        run(&mut self.restore_command(&name, &args)).succeeds();
        copy.start();
        copy.wait_until_promoted();
        let end = Goal::end(self);
        self.compare(&end, &copy);
        copy.amcheck();
        copy.stop();
        self.score.restores += 1;
        self.score
            .fault("restore --delta over a directory that lived");
        self.forget(copy);
    }

    /// A copy that does not archive.
    pub fn copy_at(&self, goal: &Goal, name: &str) -> Cluster {
        let mut args = goal.args();
        args.extend(["--archive-mode", "off"].map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.restore_to(name, &args)
    }

    /// Root takes a backup and restores; the server's user goes on with both. On an S3 server only the restore differs.
    pub fn root_and_user(&mut self) {
        self.note("backup-push by root");
        let outcome = self.meanwhile(2, |life| {
            let mut command = life.depot.walhalla.command(&life.push_args(&[]));
            run(as_root(&mut command).envs(life.primary.connection()))
        });
        outcome.succeeds();
        assert_eq!(
            self.list_backups(),
            1,
            "backups that the user sees after root's"
        );
        self.archive();
        self.note("restore by root");
        let name = self.new_name("roots");
        let data = self.area.make_dir(&name);
        let mut command = self.restore_command(&name, &["--archive-mode", "off"]);
        run(as_root(&mut command)).succeeds();
        let owner = std::fs::metadata(data.join("global/pg_control")).unwrap();
        assert_eq!(owner.uid(), host().uid, "the owner of what root restored");
        let mut copy = self.server_in(&name);
        copy.start();
        copy.wait_until_promoted();
        let end = Goal::end(self);
        self.compare(&end, &copy);
        copy.stop();
        self.score.restores += 1;
        self.score.fault("root and ordinary user in turn");
        self.forget(copy);
    }
}

fn as_root(command: &mut std::process::Command) -> &mut std::process::Command {
    command.uid(0).gid(0)
}
