//! The OAuth token endpoint (`POST https://oauth2.googleapis.com/token`) as a function of form and time.
//!
//! One grant is served: a service account's signed assertion (RFC 7523) for an access token or an ID token. Refresh
//! tokens belong to user logins, which this Homerun does not have, so no refresh token was ever given out.
//!
//! Accounts and their keys are kept elsewhere and looked up by e-mail. The owner's own key, whose file lies beside the
//! issuer's, is always one of the owner's account.

use std::sync::Arc;

use model::{AccountKey, ServiceAccount, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::account;
use crate::jwt::{self, Flaw, Signed};
use crate::key::Keys;
use crate::token::{Caller, TOKEN_SECONDS};

/// The endpoint as key files name it, and therefore the audience of an assertion.
pub const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
/// The grant type of a signed assertion.
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// An assertion may claim at most this many seconds between `iat` and `exp`.
const LONGEST_ASSERTION: u64 = 3600;
/// A client's clock may differ from ours by this many seconds.
const SKEW_SECONDS: u64 = 60;

/// Why the endpoint gave out no token. Every one is answered with HTTP 400 and [`OauthError::body`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OauthError {
    #[error("parameter {0} is missing")]
    Missing(&'static str),
    #[error("parameter {0} is given more than once")]
    Repeated(&'static str),
    #[error("grant_type {0:?} is not supported, expected {JWT_BEARER} with a service-account assertion")]
    GrantType(String),
    #[error("refresh tokens are not given out by this server, use the service-account key of this Homerun")]
    RefreshToken,
    #[error("assertion is malformed ({0})")]
    Malformed(&'static str),
    #[error("assertion is signed with {0:?}, expected RS256")]
    Algorithm(String),
    #[error("assertion names the key {0:?}, which is no key of this account")]
    UnknownKey(Option<String>),
    #[error("assertion signature does not match the account's key")]
    Signature,
    #[error("account {0:?} is not known here")]
    UnknownAccount(String),
    #[error("account {0:?} is disabled")]
    DisabledAccount(String),
    #[error("key {0:?} of the account is disabled or has expired")]
    DisabledKey(String),
    #[error("assertion audience is {0:?}, expected {TOKEN_URI}")]
    Audience(String),
    #[error("assertion expired at {expired}, it is {now} (unix seconds)")]
    Expired { expired: u64, now: u64 },
    #[error("assertion was issued at {issued}, it is {now} (unix seconds)")]
    NotYetValid { issued: u64, now: u64 },
    #[error("assertion claims a life of {seconds} seconds, at most {LONGEST_ASSERTION} are allowed")]
    TooLong { seconds: u64 },
    #[error("account {account:?} may not act for {subject:?}")]
    Delegation { account: String, subject: String },
    #[error("assertion asks for neither a scope nor a target_audience")]
    NothingAsked,
}

impl OauthError {
    /// The error code of RFC 6749 5.2.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Repeated(_) => "invalid_request",
            Self::GrantType(_) => "unsupported_grant_type",
            Self::NothingAsked => "invalid_scope",
            Self::Delegation { .. } => "unauthorized_client",
            Self::RefreshToken
            | Self::Malformed(_)
            | Self::Algorithm(_)
            | Self::UnknownKey(_)
            | Self::Signature
            | Self::UnknownAccount(_)
            | Self::DisabledAccount(_)
            | Self::DisabledKey(_)
            | Self::Audience(_)
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::TooLong { .. } => "invalid_grant",
        }
    }

    /// The JSON body of the answer.
    pub fn body(&self) -> Value {
        json!({ "error": self.code(), "error_description": self.to_string() })
    }
}

impl From<Flaw> for OauthError {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Malformed(part) => Self::Malformed(part),
            Flaw::Algorithm(algorithm) => Self::Algorithm(algorithm),
            Flaw::UnknownKey(id) => Self::UnknownKey(id),
            Flaw::Signature => Self::Signature,
        }
    }
}

#[derive(Deserialize)]
struct Assertion {
    iss: String,
    sub: Option<String>,
    aud: String,
    iat: u64,
    exp: u64,
    scope: Option<String>,
    target_audience: Option<String>,
}

impl Keys {
    /// Answers the decoded form of a token request: the JSON body of a 200, or the error of a 400. `account` finds one by
    /// its e-mail; `now` in Unix seconds.
    pub fn token_endpoint(
        &self,
        form: &[(String, String)],
        account: impl FnOnce(&str) -> Option<Arc<ServiceAccount>>,
        now: u64,
    ) -> Result<Value, OauthError> {
        match parameter(form, "grant_type")? {
            JWT_BEARER => self.exchange(parameter(form, "assertion")?, account, now),
            "refresh_token" => Err(OauthError::RefreshToken),
            other => Err(OauthError::GrantType(other.to_owned())),
        }
    }

