//! Where things are on this machine, and the user who runs them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What `tests/stage.sh` found: PostgreSQL and the program under test, reachable for the user who runs them.
pub struct Host {
    pub uid: u32,
    pub gid: u32,
    /// Whether the tests themselves run as root, and thus can mount a file system and change users.
    pub is_root: bool,
    pub program: PathBuf,
    pub scratch: PathBuf,
    pub templates: PathBuf,
    postgres: PathBuf,
}

/// A version as PostgreSQL writes it: tests call 9.6 by the number 9.
pub fn version_name(version: u32) -> String {
    if version == 9 {
        "9.6".to_owned()
    } else {
        version.to_string()
    }
}

/// Where programs are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(Host::find)
}

impl Host {
    fn find() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stage.sh");
        let built = env!("CARGO_BIN_EXE_walhalla").into();
        let program = std::env::var_os("WALHALLA_TEST_PROGRAM").unwrap_or(built);
        let output = Command::new(&script)
            .arg(program)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{} failed", script.display());
        let text = String::from_utf8(output.stdout).unwrap();
        let found: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .collect();
        Self {
            uid: found["uid"].parse().unwrap(),
            gid: found["gid"].parse().unwrap(),
            is_root: std::fs::metadata("/proc/self")
                .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0),
            program: found["program"].into(),
            scratch: found["scratch"].into(),
            templates: found["templates"].into(),
            postgres: found["postgres"].into(),
        }
    }

    /// A program to be run as the unprivileged user, with no environment but a path and without input.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .env("RUST_BACKTRACE", "1")
            .current_dir("/")
            .stdin(Stdio::null());
        if self.is_root {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// A server program of exactly this version.
    pub fn server_program(&self, version: u32, name: &str) -> PathBuf {
        self.existing(version, name)
    }

    /// A client program for this version: the builds of 9.6 to 13 have none, and those of 14 know how to talk to them.
    pub fn client_program(&self, version: u32, name: &str) -> PathBuf {
        self.existing(version.max(14), name)
    }

    fn existing(&self, version: u32, name: &str) -> PathBuf {
        let path = self
            .postgres
            .join(version_name(version))
            .join("bin")
            .join(name);
        assert!(
            path.exists(),
            "{} is missing; run tests/setup.sh",
            path.display()
        );
        path
    }

    pub fn give_to_user(&self, path: &Path) {
        if self.is_root {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid)).unwrap();
        }
    }
}
