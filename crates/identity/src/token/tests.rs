//! What is minted is accepted, and whatever differs from it in one claim is not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;
const SERVICE: &str = "https://my-api-abc-uc.a.run.localhost";

fn issuer() -> Issuer {
    issuer_sealed_with(7)
}

fn issuer_sealed_with(byte: u8) -> Issuer {
    Issuer::new(Ring::new(NOW - 100).expect("a key"), Arc::new(Seal::of(byte)))
}

impl Issuer {
    fn kid(&self) -> String {
        self.ring().signing(NOW).id().to_owned()
    }

    fn sign(&self, kind: &str, claims: &impl Serialize) -> String {
        self.ring().signing(NOW).sign(kind, claims)
    }

    fn sign_as(&self, id: &str, claims: &impl Serialize) -> String {
        self.ring().signing(NOW).sign_as(id, IDENTITY_KIND, claims)
    }

    fn access(&self, scope: &str) -> String {
        self.mint_access(&owner(), scope, NOW, TOKEN_SECONDS)
    }

    /// Who sent the ID token.
    pub(crate) fn sender(&self, token: &str, accepts: impl Fn(&str) -> bool, now: u64) -> Result<Caller, TokenError> {
        self.check_identity(token, accepts, now)
            .map(|token| token.caller.clone())
    }

    fn who(&self, token: &str, now: u64) -> Result<Caller, TokenError> {
        self.check_access(token, now).map(|token| token.caller)
    }
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
        email: Some(owner().email),
        email_verified: Some(true),
        iat: NOW,
        nbf: None,
        exp: NOW + 3600,
    }
}

fn check_identity(issuer: &Issuer, token: &str, now: u64) -> Result<Caller, TokenError> {
    issuer.sender(token, |audience| audience == SERVICE, now)
}

fn with_header(token: &str, header: &Value) -> String {
    let rest = token.split_once('.').expect("three parts").1;
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}

#[test]
fn what_the_issuer_mints_it_accepts() {
    let issuer = issuer();
    let scope = format!("openid {CLOUD_PLATFORM_SCOPE}");
    let access = issuer.access(&scope);
    assert_eq!(issuer.who(&access, NOW), Ok(owner()));
    assert_eq!(issuer.who(&access, NOW + 3598), Ok(owner()));
    let read = issuer.check_access(&access, NOW).expect("good");
    assert_eq!((read.scope, read.expires), (scope.clone(), NOW + TOKEN_SECONDS));
    assert_ne!(
        read.id,
        issuer.check_access(&issuer.access(&scope), NOW).expect("good").id
    );
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
    assert_eq!(parts[0], json!({"alg": "RS256", "kid": issuer.kid(), "typ": "JWT"}));
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
    let token = issuer.access(CLOUD_PLATFORM_SCOPE);
    let now = NOW + TOKEN_SECONDS;
    let expired = TokenError::Expired { expired: now, now };
    assert_eq!(issuer.who(&token, now), Err(expired));
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
    let token = issuer.sign(IDENTITY_KIND, &claims);
    let early = TokenError::NotYetValid {
        from: NOW + 100,
        now: NOW,
    };
    assert_eq!(check_identity(&issuer, &token, NOW), Err(early));
    let token = issuer.access(CLOUD_PLATFORM_SCOPE);
    assert_eq!(issuer.who(&token, NOW - 30), Ok(owner()));
    let now = NOW - 31;
    assert_eq!(issuer.who(&token, now), Err(TokenError::NotYetValid { from: NOW, now }));
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
}

#[test]
fn another_issuer_is_refused() {
    let issuer = issuer();
    let mut claims = identity_claims();
    claims.iss = "https://evil.example".to_owned();
    let token = issuer.sign(IDENTITY_KIND, &claims);
    assert_eq!(
        check_identity(&issuer, &token, NOW),
        Err(TokenError::Issuer {
            found: "https://evil.example".to_owned(),
            expected: IDENTITY_ISSUER
        })
    );
}

