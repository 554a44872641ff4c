//! Access tokens and ID tokens: minted and checked by the same issuer.
//!
//! The two must never stand in for one another: an ID token is handed to services, which could replay it. They differ
//! in three ways, each checked: the header's type, the issuer, and the audience.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::jwt::{CheckingKey, Flaw, NotAKey, SigningKey};

/// Issuer of ID tokens, as Google writes it.
pub const IDENTITY_ISSUER: &str = "https://accounts.google.com";
/// The audience of an ID token that gcloud asked for without naming one: its own OAuth client. Google accepts it at
/// every private service of the caller, and so must the ingress.
pub const GCLOUD_AUDIENCE: &str = "32555940559.apps.googleusercontent.com";
/// The scope that the Google Cloud APIs require of an access token.
pub const CLOUD_PLATFORM_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Life of both kinds of token, in seconds: `expires_in` of the token endpoint.
pub const TOKEN_SECONDS: u64 = 3599;

const ACCESS_ISSUER: &str = "https://oauth2.googleapis.com/token";
const ACCESS_AUDIENCE: &str = "https://googleapis.com/";
/// Media type of a JWT access token (RFC 9068 2.1).
const ACCESS_KIND: &str = "at+jwt";
const IDENTITY_KIND: &str = "JWT";
/// A token may be this many seconds younger than our clock says: the clock was set back a little in between.
const SKEW_SECONDS: u64 = 30;

/// Who calls, as a checked token says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Of a service account or user; what IAM members are written with.
    pub email: String,
    /// The unique id that stays when the email changes hands.
    pub subject: String,
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
struct AccessClaims {
    iss: String,
    aud: String,
    sub: String,
    email: String,
    scope: String,
    iat: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    exp: u64,
}

#[derive(Serialize, Deserialize)]
struct IdentityClaims {
    iss: String,
    aud: String,
    azp: String,
    sub: String,
    email: String,
    email_verified: bool,
    iat: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    exp: u64,
}

/// The one who signs this Homerun's tokens, and therefore the one who can tell them from others.
#[derive(Debug)]
pub struct Issuer {
    signing: SigningKey,
    checking: CheckingKey,
}

impl Issuer {
    pub(crate) fn new(signing: SigningKey) -> Result<Self, NotAKey> {
        let checking = signing.checking_key()?;
        Ok(Self { signing, checking })
    }

    /// An access token for `caller` with `scope` (names separated by blanks), good for [`TOKEN_SECONDS`] from `now`.
    pub fn mint_access(&self, caller: &Caller, scope: &str, now: u64) -> String {
        self.signing.sign(
            ACCESS_KIND,
            &AccessClaims {
                iss: ACCESS_ISSUER.to_owned(),
                aud: ACCESS_AUDIENCE.to_owned(),
                sub: caller.subject.clone(),
                email: caller.email.clone(),
                scope: scope.to_owned(),
                iat: now,
                nbf: None,
                exp: now + TOKEN_SECONDS,
            },
        )
    }

    /// An ID token that tells `audience` who `caller` is, good for one hour from `now`.
    pub fn mint_identity(&self, caller: &Caller, audience: &str, now: u64) -> String {
        self.signing.sign(
            IDENTITY_KIND,
            &IdentityClaims {
                iss: IDENTITY_ISSUER.to_owned(),
                aud: audience.to_owned(),
                azp: caller.email.clone(),
                sub: caller.subject.clone(),
                email: caller.email.clone(),
                email_verified: true,
                iat: now,
                nbf: None,
                exp: now + 3600,
            },
        )
    }

    /// Who sent this access token (the text after `Bearer `) to an API.
    ///
    /// # Errors
    /// The first rule it breaks; [`TokenError::Scope`] alone is a matter of permission (403), the rest mean that the
    /// caller is unknown (401).
    pub fn check_access(&self, token: &str, now: u64) -> Result<Caller, TokenError> {
        let claims: AccessClaims = self.checked(token, ACCESS_KIND)?;
        same_issuer(claims.iss, ACCESS_ISSUER)?;
        if claims.aud != ACCESS_AUDIENCE {
            return Err(TokenError::Audience { found: claims.aud });
        }
        in_time(claims.iat, claims.nbf, claims.exp, now)?;
        if !claims
            .scope
            .split_ascii_whitespace()
            .any(|scope| scope == CLOUD_PLATFORM_SCOPE)
        {
            return Err(TokenError::Scope { found: claims.scope });
        }
        Ok(Caller {
            email: claims.email,
            subject: claims.sub,
        })
    }

