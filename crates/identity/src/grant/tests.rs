//! The token endpoint, asked by those who may and by those who may not.

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
    let keys = Keys::open(dir.path(), "my-project", NOW).expect("opens");
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
        self.keys.token_endpoint(&form, |_| None, NOW)
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
    let checked = setting.keys.issuer().check_access(token, NOW).expect("a good token");
    assert_eq!(&checked.caller, setting.keys.owner().caller());
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
    let caller = setting.keys.issuer().sender(token, accepts, NOW);
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
    assert_eq!(
        setting.post(&token),
        Err(OauthError::UnknownAccount(crate::token::IDENTITY_ISSUER.to_owned()))
    );
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
    let both = setting.post_claims(|claims| claims["target_audience"] = "x".into());
    let both = both.expect("an ID token, and no more");
    assert_eq!(
        both.as_object().expect("fields").keys().collect::<Vec<_>>(),
        ["id_token"]
    );
    assert_eq!(
        setting.post_claims(|claims| claims["iat"] = "soon".into()),
        Err(OauthError::Malformed("claims"))
    );
}

fn account(email: &str) -> ServiceAccount {
    ServiceAccount {
        email: email.to_owned(),
        unique_id: "117".to_owned(),
        display_name: String::new(),
        description: String::new(),
        disabled: false,
        created: Timestamp::from_micros(0),
        version: 1,
        keys: Vec::new(),
        managed: None,
    }
}

/// What an account that is kept elsewhere is given for its key, and what not any more.
#[test]
fn an_account_gets_tokens_by_its_keys() {
    let setting = setting();
    let at = Timestamp::from_micros(1_800_000_000_000_000);
    let mut runner = account("runner@my-project.iam.gserviceaccount.com");
    let (text, kept) = account::new_account_key("my-project", &runner, at).expect("a key");
    let file = ServiceAccountKey::from_json(&text).expect("as gcloud reads it");
    runner.keys.push(kept);
    let post = |runner: &ServiceAccount, ask| {
        let assertion = sign_assertion(&file, ask, NOW).expect("signs");
        let form = form(&[("grant_type", JWT_BEARER), ("assertion", &assertion)]);
        let find = |email: &str| (email == runner.email).then(|| Arc::new(runner.clone()));
        setting.keys.token_endpoint(&form, find, NOW)
    };
    let scope = Ask::Scope(CLOUD_PLATFORM_SCOPE);
    let answer = post(&runner, scope).expect("a token");
    let token = answer["access_token"].as_str().expect("text");
    let caller = setting.keys.issuer().check_access(token, NOW).expect("good").caller;
    assert_eq!(
        (caller.email.as_str(), caller.subject.as_str()),
        (runner.email.as_str(), "117")
    );
    let answer = post(&runner, Ask::Audience("https://a")).expect("a token");
    let token = answer["id_token"].as_str().expect("text");
    assert_eq!(setting.keys.issuer().sender(token, |_| true, NOW), Ok(caller));

    let mut disabled = runner.clone();
    disabled.disabled = true;
    let refused = OauthError::DisabledAccount(runner.email.clone());
    assert_eq!(post(&disabled, scope), Err(refused));
    let id = runner.keys[0].id.clone();
    let mut off = runner.clone();
    off.keys[0].disabled = true;
    assert_eq!(post(&off, scope), Err(OauthError::DisabledKey(id.clone())));
    let mut over = runner.clone();
    over.keys[0].expires = Some(at);
    assert_eq!(post(&over, scope), Err(OauthError::DisabledKey(id.clone())));
    // made again under the same name, it has none of the old keys
    let again = account(&runner.email);
    assert_eq!(post(&again, scope), Err(OauthError::UnknownKey(Some(id))));
}

