//! One broken rule of a request, with the path of the field that broke it.

use std::fmt;

/// What a `fieldViolations` entry of Google's errors says: which field, and what was expected of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path in the document as the caller wrote it, such as `spec.template.spec.containers[0].resources.limits.memory`.
    pub field: String,
    /// What is wrong, with the value and the limit. Lower case or a name first, no full stop.
    pub description: String,
}

impl Violation {
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}
