//! What to say to a command that there is none of: the nearest one, and what other tools' verbs are called here.

use clap::Command;

use crate::repository::BackupId;

/// Verbs of other tools and everyday words, with what does the same here.
const OTHER_VERBS: [(&[&str], &str); 19] = [
    (
        &[
            "backup",
            "base-backup",
            "pg_basebackup",
            "basebackup",
            "dump",
        ],
        "`walhalla backup-push PGDATA` takes a backup, with --delta what changed since the last one",
    ),
    (
        &["archive-push", "push", "put-wal", "wal-archive", "archive"],
        "`walhalla wal-push %p` archives a WAL file",
    ),
    (
        &["archive-get", "get-wal", "wal-restore", "fetch", "get"],
        "`walhalla wal-fetch %f %p` fetches a WAL file",
    ),
    (
        &[
            "info",
            "list",
            "list-backup",
            "list-backups",
            "backups",
            "catalog",
            "backup-info",
        ],
        "`walhalla backup-list` lists the backups, `walhalla wal-show` what can be reached",
    ),
    (
        &["show-backup", "show", "describe"],
        "`walhalla backup-show ID` shows a backup",
    ),
    (
        &[
            "recover",
            "pitr",
            "restore-backup",
            "pg_restore",
            "catchup-fetch",
        ],
        "`walhalla restore PGDATA` restores a cluster, with --target-time to a moment, with --delta over a directory that is there",
    ),
    (
        &["catchup-push", "incremental", "delta", "diff"],
        "`walhalla backup-push PGDATA --delta` stores what changed since an earlier backup",
    ),
    (
        &[
            "expire",
            "prune",
            "purge",
            "retain",
            "wal-purge",
            "retention",
            "forget",
        ],
        "`walhalla delete retain` shows what the retention rules would delete, and deletes it with --confirm",
    ),
    (
        &["garbage", "vacuum"],
        "`walhalla delete garbage` shows what nothing can use, and deletes it with --confirm",
    ),
    (
        &[
            "stanza-create",
            "stanza-upgrade",
            "stanza-delete",
            "init",
            "setup",
            "create",
            "repo-create",
        ],
        "nothing has to be created: the first `walhalla wal-push` or `walhalla backup-push` makes what it needs in the store; \
         `walhalla check` tries out the store",
    ),
    (
        &["keep", "protect", "pin", "annotate"],
        "`walhalla backup-mark ID --permanent` keeps a backup whatever the retention rules say",
    ),
    (
        &["check-backup", "validate", "test"],
        "`walhalla verify` reads backups back, `walhalla wal-verify` looks for gaps in the WAL, `walhalla check` tries out the store",
    ),
    (
        &[
            "receive-wal",
            "receivewal",
            "pg_receivewal",
            "stream",
            "streaming",
        ],
        "`walhalla wal-receive` receives WAL from a running server",
    ),
    (
        &["gaps", "wal-list", "timelines", "wal", "window"],
        "`walhalla wal-show` shows timelines, gaps and what can be reached",
    ),
    (
        &["start", "serve", "server", "run", "cron"],
        "`walhalla daemon` archives and fetches ahead for the servers of this host",
    ),
    (
        &["sync", "replicate", "clone", "mirror", "sync-backup"],
        "`walhalla copy --to URL` copies backups and WAL to another store; the setting `mirror` names a second store",
    ),
    (
        &["settings", "env", "show-config", "options", "diagnose"],
        "`walhalla config` prints the settings and where each came from",
    ),
    (
        &["history", "log", "events", "search"],
        "`walhalla find` finds when something happened, such as --dropped",
    ),
    (&["version"], "`walhalla --version` prints the version"),
];

/// The message for a command that there is none of.
pub(super) fn message(commands: &Command, word: &str) -> String {
    let mut hints = Vec::new();
    let lower = word.to_lowercase().replace('_', "-");
    let verb =
        |known: &&(&[&str], &str)| known.0.iter().any(|known| known.replace('_', "-") == lower);
    match OTHER_VERBS.iter().find(verb) {
        Some((_, hint)) => hints.push((*hint).to_owned()),
        None => hints.extend(
            nearest(commands, &lower).map(|name| format!("did you mean `walhalla {name}`?")),
        ),
    }
    if let Some(hint) = hints.last_mut().filter(|hint| !hint.ends_with('?')) {
        hint.push(';');
    }
    hints.push("`walhalla --help` lists the commands".to_owned());
    format!(
        "error: walhalla {} has no command {word:?}\nhint: {}",
        env!("CARGO_PKG_VERSION"),
        hints.join(" ")
    )
}

