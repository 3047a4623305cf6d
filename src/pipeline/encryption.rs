//! age encryption (<https://age-encryption.org/v1>): to whom new objects are encrypted, and what opens them.
//!
//! A host knows its own objects without opening them: the header of each whole object (a WAL file) has one
//! stanza more than recipients, `-> walhalla-keyed-blake3 HEX`, a digest of the content under a key that only the cluster's
//! servers have. It wraps no key of age's, so every age program passes it over.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, Cursor, IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use age::cli_common::UiCallbacks;
use age::plugin::{self, RecipientPluginV1};
use age::secrecy::{ExposeSecret, SecretString};
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, Decryptor, EncryptError, Encryptor, IdentityFile, NoCallbacks};
use age_core::format::{FileKey, Stanza};

use crate::failure::{Advice, Class, Failure};
use crate::users;
/// Tag of the stanza with the content's digest.
const KEYED_TAG: &str = "walhalla-keyed-blake3";
/// Tag of the stanza that named the content's SHA-256, which confirms guesses; it is read and not written any more.
const SHA256_TAG: &str = "walhalla-sha256";
const FIRST_LINE: &[u8] = b"age-encryption.org/v1";
/// The line that ends a header begins so.
const END_OF_HEADER: &[u8] = b"---";
/// Longest header that is read; each recipient takes 100 to 1,600 bytes of it.
pub const HEADER_BYTES: usize = 64 << 10;
/// What age encrypts at a time (age v1, "Payload").
pub(super) const CHUNK_BYTES: u64 = 64 << 10;
/// What it adds to each of these chunks.
const TAG_BYTES: u64 = 16;
/// What stands between the header and the chunks.
pub(super) const NONCE_BYTES: u64 = 16;
/// Longest file of recipients or identities that is read.
const KEY_FILE_BYTES: u64 = 1 << 20;

type Recipient = Box<dyn age::Recipient + Send + Sync>;
type Identity = Box<dyn age::Identity + Send + Sync>;

/// To whom new objects are encrypted: X25519, SSH and plugin recipients.
pub struct Recipients {
    recipients: Vec<Recipient>,
    texts: Vec<String>,
}

/// Why a recipient is not one.
#[derive(Debug, thiserror::Error)]
pub enum RecipientError {
    /// Its text stays out of every message.
    #[error("a secret key (identity) stands where recipients, which are public keys, belong")]
    IsIdentity,
    /// Not known to age.
    #[error("{0:?}… is no age recipient (age1…, ssh-ed25519 …, ssh-rsa …)")]
    Unknown(String),
    /// The same in a file, whose text may be anything.
    #[error("line {line} of {} is no age recipient (age1…, ssh-ed25519 …, ssh-rsa …)", path.display())]
    UnknownLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A plugin whose program is not there.
    #[error("the program age-plugin-{name} for {recipient} is not in PATH")]
    NoPlugin {
        /// The plugin's name.
        name: String,
        /// The recipient.
        recipient: String,
    },
    /// A file that cannot be read.
    #[error("could not read the recipients file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Nobody could open what is encrypted to nobody.
    #[error("there is no recipient in {}", .0.display())]
    NoneInFile(PathBuf),
    /// The same of a list; who wants no encryption leaves the setting out.
    #[error("there is no recipient in it")]
    NoneInList,
}

impl Recipients {
    /// Recipients from `list` (separated by spaces or commas) and from the lines of `file`; `None` without either.
    ///
    /// # Errors
    /// [`RecipientError`]; also when list or file hold no recipient, as whoever sets one expects encryption.
    pub fn load(list: Option<&str>, file: Option<&Path>) -> Result<Option<Self>, RecipientError> {
        let mut texts = list.map(listed).transpose()?.unwrap_or_default();
        if list.is_some() && texts.is_empty() {
            return Err(RecipientError::NoneInList);
        }
        if let Some(path) = file {
            texts.extend(in_file(path)?);
        }
        if texts.is_empty() {
            return Ok(None);
        }
        let (mut recipients, mut of_plugins) = (Vec::new(), BTreeMap::<String, Vec<_>>::new());
        for text in &texts {
            match parse_recipient(text)? {
                Parsed::Native(recipient) => recipients.push(recipient),
                Parsed::Plugin(recipient) => of_plugins
                    .entry(recipient.plugin().to_owned())
                    .or_default()
                    .push(recipient),
            }
        }
        for (name, members) in of_plugins {
            let no_plugin = |_| RecipientError::NoPlugin {
                name: name.clone(),
                recipient: members.first().map(ToString::to_string).unwrap_or_default(),
            };
            let plugin = RecipientPluginV1::new(&name, &members, &[], NoCallbacks);
            recipients.push(Box::new(OfPlugin {
                plugin: plugin.map_err(no_plugin)?,
                program: format!("age-plugin-{name}"),
            }));
        }
        Ok(Some(Self { recipients, texts }))
    }

