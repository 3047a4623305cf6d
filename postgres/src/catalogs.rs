//! Names out of the files of the system catalogs `pg_class`, `pg_namespace` and `pg_database`, as a base backup holds them.
//!
//! The files are read without transactions, so old versions of rows are seen too: of two rows for one relation file the
//! one that was not deleted counts. What cannot be read is passed over; names are a help, nothing rests on them.

use std::collections::HashMap;
use std::path::Path;

use super::Version;

/// OIDs of `pg_class`, `pg_namespace` and `pg_database`, which name their files until those are rewritten.
const PG_CLASS: u32 = 1259;
const PG_NAMESPACE: u32 = 2615;
const PG_DATABASE: u32 = 1262;
/// `RELMAPPER_FILENAME`: which files the catalogs have that are needed to find others.
const MAP: &str = "pg_filenode.map";
/// `RELMAPPER_FILEMAGIC`
const MAP_MAGIC: u32 = 0x0059_2717;
/// `NAMEDATALEN`
const NAME_BYTES: usize = 64;

/// The catalog that a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalog {
    /// `pg_class` of a database.
    Class(u32),
    /// `pg_namespace` of a database.
    Namespace(u32),
    /// `pg_database`
    Database,
}

/// Which of a cluster's files are the catalogs'.
#[derive(Clone, Debug, Default)]
pub struct Catalogs {
    /// Mapped file numbers of `pg_class` by database, and of `pg_database` (database 0).
    moved: HashMap<u32, u32>,
}

/// What is known by names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Databases by OID.
    pub databases: HashMap<u32, String>,
    /// Schemas by database and OID.
    schemas: HashMap<(u32, u32), String>,
    /// Relations by database and file number.
    relations: HashMap<(u32, u32), Class>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    name: String,
    schema: u32,
    kind: u8,
    is_live: bool,
}

/// A relation's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The relation.
    pub name: String,
    /// Its schema.
    pub schema: Option<String>,
    /// What it is: `table`, `index`.
    pub kind: &'static str,
}

impl Catalogs {
    /// Takes in the relation map in a cluster's file, if it is one.
    pub fn map(&mut self, path: &Path, bytes: &[u8]) {
        let Some(database) = path.parent().and_then(database).filter(|_| is_map(path)) else {
            return;
        };
        let wanted = if database == 0 { PG_DATABASE } else { PG_CLASS };
        let number = |at: usize| u32_at(bytes, at);
        if number(0) != Some(MAP_MAGIC) {
            return;
        }
        let mappings = usize::try_from(number(4).unwrap_or(0)).unwrap_or(0);
        let of = |index: usize| Some((number(8 + index * 8)?, number(12 + index * 8)?));
        let found = (0..mappings.min(64))
            .filter_map(of)
            .find(|(oid, _)| *oid == wanted);
        if let Some((_, file)) = found {
            self.moved.insert(database, file);
        }
    }

    /// The catalog that the file at `path` belongs to.
    pub fn of(&self, path: &Path) -> Option<Catalog> {
        let database = path.parent().and_then(database)?;
        let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
        let class = self.moved.get(&database).copied();
        match number {
            _ if database == 0 => {
                (number == class.unwrap_or(PG_DATABASE)).then_some(Catalog::Database)
            }
            PG_NAMESPACE => Some(Catalog::Namespace(database)),
            _ => (number == class.unwrap_or(PG_CLASS)).then_some(Catalog::Class(database)),
        }
    }
}

/// Whether a file says which files the catalogs have.
pub fn is_map(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == MAP) && path.parent().and_then(database).is_some()
}

/// The database whose relation map the file at `path` is, in whatever tablespace; 0 for the map of what all share.
pub fn database_of_map(path: &Path) -> Option<u32> {
    let (folder, name) = (path.parent()?, path.file_name()?);
    if name != MAP {
        return None;
    }
    database(folder).or_else(|| folder.file_name()?.to_str()?.parse().ok())
}

/// The database of a folder of the default tablespace; 0 for what all share.
fn database(folder: &Path) -> Option<u32> {
    match folder.to_str()? {
        "global" => Some(0),
        folder => folder.strip_prefix("base/")?.parse().ok(),
    }
}

