//! Azure's pages of names (`List Blobs`), which the SDK reads without folders.

use azure_core::time::{OffsetDateTime, parse_rfc7231};
use jiff::Timestamp;
use serde::Deserialize;

use super::failure::Unexpected;
use crate::location::Location;
use crate::{
    ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectVersion, PageToken, VersionKind,
    VersionsPage, VersionsRequest,
};

/// One page as Azure sends it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct BlobPage {
    blobs: Entries,
    /// Empty on the last page, but there: without it nobody knows whether this is the last.
    next_marker: String,
}

/// Blobs and folders may come mixed, each in the order of their names.
#[derive(Deserialize)]
struct Entries {
    #[serde(rename = "$value", default)]
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
enum Entry {
    Blob(Blob),
    BlobPrefix(Folder),
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    name: Name,
    /// When the version came to be; none where the account keeps no versions.
    #[serde(default)]
    version_id: Option<String>,
    properties: Properties,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Folder {
    name: Name,
}

/// A name, percent-encoded where XML cannot hold it.
#[derive(Deserialize)]
struct Name {
    #[serde(rename = "@Encoded", default)]
    encoded: bool,
    #[serde(rename = "$text", default)]
    text: String,
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "Content-Length")]
    size_bytes: u64,
    #[serde(rename = "Last-Modified")]
    modified: String,
    /// `directory` for what accounts with a hierarchical namespace list beside the blobs.
    #[serde(rename = "ResourceType", default)]
    resource_type: String,
}

impl BlobPage {
    /// What of the page `request` asked for, below the store's prefix.
    ///
    /// # Errors
    /// [`Unexpected`] when the names are not in byte order: what follows could then not be found again.
    pub(super) fn into_page(
        self,
        request: &ListRequest,
        location: &Location,
    ) -> Result<ListPage, Unexpected> {
        let after = request.start_after.as_deref();
        let mut objects = Vec::new();
        let (folders, next) = self.read(after, location, |key, blob| {
            objects.push(blob.listed(key)?);
            Ok(())
        })?;
        Ok(ListPage {
            objects,
            folders,
            next,
        })
    }

    /// The same of a page that was asked for with versions. When a blob was deleted, Azure does not say: its versions count as
    /// if it were there.
    ///
    /// # Errors
    /// As [`BlobPage::into_page`].
    pub(super) fn into_versions_page(
        self,
        request: &VersionsRequest,
        location: &Location,
    ) -> Result<VersionsPage, Unexpected> {
        let after = request.start_after.as_deref();
        let mut versions = Vec::new();
        let (folders, next) = self.read(after, location, |key, blob| {
            versions.push(blob.version(key)?);
            Ok(())
        })?;
        Ok(VersionsPage {
            versions,
            folders,
            next,
        })
    }

    /// Shows the blobs that are asked for; returns the folders, and where the next page begins.
    fn read(
        self,
        after: Option<&str>,
        location: &Location,
        mut show: impl FnMut(ObjectKey, Blob) -> Result<(), Unexpected>,
    ) -> Result<(Vec<String>, Option<PageToken>), Unexpected> {
        let mut folders = Vec::new();
        let (mut last_blob, mut last_folder) = (String::new(), String::new());
        for entry in self.blobs.entries {
            match entry {
                Entry::Blob(blob) => {
                    let name = in_order(&mut last_blob, blob.name.decoded())?;
                    if let Some(key) = blob.key(name, after, location) {
                        show(key, blob)?;
                    }
                }
                Entry::BlobPrefix(prefix) => {
                    let name = in_order(&mut last_folder, prefix.name.decoded())?;
                    folders.extend(folder(name, after, location));
                }
                Entry::Unknown => {}
            }
        }
        let next = Some(self.next_marker).filter(|marker| !marker.is_empty());
        Ok((folders, next.map(PageToken::from)))
    }
}

/// `name`, kept as the last one seen.
fn in_order(last: &mut String, name: String) -> Result<&str, Unexpected> {
    if name < *last {
        return Err(Unexpected::Unordered);
    }
    *last = name;
    Ok(last)
}

impl Name {
    fn decoded(&self) -> String {
        if !self.encoded {
            return self.text.clone();
        }
        percent_encoding::percent_decode_str(&self.text)
            .decode_utf8_lossy()
            .into_owned()
    }
}

impl Blob {
    /// Its key; none where it is not asked for, or its name is no key and so not of this store.
    fn key(&self, name: &str, after: Option<&str>, location: &Location) -> Option<ObjectKey> {
        let is_asked_for = |key: &str| after.is_none_or(|after| key > after);
        location.key(name).filter(|key| {
            is_asked_for(key.as_str()) && self.properties.resource_type != "directory"
        })
    }

    fn listed(self, key: ObjectKey) -> Result<ObjectInfo, Unexpected> {
        Ok(ObjectInfo {
            key,
            size_bytes: self.properties.size_bytes,
            modified: timestamp(&self.properties.modified).ok_or(Unexpected::MissingField)?,
            token: None,
        })
    }