/// The key of one account is no key of another, not even of the owner.
#[test]
fn an_account_cannot_speak_as_another() {
    let setting = setting();
    let at = Timestamp::from_micros(0);
    let mut runner = account("runner@my-project.iam.gserviceaccount.com");
    let (text, kept) = account::new_account_key("my-project", &runner, at).expect("a key");
    runner.keys.push(kept);
    let mut file = ServiceAccountKey::from_json(&text).expect("a key");
    let post = |file: &ServiceAccountKey| {
        let assertion = sign_assertion(file, Ask::Scope(CLOUD_PLATFORM_SCOPE), NOW).expect("signs");
        let form = form(&[("grant_type", JWT_BEARER), ("assertion", &assertion)]);
        let other = account("other@my-project.iam.gserviceaccount.com");
        let accounts = [Arc::new(runner.clone()), Arc::new(other)];
        let find = |email: &str| accounts.iter().find(|one| one.email == email).cloned();
        setting.keys.token_endpoint(&form, find, NOW)
    };
    assert!(post(&file).is_ok());
    let id = Some(file.private_key_id.clone());
    for email in [
        "other@my-project.iam.gserviceaccount.com",
        &setting.account.client_email,
    ] {
        email.clone_into(&mut file.client_email);
        assert_eq!(post(&file), Err(OauthError::UnknownKey(id.clone())), "{email}");
    }
    // nor under the id of the owner's key
    file.private_key_id.clone_from(&setting.account.private_key_id);
    assert_eq!(post(&file), Err(OauthError::Signature));
}

/// Google's library for Node names no key in its assertions.
#[test]
fn an_assertion_that_names_no_key_is_checked_with_each_of_the_account_s() {
    let setting = setting();
    let at = Timestamp::from_micros(0);
    let mut runner = account("runner@my-project.iam.gserviceaccount.com");
    let mut files = Vec::new();
    for _ in 0..2 {
        let (text, kept) = account::new_account_key("my-project", &runner, at).expect("a key");
        files.push(ServiceAccountKey::from_json(&text).expect("a key"));
        runner.keys.push(kept);
    }
    let post = |file: &ServiceAccountKey, runner: &ServiceAccount| {
        let claims = json!({"iss": file.client_email, "aud": TOKEN_URI, "scope": CLOUD_PLATFORM_SCOPE,
            "iat": NOW, "exp": NOW + 3600});
        let assertion = file.signing_key().expect("a key").sign_unnamed(&claims);
        let form = form(&[("grant_type", JWT_BEARER), ("assertion", &assertion)]);
        let find = |email: &str| (email == runner.email).then(|| Arc::new(runner.clone()));
        setting.keys.token_endpoint(&form, find, NOW)
    };
    assert!(post(&files[0], &runner).is_ok());
    assert!(post(&files[1], &runner).is_ok());
    assert!(post(&setting.account, &runner).is_ok(), "the owner's");

    let mut off = runner.clone();
    off.keys[1].disabled = true;
    assert!(post(&files[0], &off).is_ok());
    let id = runner.keys[1].id.clone();
    assert_eq!(post(&files[1], &off), Err(OauthError::DisabledKey(id)));
    off.disabled = true;
    assert!(matches!(post(&files[0], &off), Err(OauthError::DisabledAccount(_))));
    runner.keys.remove(0);
    assert_eq!(post(&files[0], &runner), Err(OauthError::Signature));
    for email in [&setting.account.client_email, &runner.email] {
        let mut forged = setting.account.clone();
        forged.private_key.clone_from(&files[0].private_key);
        forged.client_email.clone_from(email);
        assert_eq!(post(&forged, &runner), Err(OauthError::Signature), "{email}");
    }
    let nobody = account("nobody@my-project.iam.gserviceaccount.com");
    assert!(matches!(post(&files[1], &nobody), Err(OauthError::UnknownAccount(_))));
}

#[test]
fn what_is_signed_in_an_account_s_name_is_its_own() {
    let setting = setting();
    let seal = setting.keys.seal();
    let mut runner = account("runner@my-project.iam.gserviceaccount.com");
    let key = account::new_managed_key(seal, &runner, Timestamp::from_micros(0)).expect("a key");
    // claims like those of an ID token do not make one
    let claims = json!({"iss": crate::token::IDENTITY_ISSUER, "aud": "https://a", "azp": "x", "sub": "1",
        "email": setting.account.client_email, "email_verified": true, "iat": NOW, "exp": NOW + 60});
    let token = account::sign_jwt(seal, &runner, &key, &claims).expect("signs");
    let refused = setting.keys.issuer().sender(&token, |_| true, NOW);
    assert_eq!(
        refused,
        Err(crate::token::TokenError::UnknownKey {
            kid: Some(key.id.clone())
        })
    );
    assert_eq!(
        account::sign_blob(seal, &runner, &key, b"text").expect("signs").len(),
        256
    );
    assert!(!format!("{key:?}").contains("PRIVATE KEY"));
    runner.unique_id = "118".to_owned();
    assert!(matches!(
        account::sign_blob(seal, &runner, &key, b"text"),
        Err(account::AccountError::Sealed { .. })
    ));
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
        let refusal = setting.keys.token_endpoint(&pairs, |_| None, NOW);
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