    /// Who sent this ID token to a service that answers to the audiences for which `accepts` is true.
    pub fn check_identity(&self, token: &str, accepts: impl Fn(&str) -> bool, now: u64) -> Result<Caller, TokenError> {
        let claims: IdentityClaims = self.checked(token, IDENTITY_KIND)?;
        same_issuer(claims.iss, IDENTITY_ISSUER)?;
        if !accepts(&claims.aud) {
            return Err(TokenError::Audience { found: claims.aud });
        }
        in_time(claims.iat, claims.nbf, claims.exp, now)?;
        Ok(Caller {
            email: claims.email,
            subject: claims.sub,
        })
    }

    /// The public key set (RFC 7517) by which others can check our ID tokens.
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.checking.jwk()] })
    }

    fn checked<C: DeserializeOwned>(&self, token: &str, expected: &'static str) -> Result<C, TokenError> {
        let signed = self.checking.check(token)?;
        if signed.kind.as_deref() != Some(expected) {
            return Err(TokenError::Kind {
                found: signed.kind,
                expected,
            });
        }
        Ok(signed.claims()?)
    }
}

fn same_issuer(found: String, expected: &'static str) -> Result<(), TokenError> {
    if found == expected {
        Ok(())
    } else {
        Err(TokenError::Issuer { found, expected })
    }
}