    /// The recipients as they are written, in the order of the settings.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Writes a header to `output` and encrypts what is written afterwards. `content` is the keyed digest that the header
    /// tells to all who can read the object.
    ///
    /// # Errors
    /// A recipient's, a plugin's above all.
    pub(super) fn encrypt<W: io::Write>(
        &self,
        content: Option<[u8; 32]>,
        output: W,
    ) -> Result<StreamWriter<W>, EncryptError> {
        let plain = self.recipients.iter();
        let mut all: Vec<&dyn age::Recipient> = plain.map(|recipient| &**recipient as _).collect();
        let named = all
            .first()
            .zip(content)
            .map(|(first, content)| NamingContent {
                recipient: *first,
                content,
            });
        if let (Some(named), Some(first)) = (&named, all.first_mut()) {
            *first = named;
        }
        Ok(Encryptor::with_recipients(all.into_iter())?.wrap_output(output)?)
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.texts).finish()
    }
}

/// Wraps keys as `recipient` does, and adds the stanza with the content's digest. It is no recipient of its own
/// because age wants the same labels of all of them, and only they know theirs.
struct NamingContent<'a> {
    recipient: &'a dyn age::Recipient,
    content: [u8; 32],
}

impl age::Recipient for NamingContent<'_> {
    fn wrap_file_key(
        &self,
        file_key: &FileKey,
    ) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let (mut stanzas, labels) = self.recipient.wrap_file_key(file_key)?;
        stanzas.push(Stanza {
            tag: KEYED_TAG.to_owned(),
            args: vec![hex::encode(self.content)],
            body: Vec::new(),
        });
        Ok((stanzas, labels))
    }
}

/// A plugin's recipients, whose failures name the program.
struct OfPlugin {
    plugin: RecipientPluginV1<NoCallbacks>,
    program: String,
}

impl age::Recipient for OfPlugin {
    fn wrap_file_key(
        &self,
        file_key: &FileKey,
    ) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let wrapped = self.plugin.wrap_file_key(file_key);
        wrapped.map_err(|error| match error {
            EncryptError::Io(error) => {
                let what = format!("{} failed: {error}", self.program);
                io::Error::new(error.kind(), what).into()
            }
            other => other,
        })
    }
}

/// What an object's header tells of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentDigest {
    /// Its SHA-256, as earlier versions told it.
    Sha256([u8; 32]),
    /// Its BLAKE3 hash under a key of the cluster's.
    Keyed([u8; 32]),
}

/// The digest of its content that the header at the beginning of `object` names; `None` where it names none.
///
/// Who has no identity cannot know whether it is true: it serves to recognise one's own earlier push.
pub fn named_digest(object: &[u8]) -> Option<ContentDigest> {
    let mut lines = object.split(|byte| *byte == b'\n');
    lines.next().filter(|line| *line == FIRST_LINE)?;
    let header = lines.take_while(|line| !line.starts_with(END_OF_HEADER));
    let mut digests = header.filter_map(|line| {
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        words.next().filter(|word| *word == "->")?;
        let kind = match words.next()? {
            KEYED_TAG => ContentDigest::Keyed,
            SHA256_TAG => ContentDigest::Sha256,
            _ => return None,
        };
        hex::decode(words.next()?).ok()?.try_into().ok().map(kind)
    });
    digests.next()
}

/// Whether `object` begins with a whole age header and something follows it.
pub fn has_header(object: &[u8]) -> bool {
    let mut lines = object.split(|byte| *byte == b'\n');
    lines.next() == Some(FIRST_LINE)
        && lines.any(|line| line.starts_with(END_OF_HEADER))
        && lines.next().is_some_and(|rest| !rest.is_empty())
}

