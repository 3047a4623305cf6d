//! A page of the book, walked through: its blocks of shell run in their order, as in the shells of somebody who reads it.
//!
//! ```text
//! page ─▶ blocks of `sh`, each with the block of `text` behind it ─▶ bash ─▶ what it prints is that text
//! ```
//!
//! Nothing of a page is left out and nothing is done for it. A host is a directory; what a block sets, the later blocks on
//! that host have.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::page::{Block, Page};
use super::{Area, Outcome, PATH, eventually, host, run};

/// A page that is walked through.
pub struct Walk {
    area: Area,
    page: &'static str,
    blocks: VecDeque<Block>,
    host: &'static str,
    env: Vec<(String, String)>,
    path: String,
}

impl Walk {
    /// A page with the servers of this version, at its beginning.
    pub fn through(page: &'static str, version: u32) -> Self {
        let area = Area::new();
        area.make_dir("bin");
        std::os::unix::fs::symlink(&host().program, area.path("bin/walhalla")).unwrap();
        let programs = |path: PathBuf| path.parent().unwrap().display().to_string();
        let servers = programs(host().server_program(version, "postgres"));
        let clients = programs(host().client_program(version, "psql"));
        let own = area.path("bin").display().to_string();
        let mut walk = Self {
            area,
            page,
            blocks: Page::of(page).into_blocks().into(),
            host: "",
            env: Vec::new(),
            path: format!("{own}:{servers}:{clients}:{PATH}"),
        };
        walk.go_to("host");
        walk
    }

    /// Goes to a host, as with a shell there. What was set on another one is not known here.
    pub fn go_to(&mut self, host: &'static str) {
        self.area.make_dir(host);
        self.host = host;
    }

    /// Variables that every host has, such as credentials.
    pub fn set_env(&mut self, env: Vec<(String, String)>) {
        self.env = env;
    }

    /// Where the hosts are.
    pub fn area(&self) -> &Area {
        &self.area
    }

    /// Puts what is known here for what the page has, in all blocks that are left.
    #[track_caller]
    pub fn replace(&mut self, from: &str, to: &str) {
        let is_there = self.blocks.iter().any(|block| block.text.contains(from));
        assert!(is_there, "{} has no {from:?} from here on", self.page);
        for block in &mut self.blocks {
            block.text = block.text.replace(from, to);
        }
    }

    /// Runs the blocks of the next section that has some, which must be this one. Returns what they printed, a text for each.
    #[track_caller]
    pub fn section(&mut self, heading: &str) -> Vec<String> {
        let next = self.blocks.front().map(|block| block.heading.as_str());
        assert_eq!(next, Some(heading), "the next section of {}", self.page);
        let mut printed: Vec<Outcome> = Vec::new();
        while self.blocks.front().is_some_and(|it| it.heading == heading) {
            let block = self.blocks.pop_front().unwrap();
            match block.language.as_str() {
                "sh" => printed.push(self.run(&block.text).succeeds()),
                "text" => {
                    let outcome = printed.last().expect("a block that prints the text");
                    let is_as_written = outcome.stdout.trim_end() == block.text.trim_end();
                    assert!(
                        is_as_written,
                        "{} has\n{}\nof {outcome}",
                        self.page, block.text
                    );
                }
                // An example of what is printed, with times and sizes of its own; settings for another program.
                _ => {}
            }
        }
        printed.into_iter().map(|outcome| outcome.stdout).collect()
    }

    /// What a command prints on this host, in one line.
    #[track_caller]
    pub fn ask(&self, command: &str) -> String {
        self.run(command).succeeds().stdout.trim().to_owned()
    }

    /// Waits until a command prints this.
    pub fn wait_for(&self, command: &str, expected: &str) {
        eventually(command, Duration::from_mins(1), || {
            self.run(command).stdout.trim() == expected
        });
    }

    /// Asserts that every block of the page was run.
    #[track_caller]
    pub fn is_at_its_end(&self) {
        let left = self.blocks.front().map(|block| block.heading.as_str());
        assert_eq!(left, None, "of {} this was not run", self.page);
    }

    /// Runs a block of shell on this host.
    pub fn run(&self, block: &str) -> Outcome {
        let kept = self.area.path(&format!("{}.shell", self.host));
        let kept = kept.display();
        let mut script = format!("[ ! -e {kept} ] || . {kept}\nset -a\n");
        let _ = writeln!(script, "{block}");
        let _ = writeln!(script, "set +a\n{{ export -p; declare -f; }} >{kept}");
        let mut bash = host().command("bash");
        bash.args(["-eu", "-o", "pipefail", "-c", &script])
            .current_dir(self.area.path(self.host))
            .env("PATH", &self.path)
            .env("HOME", self.area.root())
            // How long a backup waits for its WAL: a busy machine is slow to archive millions of rows.
            .env("WALHALLA_ARCHIVE_TIMEOUT", "10min")
            .envs(self.env.iter().cloned());
        run(&mut bash)
    }

    /// Processes that blocks began and that run still: servers, and what writes to them.
    fn processes(&self) -> Vec<Pid> {
        let root = std::fs::canonicalize(self.area.root()).unwrap();
        let is_ours = |process: &PathBuf| {
            std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&root))
        };
        let pid = |process: PathBuf| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?);
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let ours = processes.map(|entry| entry.path()).filter(is_ours);
        ours.filter_map(pid).collect()
    }

    fn print_logs(&self) {
        for entry in std::fs::read_dir(self.area.path(self.host))
            .unwrap()
            .flatten()
        {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(40)..].join("\n");
                println!("--- the end of {}\n{end}", path.display());
            }
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let end = |signals: &[Signal]| {
            for process in self.processes() {
                for signal in signals {
                    let _ = kill_process(process, *signal);
                }
            }
            let begun = Instant::now();
            while !self.processes().is_empty() && begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        // A server ends at once by the first; what bash runs in the background ignores that one.
        end(&[Signal::QUIT, Signal::TERM]);
        end(&[Signal::KILL]);
    }
}
