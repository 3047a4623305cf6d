//! Configuration files, read as PostgreSQL reads them (guc-file.l).
//!
//! `NAME [=] VALUE`, one a line; the last line of a name wins. Names are compared without case. A value is a word or
//! stands between single quotes, in which `''` and backslashes are read as PostgreSQL does. `#` begins a comment.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// How deep files may include each other (guc-file.l, `CONF_FILE_MAX_DEPTH`).
const MAX_DEPTH: u32 = 10;
/// Longest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// The settings of a file and of those that it includes, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    settings: Vec<Setting>,
    unread: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    value: Vec<u8>,
    file: PathBuf,
}

impl Configuration {
    /// Reads a file and what it includes. Lines that PostgreSQL would refuse are passed over.
    ///
    /// # Errors
    /// The system's for the file itself; what is included may be missing.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut configuration = Self::default();
        configuration.add(path, 0)?;
        Ok(configuration)
    }

    /// Reads what a server in `pgdata` reads: `postgresql.conf`, then `postgresql.auto.conf`, with what they include. A file
    /// that is missing has no settings.
    pub fn of_cluster(pgdata: &Path) -> Self {
        Self::of_files(&["postgresql.conf", "postgresql.auto.conf"].map(|name| pgdata.join(name)))
    }

    /// Reads files one after the other, with what they include. A file that is missing has no settings.
    pub fn of_files(files: &[PathBuf]) -> Self {
        let mut configuration = Self::default();
        for path in files {
            if let Err(error) = configuration.add(path, 0) {
                tracing::debug!("could not read {}: {error}", path.display());
            }
        }
        configuration
    }

    /// The value of a setting, if the files have it: that of the last line.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let mut newest = self.settings.iter().rev();
        let found = newest.find(|known| known.name == name);
        found.map(|setting| setting.value.as_slice())
    }

    /// The files that have a setting, those read last at the end.
    pub fn files_with(&self, name: &str) -> Vec<&Path> {
        let with = self.settings.iter().filter(|known| known.name == name);
        with.map(|setting| setting.file.as_path()).collect()
    }

    /// Every file that was read and has a setting.
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = { self.settings.iter() }
            .map(|setting| setting.file.as_path())
            .collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Forgets settings of a file, by their names.
    pub fn leave_out(&mut self, file: &Path, is_unwanted: impl Fn(&str) -> bool) {
        let is_wanted = |setting: &Setting| setting.file != file || !is_unwanted(&setting.name);
        self.settings.retain(is_wanted);
    }

    /// What is included and cannot be read. The server does not start without it.
    pub fn unread(&self) -> &[PathBuf] {
        &self.unread
    }

    /// Whether a setting is switched on; `None` where the files do not have it, or not as true or false.
    pub fn is_on(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(boolean)
    }

    fn add(&mut self, path: &Path, depth: u32) -> io::Result<()> {
        let mut text = Vec::new();
        if !std::fs::metadata(path)?.is_file() {
            // One that is a pipe would be waited for.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // A pipe would be waited for without end.
        std::fs::File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)?
            .take(MAX_BYTES)
            .read_to_end(&mut text)?;
        for (name, value) in settings(&text) {
            // A relative path is told from the file that has it.
            let folder = path.parent().unwrap_or(Path::new("."));
            let included = folder.join(OsStr::from_bytes(&value));
            match name.as_str() {
                "include_if_exists" if !included.exists() => {}
                "include" | "include_if_exists" => self.include(&[included], depth),
                "include_dir" => match files_in(&included) {
                    Ok(files) => self.include(&files, depth),
                    Err(_) => self.unread.push(included),
                },
                _ => self.settings.push(Setting {
                    name,
                    value,
                    file: path.to_owned(),
                }),
            }
        }
        Ok(())
    }

    fn include(&mut self, paths: &[PathBuf], depth: u32) {
        if depth >= MAX_DEPTH {
            return;
        }
        for path in paths {
            if let Err(error) = self.add(path, depth + 1) {
                tracing::debug!("could not read {}: {error}", path.display());
                self.unread.push(path.clone());
            }
        }
    }
}

/// The files that `include_dir` reads, in its order (conffiles.c, `GetConfFilesInDir`).
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.flatten();
    let is_read = |name: &str| name.strip_suffix(".conf").is_some() && !name.starts_with('.');
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_read))
        .map(|entry| entry.path())
        .filter(|path| !path.is_dir())
        .collect();
    paths.sort();
    Ok(paths)
}

/// The settings of a text in their order: names in lower case, values without their quotes. A line that PostgreSQL would
/// refuse is passed over; files that it includes are settings of their own names here.
pub fn settings(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    text.split(|byte| *byte == b'\n')
        .filter_map(setting)
        .collect()
}