/// What encryption makes of `packed_bytes`: the whole object but its header.
pub fn payload_bytes(packed_bytes: u64) -> u64 {
    NONCE_BYTES + packed_bytes + packed_bytes.div_ceil(CHUNK_BYTES).max(1) * TAG_BYTES
}

/// Length of what is encrypted in so many bytes of chunks.
pub(super) fn packed_bytes(chunks_bytes: u64) -> u64 {
    let chunks = chunks_bytes.div_ceil(CHUNK_BYTES + TAG_BYTES);
    chunks_bytes.saturating_sub(chunks * TAG_BYTES)
}

/// Length of so many encrypted chunks.
pub(super) fn chunks_bytes(chunks: u64) -> u64 {
    chunks * (CHUNK_BYTES + TAG_BYTES)
}

enum Parsed {
    Native(Recipient),
    Plugin(plugin::Recipient),
}

fn parse_recipient(text: &str) -> Result<Parsed, RecipientError> {
    refuse_identity(text)?;
    // Not more of it than tells which one is meant: it may be a password in the wrong place.
    let unknown = || RecipientError::Unknown(text.chars().take(8).collect());
    if text.starts_with("ssh-") {
        let recipient: age::ssh::Recipient = text.parse().map_err(|_| unknown())?;
        return Ok(Parsed::Native(Box::new(recipient)));
    }
    if let Ok(recipient) = text.parse::<age::x25519::Recipient>() {
        return Ok(Parsed::Native(Box::new(recipient)));
    }
    if let Ok(recipient) = text.parse::<age::tag::Recipient>() {
        return Ok(Parsed::Native(Box::new(recipient)));
    }
    if let Ok(recipient) = text.parse::<age::tagpq::Recipient>() {
        return Ok(Parsed::Native(Box::new(recipient)));
    }
    text.parse().map(Parsed::Plugin).map_err(|_| unknown())
}

/// Divides a list into recipients: one a line, or words. An SSH key is two words; on a line of its own all that follows
/// it is its comment, among words a third one with an `@`.
fn listed(list: &str) -> Result<Vec<String>, RecipientError> {
    if list.contains('\n') {
        let lines = list.lines().map(str::trim).filter(|line| !line.is_empty());
        return lines
            .map(|line| refuse_identity(line).map(|()| without_comment(line)))
            .collect();
    }
    let mut words = list
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .peekable();
    let mut recipients = Vec::new();
    while let Some(word) = words.next() {
        refuse_identity(word)?;
        if word.starts_with("ssh-") {
            let key = words.next().unwrap_or_default();
            recipients.push(format!("{word} {key}"));
            words.next_if(|comment| comment.contains('@'));
        } else {
            recipients.push(word.to_owned());
        }
    }
    Ok(recipients)
}

/// The recipients in a file, one a line, as `age --recipients-file` reads it.
fn in_file(path: &Path) -> Result<Vec<String>, RecipientError> {
    let text = read_key_file(path).map_err(|source| RecipientError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut recipients = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let recipient = without_comment(line);
        parse_recipient(&recipient).map_err(|error| match error {
            RecipientError::Unknown(_) => RecipientError::UnknownLine {
                path: path.to_owned(),
                line: index + 1,
            },
            other => other,
        })?;
        recipients.push(recipient);
    }
    if recipients.is_empty() {
        return Err(RecipientError::NoneInFile(path.to_owned()));
    }
    Ok(recipients)
}

/// An SSH key's line without what follows the key.
fn without_comment(line: &str) -> String {
    if line.starts_with("ssh-") {
        let words: Vec<&str> = line.split_whitespace().take(2).collect();
        words.join(" ")
    } else {
        line.to_owned()
    }
}

fn refuse_identity(text: &str) -> Result<(), RecipientError> {
    if is_secret(text) {
        Err(RecipientError::IsIdentity)
    } else {
        Ok(())
    }
}

/// Whether a text has a secret key in it, which must not be shown.
///
/// A plugin's identity is told by its capitals, which age writes: `/etc/age-plugin-yubikey.txt` is none.
pub fn is_secret(text: &str) -> bool {
    let capitals = text.to_ascii_uppercase();
    capitals.contains("AGE-SECRET-KEY-")
        || capitals.contains("PRIVATE KEY-")
        || text.contains("AGE-PLUGIN-")
}