#[test]
fn neither_kind_of_token_stands_in_for_the_other() {
    let issuer = issuer();
    let access = issuer.access(CLOUD_PLATFORM_SCOPE);
    assert_eq!(
        issuer.sender(&access, |_| true, NOW),
        Err(TokenError::Kind {
            found: Some("access token".to_owned()),
            expected: "JWT"
        })
    );
    let identity = issuer.mint_identity(&owner(), "https://googleapis.com/", NOW);
    for token in [identity.clone(), format!("{PREFIX}{identity}")] {
        assert!(matches!(
            issuer.check_access(&token, NOW),
            Err(TokenError::Malformed { .. })
        ));
    }
}

/// Nothing of a token can be read or changed by who holds it, and another Homerun's is worth nothing.
#[test]
fn an_access_token_is_opaque() {
    let (ours, theirs) = (issuer(), issuer_sealed_with(8));
    let token = ours.access(CLOUD_PLATFORM_SCOPE);
    let decoded = URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).expect("base64url");
    assert!(!String::from_utf8_lossy(&decoded).contains("owner"));
    assert_eq!(
        theirs.who(&token, NOW),
        Err(TokenError::Malformed {
            part: "not this Homerun's"
        })
    );
    let mut changed = token.clone().into_bytes();
    changed[40] ^= 1;
    let changed = String::from_utf8(changed).expect("text");
    assert!(ours.who(&changed, NOW).is_err());
}

#[test]
fn an_id_token_without_an_email_names_nobody() {
    let issuer = issuer();
    let token = issuer.mint_identity_without_email(&owner(), SERVICE, NOW);
    let caller = check_identity(&issuer, &token, NOW).expect("a good token");
    assert_eq!((caller.email.as_str(), caller.subject), ("", owner().subject));
}

#[test]
fn an_access_token_without_the_cloud_scope_is_refused() {
    let issuer = issuer();
    let token = issuer.access("openid email");
    let found = "openid email".to_owned();
    assert_eq!(issuer.who(&token, NOW), Err(TokenError::Scope { found }));
    assert!(issuer.read_access(&token, NOW).is_ok());
}

#[test]
fn a_tampered_token_is_refused() {
    let issuer = issuer();
    let token = issuer.mint_identity(&owner(), SERVICE, NOW);
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims = identity_claims();
    claims.email = Some("root@my-project.iam.gserviceaccount.com".to_owned());
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
        let header = json!({"alg": algorithm, "kid": issuer.kid(), "typ": "JWT"});
        assert_eq!(
            check_identity(&issuer, &with_header(&token, &header), NOW),
            Err(TokenError::Algorithm {
                algorithm: algorithm.to_owned()
            })
        );
    }
    // the public key as a shared secret, the classic confusion
    let header = json!({"alg": "HS256", "kid": issuer.kid(), "typ": "JWT"});
    let body = with_header(&token, &header);
    let body = body.rsplit_once('.').expect("three parts").0;
    let secret = issuer.jwks(NOW).to_string();
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
    let kid = Some(theirs.kid());
    assert_eq!(check_identity(&ours, &token, NOW), Err(TokenError::UnknownKey { kid }));
    // nor does it help to claim our key's id
    let claims = identity_claims();
    let token = theirs.sign_as(&ours.kid(), &claims);
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
    let bare = issuer.sign(IDENTITY_KIND, &claims);
    let crit = json!({"alg": "RS256", "kid": issuer.kid(), "crit": ["b64"]});
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
    let keys = issuer.jwks(NOW);
    let key = &keys["keys"][0];
    assert_eq!(key["kid"], issuer.kid());
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

