//! Tokens that a service account signs itself and sends to an API in place of an access token (AIP-4111), without asking
//! the token endpoint first. Google's libraries do so where they hold an account's key.
//!
//! Such a token is for one API by its `aud`, or for all by its `scope`; never both. That alone tells it from an assertion
//! for the token endpoint, which names that endpoint as its audience: neither is taken for the other. A token of the
//! issuer is none either, for it names no account as its issuer.

use std::sync::Arc;

use model::ServiceAccount;
use serde::Deserialize;
use serde_json::Value;

use crate::access::has_one_of;
use crate::grant::{OauthError, in_time, nonempty};
use crate::jwt;
use crate::key::Keys;
use crate::token::{CLOUD_PLATFORM_SCOPE, Caller, IDENTITY_ISSUER};

/// Why a self-signed token was refused. Safe to show to the one who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelfSignedError {
    /// It is not signed by an account that is there and on, with a key of it that counts, or not good now.
    #[error(transparent)]
    Signer(#[from] OauthError),
    #[error("an ID token is no access token")]
    IdToken,
    #[error("token audience {0:?} is not the API that is called, such as https://run.googleapis.com/")]
    Audience(String),
    #[error("token names neither an audience nor a scope")]
    NothingNamed,
    #[error("token names an audience and a scope, expected one of them")]
    BothNamed,
    #[error("token asks for a target_audience, which is for the token endpoint")]
    TargetAudience,
    #[error("token scope {0:?} lacks {CLOUD_PLATFORM_SCOPE}")]
    Scope(String),
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Option<String>,
    scope: Option<String>,
    target_audience: Option<Value>,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

impl Keys {
    /// Who sent a self-signed token to an API, for audiences for which `accepts` is true (`https://HOST/`),
    /// or with one of these scopes. `account` finds one by
    /// its e-mail; `now` in Unix seconds.
    ///
    /// # Errors
    /// The first rule it breaks. [`SelfSignedError::Scope`] alone is a matter of permission (403), the rest mean that the
    /// caller is unknown (401).
    pub fn check_self_signed(
        &self,
        token: &str,
        accepts: impl Fn(&str) -> bool,
        scopes: &[&str],
        account: impl FnOnce(&str) -> Option<Arc<ServiceAccount>>,
        now: u64,
    ) -> Result<Caller, SelfSignedError> {
        let (_, issued): (_, Issued) = jwt::unchecked(token).map_err(OauthError::from)?;
        if issued.iss == IDENTITY_ISSUER {
            return Err(SelfSignedError::IdToken);
        }
        let (signed, caller) = self.signed_by(token, account, now)?;
        let claims: Claims = signed.claims().map_err(OauthError::from)?;
        if claims.sub != claims.iss {
            return Err(SelfSignedError::Signer(OauthError::Delegation {
                account: claims.iss,
                subject: claims.sub,
            }));
        }
        if claims.target_audience.is_some() {
            return Err(SelfSignedError::TargetAudience);
        }
        in_time(claims.iat, claims.exp, now)?;
        match (nonempty(claims.aud), nonempty(claims.scope)) {
            (Some(audience), None) if accepts(&audience) => Ok(caller),
            (Some(audience), None) => Err(SelfSignedError::Audience(audience)),
            (None, Some(scope)) if has_one_of(&scope, scopes) => Ok(caller),
            (None, Some(scope)) => Err(SelfSignedError::Scope(scope)),
            (None, None) => Err(SelfSignedError::NothingNamed),
            (Some(_), Some(_)) => Err(SelfSignedError::BothNamed),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::account::{Ask, ServiceAccountKey, new_account_key, sign_assertion};
    use crate::grant::{JWT_BEARER, TOKEN_URI};

    const NOW: u64 = 1_800_000_000;
    const RUN: &str = "https://run.googleapis.com/";

    struct Setting {
        keys: Keys,
        account: ServiceAccount,
        file: ServiceAccountKey,
        _dir: tempfile::TempDir,
    }

    fn at(seconds: u64) -> model::Timestamp {
        model::Timestamp::from_micros(i64::try_from(seconds).expect("fits") * 1_000_000)
    }

    fn setting() -> Setting {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(dir.path(), "my-project", NOW).expect("opens");
        let mut account = ServiceAccount {
            email: "runner@my-project.iam.gserviceaccount.com".to_owned(),
            unique_id: "117".to_owned(),
            display_name: String::new(),
            description: String::new(),
            disabled: false,
            created: at(NOW),
            version: 1,
            keys: Vec::new(),
            managed: None,
        };
        let (text, key) = new_account_key("my-project", &account, at(NOW)).expect("a key");
        account.keys = vec![key];
        Setting {
            keys,
            account,
            file: ServiceAccountKey::from_json(&text).expect("a key file"),
            _dir: dir,
        }
    }

    impl Setting {
        fn check_with(&self, token: &str, account: &ServiceAccount, now: u64) -> Result<Caller, SelfSignedError> {
            let find = |email: &str| (email == account.email).then(|| Arc::new(account.clone()));
            self.keys
                .check_self_signed(token, |audience| audience == RUN, &[CLOUD_PLATFORM_SCOPE], find, now)
        }

        fn check(&self, token: &str) -> Result<Caller, SelfSignedError> {
            self.check_with(token, &self.account, NOW)
        }

        /// Good claims, changed by `change`, signed with the account's key.
        fn signed(&self, change: impl FnOnce(&mut Value)) -> String {
            let mut claims = json!({
                "iss": self.file.client_email,
                "sub": self.file.client_email,
                "aud": RUN,
                "iat": NOW,
                "exp": NOW + 3600,
            });
            change(&mut claims);
            let key = self.file.signing_key().expect("a key");
            key.sign_as(&self.file.private_key_id, "JWT", &claims)
        }
    }

    #[test]
    fn an_api_takes_what_is_signed_for_it() {
        let setting = setting();
        let who = Caller {
            email: setting.account.email.clone(),
            subject: setting.account.unique_id.clone(),
        };
        assert_eq!(setting.check(&setting.signed(|_| ())), Ok(who.clone()));
        let by_scope = setting.signed(|claims| {
            claims.as_object_mut().expect("claims").remove("aud");
            claims["scope"] = format!("email {CLOUD_PLATFORM_SCOPE}").into();
        });
        assert_eq!(setting.check(&by_scope), Ok(who));
    }

    #[test]
    fn the_owner_s_own_key_signs_too() {
        let setting = setting();
        let owner = ServiceAccountKey::read(setting.keys.owner_key_file()).expect("reads");
        let claims = json!({
            "iss": owner.client_email, "sub": owner.client_email, "aud": RUN, "iat": NOW, "exp": NOW + 3600,
        });
        let token = owner
            .signing_key()
            .expect("a key")
            .sign_as(&owner.private_key_id, "JWT", &claims);
        assert_eq!(setting.check(&token).as_ref(), Ok(setting.keys.owner().caller()));
    }

    #[test]
    fn wrong_claims_are_refused_each_in_its_own_words() {
        let setting = setting();
        let other = "other@my-project.iam.gserviceaccount.com";
        let refused = |change: &dyn Fn(&mut Value)| setting.check(&setting.signed(change)).expect_err("refused");
        for audience in [
            "https://run.googleapis.com",
            "https://iam.googleapis.com/",
            "https://run.googleapis.com/v1",
            "http://run.googleapis.com/",
            "https://service.a.run.app/",
            TOKEN_URI,
        ] {
            let found = refused(&|claims| claims["aud"] = audience.into());
            assert_eq!(found, SelfSignedError::Audience(audience.to_owned()));
        }
        let found = refused(&|claims| claims["aud"] = json!([RUN]));
        assert_eq!(found, SelfSignedError::Signer(OauthError::Malformed("claims")));
        let found = refused(&|claims| claims["sub"] = other.into());
        assert!(
            matches!(found, SelfSignedError::Signer(OauthError::Delegation { .. })),
            "{found}"
        );
        let found = refused(&|claims| {
            claims.as_object_mut().expect("claims").remove("sub");
        });
        assert_eq!(found, SelfSignedError::Signer(OauthError::Malformed("claims")));
        let found = refused(&|claims| claims["iss"] = other.into());
        assert_eq!(
            found,
            SelfSignedError::Signer(OauthError::UnknownAccount(other.to_owned()))
        );
        let found = refused(&|claims| claims["exp"] = (NOW + 3601).into());
        assert_eq!(found, SelfSignedError::Signer(OauthError::TooLong { seconds: 3601 }));
        let found = refused(&|claims| {
            claims["iat"] = (NOW - 3700).into();
            claims["exp"] = (NOW - 100).into();
        });
        assert!(
            matches!(found, SelfSignedError::Signer(OauthError::Expired { .. })),
            "{found}"
        );
        let found = refused(&|claims| {
            claims["iat"] = (NOW + 100).into();
            claims["exp"] = (NOW + 200).into();
        });
        assert!(
            matches!(found, SelfSignedError::Signer(OauthError::NotYetValid { .. })),
            "{found}"
        );
        let found = refused(&|claims| claims["scope"] = CLOUD_PLATFORM_SCOPE.into());
        assert_eq!(found, SelfSignedError::BothNamed);
        let found = refused(&|claims| {
            claims.as_object_mut().expect("claims").remove("aud");
        });
        assert_eq!(found, SelfSignedError::NothingNamed);
        let found = refused(&|claims| {
            claims.as_object_mut().expect("claims").remove("aud");
            claims["scope"] = "email".into();
        });
        assert_eq!(found, SelfSignedError::Scope("email".to_owned()));
    }

    /// Each kind of token is for one place.
    #[test]
    fn no_other_token_stands_in_for_it_nor_it_for_another() {
        let setting = setting();
        let caller = setting.keys.owner().caller();
        let issuer = setting.keys.issuer();
        let id_token = issuer.mint_identity(caller, RUN, NOW);
        assert_eq!(setting.check(&id_token), Err(SelfSignedError::IdToken));
        let access = issuer.mint_access(caller, CLOUD_PLATFORM_SCOPE, NOW, 3599);
        assert!(setting.check(&access).is_err());
        for ask in [Ask::Scope(CLOUD_PLATFORM_SCOPE), Ask::Audience(RUN)] {
            let assertion = sign_assertion(&setting.file, ask, NOW).expect("signs");
            assert!(
                setting.check(&assertion).is_err(),
                "an assertion for the token endpoint"
            );
        }
        let targeted = setting.signed(|claims| claims["target_audience"] = RUN.into());
        assert_eq!(setting.check(&targeted), Err(SelfSignedError::TargetAudience));

        let ours = setting.signed(|_| ());
        assert!(issuer.check_access(&ours, NOW).is_err());
        assert!(issuer.check_identity(&ours, |_| true, NOW).is_err());
        let form = [("grant_type", JWT_BEARER), ("assertion", &ours)];
        let form: Vec<_> = form.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let found = setting
            .keys
            .token_endpoint(&form, |_| Some(Arc::new(setting.account.clone())), NOW);
        assert_eq!(found, Err(OauthError::Audience(RUN.to_owned())));
    }

    #[test]
    fn only_keys_that_count_of_accounts_that_are_on() {
        let setting = setting();
        let token = setting.signed(|_| ());
        let with = |change: &dyn Fn(&mut ServiceAccount)| {
            let mut account = setting.account.clone();
            change(&mut account);
            setting.check_with(&token, &account, NOW)
        };
        let email = setting.account.email.clone();
        assert_eq!(
            with(&|account| account.disabled = true),
            Err(SelfSignedError::Signer(OauthError::DisabledAccount(email)))
        );
        let id = setting.file.private_key_id.clone();
        for change in [
            &(|account: &mut ServiceAccount| account.keys[0].disabled = true) as &dyn Fn(&mut ServiceAccount),
            &|account| account.keys[0].expires = Some(at(NOW - 1)),
        ] {
            assert_eq!(
                with(change),
                Err(SelfSignedError::Signer(OauthError::DisabledKey(id.clone())))
            );
        }
        assert_eq!(
            with(&|account| account.keys.clear()),
            Err(SelfSignedError::Signer(OauthError::UnknownKey(Some(id))))
        );
    }

    #[test]
    fn another_s_signature_is_none() {
        let setting = setting();
        let (_, forged) = crate::jwt::SigningKey::generate().expect("a key");
        let forger = crate::jwt::SigningKey::from_pem(&forged).expect("a key");
        let claims = json!({
            "iss": setting.file.client_email, "sub": setting.file.client_email, "aud": RUN, "iat": NOW, "exp": NOW + 60,
        });
        let token = forger.sign_as(&setting.file.private_key_id, "JWT", &claims);
        assert_eq!(
            setting.check(&token),
            Err(SelfSignedError::Signer(OauthError::Signature))
        );
    }
}
