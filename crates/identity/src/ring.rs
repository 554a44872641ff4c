//! The keys that sign tokens: one signs, some still check, the next is shown ahead.
//!
//! A key signs for [`ROTATE`]. Its successor is made [`AHEAD`] of its time, so that whoever keeps our key set for a
//! while knows it before it signs; it goes on checking for [`OVERLAP`] after that, until the last token it signed has
//! expired. All of it is decided by the clock alone.
//!
//! On the disk it is one sealed file, written whole.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::certificate::certificate;
use crate::jwt::{CheckingKey, Flaw, NotAKey, Signed, SigningKey};
use crate::key::KeyError;
use crate::key_file;
use crate::seal::Seal;

/// How long a key signs, in seconds: two weeks.
pub(crate) const ROTATE: u64 = 14 * DAY;
/// How long before it signs a key is shown.
pub(crate) const AHEAD: u64 = DAY;
/// How long a key checks after it signed last: the life of a token, and some difference of clocks.
pub(crate) const OVERLAP: u64 = 3600 + 300;
const DAY: u64 = 24 * 3600;

const PURPOSE: &str = "signing keys";
/// What the certificates are named after, as Google's are.
const NAME: &str = "federated-signon.system.gserviceaccount.com";

/// By the time at which they begin to sign.
pub(crate) struct Ring(Vec<Entry>);

struct Entry {
    signing: SigningKey,
    checking: CheckingKey,
    kept: Kept,
}

/// As it stands in the file.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    /// It signs from then on, Unix seconds.
    from: u64,
    private_key: String,
    certificate: String,
}

impl Entry {
    fn make(from: u64) -> Result<Self, NotAKey> {
        let (_, private_key) = SigningKey::generate()?;
        Self::import(private_key, from)
    }

    fn import(private_key: String, from: u64) -> Result<Self, NotAKey> {
        let certificate = certificate(&private_key, NAME, from, Some(from + ROTATE + OVERLAP))?;
        Self::of(Kept {
            from,
            private_key,
            certificate,
        })
    }

    fn of(kept: Kept) -> Result<Self, NotAKey> {
        let signing = SigningKey::from_pem(&kept.private_key)?;
        let checking = signing.checking_key()?;
        Ok(Self {
            signing,
            checking,
            kept,
        })
    }
}

impl Ring {
    /// One new key, which signs at once.
    pub(crate) fn new(now: u64) -> Result<Self, NotAKey> {
        Ok(Self(vec![Entry::make(now)?]))
    }

    /// A key that was kept in another way before.
    pub(crate) fn import(private_key: String, now: u64) -> Result<Self, NotAKey> {
        Ok(Self(vec![Entry::import(private_key, now)?]))
    }

    pub(crate) fn read(file: &Path, seal: &Seal) -> Result<Option<Self>, KeyError> {
        let Some(text) = key_file::read(file)? else {
            return Ok(None);
        };
        let damaged = || KeyError::Sealed { path: file.to_owned() };
        let inside = seal.unseal(PURPOSE, &text).map_err(|_| damaged())?;
        let kept: Vec<Kept> = serde_json::from_slice(&inside).map_err(|_| damaged())?;
        let entries: Result<Vec<Entry>, NotAKey> = kept.into_iter().map(Entry::of).collect();
        match entries {
            Ok(entries) if !entries.is_empty() => Ok(Some(Self(entries))),
            Ok(_) | Err(NotAKey) => Err(damaged()),
        }
    }

    /// The text that [`Self::read`] reads.
    pub(crate) fn sealed(&self, seal: &Seal) -> String {
        let kept: Vec<&Kept> = self.0.iter().map(|entry| &entry.kept).collect();
        let inside = serde_json::to_vec(&kept).expect("plain texts");
        seal.seal(PURPOSE, &inside) + "\n"
    }

    /// The ring as it has to be at `now`; None: as it is. Called often enough (once an hour is plenty) every key is shown
    /// ahead; after a long sleep the next signs at once.
    pub(crate) fn turned(&self, now: u64) -> Result<Option<Self>, NotAKey> {
        let newest = self.0.last().map_or(0, |entry| entry.kept.from);
        let next = newest + ROTATE;
        let due = now + AHEAD >= next;
        let kept: Vec<Kept> = self
            .0
            .iter()
            .zip(self.ends())
            .filter(|(_, end)| now < *end)
            .map(|(entry, _)| entry.kept.clone())
            .collect();
        if !due && kept.len() == self.0.len() {
            return Ok(None);
        }
        let mut entries: Vec<Entry> = kept.into_iter().map(Entry::of).collect::<Result<_, _>>()?;
        if due {
            entries.push(Entry::make(next.max(now))?);
        }
        Ok(Some(Self(entries)))
    }

    /// When each key checks no more: some time after the next began to sign.
    fn ends(&self) -> impl Iterator<Item = u64> {
        let next = self.0.iter().skip(1).map(|entry| entry.kept.from + OVERLAP);
        next.chain(std::iter::once(u64::MAX))
    }

    /// The one that signs now.
    pub(crate) fn signing(&self, now: u64) -> &SigningKey {
        let begun = self.0.iter().rev().find(|entry| entry.kept.from <= now);
        // None: the clock was set back to before the first key; it signs all the same.
        let entry = begun.or(self.0.first()).expect("a ring is never empty");
        &entry.signing
    }

