//! Access tokens and ID tokens: given out and checked by the same issuer.
//!
//! The two must never stand in for one another: an ID token is handed to services, which could replay it. An ID token
//! is signed and can be read by all; an access token is sealed and can be read by nobody else.

use std::sync::Arc;

use arc_swap::ArcSwap;
use model::{Principal, ServiceAccount};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::{self, AccessToken, PREFIX};
use crate::jwt::Flaw;
use crate::ring::Ring;
use crate::seal::Seal;
use crate::verified::{self, IdentityToken, Verified};

/// Issuer of ID tokens, as Google writes it.
pub const IDENTITY_ISSUER: &str = "https://accounts.google.com";
/// The audience of an ID token that gcloud asked for without naming one: its own OAuth client. Google accepts it at
/// every private service of the caller, and so must the ingress.
pub const GCLOUD_AUDIENCE: &str = "32555940559.apps.googleusercontent.com";
/// The scope that the Google Cloud APIs require of an access token.
pub const CLOUD_PLATFORM_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// The scope that is enough for the IAM and the IAM Credentials API. Google's libraries ask for it to impersonate.
pub const IAM_SCOPE: &str = "https://www.googleapis.com/auth/iam";
/// Life of both kinds of token, in seconds: `expires_in` of the token endpoint.
pub const TOKEN_SECONDS: u64 = 3599;

const IDENTITY_KIND: &str = "JWT";
/// A token may be this many seconds younger than our clock says: the clock was set back a little in between.
pub(crate) const SKEW_SECONDS: u64 = 30;

/// Who calls, as a checked token says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Of a service account or user; what IAM members are written with.
    pub email: String,
    /// The unique id that stays when the email changes hands.
    pub subject: String,
}

impl Caller {
    /// Whether the account that the token was given to is still the one of its e-mail, and may act. `account` is what is
    /// kept under that e-mail.
    ///
    /// # Errors
    /// [`TokenError::Gone`] and [`TokenError::Disabled`].
    pub fn check_account(&self, account: Option<&ServiceAccount>) -> Result<(), TokenError> {
        match account {
            Some(account) if account.unique_id != self.subject => Err(TokenError::Gone {
                email: self.email.clone(),
            }),
            None => Err(TokenError::Gone {
                email: self.email.clone(),
            }),
            Some(account) if account.disabled => Err(TokenError::Disabled {
                email: self.email.clone(),
            }),
            Some(_) => Ok(()),
        }
    }
}

