//! Long-running operations, for the clients that ask once more even when the first answer said done.
//!
//! Everything here is done when it is answered, so that an operation is nothing but that answer, kept for a while.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

/// So many of the last ones can be asked for.
const KEPT: usize = 1000;

/// The last operations of a server, gone at its end.
#[derive(Debug, Default)]
pub struct Operations(Mutex<VecDeque<Value>>);

impl Operations {
    /// An operation under `parent` (`projects/P/locations/L`) that ended well with `response`.
    pub(crate) fn done(&self, parent: &str, response: Value) -> Value {
        let operation = json!({
            "name": format!("{parent}/operations/{}", uuid::Uuid::new_v4()),
            "metadata": {},
            "done": true,
            "response": response,
        });
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(operation.clone());
        operation
    }

    /// The operation of this whole name.
    pub(crate) fn find(&self, name: &str) -> Option<Value> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|operation| operation["name"] == name).cloned()
    }
}