    /// What `token` says, if one of the keys that check at `now` signed it.
    pub(crate) fn check(&self, token: &str, now: u64) -> Result<Signed, Flaw> {
        let mut unknown = Flaw::UnknownKey(None);
        for (entry, end) in self.0.iter().zip(self.ends()) {
            match entry.checking.check(token) {
                Err(flaw @ Flaw::UnknownKey(_)) => unknown = flaw,
                Ok(_) | Err(_) if now >= end => {
                    return Err(Flaw::UnknownKey(Some(entry.signing.id().to_owned())));
                }
                found => return found,
            }
        }
        Err(unknown)
    }

    /// Whether the key of this id checks at `now`.
    pub(crate) fn checks_with(&self, id: &str, now: u64) -> bool {
        self.shown(now).any(|entry| entry.signing.id() == id)
    }

    /// The key set by RFC 7517.
    pub(crate) fn jwks(&self, now: u64) -> Value {
        let keys: Vec<Value> = self.shown(now).map(|entry| entry.checking.jwk()).collect();
        json!({ "keys": keys })
    }

    /// The same as certificates by key id.
    pub(crate) fn certificates(&self, now: u64) -> Value {
        let all: Map<String, Value> = self
            .shown(now)
            .map(|entry| (entry.signing.id().to_owned(), entry.kept.certificate.clone().into()))
            .collect();
        Value::Object(all)
    }

    fn shown(&self, now: u64) -> impl Iterator<Item = &Entry> {
        let ends = self.ends();
        self.0
            .iter()
            .zip(ends)
            .filter(move |(_, end)| now < *end)
            .map(|(entry, _)| entry)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.iter().map(|entry| (&entry.signing, entry.kept.from));
        f.debug_list().entries(keys).finish()
    }
}

/// Where the ring is kept.
#[derive(Debug)]
pub(crate) struct RingFile {
    pub(crate) path: PathBuf,
}

impl RingFile {
    pub(crate) fn write(&self, ring: &Ring, seal: &Seal) -> Result<(), KeyError> {
        Ok(key_file::replace(&self.path, &ring.sealed(seal), 0o600)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn ids(set: &Value) -> Vec<String> {
        let keys = set["keys"].as_array().expect("a list");
        keys.iter()
            .map(|key| key["kid"].as_str().expect("an id").to_owned())
            .collect()
    }

    fn sign(ring: &Ring, now: u64) -> (String, String) {
        let key = ring.signing(now);
        (key.id().to_owned(), key.sign("JWT", &json!({"a": 1})))
    }

    #[test]
    fn a_key_gives_way_to_the_next_with_an_overlap() {
        let ring = Ring::new(NOW).expect("a key");
        let (first, token) = sign(&ring, NOW);
        assert!(
            ring.turned(NOW + ROTATE - AHEAD - 1).expect("keys").is_none(),
            "not yet"
        );

        let handover = NOW + ROTATE;
        let ring = ring.turned(handover - AHEAD).expect("keys").expect("the next is made");
        assert_eq!(sign(&ring, handover - 1).0, first, "shown, and not signing");
        let shown = ids(&ring.jwks(handover - 1));
        assert_eq!((shown.len(), &shown[0]), (2, &first));
        assert_eq!(ring.certificates(handover - 1).as_object().map(Map::len), Some(2));

        let (second, later) = sign(&ring, handover);
        assert_eq!(second, shown[1]);
        assert!(
            ring.check(&token, handover + OVERLAP - 1).is_ok(),
            "it checks its last tokens"
        );
        assert!(ring.check(&later, handover).is_ok());
        assert_eq!(
            ring.check(&token, handover + OVERLAP).err(),
            Some(Flaw::UnknownKey(Some(first.clone())))
        );
        assert_eq!(
            ids(&ring.jwks(handover + OVERLAP)),
            std::slice::from_ref(&second),
            "no longer shown"
        );
        let ring = ring
            .turned(handover + OVERLAP)
            .expect("keys")
            .expect("the old one goes");
        assert_eq!(ids(&ring.jwks(NOW)), [second]);
        assert!(ring.turned(handover + OVERLAP).expect("keys").is_none());
    }

    #[test]
    fn after_a_long_sleep_the_next_key_signs_at_once() {
        let ring = Ring::new(NOW).expect("a key");
        let (first, token) = sign(&ring, NOW);
        let now = NOW + 10 * ROTATE;
        let ring = ring.turned(now).expect("keys").expect("a new one");
        let (second, _) = sign(&ring, now);
        assert_ne!(first, second);
        assert!(ring.check(&token, now).is_ok(), "a token of the last minute before");
        assert!(ring.turned(now + 1).expect("keys").is_none());
    }

    #[test]
    fn a_clock_that_was_set_back_still_finds_a_key() {
        let ring = Ring::new(NOW).expect("a key");
        let (id, token) = sign(&ring, NOW - 100);
        assert_eq!(id, ids(&ring.jwks(NOW))[0]);
        assert!(ring.check(&token, NOW - 100).is_ok());
    }

    #[test]
    fn it_is_kept_sealed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = RingFile {
            path: dir.path().join("signing-keys"),
        };
        let seal = Seal::of(7);
        assert!(Ring::read(&file.path, &seal).expect("absent is no error").is_none());
        let ring = Ring::new(NOW).expect("a key");
        file.write(&ring, &seal).expect("writes");
        let again = Ring::read(&file.path, &seal).expect("reads").expect("there");
        assert_eq!(again.jwks(NOW), ring.jwks(NOW));
        assert_eq!(again.certificates(NOW), ring.certificates(NOW));
        let text = std::fs::read_to_string(&file.path).expect("text");
        assert!(!text.contains("PRIVATE KEY"));
        assert!(matches!(
            Ring::read(&file.path, &Seal::of(8)),
            Err(KeyError::Sealed { .. })
        ));
        let shown = format!("{ring:?}");
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
    }
}
