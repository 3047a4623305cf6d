//! The S3 store.

use crate::transfer::StoreSettings;
use crate::{Error, ErrorKind, Operation, Result};

/// Where in S3 a store lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The bucket's name.
    pub bucket: String,
    /// What all keys begin with, without slashes around it; may be empty.
    pub prefix: String,
}

/// Objects in a bucket.
#[derive(Debug)]
pub struct S3Store;

impl S3Store {
    /// Not yet: the next commit of this branch connects.
    pub(crate) async fn connect(
        location: Location,
        _settings: &StoreSettings,
    ) -> Result<std::sync::Arc<dyn crate::ObjectStore>> {
        let Location { bucket, prefix } = location;
        Err(Error::new(
            Operation::Open,
            format!("s3://{bucket}/{prefix}"),
            ErrorKind::Other,
        ))
    }
}