    /// What the assertion says and whose it is, its signature checked with a key of the account that it names.
    pub(crate) fn signed_by(
        &self,
        assertion: &str,
        account: impl FnOnce(&str) -> Option<Arc<ServiceAccount>>,
        now: u64,
    ) -> Result<(Signed, Caller), OauthError> {
        // which account to look for; believed only once the signature holds
        let (kid, claimed): (_, Claimed) = jwt::unchecked(assertion)?;
        let owner = self.owner();
        let is_owner = claimed.iss == owner.caller().email;
        if is_owner && kid.as_deref() == Some(owner.key().id()) {
            return Ok((owner.key().check(assertion)?, owner.caller().clone()));
        }
        let Some(kid) = kid else {
            return self.signed_by_any(assertion, claimed.iss, account, now);
        };
        let account = match account(&claimed.iss) {
            Some(account) => account,
            None if is_owner => return Err(OauthError::UnknownKey(Some(kid))),
            None => return Err(OauthError::UnknownAccount(claimed.iss)),
        };
        let key = account.keys.iter().find(|key| key.id == kid);
        let Some(key) = key else {
            return Err(OauthError::UnknownKey(Some(kid)));
        };
        let checking = account::checking_key(key).ok_or(OauthError::UnknownKey(Some(kid)))?;
        let signed = checking.check(assertion)?;
        counts(&account, key, now)?;
        Ok((signed, caller_of(&account)))
    }

    /// The same for an assertion that names no key, as some libraries sign them: each key of the account is tried.
    fn signed_by_any(
        &self,
        assertion: &str,
        issuer: String,
        account: impl FnOnce(&str) -> Option<Arc<ServiceAccount>>,
        now: u64,
    ) -> Result<(Signed, Caller), OauthError> {
        let owner = self.owner();
        let is_owner = issuer == owner.caller().email;
        if is_owner && let Ok(signed) = owner.key().check_unnamed(assertion) {
            return Ok((signed, owner.caller().clone()));
        }
        let Some(account) = account(&issuer) else {
            return Err(if is_owner {
                OauthError::Signature
            } else {
                OauthError::UnknownAccount(issuer)
            });
        };
        for key in &account.keys {
            let checking = account::checking_key(key);
            let Some(signed) = checking.and_then(|checking| checking.check_unnamed(assertion).ok()) else {
                continue;
            };
            counts(&account, key, now)?;
            return Ok((signed, caller_of(&account)));
        }
        Err(OauthError::Signature)
    }

    fn exchange(
        &self,
        assertion: &str,
        account: impl FnOnce(&str) -> Option<Arc<ServiceAccount>>,
        now: u64,
    ) -> Result<Value, OauthError> {
        let (signed, caller) = self.signed_by(assertion, account, now)?;
        let claims: Assertion = signed.claims()?;
        if let Some(subject) = claims.sub
            && subject != claims.iss
        {
            return Err(OauthError::Delegation {
                account: claims.iss,
                subject,
            });
        }
        if claims.aud != TOKEN_URI {
            return Err(OauthError::Audience(claims.aud));
        }
        in_time(claims.iat, claims.exp, now)?;
        // Google's library for Node sends its scopes along when it asks for an ID token.
        match (nonempty(claims.scope), nonempty(claims.target_audience)) {
            (Some(scope), None) => Ok(json!({
                "access_token": self.issuer().mint_access(&caller, &scope, now, TOKEN_SECONDS),
                "expires_in": TOKEN_SECONDS,
                "token_type": "Bearer",
            })),
            (_, Some(audience)) => Ok(json!({
                "id_token": self.issuer().mint_identity(&caller, &audience, now),
            })),
            (None, None) => Err(OauthError::NothingAsked),
        }
    }
}

/// Whether the account is on, and the key neither disabled nor over. Only who holds the key is told.
fn counts(account: &ServiceAccount, key: &AccountKey, now: u64) -> Result<(), OauthError> {
    if account.disabled {
        return Err(OauthError::DisabledAccount(account.email.clone()));
    }
    let at = Timestamp::from_micros(i64::try_from(now).unwrap_or(i64::MAX).saturating_mul(1_000_000));
    if account.usable_key(&key.id, at).is_none() {
        return Err(OauthError::DisabledKey(key.id.clone()));
    }
    Ok(())
}

fn caller_of(account: &ServiceAccount) -> Caller {
    Caller {
        email: account.email.clone(),
        subject: account.unique_id.clone(),
    }
}

/// The one claim by which a key is found.
#[derive(Deserialize)]
struct Claimed {
    iss: String,
}

pub(crate) fn in_time(issued: u64, expires: u64, now: u64) -> Result<(), OauthError> {
    if expires.saturating_add(SKEW_SECONDS) <= now {
        return Err(OauthError::Expired { expired: expires, now });
    }
    if issued > now.saturating_add(SKEW_SECONDS) {
        return Err(OauthError::NotYetValid { issued, now });
    }
    let seconds = expires.saturating_sub(issued);
    if seconds > LONGEST_ASSERTION {
        return Err(OauthError::TooLong { seconds });
    }
    Ok(())
}

pub(crate) fn nonempty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// The one value of `name`; RFC 6749 3.2 forbids repeating it.
fn parameter<'a>(form: &'a [(String, String)], name: &'static str) -> Result<&'a str, OauthError> {
    let mut values = form.iter().filter(|(key, _)| key == name);
    let (_, value) = values.next().ok_or(OauthError::Missing(name))?;
    match values.next() {
        Some(_) => Err(OauthError::Repeated(name)),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests;