/// The value that counts in a text: the last one.
pub fn last(text: &[u8], name: &str) -> Option<Vec<u8>> {
    let settings = settings(text).into_iter().rev();
    { settings }.find_map(|(own, value)| (own == name).then_some(value))
}

/// The text with each line that has this setting made a comment.
pub fn commented_out(text: &[u8], name: &str) -> Vec<u8> {
    let lines = text.split_inclusive(|byte| *byte == b'\n').map(|line| {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        match setting(bare) {
            Some((own, _)) if own == name => [b"# ".as_slice(), line].concat(),
            Some(_) | None => line.to_vec(),
        }
    });
    lines.collect::<Vec<_>>().concat()
}

/// A boolean, by any prefix of its words that is not two's (bool.c, `parse_bool_with_len`).
pub fn boolean(value: &[u8]) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let is_prefix = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    if is_prefix(b"true", 1) || is_prefix(b"yes", 1) || is_prefix(b"on", 2) || value == b"1" {
        Some(true)
    } else if is_prefix(b"false", 1) || is_prefix(b"no", 1) || is_prefix(b"off", 2) || value == b"0"
    {
        Some(false)
    } else {
        None
    }
}

/// A command as it may be shown: without the values that it gives to variables, as there may be secrets among them.
pub fn without_values(command: &str) -> String {
    let mut shown = Vec::new();
    let mut open = None;
    for word in command.split(' ') {
        if let Some(quote) = open {
            open = open.filter(|_| !word.ends_with(quote));
            continue;
        }
        match word.split_once('=') {
            Some((name, value)) if is_variable(name) => {
                shown.push(format!("{name}=********"));
                let quote = value
                    .chars()
                    .next()
                    .filter(|first| ['\'', '"'].contains(first));
                open = quote.filter(|quote| value.len() == 1 || !value.ends_with(*quote));
            }
            _ => shown.push(word.to_owned()),
        }
    }
    shown.join(" ")
}

fn is_variable(name: &str) -> bool {
    let is_of_it = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty() && name.bytes().all(is_of_it)
}

fn setting(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let line = after_space(line);
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.$".contains(byte) || *byte > 0x7f;
    let length = line.iter().take_while(|byte| is_name(byte)).count();
    let (name, rest) = line.split_at_checked(length)?;
    if name
        .first()
        .is_none_or(|first| first.is_ascii_digit() || b".$".contains(first))
    {
        return None;
    }
    let rest = after_space(rest);
    let rest = after_space(rest.strip_prefix(b"=").unwrap_or(rest));
    let (value, rest) = match rest.strip_prefix(b"'") {
        Some(quoted) => unquoted(quoted)?,
        None => word(rest)?,
    };
    let rest = after_space(rest);
    let is_whole = rest.is_empty() || rest.starts_with(b"#");
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    is_whole.then_some((name, value))
}

fn after_space(text: &[u8]) -> &[u8] {
    let count = text
        .iter()
        .take_while(|byte| b" \t\r".contains(byte))
        .count();
    text.get(count..).unwrap_or_default()
}

/// A number or a word (guc-file.l, `UNQUOTED_STRING`), and what follows it.
fn word(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let is_part =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-+._:/".contains(byte) || *byte > 0x7f;
    let length = text.iter().take_while(|byte| is_part(byte)).count();
    let (word, rest) = text.split_at_checked(length)?;
    (!word.is_empty()).then(|| (word.to_vec(), rest))
}

/// A value up to its closing quote, and what follows (guc-file.l, `DeescapeQuotedString`).
fn unquoted(quoted: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut value, mut rest) = (Vec::new(), quoted);
    loop {
        let (first, after) = rest.split_first()?;
        rest = after;
        match first {
            b'\'' => match rest.strip_prefix(b"'") {
                Some(after) => {
                    value.push(b'\'');
                    rest = after;
                }
                None => return Some((value, rest)),
            },
            b'\\' => rest = escaped(rest, &mut value)?,
            byte => value.push(*byte),
        }
    }
}

