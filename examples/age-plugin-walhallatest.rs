//! An age plugin for the tests: it stands for a hardware key or a KMS, and keeps nothing secret.
//!
//! Recipient and identity hold the same sixteen bytes; a file key is wrapped by XOR with them. Without arguments it
//! prints a new identity and its recipient, as `age-plugin-yubikey` and others do.

use std::collections::{HashMap, HashSet};
use std::io;

use age_core::format::{FileKey, Stanza};
use age_core::secrecy::ExposeSecret;
use age_plugin::identity::{self, IdentityPluginV1};
use age_plugin::recipient::{self, RecipientPluginV1};
use age_plugin::{Callbacks, PluginHandler, print_new_identity, run_state_machine};

const NAME: &str = "walhallatest";
/// Bytes of a key that its stanzas show, so that identities know theirs.
const SHOWN_BYTES: usize = 4;

type Key = [u8; 16];

fn main() -> io::Result<()> {
    let argument = std::env::args().nth(1);
    let machine = argument
        .as_deref()
        .and_then(|it| it.strip_prefix("--age-plugin="));
    if let Some(machine) = machine {
        return run_state_machine(machine, Handler);
    }
    let key: Key = std::array::from_fn(|_| fastrand::u8(..));
    print_new_identity(NAME, &key, &key);
    Ok(())
}

struct Handler;

impl PluginHandler for Handler {
    type RecipientV1 = Keys;
    type IdentityV1 = Keys;

    fn recipient_v1(self) -> io::Result<Keys> {
        Ok(Keys::default())
    }

    fn identity_v1(self) -> io::Result<Keys> {
        Ok(Keys::default())
    }
}

#[derive(Default)]
struct Keys(Vec<Key>);

impl Keys {
    fn add(&mut self, plugin_name: &str, bytes: &[u8]) -> Result<(), String> {
        let key = bytes.try_into().ok().filter(|_| plugin_name == NAME);
        self.0
            .push(key.ok_or("it is of another plugin, or damaged")?);
        Ok(())
    }

    /// The key that the stanza names.
    fn of(&self, stanza: &Stanza) -> Option<&Key> {
        let shown = stanza.args.first().filter(|_| stanza.tag == NAME)?;
        self.0.iter().find(|key| *shown == shown_of(key))
    }
}

fn shown_of(key: &Key) -> String {
    hex::encode(key.get(..SHOWN_BYTES).unwrap_or_default())
}

fn xor(key: &Key, bytes: &[u8]) -> Vec<u8> {
    key.iter().zip(bytes).map(|(a, b)| a ^ b).collect()
}

impl RecipientPluginV1 for Keys {
    fn add_recipient(
        &mut self,
        index: usize,
        plugin_name: &str,
        bytes: &[u8],
    ) -> Result<(), recipient::Error> {
        let refused = |message| recipient::Error::Recipient { index, message };
        self.add(plugin_name, bytes).map_err(refused)
    }

    fn add_identity(
        &mut self,
        index: usize,
        plugin_name: &str,
        bytes: &[u8],
    ) -> Result<(), recipient::Error> {
        let refused = |message| recipient::Error::Identity { index, message };
        self.add(plugin_name, bytes).map_err(refused)
    }

    fn labels(&mut self) -> HashSet<String> {
        HashSet::new()
    }

    fn wrap_file_keys(
        &mut self,
        file_keys: Vec<FileKey>,
        _: impl Callbacks<recipient::Error>,
    ) -> io::Result<Result<Vec<Vec<Stanza>>, Vec<recipient::Error>>> {
        let wrapped = |file_key: FileKey| {
            let stanza = |key: &Key| Stanza {
                tag: NAME.to_owned(),
                args: vec![shown_of(key)],
                body: xor(key, file_key.expose_secret()),
            };
            self.0.iter().map(stanza).collect()
        };
        Ok(Ok(file_keys.into_iter().map(wrapped).collect()))
    }
}

impl IdentityPluginV1 for Keys {
    fn add_identity(
        &mut self,
        index: usize,
        plugin_name: &str,
        bytes: &[u8],
    ) -> Result<(), identity::Error> {
        let refused = |message| identity::Error::Identity { index, message };
        self.add(plugin_name, bytes).map_err(refused)
    }

    fn unwrap_file_keys(
        &mut self,
        files: Vec<Vec<Stanza>>,
        _: impl Callbacks<identity::Error>,
    ) -> io::Result<HashMap<usize, Result<FileKey, Vec<identity::Error>>>> {
        let unwrapped = |stanza: &Stanza| {
            let bytes = xor(self.of(stanza)?, &stanza.body);
            let bytes: Key = bytes.try_into().ok()?;
            Some(FileKey::init_with_mut(|file_key| *file_key = bytes))
        };
        let files = files.iter().enumerate();
        let opened = files.filter_map(|(index, stanzas)| {
            let file_key = stanzas.iter().find_map(unwrapped)?;
            Some((index, Ok(file_key)))
        });
        Ok(opened.collect())
    }
}
