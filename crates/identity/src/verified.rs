//! ID tokens whose signature held, remembered: to know one again costs a digest of it and a look, in place of an RSA
//! operation and the reading of its JSON.
//!
//! What is kept is what a token says, never the token: it is found by the SHA-256 of its text. Only tokens that this
//! Homerun signed get in, so nobody can fill the table with rubbish; its size is fixed all the same. Nothing is trusted
//! for being here: see [`crate::Issuer::check_identity`] for what is asked at each use.
//!
//! Threads take no lock and wait for nobody. Two that verify the same token at once both keep it, and one wins.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest;
use model::Principal;

use crate::token::Caller;

/// A token has this many places it can be at.
const WAYS: usize = 4;
/// Groups of places. With [`WAYS`]: 4,096 tokens at most, of some 400 bytes each.
const SETS: usize = 1024;

pub(crate) type Digest = [u8; 32];

/// The name under which a token is remembered.
pub(crate) fn digest(token: &str) -> Digest {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What a good ID token says.
#[derive(Debug)]
pub struct IdentityToken {
    pub caller: Caller,
    /// The caller as policies speak of it.
    pub principal: Arc<Principal>,
    /// Whom it is for.
    pub audience: String,
    /// Unix seconds from which and until which it is good, differences of clocks aside.
    pub(crate) from: u64,
    pub(crate) expires: u64,
    /// Of the key that signed it.
    pub(crate) key_id: String,
    pub(crate) digest: Digest,
}

pub(crate) struct Verified(Box<[ArcSwapOption<IdentityToken>]>);

impl Default for Verified {
    fn default() -> Self {
        Self((0..SETS * WAYS).map(|_| ArcSwapOption::empty()).collect())
    }
}

impl Verified {
    fn places(&self, digest: &Digest) -> &[ArcSwapOption<IdentityToken>] {
        let set = usize::from(u16::from_le_bytes([digest[0], digest[1]])) % SETS;
        &self.0[set * WAYS..][..WAYS]
    }

    pub(crate) fn find(&self, digest: &Digest) -> Option<Arc<IdentityToken>> {
        self.places(digest).iter().find_map(|place| {
            let there = place.load();
            there.as_ref().filter(|token| token.digest == *digest).cloned()
        })
    }

    /// Remembers the token, at a place that is free or whose token is over at `now`, else in place of another.
    pub(crate) fn keep(&self, token: Arc<IdentityToken>, now: u64) {
        let places = self.places(&token.digest);
        let free = places
            .iter()
            .position(|place| place.load().as_ref().is_none_or(|there| there.expires <= now));
        let at = free.unwrap_or(usize::from(token.digest[2]) % WAYS);
        places[at].store(Some(token));
    }
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept = self.0.iter().filter(|place| place.load().is_some()).count();
        write!(f, "Verified({kept} tokens)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(digest: Digest, expires: u64) -> Arc<IdentityToken> {
        Arc::new(IdentityToken {
            caller: Caller {
                email: String::new(),
                subject: String::new(),
            },
            principal: Arc::new(Principal::of("")),
            audience: String::new(),
            from: 0,
            expires,
            key_id: String::new(),
            digest,
        })
    }

    /// Digests that share the set, told apart by their last byte.
    fn sharing(last: u8) -> Digest {
        let mut digest = [7; 32];
        digest[2] = last;
        digest[31] = last;
        digest
    }

    #[test]
    fn what_is_kept_is_found_by_its_whole_digest() {
        let verified = Verified::default();
        let digest = digest("a token");
        assert!(verified.find(&digest).is_none());
        verified.keep(token(digest, 10), 1);
        assert!(verified.find(&digest).is_some());
        for byte in 0..32 {
            let mut other = digest;
            other[byte] ^= 1;
            assert!(verified.find(&other).is_none(), "byte {byte}");
        }
        assert_eq!(format!("{verified:?}"), "Verified(1 tokens)");
    }

    #[test]
    fn a_full_set_gives_up_what_is_over_and_then_another() {
        let verified = Verified::default();
        for last in 0..4 {
            verified.keep(token(sharing(last), if last == 2 { 5 } else { 10 }), 1);
        }
        verified.keep(token(sharing(4), 10), 5);
        let found: Vec<u8> = (0..5).filter(|last| verified.find(&sharing(*last)).is_some()).collect();
        assert_eq!(found, [0, 1, 3, 4], "the one that is over gave way");
        verified.keep(token(sharing(5), 10), 5);
        let found = (0..6).filter(|last| verified.find(&sharing(*last)).is_some());
        assert_eq!(found.count(), 4);
        assert!(verified.find(&sharing(5)).is_some(), "the newest is there");
    }

    #[test]
    fn it_does_not_grow() {
        let verified = Verified::default();
        for number in 0..20_000 {
            verified.keep(token(digest(&number.to_string()), 10), 1);
        }
        let kept = (0..20_000).filter(|number| verified.find(&digest(&number.to_string())).is_some());
        assert_eq!(kept.count(), SETS * WAYS);
    }
}
