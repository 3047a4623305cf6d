//! Users of this host, by number and name.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

/// The name of a user in `/etc/passwd`; none where another service has the names.
pub fn name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut words| {
        let name = words.next()?;
        (words.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// A user as messages name it: `postgres (uid 101)`, or `uid 101`.
pub fn shown(uid: u32) -> String {
    match name(uid) {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Whether others may read a file with a secret than those who must. The group may read a file of root's, as Kubernetes gives
/// it the files of a Secret: their user could not read them otherwise. libpq takes keys with the same rights
/// (fe-secure-openssl.c, initialize_SSL).
pub fn is_open_to_others(file: &Metadata) -> bool {
    is_open(file.mode(), file.uid())
}

fn is_open(mode: u32, owner: u32) -> bool {
    let others = if owner == 0 { 0o037 } else { 0o077 };
    mode & others != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_owners_and_one_of_root_also_its_groups_to_read() {
        for (mode, owner, is_wanted) in [
            (0o100_600, 1000, false),
            (0o100_640, 1000, true),
            (0o100_604, 1000, true),
            (0o100_440, 0, false),
            (0o100_460, 0, true),
            (0o100_444, 0, true),
        ] {
            assert_eq!(is_open(mode, owner), is_wanted, "{mode:o} of {owner}");
        }
    }
}
