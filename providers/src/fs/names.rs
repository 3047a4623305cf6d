//! The names in a directory, sorted, some eight bytes each beside the name itself.

use std::io;

/// Names that follow one key prefix, in byte order of the keys.
#[derive(Debug)]
pub(super) struct Names {
    base: String,
    /// One after the other.
    text: String,
    /// Where each begins in the text, and its length.
    places: Vec<(u32, u32)>,
}

impl Names {
    /// No names yet, after `base`.
    pub(super) fn new(base: &str) -> Self {
        Self {
            base: base.to_owned(),
            text: String::new(),
            places: Vec::new(),
        }
    }

    /// What all keys begin with.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Adds a name.
    ///
    /// # Errors
    /// After 4 GiB of names, more than a directory holds.
    pub(super) fn add(&mut self, name: &str) -> io::Result<()> {
        let begin = u32::try_from(self.text.len()).map_err(io::Error::other)?;
        let length = u32::try_from(name.len()).map_err(io::Error::other)?;
        self.places.push((begin, length));
        self.text.push_str(name);
        Ok(())
    }

    /// The same names in order.
    pub(super) fn sorted(mut self) -> Self {
        let text = &self.text;
        self.places.sort_unstable_by_key(|place| name(text, *place));
        self.text.shrink_to_fit();
        self.places.shrink_to_fit();
        self
    }

    /// The names, in order once they are sorted.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| name(&self.text, *place))
    }

    /// How many names stand before the first that is not `early`, of sorted ones.
    pub(super) fn position(&self, early: impl Fn(&str) -> bool) -> usize {
        self.places
            .partition_point(|place| early(name(&self.text, *place)))
    }
}

fn name(text: &str, (begin, length): (u32, u32)) -> &str {
    let range = begin as usize..begin as usize + length as usize;
    text.get(range).unwrap_or_default()
}
