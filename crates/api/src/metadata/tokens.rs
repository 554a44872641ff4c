//! Tokens that were given out, until they are nearly over: a program that asks before each of its requests does not have
//! each one signed.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use identity::{CLOUD_PLATFORM_SCOPE, Caller, Issuer, TOKEN_SECONDS};

/// A token with less than this many seconds left is not given out again. Clients ask anew when theirs has four or five
/// minutes left.
const FRESH: u64 = 6 * 60;
/// The most that are kept.
const MOST: usize = 4096;
/// How long an ID token lasts, in seconds.
const IDENTITY_SECONDS: u64 = 3600;

/// Whose, and what for. The unique id is another's when an account is deleted and made again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum For {
    Access { subject: String, scopes: String },
    Identity { subject: String, audience: String },
}

struct Kept {
    token: String,
    /// Unix seconds.
    expires: u64,
}

#[derive(Default)]
pub(super) struct Tokens(RwLock<HashMap<For, Kept>>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// An access token, and how many seconds it has left. `is_good` says whether one that was given out still counts.
    pub(super) fn access(
        &self,
        issuer: &Issuer,
        caller: &Caller,
        scopes: Option<&[String]>,
        now: u64,
        is_good: impl Fn(&str) -> bool,
    ) -> (String, u64) {
        let scopes = match scopes {
            Some(scopes) => scopes.join(" "),
            None => CLOUD_PLATFORM_SCOPE.to_owned(),
        };
        let key = For::Access {
            subject: caller.subject.clone(),
            scopes: scopes.clone(),
        };
        let mint = || {
            (
                issuer.mint_access(caller, &scopes, now, TOKEN_SECONDS),
                now + TOKEN_SECONDS,
            )
        };
        let (token, expires) = self.kept_or(key, now, is_good, mint);
        (token, expires.saturating_sub(now))
    }

    /// An ID token for the audience.
    pub(super) fn identity(&self, issuer: &Issuer, caller: &Caller, audience: &str, now: u64) -> String {
        let key = For::Identity {
            subject: caller.subject.clone(),
            audience: audience.to_owned(),
        };
        let mint = || (issuer.mint_identity(caller, audience, now), now + IDENTITY_SECONDS);
        self.kept_or(key, now, |_| true, mint).0
    }

    fn kept_or(
        &self,
        key: For,
        now: u64,
        is_good: impl Fn(&str) -> bool,
        mint: impl FnOnce() -> (String, u64),
    ) -> (String, u64) {
        {
            let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept) = kept.get(&key)
                && is_fresh(kept, now)
                && is_good(&kept.token)
            {
                return (kept.token.clone(), kept.expires);
            }
        }
        // Signed without the lock: two at once sign twice, and one of the two is kept.
        let (token, expires) = mint();
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST {
            kept.retain(|_, kept| is_fresh(kept, now));
        }
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(
            key,
            Kept {
                token: token.clone(),
                expires,
            },
        );
        (token, expires)
    }
}

/// A clock that was set back makes none of them last longer.
fn is_fresh(kept: &Kept, now: u64) -> bool {
    (now + FRESH..=now + IDENTITY_SECONDS).contains(&kept.expires)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn key(audience: &str) -> For {
        For::Identity {
            subject: "1".to_owned(),
            audience: audience.to_owned(),
        }
    }

    #[test]
    fn a_token_is_made_once_until_it_is_nearly_over() {
        let tokens = Tokens::default();
        let minted = Cell::new(0);
        let ask = |now: u64, is_good: bool| {
            let mint = || {
                minted.set(minted.get() + 1);
                (minted.get().to_string(), now + 3600)
            };
            tokens.kept_or(key("a"), now, |_| is_good, mint).0
        };
        assert_eq!(ask(1000, true), "1");
        assert_eq!(ask(1000 + 3600 - FRESH, true), "1");
        assert_eq!(ask(1001 + 3600 - FRESH, true), "2");
        // It was taken back.
        assert_eq!(ask(1002 + 3600 - FRESH, false), "3");
        // The clock was set back by more than a token's life.
        assert_eq!(ask(10, true), "4");
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let tokens = Tokens::default();
        for number in 0..=MOST {
            let mint = || (String::new(), 3600);
            tokens.kept_or(key(&number.to_string()), 0, |_| true, mint);
        }
        assert_eq!(tokens.0.read().expect("no panic").len(), 1);
    }
}