    /// A blob that was stored before versioning was switched on has no id, and is what it was since it was stored.
    fn version(self, key: ObjectKey) -> Result<ObjectVersion, Unexpected> {
        let since = match &self.version_id {
            Some(id) => id.parse().ok(),
            None => timestamp(&self.properties.modified),
        };
        Ok(ObjectVersion {
            key,
            kind: VersionKind::Object,
            size_bytes: self.properties.size_bytes,
            since: since.ok_or(Unexpected::MissingField)?,
            id: self.version_id.unwrap_or_default(),
            until: None,
        })
    }
}

/// The folder below the store's prefix; none where all in it comes before what is asked for.
fn folder(name: &str, after: Option<&str>, location: &Location) -> Option<String> {
    let folder = location.below(name)?;
    let is_asked_for = after.is_none_or(|after| folder > after || after.starts_with(folder));
    is_asked_for.then(|| folder.to_owned())
}

/// The time in a header like `Last-Modified`.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    let time: OffsetDateTime = parse_rfc7231(text).ok()?;
    let nanoseconds = i32::try_from(time.nanosecond()).ok()?;
    Timestamp::new(time.unix_timestamp(), nanoseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(name: &str) -> String {
        format!(
            "<Blob>{name}<Properties><Content-Length>3</Content-Length>\
             <Last-Modified>Sat, 21 Nov 2026 04:30:00 GMT</Last-Modified></Properties></Blob>"
        )
    }

    fn page(entries: &str, request: &ListRequest) -> Result<ListPage, Unexpected> {
        let xml = format!(
            "<?xml version=\"1.0\"?><EnumerationResults ContainerName=\"c\"><Prefix>p/</Prefix>\
             <Blobs>{entries}</Blobs><NextMarker>more</NextMarker></EnumerationResults>"
        );
        let page: BlobPage = azure_core::xml::from_xml(xml).unwrap();
        page.into_page(request, &Location::new("az", "c", "p"))
    }

    #[test]
    fn versions_are_listed_as_azure_spells_them() {
        let version = |name: &str, id: &str| {
            let name = format!("<Name>{name}</Name><VersionId>{id}</VersionId>");
            blob(&format!("{name}<IsCurrentVersion>true</IsCurrentVersion>"))
        };
        let entries = [
            version("p/a", "2026-11-21T04:30:00.1234567Z"),
            version("p/a", "2026-11-21T05:30:00.0000000Z"),
        ];
        let page = |entries: &str| {
            let xml = format!(
                "<?xml version=\"1.0\"?><EnumerationResults ContainerName=\"c\"><Prefix>p/</Prefix>\
                 <Blobs>{entries}</Blobs><NextMarker /></EnumerationResults>"
            );
            let page: BlobPage = azure_core::xml::from_xml(xml).unwrap();
            page.into_versions_page(&VersionsRequest::default(), &Location::new("az", "c", "p"))
        };
        let listed = page(&entries.concat()).unwrap();
        assert!(listed.next.is_none());
        let seen: Vec<_> = { listed.versions.iter() }
            .map(|version| (version.key.as_str(), version.since.to_string()))
            .collect();
        let expected = [
            ("a", "2026-11-21T04:30:00.1234567Z".to_owned()),
            ("a", "2026-11-21T05:30:00Z".to_owned()),
        ];
        assert_eq!(seen, expected);
        let earlier = page(&blob("<Name>p/a</Name>")).unwrap();
        assert_eq!(earlier.versions[0].id, "");
        assert_eq!(
            earlier.versions[0].since.to_string(),
            "2026-11-21T04:30:00Z"
        );
    }

    #[test]
    fn blobs_and_folders_come_mixed_and_names_may_be_encoded() {
        let entries = [
            blob("<Name>p/a</Name>"),
            "<BlobPrefix><Name>p/b/</Name></BlobPrefix>".to_owned(),
            blob("<Name Encoded=\"true\">p/c%EF%BF%BEd</Name>"),
            "<BlobPrefix><Name>p/e/</Name></BlobPrefix>".to_owned(),
            blob("<Name>p/f &amp;</Name>"),
        ]
        .concat();
        let listed = |start_after: Option<&str>| {
            let request = ListRequest {
                start_after: start_after.map(str::to_owned),
                ..ListRequest::default()
            };
            let page = page(&entries, &request).unwrap();
            let keys = page
                .objects
                .into_iter()
                .map(|object| object.key.to_string());
            (
                keys.collect::<Vec<_>>(),
                page.folders,
                page.next.map(|next| next.as_str().to_owned()),
            )
        };
        let more = Some("more".to_owned());
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(
            listed(None),
            (
                strings(&["a", "c\u{FFFE}d", "f &"]),
                strings(&["b/", "e/"]),
                more.clone()
            )
        );
        assert_eq!(
            listed(Some("b/x")),
            (
                strings(&["c\u{FFFE}d", "f &"]),
                strings(&["b/", "e/"]),
                more
            )
        );
    }

    #[test]
    fn names_out_of_order_are_no_listing() {
        let entries = [blob("<Name>p/a/x</Name>"), blob("<Name>p/a-b</Name>")].concat();
        assert!(matches!(
            page(&entries, &ListRequest::default()),
            Err(Unexpected::Unordered)
        ));
    }
}
