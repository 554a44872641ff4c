//! What is kept encrypted, and the key it is kept under.
//!
//! One file, `seal.key`, holds 32 random bytes. Everything sealed with it (AES-256-GCM, a fresh nonce each time) is
//! safe in a copy of the data directory that lacks this file, and in the database alone. It does not protect from who
//! can read the file itself: root, and whoever runs Homerun.
//!
//! Each purpose has a key of its own, derived from the one in the file, and is bound to what was sealed: a text that
//! was sealed as one thing does not open as another.

use std::fmt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hkdf, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::jwt::hex;
use crate::key::KeyError;
use crate::key_file;

const FILE: &str = "seal.key";
const BYTES: usize = 32;

/// Seals and opens. Clones nothing and shows nothing: the key stays inside.
pub struct Seal {
    root: [u8; BYTES],
}

/// Not sealed by this Homerun for this purpose, or changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was not sealed with this Homerun's seal.key for this purpose, or it is damaged")]
pub struct NotSealed;

impl Seal {
    /// Opens `seal.key` in `dir`, or makes it. Where `sealed` is something that was sealed before, a missing key is an
    /// error: a new one would open nothing of it.
    pub(crate) fn open(dir: &Path, sealed: &Path) -> Result<Self, KeyError> {
        let path = dir.join(FILE);
        let text = if let Some(text) = key_file::read(&path)? {
            text
        } else {
            // another first start may have made both since
            if sealed.exists() && !path.exists() {
                return Err(KeyError::SealMissing {
                    path,
                    sealed: sealed.to_owned(),
                });
            }
            let mut root = [0; BYTES];
            rand::fill(&mut root).map_err(|_| KeyError::Generate { path: path.clone() })?;
            let text = format!("{}\n", hex(&root));
            key_file::create(&path, &text, 0o600)?;
            // another first start may have been quicker
            key_file::read(&path)?.unwrap_or(text)
        };
        let root = from_hex(text.trim()).ok_or(KeyError::NotASeal { path })?;
        Ok(Self { root })
    }

    #[cfg(test)]
    pub(crate) fn of(byte: u8) -> Self {
        Self { root: [byte; BYTES] }
    }

    /// Text that only [`Seal::unseal`] with the same purpose turns back into `content`.
    pub fn seal(&self, purpose: &str, content: &[u8]) -> String {
        let mut inside = content.to_vec();
        let nonce = self
            .key(purpose)
            .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut inside)
            .expect("a short text can be sealed");
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut inside);
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// What was sealed for this purpose.
    ///
    /// # Errors
    /// Anything that this Homerun did not seal so.
    pub fn unseal(&self, purpose: &str, sealed: &str) -> Result<Vec<u8>, NotSealed> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed.trim()).map_err(|_| NotSealed)?;
        let (nonce, inside) = bytes.split_at_checked(NONCE_LEN).ok_or(NotSealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotSealed)?;
        let mut inside = inside.to_vec();
        let content = self
            .key(purpose)
            .open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut inside)
            .map_err(|_| NotSealed)?;
        Ok(content.to_vec())
    }

    fn key(&self, purpose: &str) -> RandomizedNonceKey {
        let mut key = [0; BYTES];
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"homerun seal 1")
            .extract(&self.root)
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|derived| derived.fill(&mut key))
            .expect("32 bytes can be derived");
        RandomizedNonceKey::new(&AES_256_GCM, &key).expect("a key of 32 bytes")
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(withheld)")
    }
}

fn from_hex(text: &str) -> Option<[u8; BYTES]> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok())
        .collect::<Option<_>>()?;
    (digits.len() == 2 * BYTES).then_some(())?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_again_and_only_so() {
        let seal = Seal::of(7);
        let sealed = seal.seal("one", b"content");
        assert_eq!(seal.unseal("one", &sealed).as_deref(), Ok(&b"content"[..]));
        assert_eq!(seal.unseal("two", &sealed), Err(NotSealed), "another purpose");
        assert_eq!(Seal::of(8).unseal("one", &sealed), Err(NotSealed), "another key");
        assert_ne!(seal.seal("one", b"content"), sealed, "a fresh nonce each time");
        for (at, _) in sealed.char_indices() {
            let mut changed = sealed.clone();
            let other = if &sealed[at..=at] == "A" { "B" } else { "A" };
            changed.replace_range(at..=at, other);
            // the last character's low bits may mean nothing; then it does not decode, or decodes to the same
            let opened = seal.unseal("one", &changed);
            assert!(opened.is_err() || at + 1 == sealed.len(), "at {at}");
        }
        for text in ["", "A", "AAAA", "***"] {
            assert_eq!(seal.unseal("one", text), Err(NotSealed), "{text}");
        }
        assert!(seal.seal("one", b"").len() < 60);
    }

    #[test]
    fn hexadecimal() {
        let root = [0xa7; BYTES];
        assert_eq!(from_hex(&hex(&root)), Some(root));
        for text in [
            String::new(),
            "ab".repeat(31),
            "ab".repeat(33),
            "xy".repeat(32),
            "é".repeat(32),
        ] {
            assert_eq!(from_hex(&text), None, "{text}");
        }
    }

    #[test]
    fn no_debug_text_holds_the_key() {
        assert_eq!(format!("{:?}", Seal::of(7)), "Seal(withheld)");
    }
}