fn read_key_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(KEY_FILE_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// What opens encrypted objects. The file is read when the first one is met, so that a host that
/// only writes does without it.
#[derive(Clone, Default)]
pub struct Identities(Option<Arc<Source>>);

struct Source {
    file: PathBuf,
    loaded: OnceLock<Result<Vec<Identity>, Arc<IdentityError>>>,
}

/// Why an encrypted object stays closed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Locked {
    /// The setting is missing.
    #[error("no identity is set that could open it")]
    NoIdentity,
    /// The wrong identity, or a header in which bits have changed.
    #[error("no identity in {} opens it", .0.display())]
    OtherRecipients(PathBuf),
    /// A plugin failed or is missing.
    #[error("the plugin of an identity in {} failed", file.display())]
    Plugin {
        /// The file of identities.
        file: PathBuf,
        /// What the plugin said.
        #[source]
        source: Box<DecryptError>,
    },
    /// No identity could be had from the file.
    #[error("the identity file {} cannot be used", file.display())]
    Unusable {
        /// The file of identities.
        file: PathBuf,
        /// Why.
        #[source]
        source: Arc<IdentityError>,
    },
}

impl Failure for Locked {
    fn class(&self) -> Class {
        match self {
            Self::OtherRecipients(_) => Class::OtherKey,
            Self::NoIdentity | Self::Plugin { .. } | Self::Unusable { .. } => Class::Locked,
        }
    }

    fn hint(&self) -> Option<Advice> {
        const IDENTITY_LINES: &str = "correct the file that `age_identity_file` names: it holds lines AGE-SECRET-KEY-… or AGE-PLUGIN-…, \
                                      or an SSH private key without a passphrase";
        const PLUGIN: &str = "the program age-plugin-NAME must be in the PATH of whoever opens it, the server too, and reach the key it holds";
        let text = match self {
            Self::NoIdentity => {
                "name the file that holds the identity (AGE-SECRET-KEY-…, AGE-PLUGIN-… or an SSH private key) with \
                 `age_identity_file` or WALHALLA_AGE_IDENTITY_FILE"
            }
            Self::OtherRecipients(_) => {
                "set `age_identity_file` to the identity of a recipient it was encrypted to (`walhalla backup-show` lists \
                 a backup's recipients); if that is the one, the object's header is damaged"
            }
            Self::Plugin { .. } => PLUGIN,
            Self::Unusable { source, .. } if matches!(**source, IdentityError::NoPlugin(_)) => {
                PLUGIN
            }
            Self::Unusable { source, .. } => match **source {
                IdentityError::Read(ref error) if error.kind() == io::ErrorKind::NotFound => {
                    "copy the identity to this path from where you keep it, or correct `age_identity_file`"
                }
                IdentityError::Read(ref error)
                    if error.kind() == io::ErrorKind::PermissionDenied =>
                {
                    "give the file to the user that runs this command (chown, chmod 600), or run the command as the file's owner; a \
                     server that fetches its WAL reads the file as its own user"
                }
                IdentityError::Read(ref error) if error.kind() == io::ErrorKind::IsADirectory => {
                    "name the file itself in `age_identity_file`, not its directory"
                }
                _ => IDENTITY_LINES,
            },
        };
        Some(text.into())
    }
}

/// What is wrong with a file of identities. The file's text stays out of it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system's reason, or age's with a line number.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// Nobody is there to type it.
    #[error(
        "it is protected by a passphrase; take the passphrase off in a copy that only its owner can read"
    )]
    Passphrase,
    /// A kind of SSH key that age does not know.
    #[error("it is an SSH key of a kind that age does not use (ssh-ed25519 and ssh-rsa are)")]
    SshKind,
    /// Comments only.
    #[error("there is no identity in it")]
    Empty,
    /// Only the plugin knows.
    #[error("age-plugin-{0} tells the recipient of its identities")]
    OfPlugin(String),
    /// A plugin that is missing.
    #[error("the program {0} is not in PATH")]
    NoPlugin(String),
    /// A plugin's identity that is none.
    #[error(transparent)]
    Plugin(DecryptError),
}

