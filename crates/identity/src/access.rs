//! Access tokens: opaque to whoever holds them.
//!
//! A token is what it grants, sealed: nothing is kept of it here, it survives a restart, and nobody but this Homerun
//! can read or make one. Each has an id, by which it can be taken back before its time.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::jwt::random;
use crate::seal::Seal;
use crate::token::{Caller, SKEW_SECONDS, TokenError};

/// Every access token begins so, as Google's do.
pub(crate) const PREFIX: &str = "ya29.";
const PURPOSE: &str = "access token";

#[derive(Serialize, Deserialize)]
struct Inside {
    id: String,
    email: String,
    sub: String,
    scope: String,
    iat: u64,
    exp: u64,
}

/// What a good access token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    pub caller: Caller,
    /// By which it is taken back.
    pub id: String,
    /// Names separated by blanks.
    pub scope: String,
    /// Unix seconds.
    pub expires: u64,
}

pub(crate) fn mint(seal: &Seal, caller: &Caller, scope: &str, now: u64, seconds: u64) -> String {
    let inside = Inside {
        id: URL_SAFE_NO_PAD.encode(random::<16>()),
        email: caller.email.clone(),
        sub: caller.subject.clone(),
        scope: scope.to_owned(),
        iat: now,
        exp: now + seconds,
    };
    let inside = serde_json::to_vec(&inside).expect("plain texts and numbers");
    format!("{PREFIX}{}", seal.seal(PURPOSE, &inside))
}

/// What the token says, whatever it may be used for.
pub(crate) fn read(seal: &Seal, token: &str, now: u64) -> Result<AccessToken, TokenError> {
    let malformed = |part| TokenError::Malformed { part };
    let sealed = token.strip_prefix(PREFIX).ok_or(malformed("not an access token"))?;
    let inside = seal
        .unseal(PURPOSE, sealed)
        .map_err(|_| malformed("not this Homerun's"))?;
    let inside: Inside = serde_json::from_slice(&inside).map_err(|_| malformed("inside"))?;
    if now >= inside.exp {
        return Err(TokenError::Expired {
            expired: inside.exp,
            now,
        });
    }
    if inside.iat > now.saturating_add(SKEW_SECONDS) {
        return Err(TokenError::NotYetValid { from: inside.iat, now });
    }
    Ok(AccessToken {
        caller: Caller {
            email: inside.email,
            subject: inside.sub,
        },
        id: inside.id,
        scope: inside.scope,
        expires: inside.exp,
    })
}

impl AccessToken {
    /// Whether it has one of these scopes.
    pub(crate) fn with_one_of(self, scopes: &[&str]) -> Result<Self, TokenError> {
        if has_one_of(&self.scope, scopes) {
            Ok(self)
        } else {
            Err(TokenError::Scope { found: self.scope })
        }
    }
}

/// Whether one of the scopes is among the names, which are separated by blanks.
pub(crate) fn has_one_of(names: &str, scopes: &[&str]) -> bool {
    names.split_ascii_whitespace().any(|name| scopes.contains(&name))
}
