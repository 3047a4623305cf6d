//! Users of this host, by number and name.

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