impl From<DecryptError> for IdentityError {
    fn from(error: DecryptError) -> Self {
        match error {
            DecryptError::PluginResolve(plugin::ResolveError::MissingPlugin { binary_name }) => {
                Self::NoPlugin(binary_name)
            }
            other => Self::Plugin(other),
        }
    }
}

/// Why content cannot be had from what was read.
#[derive(Debug)]
pub enum OpenError {
    /// Whoever has the identity can open it.
    Locked(Locked),
    /// Nobody can, or the store failed.
    Unreadable(io::Error),
}

impl Identities {
    /// The identities in `file`; none without.
    pub fn new(file: Option<&Path>) -> Self {
        Self(file.map(|file| {
            Arc::new(Source {
                file: file.to_owned(),
                loaded: OnceLock::new(),
            })
        }))
    }

    /// Whether there is a file that holds them.
    pub fn are_set(&self) -> bool {
        self.0.is_some()
    }

    /// The file that holds them.
    pub fn file(&self) -> Option<&Path> {
        self.0.as_ref().map(|source| source.file.as_path())
    }

    /// Sees that the file can be read and holds identities.
    ///
    /// # Errors
    /// Why not.
    pub fn must_be_usable(&self) -> Result<(), Arc<IdentityError>> {
        let source = self.0.as_ref();
        source.map_or(Ok(()), |source| source.identities().map(drop))
    }

    /// Opens an age file.
    pub(super) fn decrypt<R: BufRead>(
        &self,
        input: R,
    ) -> Result<StreamReader<impl BufRead + use<R>>, OpenError> {
        self.unseal(|| with_bounded_header(input))
    }

    /// The same for an input that ends within [`HEADER_BYTES`] until the header was read.
    pub(super) fn decrypt_bounded<R: BufRead>(
        &self,
        input: R,
    ) -> Result<StreamReader<R>, OpenError> {
        self.unseal(|| Ok(input))
    }

    fn unseal<R: BufRead>(
        &self,
        input: impl FnOnce() -> io::Result<R>,
    ) -> Result<StreamReader<R>, OpenError> {
        let locked = |reason| Err(OpenError::Locked(reason));
        let Some(source) = &self.0 else {
            return locked(Locked::NoIdentity);
        };
        let file = source.file.clone();
        let identities = match source.identities() {
            Ok(identities) => identities.iter().map(|identity| &**identity as _),
            Err(source) => return locked(Locked::Unusable { file, source }),
        };
        let input = input().map_err(OpenError::Unreadable)?;
        let sealed = Decryptor::new_buffered(input).map_err(|error| {
            OpenError::Unreadable(match error {
                DecryptError::Io(error) => error,
                damage => io::Error::other(damage),
            })
        })?;
        sealed.decrypt(identities).or_else(|error| match error {
            DecryptError::NoMatchingKeys => locked(Locked::OtherRecipients(file)),
            // Plugins alone read and write something here.
            DecryptError::Plugin(_) | DecryptError::PluginResolve(_) | DecryptError::Io(_) => {
                locked(Locked::Plugin {
                    file,
                    source: Box::new(error),
                })
            }
            damage => Err(OpenError::Unreadable(io::Error::other(damage))),
        })
    }
}

/// The same bytes, of which the header was read before: age itself would take any length of line into memory.
fn with_bounded_header<R: BufRead>(mut input: R) -> io::Result<io::Chain<Cursor<Vec<u8>>, R>> {
    let mut header = Vec::new();
    let mut bounded = input.by_ref().take(HEADER_BYTES as u64);
    loop {
        let line_at = header.len();
        let count = bounded.read_until(b'\n', &mut header)?;
        let is_last = header
            .get(line_at..)
            .is_some_and(|line| line.starts_with(END_OF_HEADER));
        if is_last || count == 0 {
            break;
        }
    }
    if header.len() < HEADER_BYTES {
        Ok(Cursor::new(header).chain(input))
    } else {
        let reason = "it does not begin with an age header";
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.0.as_ref().map(|source| &source.file);
        f.debug_tuple("Identities").field(&file).finish()
    }
}

