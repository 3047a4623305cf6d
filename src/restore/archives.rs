//! Whether a restored server will archive, and whether it can.

use std::path::Path;

use crate::config::DEFAULT_FILE;
use crate::server::conf::{Configuration, boolean, without_values};

/// What the settings of a restored server say of archiving: a copy that archives as the original does may be in its way, and a
/// server that is to archive needs what `archive_command` names.
pub fn notes(settings: &Configuration) -> Vec<String> {
    let value = |name| {
        let value = settings.get(name).filter(|value| !value.is_empty());
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let mode = value("archive_mode").unwrap_or_else(|| "off".to_owned());
    if boolean(mode.as_bytes()) == Some(false) {
        return vec!["by its settings the server will not archive its WAL".to_owned()];
    }
    let command = value("archive_command");
    let how = match (&command, value("archive_library")) {
        (Some(command), _) => format!("archive_command = {}", without_values(command)),
        (None, Some(library)) => format!("archive_library = {library}"),
        (None, None) => "neither archive_command nor archive_library is set there".to_owned(),
    };
    let mut notes = vec![format!(
        "it will archive its own WAL once it is open for writing (archive_mode = {mode}; {how}); --archive-mode off for a copy \
         that is not to"
    )];
    notes.extend(command.and_then(|command| missing(&command, Path::new(DEFAULT_FILE))));
    notes
}

/// What an `archive_command` that calls Walhalla does not find on this host.
fn missing(command: &str, default_file: &Path) -> Option<String> {
    let words: Vec<&str> = { command.split_whitespace() }
        .map(|word| word.trim_matches(['\'', '"']))
        .collect();
    if !words.contains(&"wal-push") {
        return None;
    }
    let is_program = |word: &&&str| {
        let name = Path::new(word).file_name();
        Path::new(word).is_absolute() && name.is_some_and(|name| name == "walhalla")
    };
    if let Some(program) = words.iter().find(is_program)
        && !Path::new(program).exists()
    {
        return Some(format!(
            "ATTENTION: archive_command calls {program}, which is not on this host. Install Walhalla there before you start the \
             server, or it archives nothing"
        ));
    }
    // With any of these the command says itself where the store is named.
    let names_it = |word: &&str| {
        ["--config", "--store", "--set"]
            .iter()
            .any(|flag| word.starts_with(flag))
            || word.starts_with("WALHALLA_STORE=")
            || word.starts_with("WALHALLA_CONFIG=")
    };
    let file = match words.iter().position(|word| *word == "--config") {
        Some(at) => Path::new(*words.get(at + 1)?),
        None if words.iter().any(names_it) => return None,
        None => default_file,
    };
    let text = std::fs::read_to_string(file);
    let table = text.ok().and_then(|text| text.parse::<toml::Table>().ok());
    if table.is_some_and(|table| table.contains_key("store")) {
        return None;
    }
    Some(format!(
        "ATTENTION: archive_command finds its store in {}, and that file is not there or names none. Write it before you start \
         the server, or it archives nothing (unless the server's environment has WALHALLA_STORE)",
        file.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_archive_command_does_not_find_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (program, file) = (
            dir.path().join("walhalla"),
            dir.path().join("walhalla.toml"),
        );
        let command = format!("{} wal-push %p", program.display());
        let said = |command: &str| missing(command, &file).unwrap_or_default();
        assert!(said(&command).contains("not on this host"));
        std::fs::write(&program, "").unwrap();
        assert!(said(&command).contains("names none"));
        std::fs::write(&file, "compression = 'zstd'\n").unwrap();
        assert!(said(&command).contains("names none"));
        std::fs::write(&file, "store = 'file:///srv/backup'\n").unwrap();
        assert_eq!(said(&command), "");
        let other = format!("{} --config /nowhere.toml wal-push %p", program.display());
        assert!(said(&other).contains("/nowhere.toml"));
        assert_eq!(said("/x/walhalla-not wal-push %p --store file:///s"), "");
        assert_eq!(said("cp %p /archive/%f"), "");
    }
}
