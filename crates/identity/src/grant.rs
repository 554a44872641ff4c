//! The OAuth token endpoint (`POST https://oauth2.googleapis.com/token`) as a function of form and time.
//!
//! One grant is served: a service account's signed assertion (RFC 7523) for an access token or an ID token. Refresh
//! tokens belong to user logins, which this Homerun does not have, so no refresh token was ever given out.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::jwt::Flaw;
use crate::key::Keys;
use crate::token::TOKEN_SECONDS;

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
    #[error("assertion asks for a scope and a target_audience, expected one of them")]
    BothAsked,
}

impl OauthError {
    /// The error code of RFC 6749 5.2.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Repeated(_) | Self::BothAsked => "invalid_request",
            Self::GrantType(_) => "unsupported_grant_type",
            Self::NothingAsked => "invalid_scope",
            Self::Delegation { .. } => "unauthorized_client",
            Self::RefreshToken
            | Self::Malformed(_)
            | Self::Algorithm(_)
            | Self::UnknownKey(_)
            | Self::Signature
            | Self::UnknownAccount(_)
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
    /// Answers the decoded form of a token request: the JSON body of a 200, or the error of a 400. `now` in Unix
    /// seconds.
    pub fn token_endpoint(&self, form: &[(String, String)], now: u64) -> Result<Value, OauthError> {
        match parameter(form, "grant_type")? {
            JWT_BEARER => self.exchange(parameter(form, "assertion")?, now),
            "refresh_token" => Err(OauthError::RefreshToken),
            other => Err(OauthError::GrantType(other.to_owned())),
        }
    }

    fn exchange(&self, assertion: &str, now: u64) -> Result<Value, OauthError> {
        let owner = self.owner().caller();
        let claims: Assertion = self.owner().key().check(assertion)?.claims()?;
        if claims.iss != owner.email {
            return Err(OauthError::UnknownAccount(claims.iss));
        }
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
        match (nonempty(claims.scope), nonempty(claims.target_audience)) {
            (Some(scope), None) => Ok(json!({
                "access_token": self.issuer().mint_access(owner, &scope, now),
                "expires_in": TOKEN_SECONDS,
                "token_type": "Bearer",
            })),
            (None, Some(audience)) => Ok(json!({
                "id_token": self.issuer().mint_identity(owner, &audience, now),
            })),
            (None, None) => Err(OauthError::NothingAsked),
            (Some(_), Some(_)) => Err(OauthError::BothAsked),
        }
    }
}