impl Source {
    fn identities(&self) -> Result<&[Identity], Arc<IdentityError>> {
        let loaded = self
            .loaded
            .get_or_init(|| load_identities(&self.file).map_err(Arc::new));
        loaded.as_deref().map_err(Arc::clone)
    }
}

fn load_identities(path: &Path) -> Result<Vec<Identity>, IdentityError> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if users::is_open_to_others(&found) {
        let mode = found.permissions().mode() & 0o777;
        tracing::warn!(
            "the identity file {} can be read by others than its owner (mode {mode:04o}): chmod 600 it",
            path.display()
        );
    }
    drop(file);
    let text = identity_text(path)?;
    let identities = if text.trim_start().starts_with("-----BEGIN") {
        vec![ssh_identity(&text)?]
    } else {
        native_identities(&text)?
    };
    if identities.is_empty() {
        return Err(IdentityError::Empty);
    }
    Ok(identities)
}

/// The text of a file of identities, which may itself be encrypted, as `age --passphrase` does it.
fn identity_text(path: &Path) -> Result<String, IdentityError> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(KEY_FILE_BYTES)
        .read_to_end(&mut bytes)?;
    let begins = |mark: &str| bytes.trim_ascii_start().starts_with(mark.as_bytes());
    if begins("age-encryption.org/") || begins("-----BEGIN AGE ENCRYPTED FILE") {
        return Err(IdentityError::Passphrase);
    }
    let no_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no text");
    Ok(String::from_utf8(bytes).map_err(no_text)?)
}

/// A new X25519 identity as the text of an identity file, and its recipient.
pub fn generate(now: jiff::Timestamp) -> (SecretString, String) {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let secret = identity.to_string();
    let text = format!(
        "# created: {now}\n# public key: {recipient}\n{}\n",
        secret.expose_secret()
    );
    (text.into(), recipient)
}

/// The recipients of the identities in a file.
///
/// # Errors
/// [`IdentityError`]; a plugin's identity does not tell its recipient.
pub fn recipients_of(path: &Path) -> Result<Vec<String>, IdentityError> {
    let text = identity_text(path)?;
    if text.trim_start().starts_with("-----BEGIN") {
        let identity = age::ssh::Identity::from_buffer(text.as_bytes(), None)?;
        let recipient = age::ssh::Recipient::try_from(identity);
        return Ok(vec![
            recipient.map_err(|_| IdentityError::SshKind)?.to_string(),
        ]);
    }
    let mut recipients = Vec::new();
    let file = IdentityFile::from_buffer(text.as_bytes())?;
    file.write_recipients_file(&mut recipients)
        .map_err(|error| match error {
            age::IdentityFileConvertError::NoIdentities { .. } => IdentityError::Empty,
            age::IdentityFileConvertError::IdentityFileContainsPlugin { plugin_name, .. } => {
                IdentityError::OfPlugin(plugin_name)
            }
            other => io::Error::other(other.to_string()).into(),
        })?;
    let recipients = String::from_utf8_lossy(&recipients);
    Ok(recipients.lines().map(str::to_owned).collect())
}