/// Of a word after `delete` that is none of its commands.
pub(super) fn deletion(word: &str) -> Option<String> {
    let id: BackupId = word.parse().ok()?;
    Some(format!(
        "error: delete has no command \"{id}\"; nothing was deleted\nhint: `walhalla delete backup {id}` shows what would go with this \
         backup, and deletes it with --confirm"
    ))
}

/// Of an argument that a command does not take, where there is more to say than clap says; `usage` names the command.
pub(super) fn argument(commands: &Command, usage: &str, word: &str) -> Option<String> {
    let command = { usage.split_whitespace() }.find_map(|word| commands.find_subcommand(word))?;
    let name = command.get_name();
    let all = format!("`walhalla {name} --help` lists the options");
    let hint = match word.strip_prefix("--") {
        None if word.contains(':') && word.starts_with(|letter: char| letter.is_ascii_digit()) => {
            "put a time with a space in it into quotes: --target-time '2026-11-21 04:29:59+00'"
                .to_owned()
        }
        None => return None,
        Some(option) => {
            let option = option.split('=').next().unwrap_or(option);
            let known = { command.get_arguments() }.chain(commands.get_arguments());
            let mut like: Vec<&str> = known
                .filter(|known| !known.is_hide_set())
                .filter_map(|known| known.get_long())
                .filter(|known| known.split('-').any(|part| part == option))
                .collect();
            like.sort_unstable();
            like.dedup();
            if like.is_empty() {
                return None;
            }
            format!("did you mean --{}? {all}", like.join(" or --"))
        }
    };
    Some(format!(
        "error: {name} does not take the argument {word}\nhint: {hint}"
    ))
}

/// The command whose name is most like a word, if it is much like it.
fn nearest<'a>(commands: &'a Command, word: &str) -> Option<&'a str> {
    let shown = commands
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let names = shown.map(Command::get_name);
    let distance = |name: &&str| strsim::damerau_levenshtein(name, word);
    let (distance, name) = names.map(|name| (distance(&name), name)).min()?;
    (distance <= (word.len() / 3).max(1)).then_some(name)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_misspelt_command_is_answered_with_the_nearest_one() {
        let commands = Cli::command();
        for (word, meant) in [
            ("wal-psh", "wal-push"),
            ("backup-lst", "backup-list"),
            ("Restore", "restore"),
            ("wal_fetch", "wal-fetch"),
            ("verfy", "verify"),
        ] {
            let said = message(&commands, word);
            assert!(
                said.contains(&format!("did you mean `walhalla {meant}`?")),
                "{said}"
            );
        }
        let said = message(&commands, "xyzzy");
        assert!(!said.contains("did you mean"), "{said}");
    }

    #[test]
    fn an_argument_that_is_not_known_is_answered_with_what_was_meant() {
        let mut commands = Cli::command();
        commands.build();
        let said = |word: &str| {
            argument(
                &commands,
                "Usage: walhalla restore [OPTIONS] <PGDATA>",
                word,
            )
        };
        assert!(
            said("--time")
                .unwrap()
                .contains("did you mean --target-time?")
        );
        assert!(said("04:29:59+00").unwrap().contains("quotes"));
        assert_eq!(said("--xyzzy"), None);
        let said = deletion("20261121T043000Z-F").unwrap();
        assert!(
            said.contains("walhalla delete backup 20261121T043000Z-F"),
            "{said}"
        );
        assert_eq!(deletion("old"), None);
    }

    #[test]
    fn every_command_that_a_hint_names_is_there_and_no_verb_is_one() {
        let commands = Cli::command();
        let is_there =
            |name: &str| { commands.get_subcommands() }.any(|known| known.get_name() == name);
        for (verbs, hint) in OTHER_VERBS {
            assert!(!verbs.iter().any(|verb| is_there(verb)), "{verbs:?}");
            for named in hint.split("`walhalla ").skip(1) {
                let name = named.split([' ', '`']).next().unwrap();
                assert!(is_there(name) || name == "--version", "{hint}");
            }
        }
    }
}
