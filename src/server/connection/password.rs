//! The password file (fe-connect.c, `passwordFromFile`).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Place, Surroundings};

/// The password for a place, a database and a user: of the first line that fits. A file that others may read is passed
/// over with a warning.
pub(super) fn of(
    named: Option<&str>,
    surroundings: &Surroundings,
    place: &Place,
    database: &str,
    user: &str,
) -> Option<String> {
    let default = || Some(surroundings.home.as_ref()?.join(".pgpass"));
    let path = named.map(PathBuf::from).or_else(default)?;
    let text = read(&path)?;
    let port = place.port.to_string();
    let fits = |field: &str, value: &str| field == "*" || unescaped(field) == value;
    text.lines().find_map(|line| {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let [host, its_port, its_database, its_user, password] = fields(line)?;
        let is_it = place.called.iter().any(|name| fits(host, name))
            && fits(its_port, &port)
            && fits(its_database, database)
            && fits(its_user, user);
        (is_it && !line.starts_with('#')).then(|| unescaped(password))
    })
}

fn read(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        tracing::warn!(
            "the password file {} is not a plain file and is not used",
            path.display()
        );
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(
            "the password file {} may be read by others and is not used; its mode should be 0600",
            path.display()
        );
        return None;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::warn!(
                "the password file {} cannot be read: {error}",
                path.display()
            );
            None
        }
    }
}

/// The five fields of a line, as they are written; colons divide them unless a backslash is before them.
fn fields(line: &str) -> Option<[&str; 5]> {
    let mut fields = [""; 5];
    let mut rest = line;
    for field in fields.iter_mut().take(4) {
        (*field, rest) = rest.split_at_checked(colon(rest)?)?;
        rest = rest.strip_prefix(':')?;
    }
    // A password ends at a colon, too.
    *fields.last_mut()? = rest.get(..colon(rest).unwrap_or(rest.len()))?;
    Some(fields)
}

/// Where the first colon is that divides.
fn colon(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices().find_map(|(index, character)| {
        let divides = character == ':' && !is_escaped;
        is_escaped = character == '\\' && !is_escaped;
        divides.then_some(index)
    })
}

fn unescaped(field: &str) -> String {
    let mut text = String::new();
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}
