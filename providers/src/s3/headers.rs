//! What a new object is stored with, besides its body.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption, StorageClass};

use crate::transfer::{ObjectLock, S3Settings};

/// The request with the settings' headers; a macro because single puts and uploads have the same setters on types
/// that share no trait.
macro_rules! as_the_settings_say {
    ($request:expr, $settings:expr) => {{
        let settings = &$settings;
        $request
            .set_server_side_encryption($crate::s3::headers::encryption(settings))
            .set_ssekms_key_id(settings.kms_key_id.clone())
            .set_storage_class($crate::s3::headers::storage_class(settings))
            .set_object_lock_mode($crate::s3::headers::lock_mode(settings))
            .set_object_lock_retain_until_date($crate::s3::headers::locked_until(settings))
    }};
}
pub(super) use as_the_settings_say;

pub(super) fn encryption(settings: &S3Settings) -> Option<ServerSideEncryption> {
    settings
        .encryption
        .as_deref()
        .map(ServerSideEncryption::from)
}

pub(super) fn storage_class(settings: &S3Settings) -> Option<StorageClass> {
    settings.storage_class.as_deref().map(StorageClass::from)
}

pub(super) fn lock_mode(settings: &S3Settings) -> Option<ObjectLockMode> {
    let lock = settings.object_lock.as_ref()?;
    Some(ObjectLockMode::from(lock.mode.as_str()))
}

pub(super) fn locked_until(settings: &S3Settings) -> Option<DateTime> {
    let until =
        |lock: &ObjectLock| SystemTime::now() + Duration::from_hours(24 * u64::from(lock.days));
    settings.object_lock.as_ref().map(until).map(DateTime::from)
}
