//! The store that a life archives to, and how it fails.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fastrand::Rng;
use walhalla_providers::testing::proxy::{Answer, Ending, Fault, Proxy, Requests, Side, When};

use crate::support::{
    Area, Cluster, Store, Walhalla, give_rights_back, host, make_unreadable, run,
};

/// A store, with what makes it fail.
pub struct Depot {
    pub store: Store,
    pub walhalla: Walhalla,
    line: Option<Proxy>,
    disk: Option<SmallDisk>,
    settings: PathBuf,
    /// Whether it is cut off, or full.
    is_out: bool,
    /// The file that takes the room of a small disk.
    ballast: Option<PathBuf>,
}

/// Requests to a store that does not answer are given up soon, for the campaign's sake.
const HASTY: &str = "\"2s\"";
/// Where the store answers now and then, it is asked as often as it takes.
const PATIENT: &str = "\"60s\"";

/// Of the file system in which a store runs out of room.
const DISK_MB: u32 = 256;

impl Depot {
    /// A directory, a directory on a small file system (as root), or an S3 server on a line that may fail.
    pub fn draw(area: &Area, rng: &mut Rng) -> Self {
        match rng.u32(..10) {
            0..2 => Self::on_s3(area),
            2..5 if host().is_root => Self::on_small_disk(area),
            _ => Self::of(area, Store::directory(area), None, None),
        }
    }

    fn on_s3(area: &Area) -> Self {
        let store = Store::s3(area);
        let line = Proxy::start(store.address());
        Self::of(area, store, Some(line), None)
    }

    fn on_small_disk(area: &Area) -> Self {
        let disk = SmallDisk::mount(area.make_dir("disk"), DISK_MB);
        let store = Store::Directory(area.make_dir("disk/store"));
        Self::of(area, store, None, Some(disk))
    }

    fn of(area: &Area, store: Store, line: Option<Proxy>, disk: Option<SmallDisk>) -> Self {
        let socket = area.path("socket");
        let socket = socket.display();
        let lines = format!("retry_timeout = {HASTY}\nsocket = \"{socket}\"");
        let direct = Walhalla::with_settings(area, &store, &lines);
        let walhalla = match &line {
            Some(line) => direct.with_env("AWS_ENDPOINT_URL_S3", &line.endpoint()),
            None => direct,
        };
        Self {
            store,
            walhalla,
            line,
            disk,
            settings: area.path("walhalla.toml"),
            is_out: false,
            ballast: None,
        }
    }

