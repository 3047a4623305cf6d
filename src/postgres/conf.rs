//! Settings files, read as PostgreSQL reads them (guc-file.l).

/// The settings of a file in their order: names in lower case, values without their quotes. A line that PostgreSQL would
/// refuse is passed over.
pub fn settings(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    text.split(|byte| *byte == b'\n')
        .filter_map(setting)
        .collect()
}

/// The value that counts in a file: the last one.
pub fn last(text: &[u8], name: &str) -> Option<Vec<u8>> {
    let settings = settings(text).into_iter().rev();
    { settings }.find_map(|(own, value)| (own == name).then_some(value))
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

fn setting(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let line = line.trim_ascii();
    let is_letter =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"_.$".contains(byte) || *byte > 0x7f;
    let length = line.iter().take_while(|byte| is_letter(byte)).count();
    let (name, rest) = line.split_at_checked(length)?;
    let rest = rest.trim_ascii_start();
    let rest = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii_start();
    if name.is_empty() {
        return None;
    }
    let (value, rest) = if let Some(quoted) = rest.strip_prefix(b"'") {
        unquoted(quoted)?
    } else {
        let is_value = |byte: &u8| !byte.is_ascii_whitespace() && !b"#='".contains(byte);
        let length = rest.iter().take_while(|byte| is_value(byte)).count();
        let (value, rest) = rest.split_at_checked(length)?;
        (value.to_vec(), rest)
    };
    let rest = rest.trim_ascii_start();
    let is_whole = rest.is_empty() || rest.starts_with(b"#");
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    is_whole.then_some((name, value))
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
    fn a_file_is_read_as_postgresql_reads_it() {
        let text = b"# archive_mode = off\n Archive_Mode 'on' # why\narchive_command='it''s %p\\n\\101' \nport=1\nport = 2\nbroken = 'x\nalso broken\xff\nempty =\n";
        let value = |name| last(text, name).map(|value| String::from_utf8(value).unwrap());
        assert_eq!(value("archive_mode").unwrap(), "on");
        assert_eq!(value("archive_command").unwrap(), "it's %p\nA");
        assert_eq!(value("port").unwrap(), "2");
        assert_eq!(value("empty").unwrap(), "");
        assert_eq!(value("broken"), None);
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
}
