//! Retry, multipart and concurrency over any [`ObjectStore`](crate::ObjectStore): the only place that retries.
