//! Paths by the million, each with a value.
//!
//! ```text
//! base/5/ │ 16384     a folder is kept once, names lie one after the other
//!         │ 16385
//! ```
//!
//! Memory: 8 bytes for each path and the length of its name, 4 more in a map, and the value. Paths are what their bytes are:
//! `a/b` and `a//b` are two.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Paths in the order in which they came.
#[derive(Clone, Debug)]
pub struct PathList<V> {
    /// With the slash at their end.
    folders: Vec<Box<[u8]>>,
    numbers: HashMap<Box<[u8]>, u32>,
    names: Vec<u8>,
    items: Vec<Item<V>>,
}

#[derive(Clone, Copy, Debug)]
struct Item<V> {
    folder: u32,
    name_end: u32,
    value: V,
}

/// Paths that can be looked up, each once.
#[derive(Clone, Debug)]
pub struct PathMap<V> {
    list: PathList<V>,
    /// By folder and name.
    order: Vec<u32>,
}

/// Paths of which each is to come once, in whatever order.
#[derive(Debug)]
pub struct Expected<V> {
    map: PathMap<V>,
    /// By position in the list of `map`.
    came: Vec<AtomicBool>,
}

/// Positions in several lists, by path: the list's, and the path's in it.
#[derive(Clone, Debug, Default)]
pub struct PathOrder(Vec<(u32, u32)>);

impl<V> Default for PathList<V> {
    fn default() -> Self {
        Self {
            folders: Vec::new(),
            numbers: HashMap::new(),
            names: Vec::new(),
            items: Vec::new(),
        }
    }
}

impl<V> Default for PathMap<V> {
    fn default() -> Self {
        Self {
            list: PathList::default(),
            order: Vec::new(),
        }
    }
}

impl<V> PathList<V> {
    /// Adds a path at the end.
    ///
    /// # Panics
    /// At 4 GiB of names.
    pub fn push(&mut self, path: &Path, value: V) {
        let (folder, name) = split(path);
        let folder = self.folder(folder);
        self.names.extend_from_slice(name);
        self.items.push(Item {
            folder,
            name_end: number(self.names.len()),
            value,
        });
    }

    fn folder(&mut self, folder: &[u8]) -> u32 {
        // Most files come after another one of their folder.
        if let Some(last) = self.items.last()
            && self.folder_of(last) == folder
        {
            return last.folder;
        }
        if let Some(known) = self.numbers.get(folder) {
            return *known;
        }
        let next = number(self.folders.len());
        self.folders.push(folder.into());
        self.numbers.insert(folder.into(), next);
        next
    }

    fn folder_of(&self, item: &Item<V>) -> &[u8] {
        let folder = self.folders.get(item.folder as usize);
        folder.map(AsRef::as_ref).unwrap_or_default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The path at `position`, from 0.
    pub fn path(&self, position: usize) -> Option<PathBuf> {
        let item = self.items.get(position)?;
        let mut path = self.folder_of(item).to_vec();
        path.extend_from_slice(self.name(position));
        Some(OsString::from_vec(path).into())
    }

    /// The value at `position`.
    pub fn value(&self, position: usize) -> Option<&V> {
        self.items.get(position).map(|item| &item.value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (PathBuf, &V)> {
        (0..self.len()).filter_map(|position| Some((self.path(position)?, self.value(position)?)))
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.items.iter().map(|item| &item.value)
    }

    fn name(&self, position: usize) -> &[u8] {
        let end_of = |item: &Item<V>| item.name_end as usize;
        let before = position.checked_sub(1).and_then(|it| self.items.get(it));
        let name = Range {
            start: before.map_or(0, end_of),
            end: self.items.get(position).map_or(0, end_of),
        };
        self.names.get(name).unwrap_or_default()
    }

    /// What paths of several lists are compared by: folder and name.
    fn key(&self, position: u32) -> (&[u8], &[u8]) {
        let position = position as usize;
        let folder = self.items.get(position).map(|item| self.folder_of(item));
        (folder.unwrap_or_default(), self.name(position))
    }

    fn sort_key(&self, position: u32) -> (u32, &[u8]) {
        let position = position as usize;
        let folder = self.items.get(position).map_or(0, |item| item.folder);
        (folder, self.name(position))
    }

    /// The same to look paths up in.
    ///
    /// # Errors
    /// A path that is there twice.
    pub fn into_map(self) -> Result<PathMap<V>, PathBuf> {
        let mut order: Vec<u32> = (0..number(self.len())).collect();
        order.sort_unstable_by(|one, other| self.sort_key(*one).cmp(&self.sort_key(*other)));
        let mut pairs = order.windows(2);
        let twice = pairs.find_map(|pair| match pair {
            [one, other] if self.sort_key(*one) == self.sort_key(*other) => Some(*one),
            _ => None,
        });
        match twice {
            Some(position) => Err(self.path(position as usize).unwrap_or_default()),
            None => Ok(PathMap { list: self, order }),
        }
    }
}

impl<V> PathMap<V> {
    /// Where a path is in [`PathMap::list`].
    pub fn position(&self, path: &Path) -> Option<usize> {
        let (folder, name) = split(path);
        let wanted = (*self.list.numbers.get(folder)?, name);
        let order = self.order.as_slice();
        let found = order.binary_search_by(|at| self.list.sort_key(*at).cmp(&wanted));
        order.get(found.ok()?).map(|at| *at as usize)
    }

    /// The value of a path.
    pub fn get(&self, path: &Path) -> Option<&V> {
        self.list.value(self.position(path)?)
    }

    /// Whether a path is there.
    pub fn contains(&self, path: &Path) -> bool {
        self.position(path).is_some()
    }

    /// All of them, in the order in which they came.
    pub fn list(&self) -> &PathList<V> {
        &self.list
    }

    /// The folders, in the order in which they came.
    pub fn folders(&self) -> impl Iterator<Item = Folder<'_, V>> {
        let folder_of = |at: &u32| self.list.sort_key(*at).0;
        let folders = self
            .order
            .chunk_by(move |one, other| folder_of(one) == folder_of(other));
        folders.map(|positions| Folder {
            list: &self.list,
            positions,
        })
    }
}

/// A folder of a [`PathMap`], and the paths in it.
pub struct Folder<'a, V> {
    list: &'a PathList<V>,
    positions: &'a [u32],
}

impl<'a, V> Folder<'a, V> {
    /// Its path, without a slash at the end.
    pub fn path(&self) -> &'a Path {
        let first = self
            .positions
            .first()
            .and_then(|at| self.list.items.get(*at as usize));
        let folder = first
            .map(|item| self.list.folder_of(item))
            .unwrap_or_default();
        Path::new(OsStr::from_bytes(
            folder.strip_suffix(b"/").unwrap_or(folder),
        ))
    }