    pub fn describe(&self) -> &'static str {
        match (&self.line, &self.disk) {
            (Some(_), _) => "an S3 server behind a proxy",
            (None, Some(_)) => "a directory on a small file system",
            (None, None) => "a directory",
        }
    }

    /// Whether the store itself can say that it is full.
    pub fn tells_that_it_is_full(&self) -> bool {
        self.line.is_some() || self.disk.is_some()
    }

    pub fn takes_objects(&self) -> bool {
        !self.is_out
    }

    pub fn is_behind_line(&self) -> bool {
        self.line.is_some()
    }

    /// Nobody reaches the store any more; returns in which way.
    pub fn cut_off(&mut self, rng: &mut Rng) -> &'static str {
        self.is_out = true;
        let Some(line) = &self.line else {
            make_unreadable(self.store.path());
            return "store outage: no right to the directory";
        };
        let broken = |ending| Fault::Break {
            side: Side::Request,
            after_bytes: 0,
            ending,
        };
        match rng.u32(..3) {
            0 => {
                line.refuse();
                "store outage: connections refused"
            }
            1 => {
                line.always(broken(Ending::Reset));
                "store outage: connections cut"
            }
            _ => {
                line.always(broken(Ending::Silence));
                "store outage: silent connections"
            }
        }
    }

    /// Now and then a cut, a lost answer, a silent connection or a 503; nothing of it lasts.
    pub fn make_flaky(&self, rng: &mut Rng) {
        self.set("retry_timeout", PATIENT);
        let line = self.line.as_ref().expect("a store behind a line");
        let cut = |side, ending| Fault::Break {
            side,
            after_bytes: 2000,
            ending,
        };
        let busy = Answer::status(503).body("<Error><Code>SlowDown</Code></Error>");
        let mut often = |most: u32| When::Every(rng.u32(4..most));
        line.on(Requests::all(), often(9), Fault::Answer(busy));
        line.on(
            Requests::with_method("GET"),
            often(7),
            cut(Side::Answer, Ending::Reset),
        );
        line.on(
            Requests::with_method("PUT"),
            often(7),
            cut(Side::Request, Ending::Close),
        );
        line.on(Requests::all(), often(12), Fault::LoseAnswer(Ending::Close));
    }

    /// How many requests met a fault on the line.
    pub fn faults_met(&self) -> usize {
        self.line.as_ref().map_or(0, Proxy::faults_met)
    }

    /// Takes the room in which objects are stored; returns in which way.
    ///
    /// Only root can mount a file system to fill. For others, and on an S3 server, it is the answer of a store that is
    /// full, or a limit on the length of files, by which a write ends in the middle too.
    pub fn fill(&mut self, cluster: &Cluster) -> &'static str {
        self.is_out = true;
        if let Some(line) = &self.line {
            let full = Answer::status(507).body("<Error><Code>InsufficientStorage</Code></Error>");
            line.on(
                Requests::with_method("PUT"),
                When::Always,
                Fault::Answer(full),
            );
            return "full store: the server's answer";
        }
        if let Some(disk) = &self.disk {
            self.ballast = Some(disk.fill());
            return "full store: no space left on the device";
        }
        let limited = self.walhalla.archive_settings();
        let limited = limited.replace(
            "archive_command = '",
            &format!("archive_command = '{LIMIT}"),
        );
        cluster.configure(&limited);
        "full store: a limit on the length of files"
    }

    /// A command of the program under the same want of room as [`Self::fill`] made.
    pub fn limited(&self, command: &Command) -> Command {
        if self.tells_that_it_is_full() {
            return copy_of(command);
        }
        with_file_limit(command)
    }

    /// Everything works again.
    pub fn heal(&mut self, cluster: &Cluster) {
        self.is_out = false;
        if let Some(line) = &self.line {
            line.heal();
            line.accept();
        } else {
            give_rights_back(self.store.path());
        }
        if let Some(ballast) = self.ballast.take() {
            std::fs::remove_file(ballast).unwrap();
        }
        self.set("retry_timeout", HASTY);
        cluster.configure(&archive_settings(&self.walhalla));
    }

    /// Copies the store out of a file system that goes with the life, for somebody to look into.
    pub fn rescue(&self, area: &Area) {
        if self.disk.is_some() {
            let from = self.store.path();
            let copied = run(Command::new("cp")
                .arg("-a")
                .arg(from)
                .arg(area.path("store")));
            println!("the store is copied to its directory: {:?}", copied.code);
        }
    }

    /// Sets one line of the settings file. Whoever reads it meanwhile reads all of the old or all of the new one.
    pub fn set(&self, key: &str, value: &str) {
        let text = std::fs::read_to_string(&self.settings).unwrap();
        let is_other = |line: &&str| line.split(" =").next() != Some(key);
        let mut lines: Vec<&str> = text.lines().filter(is_other).collect();
        let line = format!("{key} = {value}");
        lines.push(&line);
        let new = self.settings.with_extension("new");
        std::fs::write(&new, lines.join("\n")).unwrap();
        host().give_to_user(&new);
        std::fs::rename(new, &self.settings).unwrap();
    }
}

/// What it says more is counted. With a killed program told to the server as a failure: by a signal its archiver would end, and come again no sooner
/// than after ten seconds (pgarch.c, `PGARCH_RESTART_INTERVAL`).
pub fn archive_settings(walhalla: &Walhalla) -> String {
    walhalla
        .archive_settings()
        .replace("wal-push %p'", "-v wal-push %p || exit 1'")
}

/// Writes fail with EFBIG after so many blocks of 512 bytes, as the signal is ignored.
const LIMIT: &str = "trap \"\" XFSZ; ulimit -f 4; ";

/// The command, whose files may have only a few KiB each.
pub fn with_file_limit(command: &Command) -> Command {
    let mut limited = host().command("sh");
    limited
        .args(["-c", &format!("{LIMIT}exec \"$@\""), "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    take_env(&mut limited, command);
    limited
}

fn copy_of(command: &Command) -> Command {
    let mut copy = host().command(command.get_program());
    copy.args(command.get_args());
    take_env(&mut copy, command);
    copy
}

fn take_env(to: &mut Command, from: &Command) {
    let set = from
        .get_envs()
        .filter_map(|(key, value)| Some((key, value?)));
    to.envs(set);
}

/// A file system in memory with little room; root's only.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    pub fn mount(path: PathBuf, megabytes: u32) -> Self {
        let host = host();
        assert!(host.is_root, "only root can mount a file system");
        let options = format!(
            "size={megabytes}m,mode=755,uid={},gid={}",
            host.uid, host.gid
        );
        let mut mount = Command::new("mount");
        run(mount
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(&path))
        .succeeds();
        Self { path }
    }

    /// Writes a file until nothing more fits.
    fn fill(&self) -> PathBuf {
        let ballast = self.path.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        let mut size = 1 << 20;
        while size > 0 {
            if file.write_all(&vec![0; size]).is_err() {
                size /= 4;
            }
        }
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever is still in it does not hold it up.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// How long a fault may take to show.
pub const PATIENCE: Duration = Duration::from_mins(1);
