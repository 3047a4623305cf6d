//! The JSON that goes over the wire, and the checksums in it.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, StoredOtherBytes, Unexpected};
use crate::{ErrorKind, ObjectInfo, ObjectKey, PutToken};

/// In the metadata of an object.
pub(super) const TOKEN_METADATA: &str = "walhalla-token";

/// `fields` of a head: no access lists, which need a right of their own.
pub(super) const RESOURCE_FIELDS: &str = "name,size,timeCreated,metadata,crc32c";

/// `fields` of a listing.
pub(super) const LISTING_FIELDS: &str = "kind,nextPageToken,prefixes,items(name,size,timeCreated)";

const LISTING_KIND: &str = "storage#objects";

/// An object that is there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resource {
    pub(super) name: Option<String>,
    size: Option<String>,
    time_created: Option<String>,
    metadata: Option<HashMap<String, String>>,
    crc32c: Option<String>,
}

/// A page of a listing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listing {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    pub(super) items: Vec<Resource>,
    #[serde(default)]
    pub(super) prefixes: Vec<String>,
    pub(super) next_page_token: Option<String>,
}

/// An object that shall be.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewResource<'a> {
    pub(super) name: &'a str,
    pub(super) content_type: &'static str,
    pub(super) metadata: HashMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) storage_class: Option<&'a str>,
    /// The server refuses a body of another checksum; where it is not known yet, it comes with the last bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crc32c: Option<String>,
}

impl Resource {
    pub(super) fn info(self, key: ObjectKey) -> Result<ObjectInfo, Failure> {
        let incomplete = || Failure::new(ErrorKind::Other, Unexpected::MissingField);
        Ok(ObjectInfo {
            key,
            size_bytes: self.size_bytes().ok_or_else(incomplete)?,
            modified: self.created().ok_or_else(incomplete)?,
            token: self
                .metadata
                .and_then(|mut metadata| metadata.remove(TOKEN_METADATA))
                .map(PutToken::from),
        })
    }

    /// What the server stored is what was sent.
    ///
    /// # Errors
    /// [`ErrorKind::Other`] when it is not. Not [`ErrorKind::Corrupted`], which is sent again: the damaged object would
    /// refuse the second create and be taken for the first one's.
    pub(super) fn check(&self, crc32c: u32, size_bytes: u64) -> Result<(), Failure> {
        let ours = checksum(crc32c);
        if self.crc32c.as_ref() == Some(&ours) && self.size_bytes() == Some(size_bytes) {
            return Ok(());
        }
        let (Some(theirs), Some(length)) = (&self.crc32c, self.size_bytes()) else {
            return Err(Failure::new(ErrorKind::Other, Unexpected::MissingField));
        };
        let wrong = StoredOtherBytes {
            ours: format!("{ours} of {size_bytes} bytes"),
            theirs: format!("{theirs} of {length} bytes"),
        };
        Err(Failure::new(ErrorKind::Other, wrong))
    }

    fn size_bytes(&self) -> Option<u64> {
        self.size.as_ref()?.parse().ok()
    }

    fn created(&self) -> Option<Timestamp> {
        self.time_created.as_ref()?.parse().ok()
    }
}

impl Listing {
    /// The same, if it is one: an empty page decides that something is not there, so any JSON will not do.
    pub(super) fn checked(self) -> Result<Self, Failure> {
        if self.kind == LISTING_KIND {
            Ok(self)
        } else {
            Err(Failure::new(ErrorKind::Other, Unexpected::NoListing))
        }
    }

    /// Whether it shows, as the first page of what begins with `name`, that no object has this name: the object
    /// itself would come first. An empty page after which others follow shows nothing.
    pub(super) fn denies(&self, name: &str) -> bool {
        match self.items.first() {
            Some(first) => first.name.as_deref().is_some_and(|first| first != name),
            None => self.next_page_token.is_none(),
        }
    }
}

/// A CRC-32C as GCS spells it: base64 of its bytes, the highest first.
pub(super) fn checksum(crc32c: u32) -> String {
    STANDARD.encode(crc32c.to_be_bytes())
}

/// The CRC-32C of the whole object in `x-goog-hash: crc32c=n03x6A==,md5=…`, which may also come as several headers.
pub(super) fn stored_checksum(headers: &HeaderMap) -> Option<u32> {
    let hashes = headers.get_all("x-goog-hash").iter();
    let mut hashes = hashes
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let text = hashes.find_map(|hash| hash.trim().strip_prefix("crc32c="))?;
    let bytes = STANDARD.decode(text).ok()?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_spelt_as_gcs_does() {
        // The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
        let crc = crc32c::crc32c(b"123456789");
        assert_eq!(crc, 0xE306_9283);
        assert_eq!(checksum(crc), "4waSgw==");
        let mut headers = HeaderMap::new();
        assert_eq!(stored_checksum(&headers), None);
        headers.append(
            "x-goog-hash",
            "md5=XUFAKrxLKna5cZ2REBfFkg==".parse().unwrap(),
        );
        assert_eq!(stored_checksum(&headers), None);
        headers.append("x-goog-hash", "crc32c=4waSgw==".parse().unwrap());
        assert_eq!(stored_checksum(&headers), Some(crc));
        headers.insert("x-goog-hash", "crc32c=4waSgw==, md5=x".parse().unwrap());
        assert_eq!(stored_checksum(&headers), Some(crc));
        headers.insert("x-goog-hash", "crc32c=4wa".parse().unwrap());
        assert_eq!(stored_checksum(&headers), None);
    }
}