/// What stands after a backslash.
fn escaped<'t>(text: &'t [u8], value: &mut Vec<u8>) -> Option<&'t [u8]> {
    let digits = text
        .iter()
        .take(3)
        .take_while(|byte| (b'0'..=b'7').contains(byte))
        .count();
    if digits > 0 {
        let (octal, rest) = text.split_at_checked(digits)?;
        let number = octal
            .iter()
            .fold(0_u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
        value.push(u8::try_from(number & 0xff).ok()?);
        return Some(rest);
    }
    let (letter, rest) = text.split_first()?;
    value.push(match letter {
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        other => *other,
    });
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_variables_are_not_shown() {
        for (command, shown) in [
            (
                "AWS_SECRET_ACCESS_KEY=s3cret A=1 /x/walhalla --set=a=b wal-push %p",
                "AWS_SECRET_ACCESS_KEY=******** A=******** /x/walhalla --set=a=b wal-push %p",
            ),
            ("KEY2='two more words' cp %p", "KEY2=******** cp %p"),
            ("A=\"x\" B='y' cp if=%p", "A=******** B=******** cp if=%p"),
        ] {
            assert_eq!(without_values(command), shown);
        }
    }

    #[test]
    fn a_file_is_read_as_postgresql_reads_it() {
        let text = b"# archive_mode = off\n Archive_Mode 'on' # why\narchive_command='it''s %p\\n\\101' \nport=1\nport = 2\nbroken = 'x\nalso broken\xff\nempty =\n";
        let value = |name| last(text, name).map(|value| String::from_utf8(value).unwrap());
        assert_eq!(value("archive_mode").unwrap(), "on");
        assert_eq!(value("archive_command").unwrap(), "it's %p\nA");
        assert_eq!(value("port").unwrap(), "2");
        assert_eq!(value("empty"), None);
        assert_eq!(value("broken"), None);
    }

    #[test]
    fn lines_of_a_setting_become_comments_and_nothing_else_changes() {
        let text = b"a = 1\n  Data_Directory '/x' # why\r\n#data_directory = '/y'\n\xff\ndata_directory=/z";
        assert_eq!(
            commented_out(text, "data_directory"),
            b"a = 1\n#   Data_Directory '/x' # why\r\n#data_directory = '/y'\n\xff\n# data_directory=/z"
        );
    }

    #[test]
    fn booleans_have_prefixes() {
        for (text, wanted) in [
            ("on", Some(true)),
            ("T", Some(true)),
            ("ye", Some(true)),
            ("1", Some(true)),
            ("of", Some(false)),
            ("N", Some(false)),
            ("o", None),
            ("", None),
            ("maybe", None),
        ] {
            assert_eq!(boolean(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn lines_are_read_as_postgresql_reads_them() {
        for (line, value) in [
            ("a = 'x'", Some("x")),
            ("a 'x'", Some("x")),
            ("a'x'", Some("x")),
            ("a=x", Some("x")),
            ("\t A \t=\t x\t# 'y'", Some("x")),
            ("a = 'it''s'", Some("it's")),
            ("a = 'it\\'s'", Some("it's")),
            (r"a = '\101\n\\\z'", Some("A\n\\z")),
            ("a = '# no comment' # one", Some("# no comment")),
            ("a = -1.5e3", Some("-1.5e3")),
            ("a = 16MB", Some("16MB")),
            ("a = ''", Some("")),
            ("a = '\u{fc}'", Some("\u{fc}")),
            ("# a = x", None),
            ("a = 'x", None),
            ("a = x y", None),
            ("a =", None),
            ("a", None),
            ("1a = x", None),
            ("a == x", None),
            ("aa = x", None),
        ] {
            assert_eq!(
                last(line.as_bytes(), "a"),
                value.map(|value: &str| value.as_bytes().to_vec()),
                "{line}"
            );
        }
    }

    #[test]
    fn the_last_line_of_a_name_wins() {
        let text = "a = 'one'\nA = 'two'\nb = 'three'\n# a = 'four'\na = broken line\n";
        assert_eq!(last(text.as_bytes(), "a").unwrap(), b"two");
    }

    #[test]
    fn included_files_are_read_in_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("d")).unwrap();
        std::fs::write(path("d/1.conf"), "b = from_dir\nc = from_dir\n").unwrap();
        std::fs::write(path("d/2.conf"), "c = from_second\n").unwrap();
        std::fs::write(path("d/.hidden.conf"), "c = hidden\n").unwrap();
        std::fs::write(path("d/3.txt"), "c = text\n").unwrap();
        std::fs::write(path("more"), "a = from_more\n").unwrap();
        let text =
            "a = before\nINCLUDE = 'more'\ninclude_if_exists 'absent'\nb = mine\ninclude_dir 'd'\n";
        std::fs::write(path("main"), text).unwrap();
        let read = Configuration::read(&path("main")).unwrap();
        assert_eq!(read.get("a").unwrap(), b"from_more");
        assert_eq!(read.get("b").unwrap(), b"from_dir");
        assert_eq!(read.get("c").unwrap(), b"from_second");
        assert!(Configuration::read(&path("absent")).is_err());
        assert_eq!(read.files_with("b"), [path("main"), path("d/1.conf")]);
        assert!(read.unread().is_empty());
        let text = "include 'gone'\ninclude_dir 'gone.d'\ninclude_if_exists 'gone'\n";
        std::fs::write(path("lacking"), text).unwrap();
        let read = Configuration::read(&path("lacking")).unwrap();
        assert_eq!(read.unread(), [path("gone"), path("gone.d")]);
        // One that includes itself ends.
        std::fs::write(path("loop"), "a = once\ninclude 'loop'\n").unwrap();
        let read = Configuration::read(&path("loop")).unwrap();
        assert_eq!(read.get("a").unwrap(), b"once");
    }
}