    /// What it holds, by name.
    pub fn names(&self) -> impl Iterator<Item = (&'a OsStr, &'a V)> {
        let list = self.list;
        self.positions.iter().filter_map(move |at| {
            let at = *at as usize;
            Some((OsStr::from_bytes(list.name(at)), list.value(at)?))
        })
    }
}

impl<V> From<PathMap<V>> for Expected<V> {
    fn from(map: PathMap<V>) -> Self {
        let came = { map.list.items.iter() }.map(|_| AtomicBool::new(false));
        Self {
            came: came.collect(),
            map,
        }
    }
}

impl<V> Expected<V> {
    /// All of them, come or not.
    pub fn map(&self) -> &PathMap<V> {
        &self.map
    }

    /// The value of a path that has not come.
    pub fn get(&self, path: &Path) -> Option<&V> {
        let position = self.map.position(path)?;
        let has_come = self.came.get(position)?.load(Ordering::Relaxed);
        self.map.list.value(position).filter(|_| !has_come)
    }

    /// The value of a path that comes now; `None` for one that came before.
    pub fn take(&self, path: &Path) -> Option<&V> {
        let position = self.map.position(path)?;
        let had_come = self.came.get(position)?.swap(true, Ordering::Relaxed);
        self.map.list.value(position).filter(|_| !had_come)
    }

    /// The first of those that have not come.
    pub fn missing(&self) -> Option<PathBuf> {
        let has_come = |came: &AtomicBool| came.load(Ordering::Relaxed);
        let position = { self.came.iter() }.position(|came| !has_come(came))?;
        self.map.list.path(position)
    }
}

impl PathOrder {
    /// The order of all paths in `lists`.
    pub fn of<V>(lists: &[&PathList<V>]) -> Self {
        let positions = (0..).zip(lists).flat_map(|(list, paths)| {
            let positions = 0..number(paths.len());
            positions.map(move |position| (list, position))
        });
        let mut order: Vec<(u32, u32)> = positions.collect();
        let key = |at: &(u32, u32)| Some(lists.get(at.0 as usize)?.key(at.1));
        // Files come in the order of their folders, mostly: that is what this sort is quick at.
        order.sort_by(|one, other| key(one).cmp(&key(other)));
        Self(order)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        { self.0.iter() }.map(|(list, position)| (*list as usize, *position as usize))
    }

    /// Where a path is, in the lists of which this is the order.
    pub fn find<'a, V: 'a>(
        &self,
        path: &Path,
        list: impl Fn(usize) -> Option<&'a PathList<V>>,
    ) -> Option<(usize, usize)> {
        let wanted = Some(split(path));
        let key = |at: &(u32, u32)| Some(list(at.0 as usize)?.key(at.1));
        let found = self.0.binary_search_by(|at| key(at).cmp(&wanted)).ok()?;
        let (list, position) = *self.0.get(found)?;
        Some((list as usize, position as usize))
    }
}

