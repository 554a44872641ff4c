//! The access token that one command leaves for the next, as gcloud leaves its own.
//!
//! Signing costs more than all else that a short command does, so the token is kept in a file of the config directory
//! that only its owner may read, for as long as it is good. It is found again only by who can still read the owner's
//! key: the key's fingerprint is part of what must agree. That it cannot be kept is no failure.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Outside, surroundings};

/// A token this close to its end (seconds) is not used.
const MARGIN: u64 = 300;

/// An access token in use.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) token: String,
    /// It was found, not asked for: the server may have forgotten it.
    pub(crate) kept: bool,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("kept", &self.kept).finish_non_exhaustive()
    }
}

fn file(outside: &Outside<'_>, data_dir: &Path) -> PathBuf {
    outside
        .config_dir
        .join("access_tokens")
        .join(surroundings::short_id(data_dir))
}

fn fingerprint(key: &str) -> String {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The token that was kept for this key, if it is still good.
pub(crate) fn find(outside: &Outside<'_>, data_dir: &Path, key: &str) -> Option<Held> {
    let text = std::fs::read_to_string(file(outside, data_dir)).ok()?;
    let kept: Value = serde_json::from_str(&text).ok()?;
    let is_good = kept["key"] == fingerprint(key).as_str() && kept["expires"].as_u64()? > outside.now + MARGIN;
    let token = kept["token"].as_str()?.to_owned();
    is_good.then_some(Held { token, kept: true })
}

/// Keeps a token that is good for so many seconds.
pub(crate) fn keep(outside: &Outside<'_>, data_dir: &Path, key: &str, token: &str, seconds: u64) {
    let path = file(outside, data_dir);
    let text = json!({"key": fingerprint(key), "expires": outside.now.saturating_add(seconds), "token": token});
    let mut draft = path.clone().into_os_string();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?
            .write_all(text.to_string().as_bytes())?;
        std::fs::rename(&draft, &path)
    });
    // a config directory that cannot be written costs time, nothing else
    drop(written);
}
