//! The passphrase of the keys of secrets, of the file that the owner named.

use std::path::Path;

use anyhow::Context as _;
use model::SecretValue;

/// The first line of the file; None: no file was named.
pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Option<SecretValue>> {
    let Some(file) = file else { return Ok(None) };
    let named = || format!("--secrets-passphrase-file {}", file.display());
    let mut bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", named()))?;
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    bytes.truncate(end);
    anyhow::ensure!(!bytes.is_empty(), "{} is empty", named());
    Ok(Some(SecretValue::new(bytes)))
}