fn in_time(issued: u64, not_before: Option<u64>, expires: u64, now: u64) -> Result<(), TokenError> {
    if now >= expires {
        return Err(TokenError::Expired { expired: expires, now });
    }
    let from = not_before.map_or(issued, |from| from.max(issued));
    if from > now.saturating_add(SKEW_SECONDS) {
        return Err(TokenError::NotYetValid { from, now });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const SERVICE: &str = "https://my-api-abc-uc.a.run.localhost";

    fn issuer() -> Issuer {
        Issuer::new(SigningKey::generate().expect("a key").0).expect("an issuer")
    }

    fn owner() -> Caller {
        Caller {
            email: "owner@my-project.iam.gserviceaccount.com".to_owned(),
            subject: "123".to_owned(),
        }
    }

    fn identity_claims() -> IdentityClaims {
        IdentityClaims {
            iss: IDENTITY_ISSUER.to_owned(),
            aud: SERVICE.to_owned(),
            azp: owner().email,
            sub: owner().subject,
            email: owner().email,
            email_verified: true,
            iat: NOW,
            nbf: None,
            exp: NOW + 3600,
        }
    }

    fn access_claims() -> AccessClaims {
        AccessClaims {
            iss: ACCESS_ISSUER.to_owned(),
            aud: ACCESS_AUDIENCE.to_owned(),
            sub: owner().subject,
            email: owner().email,
            scope: CLOUD_PLATFORM_SCOPE.to_owned(),
            iat: NOW,
            nbf: None,
            exp: NOW + TOKEN_SECONDS,
        }
    }

    fn check_identity(issuer: &Issuer, token: &str, now: u64) -> Result<Caller, TokenError> {
        issuer.check_identity(token, |audience| audience == SERVICE, now)
    }

    fn with_header(token: &str, header: &Value) -> String {
        let rest = token.split_once('.').expect("three parts").1;
        format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
    }

    #[test]
    fn what_the_issuer_mints_it_accepts() {
        let issuer = issuer();
        let scope = format!("openid {CLOUD_PLATFORM_SCOPE}");
        let access = issuer.mint_access(&owner(), &scope, NOW);
        assert_eq!(issuer.check_access(&access, NOW), Ok(owner()));
        assert_eq!(issuer.check_access(&access, NOW + 3598), Ok(owner()));
        let identity = issuer.mint_identity(&owner(), SERVICE, NOW);
        assert_eq!(check_identity(&issuer, &identity, NOW + 3599), Ok(owner()));
    }

    #[test]
    fn an_id_token_has_the_claims_clients_read() {
        let issuer = issuer();
        let token = issuer.mint_identity(&owner(), GCLOUD_AUDIENCE, NOW);
        let parts: Vec<Value> = token
            .split('.')
            .take(2)
            .map(|part| {
                let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
                serde_json::from_slice(&bytes).expect("json")
            })
            .collect();
        assert_eq!(
            parts[0],
            json!({"alg": "RS256", "kid": issuer.signing.id(), "typ": "JWT"})
        );
        assert_eq!(
            parts[1],
            json!({
                "iss": "https://accounts.google.com",
                "aud": GCLOUD_AUDIENCE,
                "azp": owner().email,
                "sub": "123",
                "email": owner().email,
                "email_verified": true,
                "iat": NOW,
                "exp": NOW + 3600,
            })
        );
    }

    #[test]
    fn an_expired_token_is_refused() {
        let issuer = issuer();
        let token = issuer.mint_access(&owner(), CLOUD_PLATFORM_SCOPE, NOW);
        let now = NOW + TOKEN_SECONDS;
        let expired = TokenError::Expired { expired: now, now };
        assert_eq!(issuer.check_access(&token, now), Err(expired));
        let token = issuer.mint_identity(&owner(), SERVICE, NOW);
        let now = NOW + 3600;
        let expired = TokenError::Expired { expired: now, now };
        assert_eq!(check_identity(&issuer, &token, now), Err(expired));
    }

    #[test]
    fn a_token_from_the_future_is_refused_beyond_a_small_skew() {
        let issuer = issuer();
        let token = issuer.mint_identity(&owner(), SERVICE, NOW);
        assert_eq!(check_identity(&issuer, &token, NOW - 30), Ok(owner()));
        let now = NOW - 31;
        let early = TokenError::NotYetValid { from: NOW, now };
        assert_eq!(check_identity(&issuer, &token, now), Err(early));
        let mut claims = identity_claims();
        claims.nbf = Some(NOW + 100);
        let token = issuer.signing.sign(IDENTITY_KIND, &claims);
        let early = TokenError::NotYetValid {
            from: NOW + 100,
            now: NOW,
        };
        assert_eq!(check_identity(&issuer, &token, NOW), Err(early));
    }

    #[test]
    fn another_audience_is_refused() {
        let issuer = issuer();
        let token = issuer.mint_identity(&owner(), "https://other", NOW);
        let found = "https://other".to_owned();
        assert_eq!(
            check_identity(&issuer, &token, NOW),
            Err(TokenError::Audience { found })
        );
        let mut claims = access_claims();
        claims.aud = "https://other".to_owned();
        let token = issuer.signing.sign(ACCESS_KIND, &claims);
        let found = "https://other".to_owned();
        assert_eq!(issuer.check_access(&token, NOW), Err(TokenError::Audience { found }));
    }

    #[test]
    fn another_issuer_is_refused() {
        let issuer = issuer();
        let mut claims = identity_claims();
        claims.iss = "https://evil.example".to_owned();
        let token = issuer.signing.sign(IDENTITY_KIND, &claims);
        assert_eq!(
            check_identity(&issuer, &token, NOW),
            Err(TokenError::Issuer {
                found: "https://evil.example".to_owned(),
                expected: IDENTITY_ISSUER
            })
        );
        let mut claims = access_claims();
        claims.iss = IDENTITY_ISSUER.to_owned();
        let token = issuer.signing.sign(ACCESS_KIND, &claims);
        assert_eq!(
            issuer.check_access(&token, NOW),
            Err(TokenError::Issuer {
                found: IDENTITY_ISSUER.to_owned(),
                expected: ACCESS_ISSUER
            })
        );
    }

    #[test]
    fn neither_kind_of_token_stands_in_for_the_other() {
        let issuer = issuer();
        let access = issuer.mint_access(&owner(), CLOUD_PLATFORM_SCOPE, NOW);
        assert_eq!(
            issuer.check_identity(&access, |_| true, NOW),
            Err(TokenError::Kind {
                found: Some("at+jwt".to_owned()),
                expected: "JWT"
            })
        );
        // even one that was asked for with the audience of the APIs
        let identity = issuer.mint_identity(&owner(), ACCESS_AUDIENCE, NOW);
        assert_eq!(
            issuer.check_access(&identity, NOW),
            Err(TokenError::Kind {
                found: Some("JWT".to_owned()),
                expected: "at+jwt"
            })
        );
    }

    #[test]
    fn an_access_token_without_the_cloud_scope_is_refused() {
        let issuer = issuer();
        let token = issuer.mint_access(&owner(), "openid email", NOW);
        let found = "openid email".to_owned();
        assert_eq!(issuer.check_access(&token, NOW), Err(TokenError::Scope { found }));
    }

    #[test]
    fn a_tampered_token_is_refused() {
        let issuer = issuer();
        let token = issuer.mint_identity(&owner(), SERVICE, NOW);
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims = identity_claims();
        claims.email = "root@my-project.iam.gserviceaccount.com".to_owned();
        let claims = URL_SAFE_NO_PAD.encode(serde_json::to_string(&claims).expect("json"));
        let forged = format!("{}.{claims}.{}", parts[0], parts[2]);
        assert_eq!(check_identity(&issuer, &forged, NOW), Err(TokenError::Signature));
        let unsigned = format!("{}.{}.", parts[0], parts[1]);
        assert_eq!(check_identity(&issuer, &unsigned, NOW), Err(TokenError::Signature));
    }

    #[test]
    fn any_algorithm_but_rs256_is_refused() {
        let issuer = issuer();
        let token = issuer.mint_identity(&owner(), SERVICE, NOW);
        for algorithm in ["none", "HS256", "RS512", "rs256"] {
            let header = json!({"alg": algorithm, "kid": issuer.signing.id(), "typ": "JWT"});
            assert_eq!(
                check_identity(&issuer, &with_header(&token, &header), NOW),
                Err(TokenError::Algorithm {
                    algorithm: algorithm.to_owned()
                })
            );
        }
        // the public key as a shared secret, the classic confusion
        let header = json!({"alg": "HS256", "kid": issuer.signing.id(), "typ": "JWT"});
        let body = with_header(&token, &header);
        let body = body.rsplit_once('.').expect("three parts").0;
        let secret = issuer.jwks().to_string();
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let mac = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, body.as_bytes()));
        assert_eq!(
            check_identity(&issuer, &format!("{body}.{mac}"), NOW),
            Err(TokenError::Algorithm {
                algorithm: "HS256".to_owned()
            })
        );
    }

    #[test]
    fn another_key_is_refused() {
        let (ours, theirs) = (issuer(), issuer());
        let token = theirs.mint_identity(&owner(), SERVICE, NOW);
        let kid = Some(theirs.signing.id().to_owned());
        assert_eq!(check_identity(&ours, &token, NOW), Err(TokenError::UnknownKey { kid }));
        // nor does it help to claim our key's id
        let claims = identity_claims();
        let token = theirs.signing.sign_as(ours.signing.id(), IDENTITY_KIND, &claims);
        assert_eq!(check_identity(&ours, &token, NOW), Err(TokenError::Signature));
        let token = with_header(&token, &json!({"alg": "RS256", "typ": "JWT"}));
        assert_eq!(
            check_identity(&ours, &token, NOW),
            Err(TokenError::UnknownKey { kid: None })
        );
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        let issuer = issuer();
        let good = issuer.mint_identity(&owner(), SERVICE, NOW);
        let parts: Vec<&str> = good.split('.').collect();
        let claims = json!({"iss": IDENTITY_ISSUER});
        let bare = issuer.signing.sign(IDENTITY_KIND, &claims);
        let crit = json!({"alg": "RS256", "kid": issuer.signing.id(), "crit": ["b64"]});
        for (token, part) in [
            (String::new(), "parts"),
            ("abc".to_owned(), "parts"),
            ("a.b".to_owned(), "parts"),
            ("!.b.c".to_owned(), "header"),
            ("YQ.b.c".to_owned(), "header"),
            (format!("{}.{}.*", parts[0], parts[1]), "signature"),
            (bare, "claims"),
            (with_header(&good, &crit), "header: crit is not supported"),
        ] {
            assert_eq!(
                check_identity(&issuer, &token, NOW),
                Err(TokenError::Malformed { part }),
                "{token}"
            );
        }
    }

    #[test]
    fn the_key_set_checks_our_tokens() {
        let issuer = issuer();
        let keys = issuer.jwks();
        let key = &keys["keys"][0];
        assert_eq!(key["kid"], issuer.signing.id());
        let number = |name: &str| {
            let text = key[name].as_str().expect("text");
            URL_SAFE_NO_PAD.decode(text).expect("base64url")
        };
        let public = aws_lc_rs::rsa::PublicKeyComponents {
            n: number("n"),
            e: number("e"),
        };
        assert_eq!(number("n").len(), 256);
        let token = issuer.mint_identity(&owner(), SERVICE, NOW);
        let (signed, signature) = token.rsplit_once('.').expect("three parts");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        public
            .verify(
                &aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256,
                signed.as_bytes(),
                &signature,
            )
            .expect("the published key checks the token");
    }
}
