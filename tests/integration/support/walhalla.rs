//! The program under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Area, Cluster, Outcome, Store, host, run};

/// The program with its settings: a settings file and, for stores that want them, variables.
#[derive(Clone)]
pub struct Walhalla {
    config: PathBuf,
    env: Vec<(String, String)>,
}

/// How a run ended that was to be killed.
pub enum Ending {
    Killed,
    /// It was faster than the kill.
    Finished(Outcome),
}

impl Walhalla {
    pub fn new(area: &Area, store: &Store) -> Self {
        Self::with_settings(area, store, "")
    }

    /// With further lines of settings.
    pub fn with_settings(area: &Area, store: &Store, lines: &str) -> Self {
        Self::on_host(area, "walhalla", store, lines)
    }

    /// With a settings file of this name, as another host has.
    pub fn on_host(area: &Area, name: &str, store: &Store, lines: &str) -> Self {
        let config = area.write(
            &format!("{name}.toml"),
            format!("store = \"{}\"\n{lines}\n", store.url()),
        );
        Self {
            config,
            env: store.env(),
        }
    }

    /// The same with another value for a variable.
    pub fn with_env(&self, key: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.env.retain(|(known, _)| known != key);
        other.env.push((key.to_owned(), value.to_owned()));
        other
    }

    /// The same, encrypting to these recipients.
    pub fn encrypting_to(&self, recipients: &[&str]) -> Self {
        self.with_env("WALHALLA_AGE_RECIPIENTS", &recipients.join(" "))
    }

    /// The same, opening with the identities in this file.
    pub fn opening_with(&self, identity_file: &Path) -> Self {
        self.with_env(
            "WALHALLA_AGE_IDENTITY_FILE",
            identity_file.to_str().unwrap(),
        )
    }

    /// The same without these variables.
    pub fn without_env(&self, keys: &[&str]) -> Self {
        let mut other = self.clone();
        other
            .env
            .retain(|(known, _)| !keys.contains(&known.as_str()));
        other
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = host().command(&host().program);
        command
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .envs(self.env.iter().cloned());
        command
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        run(&mut self.command(args))
    }

    /// As the server runs its archive and restore commands: in the data directory.
    pub fn run_in(&self, dir: &Path, args: &[&str]) -> Outcome {
        run(self.command(args).current_dir(dir))
    }

    /// Runs a command that looks at a running server.
    pub fn run_with(&self, cluster: &Cluster, args: &[&str]) -> Outcome {
        run(self.command(args).envs(cluster.connection()))
    }

    /// Starts the command and ends it with SIGKILL after the delay, unless it ended before.
    pub fn kill_after(command: &mut Command, delay: Duration) -> Ending {
        let shown = format!("{command:?}");
        let start = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while start.elapsed() < delay && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let is_finished = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        // It may have ended between the last look and the kill.
        if is_finished || output.status.code().is_some() {
            return Ending::Finished(Outcome::of(shown, &output));
        }
        Ending::Killed
    }

    /// The line for `postgresql.conf` that archives with this.
    pub fn archive_settings(&self) -> String {
        let (program, config) = (host().program.display(), self.config.display());
        format!("archive_mode = on\narchive_command = '{program} --config {config} wal-push %p'")
    }

    /// The line for `postgresql.conf` that recovers with this.
    pub fn restore_settings(&self) -> String {
        let (program, config) = (host().program.display(), self.config.display());
        format!("restore_command = '{program} --config {config} wal-fetch %f %p'")
    }

    /// Gives a server what its archive and restore commands want in their environment.
    pub fn give_env(&self, cluster: &mut Cluster) {
        cluster.set_env(&self.env);
    }

    /// Makes the cluster archive with this, and starts it.
    pub fn archive_from(&self, cluster: &mut Cluster) {
        cluster.configure(&self.archive_settings());
        self.give_env(cluster);
        cluster.start();
    }

    /// Makes the cluster recover with this, and not archive.
    pub fn recover(&self, cluster: &mut Cluster) {
        cluster.configure(&self.restore_settings());
        cluster.configure("archive_mode = off");
        self.give_env(cluster);
    }

    /// Takes a full backup of a running server; returns its id.
    #[track_caller]
    pub fn back_up(&self, cluster: &Cluster) -> String {
        self.run_with(cluster, &["backup-push", cluster.data.to_str().unwrap()])
            .succeeds();
        self.newest_backup()
    }

    #[track_caller]
    pub fn newest_backup(&self) -> String {
        self.backup_ids().pop().expect("a backup in the list")
    }

    /// The ids of all backups, oldest first.
    #[track_caller]
    pub fn backup_ids(&self) -> Vec<String> {
        let list = self.run(&["backup-list", "--json"]).succeeds().json();
        list.as_array()
            .unwrap()
            .iter()
            .map(|backup| backup["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Restores into a new directory of this name, as a copy that does not archive; does not start it.
    #[track_caller]
    pub fn restore(&self, area: &Area, version: u32, name: &str, args: &[&str]) -> Cluster {
        let mut all = vec!["--archive-mode", "off"];
        all.extend_from_slice(args);
        self.restore_archiving(area, version, name, &all)
    }

    /// Restores into a new directory of this name; the copy archives as the original did.
    #[track_caller]
    pub fn restore_archiving(
        &self,
        area: &Area,
        version: u32,
        name: &str,
        args: &[&str],
    ) -> Cluster {
        let data = area.path(name);
        let mut all = vec!["restore", data.to_str().unwrap()];
        all.extend_from_slice(args);
        self.run(&all).succeeds();
        Cluster::adopt(area, version, data)
    }
}