fn in_time(issued: u64, expires: u64, now: u64) -> Result<(), OauthError> {
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

fn nonempty(text: Option<String>) -> Option<String> {
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
mod tests {
    use super::*;
    use crate::account::{Ask, ServiceAccountKey, sign_assertion};
    use crate::token::{CLOUD_PLATFORM_SCOPE, GCLOUD_AUDIENCE};

    const NOW: u64 = 1_800_000_000;

    struct Setting {
        keys: Keys,
        account: ServiceAccountKey,
        _dir: tempfile::TempDir,
    }

    fn setting() -> Setting {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(dir.path(), "my-project").expect("opens");
        let account = ServiceAccountKey::read(keys.owner_key_file()).expect("reads");
        Setting {
            keys,
            account,
            _dir: dir,
        }
    }

    fn form(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    impl Setting {
        fn post(&self, assertion: &str) -> Result<Value, OauthError> {
            let form = form(&[("grant_type", JWT_BEARER), ("assertion", assertion)]);
            self.keys.token_endpoint(&form, NOW)
        }

        /// Good claims, changed by `change`, signed with the account's own key.
        fn post_claims(&self, change: impl FnOnce(&mut Value)) -> Result<Value, OauthError> {
            let mut claims = json!({
                "iss": self.account.client_email,
                "aud": TOKEN_URI,
                "iat": NOW,
                "exp": NOW + 3600,
                "scope": CLOUD_PLATFORM_SCOPE,
            });
            change(&mut claims);
            let key = self.account.signing_key().expect("a key");
            self.post(&key.sign("JWT", &claims))
        }
    }

    #[test]
    fn a_scope_is_exchanged_for_an_access_token() {
        let setting = setting();
        let ask = Ask::Scope(CLOUD_PLATFORM_SCOPE);
        let assertion = sign_assertion(&setting.account, ask, NOW).expect("signs");
        let answer = setting.post(&assertion).expect("a token");
        assert_eq!(answer["expires_in"], 3599);
        assert_eq!(answer["token_type"], "Bearer");
        let token = answer["access_token"].as_str().expect("text");
        let caller = setting.keys.issuer().check_access(token, NOW);
        assert_eq!(caller.as_ref(), Ok(setting.keys.owner().caller()));
    }

    #[test]
    fn an_audience_is_exchanged_for_an_id_token() {
        let setting = setting();
        let ask = Ask::Audience(GCLOUD_AUDIENCE);
        let assertion = sign_assertion(&setting.account, ask, NOW).expect("signs");
        let answer = setting.post(&assertion).expect("a token");
        assert!(answer.get("access_token").is_none());
        let token = answer["id_token"].as_str().expect("text");
        let accepts = |audience: &str| audience == GCLOUD_AUDIENCE;
        let caller = setting.keys.issuer().check_identity(token, accepts, NOW);
        assert_eq!(caller.as_ref(), Ok(setting.keys.owner().caller()));
    }

    #[test]
    fn an_assertion_is_no_token() {
        let setting = setting();
        let ask = Ask::Scope(CLOUD_PLATFORM_SCOPE);
        let assertion = sign_assertion(&setting.account, ask, NOW).expect("signs");
        let issuer = setting.keys.issuer();
        assert!(issuer.check_access(&assertion, NOW).is_err());
        assert!(issuer.check_identity(&assertion, |_| true, NOW).is_err());
        // nor is a token an assertion
        let token = issuer.mint_identity(setting.keys.owner().caller(), TOKEN_URI, NOW);
        assert!(matches!(setting.post(&token), Err(OauthError::UnknownKey(Some(_)))));
    }

    #[test]
    fn wrong_claims_are_refused_each_in_its_own_words() {
        let setting = setting();
        let other = "other@my-project.iam.gserviceaccount.com";
        assert_eq!(
            setting.post_claims(|claims| claims["iss"] = other.into()),
            Err(OauthError::UnknownAccount(other.to_owned()))
        );
        assert_eq!(
            setting.post_claims(|claims| claims["sub"] = other.into()),
            Err(OauthError::Delegation {
                account: setting.account.client_email.clone(),
                subject: other.to_owned()
            })
        );
        assert_eq!(
            setting.post_claims(|claims| claims["aud"] = "https://other/token".into()),
            Err(OauthError::Audience("https://other/token".to_owned()))
        );
        assert_eq!(
            setting.post_claims(|claims| claims["exp"] = (NOW + 3601).into()),
            Err(OauthError::TooLong { seconds: 3601 })
        );
        assert_eq!(
            setting.post_claims(|claims| {
                claims["iat"] = (NOW - 3660).into();
                claims["exp"] = (NOW - 60).into();
            }),
            Err(OauthError::Expired {
                expired: NOW - 60,
                now: NOW
            })
        );
        assert_eq!(
            setting.post_claims(|claims| {
                claims["iat"] = (NOW + 61).into();
                claims["exp"] = (NOW + 600).into();
            }),
            Err(OauthError::NotYetValid {
                issued: NOW + 61,
                now: NOW
            })
        );
        assert_eq!(
            setting.post_claims(|claims| claims["scope"] = " ".into()),
            Err(OauthError::NothingAsked)
        );
        assert_eq!(
            setting.post_claims(|claims| claims["target_audience"] = "x".into()),
            Err(OauthError::BothAsked)
        );
        assert_eq!(
            setting.post_claims(|claims| claims["iat"] = "soon".into()),
            Err(OauthError::Malformed("claims"))
        );
    }

    #[test]
    fn clocks_may_differ_by_a_minute() {
        let setting = setting();
        let late = setting.post_claims(|claims| {
            claims["iat"] = (NOW - 3659).into();
            claims["exp"] = (NOW - 59).into();
        });
        assert!(late.is_ok(), "{late:?}");
        let early = setting.post_claims(|claims| {
            claims["iat"] = (NOW + 60).into();
            claims["exp"] = (NOW + 3660).into();
        });
        assert!(early.is_ok(), "{early:?}");
    }

    #[test]
    fn another_key_or_algorithm_is_refused() {
        let (ours, theirs) = (setting(), setting());
        let ask = Ask::Scope(CLOUD_PLATFORM_SCOPE);
        let foreign = sign_assertion(&theirs.account, ask, NOW).expect("signs");
        assert_eq!(
            ours.post(&foreign),
            Err(OauthError::UnknownKey(Some(theirs.account.private_key_id.clone())))
        );
        let mut disguised = theirs.account.clone();
        disguised.private_key_id = ours.account.private_key_id.clone();
        let disguised = sign_assertion(&disguised, ask, NOW).expect("signs");
        assert_eq!(ours.post(&disguised), Err(OauthError::Signature));
        // {"alg":"none"}
        let rest = disguised.split_once('.').expect("three parts").1;
        let unsigned = format!("eyJhbGciOiJub25lIn0.{rest}");
        assert_eq!(ours.post(&unsigned), Err(OauthError::Algorithm("none".to_owned())));
    }

    #[test]
    fn other_grants_and_broken_forms_are_refused() {
        let setting = setting();
        for (pairs, error, code) in [
            (form(&[]), OauthError::Missing("grant_type"), "invalid_request"),
            (
                form(&[("grant_type", JWT_BEARER)]),
                OauthError::Missing("assertion"),
                "invalid_request",
            ),
            (
                form(&[("grant_type", JWT_BEARER), ("assertion", "a"), ("assertion", "b")]),
                OauthError::Repeated("assertion"),
                "invalid_request",
            ),
            (
                form(&[("grant_type", "refresh_token"), ("refresh_token", "1//x")]),
                OauthError::RefreshToken,
                "invalid_grant",
            ),
            (
                form(&[("grant_type", "password")]),
                OauthError::GrantType("password".to_owned()),
                "unsupported_grant_type",
            ),
            (
                form(&[("grant_type", JWT_BEARER), ("assertion", "abc")]),
                OauthError::Malformed("parts"),
                "invalid_grant",
            ),
        ] {
            let refusal = setting.keys.token_endpoint(&pairs, NOW);
            assert_eq!(refusal, Err(error.clone()));
            assert_eq!(
                error.body(),
                json!({"error": code, "error_description": error.to_string()})
            );
        }
    }

    #[test]
    fn a_foreign_or_broken_key_file_is_refused() {
        let user = r#"{"type":"authorized_user","project_id":"p","private_key_id":"","private_key":"",
            "client_email":"","client_id":"","token_uri":""}"#;
        let refusal = ServiceAccountKey::from_json(user).expect_err("not a service account");
        assert!(refusal.to_string().contains("authorized_user"), "{refusal}");
        let empty = user.replace("authorized_user", "service_account");
        let refusal = ServiceAccountKey::from_json(&empty).expect_err("no key in it");
        assert!(refusal.to_string().contains("private_key"), "{refusal}");
        assert!(ServiceAccountKey::from_json("{}").is_err());
    }
}
