//! How an object is packed, as its name's suffixes say: compressed, then encrypted.

use std::fmt;

use super::Codec;

/// Whether an object is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// No suffix.
    None,
    /// `.age`
    Age,
}

/// Everything that an object's suffixes say. Shown as these suffixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    /// How it is compressed.
    pub codec: Codec,
    /// Whether it is encrypted afterwards.
    pub encryption: Encryption,
}

const AGE_SUFFIX: &str = ".age";

impl Packing {
    /// Content as it is.
    pub const NONE: Self = Self {
        codec: Codec::None,
        encryption: Encryption::None,
    };

    /// Every packing.
    pub fn all() -> impl Iterator<Item = Self> {
        let encryptions = [Encryption::None, Encryption::Age].into_iter();
        encryptions.flat_map(|encryption| Codec::ALL.map(|codec| Self { codec, encryption }))
    }

    /// A name without the suffixes of its packing.
    pub fn split(name: &str) -> (&str, Self) {
        let (name, encryption) = match name.strip_suffix(AGE_SUFFIX) {
            Some(name) => (name, Encryption::Age),
            None => (name, Encryption::None),
        };
        let (name, codec) = Codec::split(name);
        (name, Self { codec, encryption })
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.codec.suffix())?;
        match self.encryption {
            Encryption::None => Ok(()),
            Encryption::Age => f.write_str(AGE_SUFFIX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_read_back() {
        for packing in Packing::all() {
            let name = format!("00000001.history{packing}");
            assert_eq!(Packing::split(&name), ("00000001.history", packing));
        }
        assert_eq!(Packing::all().count(), 6);
    }
}
