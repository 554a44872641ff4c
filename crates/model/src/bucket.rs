//! Buckets of Cloud Storage: names and what is kept of them. Their objects are kept elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BucketName, Timestamp};

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    pub name: BucketName,
    /// Upper case, as Cloud Storage shows it: `US-CENTRAL1`.
    pub location: String,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// `iamConfiguration.uniformBucketLevelAccess.enabled`; there are no other permissions than the owner's either way.
    pub uniform_access: bool,
    /// `cors` as it was given: nobody asks here from a browser.
    pub cors: String,
}
