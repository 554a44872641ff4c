//! Whose tokens the calls are made with: the account's whose key is in use, or another's in whose name it may speak.
//!
//! Whoever can read the owner's key in the data directory is the owner, unless another account was activated
//! (`auth activate-service-account`) and chosen (`config set account`, `--account`). Keys of such accounts are kept in the
//! config directory, one file each that only its owner may read. With `--impersonate-service-account` the account's token
//! is exchanged for one of the last account named, through those before it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, SCOPE, Server, escape};
use crate::kept::{self, Held};
use crate::words::Global;
use crate::{Ask, Error, Name, Outside, property};

/// The API of tokens in another account's name.
const HOST: &str = "iamcredentials.googleapis.com";
/// The longest that such an access token is asked for.
const LIFETIME: &str = "3600s";

/// Which accounts the words mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// E-mail. None: the owner.
    pub(crate) account: Option<String>,
    /// A key file in place of an account's, as gcloud's variable for it names.
    file: Option<PathBuf>,
    /// The last is who is spoken for, those before act for the next each.
    chain: Vec<String>,
}

impl Chosen {
    /// Flag, then environment, then the property; of gcloud's variables only under its name.
    pub(crate) fn read(outside: &Outside<'_>, global: &Global, settings: &property::Settings) -> Result<Self, Error> {
        let gcloud = |name: &str| match outside.name {
            Name::Gcloud => outside.var(name),
            Name::Homerun => None,
        };
        let account = global
            .account
            .as_deref()
            .or_else(|| gcloud("CLOUDSDK_CORE_ACCOUNT"))
            .or_else(|| settings.get("core", "account"));
        let impersonated = global
            .impersonate_service_account
            .as_deref()
            .or_else(|| gcloud("CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT"))
            .or_else(|| settings.get("auth", "impersonate_service_account"));
        let file = match &global.account {
            Some(_) => None,
            None => gcloud("CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE").map(PathBuf::from),
        };
        let chain: Vec<String> = impersonated
            .map(|list| list.split(',').map(|one| one.trim().to_owned()).collect())
            .unwrap_or_default();
        if chain.iter().any(String::is_empty) {
            return Err(Error::Usage(
                "--impersonate-service-account: expected e-mails separated by commas".to_owned(),
            ));
        }
        Ok(Self {
            account: account.map(str::to_owned),
            file,
            chain,
        })
    }

    /// Who is spoken for, if anybody.
    pub(crate) fn spoken_for(&self) -> Option<&str> {
        self.chain.last().map(String::as_str)
    }
}

/// gcloud's warning that somebody else is spoken for.
pub(crate) fn warn_of_impersonation(outside: &mut Outside<'_>, global: &Global) -> Result<(), Error> {
    let settings = property::Settings::open(outside)?;
    if let Some(account) = Chosen::read(outside, global, &settings)?.spoken_for() {
        outside.say(&format!(
            "WARNING: This command is using service account impersonation. All API calls will be executed as [{account}]."
        ));
    }
    Ok(())
}

/// The e-mail that a key file is of.
pub(crate) fn email_of(key: &str) -> Option<String> {
    let key: Value = serde_json::from_str(key).ok()?;
    key["client_email"].as_str().map(str::to_owned)
}

/// Where the keys of activated accounts are kept.
pub(crate) fn directory(outside: &Outside<'_>) -> PathBuf {
    outside.config_dir.join("credentials")
}

/// The file of one account's key. None: no e-mail that can be a file's name.
pub(crate) fn file_of(outside: &Outside<'_>, email: &str) -> Option<PathBuf> {
    let good = |c: char| c.is_ascii_alphanumeric() || "@.-_+".contains(c);
    let is_good = email.contains('@') && !email.starts_with('.') && email.chars().all(good);
    is_good.then(|| directory(outside).join(format!("{email}.json")))
}

impl Server {
    /// The owner's e-mail, for who can read its key.
    pub(crate) fn owner(&self) -> Option<String> {
        email_of(&read_key(&self.about.owner_key()).ok()?)
    }

    /// The file of the key in use, and its text.
    fn key(&self, outside: &Outside<'_>) -> Result<(PathBuf, String), Error> {
        if let Some(file) = &self.chosen.file {
            return Ok((file.clone(), read_file(file)?));
        }
        let owners = self.about.owner_key();
        let Some(account) = &self.chosen.account else {
            let text = read_key(&owners)?;
            return Ok((owners, text));
        };
        let kept = file_of(outside, account).filter(|file| file.exists());
        if let Some(file) = kept {
            let text = read_file(&file)?;
            return Ok((file, text));
        }
        // the owner's key needs no activation
        match read_key(&owners) {
            Ok(text) if email_of(&text).as_ref() == Some(account) => Ok((owners, text)),
            Ok(_) | Err(_) => Err(Error::Failed(format!(
                "account [{account}] has no credentials here: activate it with \
                 `auth activate-service-account --key-file=KEY_FILE`, or choose another with --account"
            ))),
        }
    }