/// The identities in age's own form, those of plugins last: a plugin that fails must not keep the others from opening
/// an object.
fn native_identities(text: &str) -> Result<Vec<Identity>, IdentityError> {
    let is_plugins = |line: &str| line.starts_with("AGE-PLUGIN-");
    // An empty line for each of a plugin, so that age's messages count lines aright.
    let own = text
        .lines()
        .map(|line| if is_plugins(line) { "" } else { line });
    let own: Vec<&str> = own.collect();
    let mut identities = IdentityFile::from_buffer(own.join("\n").as_bytes())?.into_identities()?;
    for line in text.lines().filter(|line| is_plugins(line)) {
        let of_plugin = IdentityFile::from_buffer(line.as_bytes())?;
        // A hardware key asks for its PIN or a touch, if there is somebody to ask.
        let of_plugin = if io::stderr().is_terminal() {
            of_plugin.with_callbacks(UiCallbacks).into_identities()
        } else {
            of_plugin.into_identities()
        };
        match of_plugin.map_err(IdentityError::from) {
            Ok(found) => identities.extend(found),
            Err(error) if !identities.is_empty() => tracing::warn!("{error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(identities)
}

fn ssh_identity(text: &str) -> Result<Identity, IdentityError> {
    match age::ssh::Identity::from_buffer(text.as_bytes(), None)? {
        age::ssh::Identity::Encrypted(_) => Err(IdentityError::Passphrase),
        age::ssh::Identity::Unsupported(_) => Err(IdentityError::SshKind),
        unencrypted @ age::ssh::Identity::Unencrypted(_) => Ok(Box::new(unencrypted)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An identity's file and what encrypts to it.
    fn keys(dir: &Path) -> (Identities, Recipients) {
        let (identity, recipient) = generate(jiff::Timestamp::UNIX_EPOCH);
        let path = dir.join("identity");
        std::fs::write(&path, identity.expose_secret()).unwrap();
        let recipients = Recipients::load(Some(&recipient), None).unwrap().unwrap();
        (Identities::new(Some(&path)), recipients)
    }

    fn encrypt(recipients: &Recipients, content: &[u8]) -> Vec<u8> {
        let mut writer = recipients.encrypt(Some([7; 32]), Vec::new()).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn decrypt(identities: &Identities, object: &[u8]) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        let mut reader = identities.decrypt(object).ok()?;
        reader.read_to_end(&mut content).ok().map(|_| content)
    }

    #[test]
    fn every_changed_bit_cut_and_further_byte_of_an_age_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (identities, recipients) = keys(dir.path());
        // One chunk that is full, and none.
        for content in [vec![1; 64 << 10], b"content".to_vec(), Vec::new()] {
            let object = encrypt(&recipients, &content);
            assert_eq!(named_digest(&object), Some(ContentDigest::Keyed([7; 32])));
            assert_eq!(decrypt(&identities, &object), Some(content));
            let header = object.len().min(500);
            for bit in (0..header * 8).chain(object.len() * 8 - 64..object.len() * 8) {
                let mut damaged = object.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decrypt(&identities, &damaged), None, "bit {bit}");
            }
            for length in (0..header).chain([object.len() - 1]) {
                assert_eq!(
                    decrypt(&identities, &object[..length]),
                    None,
                    "cut at {length}"
                );
            }
            assert_eq!(decrypt(&identities, &[&object[..], b"\0"].concat()), None);
        }
    }

    #[test]
    fn the_digest_that_earlier_versions_wrote_is_still_read() {
        let digest = hex::encode([9; 32]);
        let header = format!(
            "age-encryption.org/v1\n-> X25519 x\nbody\n-> walhalla-sha256 {digest}\n\n--- mac\n"
        );
        let read = named_digest(header.as_bytes());
        assert_eq!(read, Some(ContentDigest::Sha256([9; 32])));
    }

    #[test]
    fn a_header_without_an_end_is_not_read_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (identities, _) = keys(dir.path());
        let mut zeros = io::BufReader::new(io::repeat(0));
        assert!(matches!(
            identities.decrypt(&mut zeros),
            Err(OpenError::Unreadable(_))
        ));
        let line = b"age-encryption.org/v1\n-> X25519 ".as_slice();
        let endless = io::BufReader::new(line.chain(io::repeat(b'A')));
        assert!(matches!(
            identities.decrypt(endless),
            Err(OpenError::Unreadable(_))
        ));
    }

    #[test]
    fn lists_of_recipients_are_divided_and_secrets_in_them_refused() {
        let ssh =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN";
        let (secret, age) = generate(jiff::Timestamp::UNIX_EPOCH);
        let wanted = Some(vec![ssh.to_owned(), age.clone()]);
        for list in [
            format!("{ssh} {age}"),
            format!("{ssh} dba@host, {age}"),
            format!("{ssh},{age}"),
        ] {
            let found = Recipients::load(Some(&list), None).unwrap();
            assert_eq!(found.map(|found| found.texts().to_vec()), wanted, "{list}");
        }
        let none = Recipients::load(Some(" , "), None);
        assert!(matches!(none, Err(RecipientError::NoneInList)));
        for list in [format!("{ssh} comment"), "age1nonsense".to_owned()] {
            let unknown = Recipients::load(Some(&list), None);
            assert!(matches!(unknown, Err(RecipientError::Unknown(_))), "{list}");
        }
        let refused = Recipients::load(Some(secret.expose_secret()), None);
        assert!(!refused.unwrap_err().to_string().contains("SECRET-KEY-1"));
    }
}
