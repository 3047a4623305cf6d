//! Text in the encoding of the database that it came from, which WAL does not tell.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStringExt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name or a path as the server wrote it: bytes, most often but not always UTF-8. PostgreSQL compares it byte by byte.
///
/// In JSON it is a string where it is UTF-8, else `{"hex": …}`. Shown, what a terminal would act on is escaped.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerText(Vec<u8>);

impl ServerText {
    /// The text of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<OsString> for ServerText {
    fn from(word: OsString) -> Self {
        Self(word.into_vec())
    }
}

impl From<&str> for ServerText {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Display for ServerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for letter in chunk.valid().chars() {
                if letter.is_control() {
                    write!(f, "{}", letter.escape_default())?;
                } else {
                    f.write_char(letter)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ServerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Utf8(String),
    Other {
        #[serde(with = "hex::serde")]
        hex: Vec<u8>,
    },
}

impl Serialize for ServerText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match std::str::from_utf8(&self.0) {
            Ok(text) => Form::Utf8(text.to_owned()),
            Err(_) => Form::Other {
                hex: self.0.clone(),
            },
        };
        form.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ServerText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Form::deserialize(deserializer)? {
            Form::Utf8(text) => Self(text.into_bytes()),
            Form::Other { hex } => Self(hex),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_any_encoding_comes_back_from_json_byte_for_byte() {
        for bytes in [
            &b"plain"[..],
            "caf\u{e9}".as_bytes(),
            b"caf\xe9",
            b"",
            b"a\"b\nc",
            b"\xff\xfe{}",
        ] {
            let text = ServerText::new(bytes);
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(
                serde_json::from_str::<ServerText>(&json).unwrap(),
                text,
                "{json}"
            );
        }
        assert_eq!(
            serde_json::to_string(&ServerText::new(b"caf\xe9")).unwrap(),
            r#"{"hex":"636166e9"}"#
        );
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_is_shown() {
        assert_eq!(
            ServerText::new(b"caf\xe9\x1b[2J\n").to_string(),
            "caf\\xe9\\u{1b}[2J\\n"
        );
        assert_eq!(
            ServerText::from("caf\u{e9} \u{9b}").to_string(),
            "caf\u{e9} \\u{9b}"
        );
    }
}