/// What was verified once is not verified again, and is asked all the rest at each use.
#[test]
fn a_remembered_token_is_held_to_everything_that_can_change() {
    let issuer = issuer();
    let token = issuer.mint_identity(&owner(), SERVICE, NOW);
    let first = issuer.check_identity(&token, |_| true, NOW).expect("a good token");
    let again = issuer.check_identity(&token, |_| true, NOW + 1).expect("a good token");
    assert!(Arc::ptr_eq(&first, &again), "remembered");
    assert_eq!(again.principal.email(), owner().email);

    let found = SERVICE.to_owned();
    assert_eq!(
        issuer.sender(&token, |_| false, NOW),
        Err(TokenError::Audience { found })
    );
    let now = NOW + 3600;
    assert_eq!(
        check_identity(&issuer, &token, now),
        Err(TokenError::Expired { expired: now, now })
    );
    let now = NOW - 31;
    assert_eq!(
        check_identity(&issuer, &token, now),
        Err(TokenError::NotYetValid { from: NOW, now })
    );
    let kid = Some(issuer.kid());
    assert_eq!(check_identity(&issuer, &token, NOW), Ok(owner()), "as before");
    issuer.put_ring(Ring::new(NOW).expect("another key"));
    assert_eq!(
        check_identity(&issuer, &token, NOW),
        Err(TokenError::UnknownKey { kid }),
        "its key is gone"
    );
}

/// A signed token is known by all of its text: whatever is changed in it is looked at anew.
#[test]
fn a_changed_token_is_not_the_remembered_one() {
    let issuer = issuer();
    let token = issuer.mint_identity(&owner(), SERVICE, NOW);
    assert_eq!(check_identity(&issuer, &token, NOW), Ok(owner()));
    for changed in [
        token[..token.len() - 1].to_owned(),
        format!("{token}A"),
        format!("{token}."),
        format!(".{token}"),
        format!("{}.AAAA", token.rsplit_once('.').expect("three parts").0),
        token.replacen('.', "..", 1),
    ] {
        assert!(check_identity(&issuer, &changed, NOW).is_err(), "{changed}");
    }
}

/// What is refused is not remembered, and neither is what is in order but for another.
#[test]
fn only_good_tokens_are_remembered() {
    let issuer = issuer();
    let kept = |issuer: &Issuer| format!("{:?}", issuer.verified);
    let token = issuer.mint_identity(&owner(), SERVICE, NOW);
    assert!(check_identity(&issuer, &format!("{token}x"), NOW).is_err());
    assert!(check_identity(&issuer, &token, NOW + 3600).is_err());
    assert!(issuer.sender(&token, |_| false, NOW).is_err());
    assert!(
        issuer
            .sender(&issuer.access(CLOUD_PLATFORM_SCOPE), |_| true, NOW)
            .is_err()
    );
    assert_eq!(kept(&issuer), "Verified(0 tokens)");
    assert!(check_identity(&issuer, &token, NOW).is_ok());
    assert_eq!(kept(&issuer), "Verified(1 tokens)");
    assert!(!format!("{issuer:?}").contains(&token[..20]), "no token in any text");
}

/// A key id is compared and nothing else: it is no path, no address and no pattern.
#[test]
fn a_key_id_with_tricks_finds_no_key() {
    let issuer = issuer();
    let token = issuer.mint_identity(&owner(), SERVICE, NOW);
    for kid in [
        "",
        "*",
        "../../../../dev/null",
        "/etc/passwd",
        "https://evil.example/keys",
        "' OR 1=1 --",
        &format!("{}\0", issuer.kid()),
        &issuer.kid()[..39],
        &issuer.kid().to_ascii_uppercase(),
    ] {
        let header = json!({"alg": "RS256", "kid": kid, "typ": "JWT"});
        assert_eq!(
            check_identity(&issuer, &with_header(&token, &header), NOW),
            Err(TokenError::UnknownKey {
                kid: Some(kid.to_owned())
            })
        );
    }
    // nor does a key come with the token
    for extra in ["jku", "x5u", "jwk", "x5c"] {
        let mut header = json!({"alg": "RS256", "kid": issuer.kid(), "typ": "JWT"});
        header[extra] = json!("https://evil.example/keys");
        assert_eq!(
            check_identity(&issuer, &with_header(&token, &header), NOW),
            Err(TokenError::Signature)
        );
    }
}