/// Why a token was refused. Safe to show to the one who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token is malformed ({part})")]
    Malformed { part: &'static str },
    #[error("token is signed with {algorithm:?}, expected RS256")]
    Algorithm { algorithm: String },
    #[error("token names the key {kid:?}, which is not this Homerun's")]
    UnknownKey { kid: Option<String> },
    #[error("token signature does not match")]
    Signature,
    #[error("token is of type {found:?}, expected {expected:?}")]
    Kind {
        found: Option<String>,
        expected: &'static str,
    },
    #[error("token issuer is {found:?}, expected {expected:?}")]
    Issuer { found: String, expected: &'static str },
    #[error("token audience {found:?} is not accepted here")]
    Audience { found: String },
    #[error("token expired at {expired}, it is {now} (unix seconds)")]
    Expired { expired: u64, now: u64 },
    #[error("token is valid from {from}, it is {now} (unix seconds)")]
    NotYetValid { from: u64, now: u64 },
    #[error("the account {email} that the token was given to is not there any more")]
    Gone { email: String },
    #[error("the account {email} is disabled")]
    Disabled { email: String },
    #[error("the token was revoked")]
    Revoked,
    #[error("token scope {found:?} lacks {CLOUD_PLATFORM_SCOPE}")]
    Scope { found: String },
}

impl From<Flaw> for TokenError {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Malformed(part) => Self::Malformed { part },
            Flaw::Algorithm(algorithm) => Self::Algorithm { algorithm },
            Flaw::UnknownKey(kid) => Self::UnknownKey { kid },
            Flaw::Signature => Self::Signature,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct IdentityClaims {
    iss: String,
    aud: String,
    azp: String,
    sub: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    email_verified: Option<bool>,
    iat: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    exp: u64,
}

/// The one who gives out this Homerun's tokens, and therefore the one who can tell them from others.
#[derive(Debug)]
pub struct Issuer {
    ring: ArcSwap<Ring>,
    seal: Arc<Seal>,
    verified: Verified,
}

impl Issuer {
    pub(crate) fn new(ring: Ring, seal: Arc<Seal>) -> Self {
        Self {
            ring: ArcSwap::from_pointee(ring),
            seal,
            verified: Verified::default(),
        }
    }

    pub(crate) fn ring(&self) -> Arc<Ring> {
        self.ring.load_full()
    }

    pub(crate) fn put_ring(&self, ring: Ring) {
        self.ring.store(Arc::new(ring));
    }

    /// An access token for `caller` with `scope` (names separated by blanks), good for `seconds` from `now`
    /// ([`TOKEN_SECONDS`] unless something else was asked for).
    pub fn mint_access(&self, caller: &Caller, scope: &str, now: u64, seconds: u64) -> String {
        access::mint(&self.seal, caller, scope, now, seconds)
    }

    /// An ID token that tells `audience` who `caller` is, good for one hour from `now`.
    pub fn mint_identity(&self, caller: &Caller, audience: &str, now: u64) -> String {
        self.mint(caller, audience, true, now)
    }

    /// The same without the e-mail: an ID token of the IAM Credentials API has it only where that was asked for.
    pub fn mint_identity_without_email(&self, caller: &Caller, audience: &str, now: u64) -> String {
        self.mint(caller, audience, false, now)
    }

    fn mint(&self, caller: &Caller, audience: &str, with_email: bool, now: u64) -> String {
        let ring = self.ring();
        ring.signing(now).sign(
            IDENTITY_KIND,
            &IdentityClaims {
                iss: IDENTITY_ISSUER.to_owned(),
                aud: audience.to_owned(),
                azp: if with_email {
                    caller.email.clone()
                } else {
                    caller.subject.clone()
                },
                sub: caller.subject.clone(),
                email: with_email.then(|| caller.email.clone()),
                email_verified: with_email.then_some(true),
                iat: now,
                nbf: None,
                exp: now + 3600,
            },
        )
    }

    /// What this access token (the text after `Bearer `) lets its holder do at an API. Whether its account is still
    /// there, and whether it was taken back, is for who keeps accounts to say.
    ///
    /// # Errors
    /// The first rule it breaks; [`TokenError::Scope`] alone is a matter of permission (403), the rest mean that the
    /// caller is unknown (401).
    pub fn check_access(&self, token: &str, now: u64) -> Result<AccessToken, TokenError> {
        self.check_access_with(token, &[CLOUD_PLATFORM_SCOPE], now)
    }

    /// The same at an API for which one of these scopes is enough.
    pub fn check_access_with(&self, token: &str, scopes: &[&str], now: u64) -> Result<AccessToken, TokenError> {
        self.read_access(token, now)?.with_one_of(scopes)
    }

    /// The same whatever its scope.
    pub fn read_access(&self, token: &str, now: u64) -> Result<AccessToken, TokenError> {
        access::read(&self.seal, token, now)
    }

    /// Who sent this ID token to a service that answers to the audiences for which `accepts` is true. Whether the account
    /// is still there is for who keeps accounts to say ([`Caller::check_account`]).
    ///
    /// A token whose signature held is remembered, by a digest of its text. All the rest is looked at each time: whether its
    /// key still checks, its audience, its time.
    ///
    /// # Errors
    /// The first rule it breaks. The caller is unknown then (401).
    pub fn check_identity(
        &self,
        token: &str,
        accepts: impl Fn(&str) -> bool,
        now: u64,
    ) -> Result<Arc<IdentityToken>, TokenError> {
        if token.starts_with(PREFIX) {
            return Err(TokenError::Kind {
                found: Some("access token".to_owned()),
                expected: IDENTITY_KIND,
            });
        }
        let digest = verified::digest(token);
        let ring = self.ring.load();
        let (token, known) = match self.verified.find(&digest) {
            Some(token) if !ring.checks_with(&token.key_id, now) => {
                return Err(TokenError::UnknownKey {
                    kid: Some(token.key_id.clone()),
                });
            }
            Some(token) => (token, true),
            None => (Arc::new(read_identity(&ring, token, digest, now)?), false),
        };
        if !accepts(&token.audience) {
            return Err(TokenError::Audience {
                found: token.audience.clone(),
            });
        }
        in_time(token.from, token.expires, now)?;
        if !known {
            self.verified.keep(token.clone(), now);
        }
        Ok(token)
    }

    /// The public key set (RFC 7517) by which others can check our ID tokens.
    pub fn jwks(&self, now: u64) -> Value {
        self.ring().jwks(now)
    }

    /// The same as X.509 certificates in PEM, by key id.
    pub fn certificates(&self, now: u64) -> Value {
        self.ring().certificates(now)
    }
}

fn same_issuer(found: String, expected: &'static str) -> Result<(), TokenError> {
    if found == expected {
        Ok(())
    } else {
        Err(TokenError::Issuer { found, expected })
    }
}

/// What the ID token says, whomever it is for and whatever time it is.
fn read_identity(ring: &Ring, token: &str, digest: [u8; 32], now: u64) -> Result<IdentityToken, TokenError> {
    let signed = ring.check(token, now)?;
    if signed.kind.as_deref() != Some(IDENTITY_KIND) {
        return Err(TokenError::Kind {
            found: signed.kind,
            expected: IDENTITY_KIND,
        });
    }
    let claims: IdentityClaims = signed.claims()?;
    same_issuer(claims.iss, IDENTITY_ISSUER)?;
    let caller = Caller {
        // without an e-mail the caller is nobody whom a policy could name
        email: claims.email.unwrap_or_default(),
        subject: claims.sub,
    };
    Ok(IdentityToken {
        principal: Arc::new(Principal::of(&caller.email)),
        caller,
        audience: claims.aud,
        from: claims.nbf.map_or(claims.iat, |from| from.max(claims.iat)),
        expires: claims.exp,
        key_id: signed.key_id,
        digest,
    })
}

fn in_time(from: u64, expires: u64, now: u64) -> Result<(), TokenError> {
    if now >= expires {
        return Err(TokenError::Expired { expired: expires, now });
    }
    if from > now.saturating_add(SKEW_SECONDS) {
        return Err(TokenError::NotYetValid { from, now });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