/// Whether a path leads to something below a directory, and is spelled in the one way that it can be.
pub fn is_inside(path: &Path) -> bool {
    let mut parts = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    parts.all(|part| !matches!(part, b"" | b"." | b".."))
}

fn split(path: &Path) -> (&[u8], &[u8]) {
    let bytes = path.as_os_str().as_bytes();
    let slash = bytes.iter().rposition(|byte| *byte == b'/');
    bytes.split_at(slash.map_or(0, |slash| slash + 1))
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("fewer than four billion files, and less than 4 GiB of their names")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(paths: &[&[u8]]) -> PathList<usize> {
        let mut list = PathList::default();
        for (number, path) in paths.iter().enumerate() {
            list.push(Path::new(OsStr::from_bytes(path)), number);
        }
        list
    }

    #[test]
    fn what_is_expected_comes_once() {
        let map = list(&[b"base/5/1", b"base/5/2", b"PG_VERSION"]).into_map();
        let expected = Expected::from(map.unwrap());
        let path = Path::new("base/5/2");
        assert_eq!(expected.get(path), Some(&1));
        assert_eq!(expected.take(path), Some(&1));
        assert_eq!((expected.get(path), expected.take(path)), (None, None));
        assert_eq!(expected.map().get(path), Some(&1));
        assert_eq!(expected.take(Path::new("base/5/3")), None);
        assert_eq!(expected.missing(), Some(PathBuf::from("base/5/1")));
        assert_eq!(expected.take(Path::new("base/5/1")), Some(&0));
        assert_eq!(expected.missing(), Some(PathBuf::from("PG_VERSION")));
        assert_eq!(expected.take(Path::new("PG_VERSION")), Some(&2));
        assert_eq!(expected.missing(), None);
    }

    /// Whatever comes out of a stored list comes back byte by byte.
    #[test]
    fn paths_are_found_again_in_their_order() {
        let paths: [&[u8]; 9] = [
            b"base/5/16384",
            b"base/5/16384_vm",
            b"PG_VERSION",
            b"base/1/16384",
            b"base/5/1",
            b"odd\xFF/../\xFE",
            b"base/5/",
            b"base//5/1",
            b"",
        ];
        let map = list(&paths).into_map().unwrap();
        let found = map.list().iter().map(|(path, number)| (path, *number));
        let wanted = { paths.iter().enumerate() }
            .map(|(number, path)| (PathBuf::from(OsStr::from_bytes(path)), number));
        assert!(found.eq(wanted));
        for (number, path) in paths.iter().enumerate() {
            let path = Path::new(OsStr::from_bytes(path));
            assert_eq!(map.get(path), Some(&number), "{}", path.display());
        }
        for path in ["base/5", "base/5/16385", "16384", "base/2/16384", "/"] {
            assert!(!map.contains(Path::new(path)), "{path}");
        }
        let numbers = |folder: Folder<usize>| {
            folder
                .names()
                .map(|(_, number)| *number)
                .collect::<Vec<_>>()
        };
        let folders: Vec<_> = map
            .folders()
            .map(|folder| (folder.path(), numbers(folder)))
            .collect();
        let odd = Path::new(OsStr::from_bytes(b"odd\xFF/.."));
        let wanted: [(&Path, &[usize]); 5] = [
            ("base/5".as_ref(), &[6, 4, 0, 1]),
            ("".as_ref(), &[8, 2]),
            ("base/1".as_ref(), &[3]),
            (odd, &[5]),
            ("base//5".as_ref(), &[7]),
        ];
        assert!(
            folders
                .iter()
                .map(|(path, numbers)| (*path, &**numbers))
                .eq(wanted)
        );
    }

    #[test]
    fn paths_of_several_lists_are_found_in_one_order() {
        let lists = [
            list(&[b"base/5/2", b"PG_VERSION", b"base/5/1"]),
            list(&[b"base/5/10", b"base/4/3"]),
        ];
        let order = PathOrder::of(&lists.each_ref());
        let found: Vec<_> = order.iter().collect();
        assert_eq!(found, [(0, 1), (1, 1), (0, 2), (1, 0), (0, 0)]);
        let find = |path: &str| order.find(Path::new(path), |list| lists.get(list));
        assert_eq!(find("base/5/10"), Some((1, 0)));
        assert_eq!(find("PG_VERSION"), Some((0, 1)));
        assert_eq!(find("base/5/11"), None);
    }

    #[test]
    fn a_path_that_is_there_twice_is_told() {
        let twice = list(&[b"base/5/2", b"base/5/1", b"base/4/2", b"base/5/2"]).into_map();
        assert_eq!(twice.unwrap_err(), Path::new("base/5/2"));
        assert!(list(&[]).into_map().unwrap().list().is_empty());
    }
}
