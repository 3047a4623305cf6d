//! Azure's pages of names (`List Blobs`), which the SDK reads without folders.

use azure_core::time::{OffsetDateTime, parse_rfc7231};
use jiff::Timestamp;
use serde::Deserialize;

use super::failure::Unexpected;
use crate::location::Location;
use crate::{ListPage, ListRequest, ObjectInfo, PageToken};

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
        let mut page = ListPage {
            next: Some(self.next_marker)
                .filter(|marker| !marker.is_empty())
                .map(PageToken::from),
            ..ListPage::default()
        };
        let (mut last_blob, mut last_folder) = (String::new(), String::new());
        for entry in self.blobs.entries {
            match entry {
                Entry::Blob(blob) => {
                    let name = in_order(&mut last_blob, blob.name.decoded())?;
                    page.objects.extend(blob.listed(name, request, location)?);
                }
                Entry::BlobPrefix(prefix) => {
                    let name = in_order(&mut last_folder, prefix.name.decoded())?;
                    page.folders.extend(folder(name, request, location));
                }
                Entry::Unknown => {}
            }
        }
        Ok(page)
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
    /// The object; none where it is not asked for, or its name is no key and so not of this store.
    fn listed(
        self,
        name: &str,
        request: &ListRequest,
        location: &Location,
    ) -> Result<Option<ObjectInfo>, Unexpected> {
        let is_asked_for = |key: &str| {
            request
                .start_after
                .as_deref()
                .is_none_or(|after| key > after)
        };
        let key = location.key(name).filter(|key| {
            is_asked_for(key.as_str()) && self.properties.resource_type != "directory"
        });
        let Some(key) = key else { return Ok(None) };
        Ok(Some(ObjectInfo {
            key,
            size_bytes: self.properties.size_bytes,
            modified: timestamp(&self.properties.modified).ok_or(Unexpected::MissingField)?,
            token: None,
        }))
    }
}

/// The folder below the store's prefix; none where all in it comes before what is asked for.
fn folder(name: &str, request: &ListRequest, location: &Location) -> Option<String> {
    let folder = location.below(name)?;
    let is_asked_for = request
        .start_after
        .as_deref()
        .is_none_or(|after| folder > after || after.starts_with(folder));
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