    /// An access token: that of an earlier command while it is good, else a new one.
    pub(crate) fn access_token(&self, outside: &Outside<'_>) -> Result<String, Error> {
        if let Some(held) = &*self.token.borrow() {
            return Ok(held.token.clone());
        }
        let own = self.own_token(outside)?;
        let held = if self.chosen.chain.is_empty() {
            own
        } else {
            let body = json!({ "scope": [SCOPE], "lifetime": LIFETIME });
            self.impersonate(outside, own, "generateAccessToken", body, "accessToken")
                .map(|token| Held { token, kept: false })?
        };
        let token = held.token.clone();
        self.token.replace(Some(held));
        Ok(token)
    }

    /// The access token of the account whose key is in use.
    fn own_token(&self, outside: &Outside<'_>) -> Result<Held, Error> {
        let (_, key) = self.key(outside)?;
        match kept::find(outside, &self.about.data_dir, &key) {
            Some(held) => Ok(held),
            None => self.new_token(outside),
        }
    }

    fn new_token(&self, outside: &Outside<'_>) -> Result<Held, Error> {
        let (path, key) = self.key(outside)?;
        let (token, answer) = self.exchange(outside, (&path, &key), Ask::Scope(SCOPE), "access_token", outside.now)?;
        let seconds = answer["expires_in"].as_u64().unwrap_or(0);
        kept::keep(outside, &self.about.data_dir, &key, &token, seconds);
        Ok(Held { token, kept: false })
    }

    /// A new access token in place of one of an earlier command that is not taken any more.
    pub(crate) fn fresh_token(&self, outside: &Outside<'_>) -> Result<String, Error> {
        let held = self.new_token(outside)?;
        let token = held.token.clone();
        self.token.replace(Some(held));
        Ok(token)
    }

    /// An ID token for `audience` at a time in Unix seconds. One in another account's name has its e-mail when
    /// `with_email`; an account's own always has.
    pub(crate) fn identity_token(
        &self,
        outside: &Outside<'_>,
        audience: &str,
        with_email: bool,
        now: u64,
    ) -> Result<String, Error> {
        let (path, key) = self.key(outside)?;
        if self.chosen.chain.is_empty() {
            let (token, _) = self.exchange(outside, (&path, &key), Ask::Audience(audience), "id_token", now)?;
            return Ok(token);
        }
        // made now and not found: a proxy that runs for days would find only old ones
        let (token, _) = self.exchange(outside, (&path, &key), Ask::Scope(SCOPE), "access_token", now)?;
        let own = Held { token, kept: false };
        let body = json!({ "audience": audience, "includeEmail": with_email });
        self.impersonate(outside, own, "generateIdToken", body, "token")
    }

    /// What the IAM Credentials API gives in the name of the last account of the chain.
    fn impersonate(
        &self,
        outside: &Outside<'_>,
        own: Held,
        verb: &str,
        mut body: Value,
        field: &str,
    ) -> Result<String, Error> {
        let Some((target, delegates)) = self.chosen.chain.split_last() else {
            return Err(Error::Failed("nobody is spoken for".to_owned()));
        };
        let named = |account: &String| format!("projects/-/serviceAccounts/{account}");
        body["delegates"] = delegates.iter().map(named).collect();
        let path = format!("/v1/projects/-/serviceAccounts/{}:{verb}", escape(target));
        let call = |token: &str| self.json_as(token, &Method::POST, HOST, &path, Content::Json(&body));
        let answer = match call(&own.token) {
            Err(error) if own.kept && error.is_unauthenticated() => call(&self.new_token(outside)?.token),
            answer => answer,
        };
        let answer = answer.map_err(|error| {
            Error::Failed(format!(
                "Failed to impersonate [{target}]. Make sure the account that's trying to impersonate it has access to the \
                 service account itself and the \"roles/iam.serviceAccountTokenCreator\" role. {}",
                error.text()
            ))
        })?;
        answer[field].as_str().map(str::to_owned).ok_or_else(|| Error::Answer {
            call: format!("POST {path}"),
            what: format!("no {field}"),
        })
    }

    /// Exchanges an assertion, signed with a key (its file and text) at a time in Unix seconds, for a token: the field of
    /// that name, and the whole answer.
    pub(crate) fn exchange(
        &self,
        outside: &Outside<'_>,
        (path, key): (&Path, &str),
        ask: Ask<'_>,
        field: &str,
        now: u64,
    ) -> Result<(String, Value), Error> {
        let assertion = (outside.sign)(key, ask, now).map_err(|reason| Error::Sign {
            path: path.to_owned(),
            reason,
        })?;
        let form = format!(
            "grant_type={}&assertion={}",
            escape("urn:ietf:params:oauth:grant-type:jwt-bearer"),
            escape(&assertion)
        );
        let answer = self.json_open(&Method::POST, "oauth2.googleapis.com", "/token", Content::Form(form))?;
        match answer[field].as_str().map(str::to_owned) {
            Some(token) => Ok((token, answer)),
            None => Err(Error::Answer {
                call: "POST /token".to_owned(),
                what: format!("no {field}"),
            }),
        }
    }
}

/// Reads the owner's key.
fn read_key(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Key {
        path: path.to_owned(),
        source,
    })
}

/// Reads another account's key file.
pub(crate) fn read_file(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}
