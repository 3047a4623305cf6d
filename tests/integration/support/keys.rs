//! Keys of tests, of every kind that age knows.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{Area, PATH, Walhalla, host, run};

/// A key pair: the recipient's text and the file that holds the identity.
pub struct Key {
    pub recipient: String,
    pub identity: PathBuf,
}

impl Key {
    /// Of Walhalla's own making.
    pub fn generate(area: &Area, name: &str) -> Self {
        let identity = area.path(name);
        let mut keygen = host().command(&host().program);
        let outcome = run(keygen.args(["keygen", "--output"]).arg(&identity)).succeeds();
        Self {
            recipient: outcome.stdout.trim().to_owned(),
            identity,
        }
    }

    /// An SSH key of this type, with a passphrase unless that is empty.
    pub fn ssh(area: &Area, kind: &str, passphrase: &str) -> Self {
        let identity = area.path(&format!("id_{kind}{passphrase}"));
        let mut keygen = host().command("ssh-keygen");
        keygen.args(["-q", "-t", kind, "-N", passphrase]);
        keygen.args(["-C", "walhalla@test", "-f"]).arg(&identity);
        if kind == "rsa" {
            keygen.args(["-b", "2048"]);
        }
        run(&mut keygen).succeeds();
        let recipient = std::fs::read_to_string(identity.with_extension("pub")).unwrap();
        Self {
            recipient: recipient.trim().to_owned(),
            identity,
        }
    }

    /// Of the tests' plugin, whose program has to be in the PATH of whoever uses it: [`with_plugin`].
    pub fn of_plugin(area: &Area) -> Self {
        let mut plugin = host().command(plugin_dir(area).join(PLUGIN));
        let text = run(&mut plugin).succeeds().stdout;
        let recipient = text.split("# recipient: ").nth(1).unwrap();
        let recipient = recipient.lines().next().unwrap().to_owned();
        Self {
            recipient,
            identity: write_private(area, "plugin.key", &text),
        }
    }

    /// The secret itself, as it stands in the file.
    pub fn secret(&self) -> String {
        let text = std::fs::read_to_string(&self.identity).unwrap();
        text.lines().last().unwrap().to_owned()
    }

    /// The same identity and others' in one file.
    pub fn together(area: &Area, name: &str, keys: &[&Self]) -> PathBuf {
        let texts = keys
            .iter()
            .map(|key| std::fs::read_to_string(&key.identity).unwrap());
        write_private(area, name, &texts.collect::<String>())
    }
}

/// A file that only its owner can read.
pub fn write_private(area: &Area, name: &str, text: &str) -> PathBuf {
    let path = area.write(name, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The tests' plugin, as age looks for it.
pub const PLUGIN: &str = "age-plugin-walhallatest";

/// The same with the tests' plugin in PATH.
pub fn with_plugin(area: &Area, walhalla: &Walhalla) -> Walhalla {
    walhalla.with_env("PATH", &format!("{}:{PATH}", plugin_dir(area).display()))
}

/// A directory with the plugin in it, which the unprivileged user can reach.
fn plugin_dir(area: &Area) -> PathBuf {
    let dir = area.path("plugins");
    if !dir.exists() {
        let built = Path::new(env!("CARGO_BIN_EXE_walhalla"))
            .with_file_name("examples")
            .join(PLUGIN);
        assert!(
            built.exists(),
            "{} is missing; `make test` builds it, and `cargo build --examples`",
            built.display()
        );
        area.make_dir("plugins");
        std::fs::copy(built, dir.join(PLUGIN)).unwrap();
    }
    dir
}