impl Names {
    /// Takes in the file of a catalog.
    pub fn read(&mut self, catalog: Catalog, file: &[u8], version: Version) {
        let page_bytes = page_bytes(file);
        for tuple in file.chunks(page_bytes).flat_map(tuples) {
            // Before 12 a row's OID is in its header, which then is the last thing before the data.
            let (oid, data) = if version.has_oid_columns() {
                (u32_at(tuple.data, 0), tuple.data.get(4..))
            } else {
                (tuple.oid, Some(tuple.data))
            };
            let (Some(oid), Some(data)) = (oid, data) else {
                continue;
            };
            let Some(name) = name(data) else { continue };
            match catalog {
                Catalog::Database => _ = self.databases.insert(oid, name),
                Catalog::Namespace(database) => _ = self.schemas.insert((database, oid), name),
                Catalog::Class(database) => {
                    self.class(database, name, data, tuple.is_live, version);
                }
            }
        }
    }

    /// pg_class.h, `FormData_pg_class`, from `relname` on.
    fn class(&mut self, database: u32, name: String, data: &[u8], is_live: bool, version: Version) {
        let kind_at = if version.has_all_frozen_column() {
            115
        } else {
            111
        };
        let (Some(schema), Some(file), Some(kind)) =
            (u32_at(data, 64), u32_at(data, 84), data.get(kind_at))
        else {
            return;
        };
        let class = Class {
            name,
            schema,
            kind: *kind,
            is_live,
        };
        let known = self.relations.get(&(database, file));
        if file != 0 && known.is_none_or(|known| !known.is_live) {
            self.relations.insert((database, file), class);
        }
    }

    /// The relation with these files.
    pub fn relation(&self, database: u32, file: u32) -> Option<Named> {
        let class = self.relations.get(&(database, file))?;
        Some(Named {
            name: class.name.clone(),
            schema: self.schemas.get(&(database, class.schema)).cloned(),
            kind: match class.kind {
                b'r' => "table",
                b'i' => "index",
                b'S' => "sequence",
                b't' => "TOAST table",
                b'm' => "materialized view",
                _ => "relation",
            },
        })
    }
}

/// Length of a relation's pages, which each page's header tells (`PageGetPageSize`).
fn page_bytes(file: &[u8]) -> usize {
    let size = u16_at(file, 18).map_or(0, |size| usize::from(size & 0xFF00));
    size.max(1024)
}

/// A row of a catalog.
struct Tuple<'a> {
    oid: Option<u32>,
    data: &'a [u8],
    /// Whether nobody deleted or updated it, for all that the row itself says.
    is_live: bool,
}

/// The rows of a heap page (bufpage.h, `PageHeaderData`, `ItemIdData`).
fn tuples(page: &[u8]) -> impl Iterator<Item = Tuple<'_>> {
    const PAGE_HEADER_BYTES: usize = 24;
    const NORMAL: u32 = 1;
    let lower = u16_at(page, 12).map_or(0, usize::from);
    let pointers = (PAGE_HEADER_BYTES..lower.min(page.len())).step_by(4);
    pointers.filter_map(move |at| {
        let pointer = u32_at(page, at)?;
        let offset = usize::try_from(pointer & 0x7FFF).ok()?;
        let length = usize::try_from(pointer >> 17).ok()?;
        let is_normal = pointer >> 15 & 3 == NORMAL;
        let bytes = page.get(offset..offset.checked_add(length)?)?;
        tuple(bytes).filter(|_| is_normal)
    })
}

/// htup_details.h, `HeapTupleHeaderData`.
fn tuple(bytes: &[u8]) -> Option<Tuple<'_>> {
    const HAS_OID: u16 = 0x0008;
    const XMAX_INVALID: u16 = 0x0800;
    let flags = u16_at(bytes, 20)?;
    let begin = usize::from(*bytes.get(22)?);
    let oid = (flags & HAS_OID != 0).then(|| u32_at(bytes, begin.checked_sub(4)?));
    Some(Tuple {
        oid: oid.flatten(),
        data: bytes.get(begin..)?,
        is_live: u32_at(bytes, 4)? == 0 || flags & XMAX_INVALID != 0,
    })
}

fn name(data: &[u8]) -> Option<String> {
    let name = data.get(..NAME_BYTES)?.split(|byte| *byte == 0).next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}
