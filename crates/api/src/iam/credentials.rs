//! `iamcredentials.googleapis.com`: tokens and signatures in a service account's name, for whoever may make them.
//!
//! The permission is asked for here and not before, because of `delegates`: accounts through which the caller acts, each
//! of which acts for the next. Then the caller needs `implicitDelegation` on the first, each on the next, and the last one
//! the permission of the method on the account that is named.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, Response, StatusCode};
use identity::{Caller, TOKEN_SECONDS};
use model::{ManagedKey, Permission, Resource, ServiceAccount, Timestamp};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{
    accounts::{change, find},
    permit::{Asked, email_of},
};
use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    query::Query,
    reply::{self, Body},
    run::{
        call::{check_project, unimplemented},
        v1::rfc3339,
    },
    surface::Surface,
};

/// Longest life of an access token in seconds.
const MAX_LIFETIME: u64 = 3600;
/// Most bytes that are signed at once.
const MAX_BLOB: usize = 64 << 10;
/// A signed JWT may claim to end within so many seconds.
const MAX_JWT_LIFE: u64 = 12 * 3600;
/// Most accounts through which one call goes.
const MAX_DELEGATES: usize = 20;

pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    asked: &Asked,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let unknown = || unimplemented(host, &head.method, path);
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| unknown())?;
    let parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    let ["v1", "projects", project, "serviceAccounts", call] = parts.as_slice() else {
        return Err(unknown());
    };
    if head.method != Method::POST {
        return Err(unknown());
    }
    if *project != "-" {
        check_project(project, &surface.site)?;
    }
    let (name, verb) = call.rsplit_once(':').ok_or_else(unknown)?;
    Query::parse(head.uri.query()).finish()?;
    let mut document = document::read_json(body).await?;
    let permission = asked.permission.ok_or_else(unknown)?;
    require(surface, caller, permission, &asked.resource, delegates(&mut document)?)?;
    let account = find(&surface.store.snapshot(), name)?;
    is_on(&account)?;
    let answer = match verb {
        "generateAccessToken" => access_token(surface, &account, document),
        "generateIdToken" => id_token(surface, &account, document),
        "signJwt" => sign_jwt(surface, account, document).await,
        "signBlob" => sign_blob(surface, account, document).await,
        _ => Err(unknown()),
    }?;
    Ok(reply::json(StatusCode::OK, &answer))
}

fn is_on(account: &ServiceAccount) -> Result<(), Error> {
    if !account.disabled {
        return Ok(());
    }
    Err(Error::new(
        Code::FailedPrecondition,
        format!("service account {} is disabled", account.email),
    ))
}

/// Takes the accounts through which the caller acts out of the document: their e-mails or unique ids, also in the form
/// `projects/-/serviceAccounts/NAME`.
fn delegates(document: &mut Value) -> Result<Vec<String>, Error> {
    let Some(taken) = document
        .as_object_mut()
        .and_then(|fields| fields.shift_remove("delegates"))
    else {
        return Ok(Vec::new());
    };
    let findings = Findings::default();
    let mut root = Object::root(json!({ "delegates": taken }), &findings);
    let mut names = root.texts("delegates");
    if names.len() > MAX_DELEGATES {
        root.say(
            "delegates",
            format!("{} accounts, at most {MAX_DELEGATES} are allowed", names.len()),
        );
    }
    for (index, name) in names.iter_mut().enumerate() {
        if let Some(of_any) = name.strip_prefix("projects/-/serviceAccounts/") {
            *name = of_any.to_owned();
        }
        if name.is_empty() || name.contains('/') {
            let expected = "expected projects/-/serviceAccounts/EMAIL_OR_UNIQUE_ID";
            root.say(
                &format!("delegates[{index}]"),
                format!("{expected}, not \"{}\"", short(name)),
            );
        }
    }
    findings.done()?;
    Ok(names)
}

/// Whether the caller, through the delegates, holds the permission on the account: each for the next, and all of them
/// there and on.
fn require(
    surface: &Surface,
    first: &Caller,
    permission: Permission,
    on: &Resource,
    delegates: Vec<String>,
) -> Result<(), Error> {
    let state = surface.store.snapshot();
    let mut who = first.clone();
    for name in delegates {
        let link = Resource::ServiceAccount(email_of(&name, &state).to_owned());
        surface.require(&who, Permission::IAM_SERVICE_ACCOUNTS_IMPLICIT_DELEGATION, &link)?;
        let account = find(&state, &name)?;
        is_on(&account)?;
        who = caller(&account);
    }
    surface.require(&who, permission, on)
}

fn caller(account: &ServiceAccount) -> Caller {
    Caller {
        email: account.email.clone(),
        subject: account.unique_id.clone(),
    }
}

fn access_token(surface: &Surface, account: &ServiceAccount, document: Value) -> Result<Value, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    root.drop_owned(&["name"]);
    let scopes = root.texts("scope");
    if scopes.is_empty() {
        root.say("scope", "at least one scope is required");
    }
    for (index, scope) in scopes.iter().enumerate() {
        if scope.is_empty() || scope.len() > 256 || scope.chars().any(|c| !c.is_ascii_graphic()) {
            root.say(&format!("scope[{index}]"), format!("\"{}\" is no scope", short(scope)));
        }
    }
    let text = root.text("lifetime");
    let lifetime = match &text {
        None => Some(MAX_LIFETIME),
        Some(text) => text.strip_suffix('s').and_then(|number| number.parse().ok()),
    };
    let lifetime = lifetime.filter(|seconds| (1..=MAX_LIFETIME).contains(seconds));
    if lifetime.is_none() {
        root.say(
            "lifetime",
            format!(
                "expected 1s to {MAX_LIFETIME}s, not \"{}\"",
                short(text.as_deref().unwrap_or_default())
            ),
        );
    }
    root.finish();
    findings.done()?;
    let seconds = lifetime.unwrap_or(TOKEN_SECONDS);
    let now = surface.seconds();
    let issuer = surface.keys.issuer();
    let token = issuer.mint_access(&caller(account), &scopes.join(" "), now, seconds);
    let end = i64::try_from(now + seconds)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000);
    let ends = rfc3339_seconds(Timestamp::from_micros(end));
    Ok(json!({ "accessToken": token, "expireTime": ends }))
}

/// Without a fraction: some clients read no other form.
fn rfc3339_seconds(at: Timestamp) -> String {
    let text = rfc3339(at);
    match text.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => text,
    }
}

fn id_token(surface: &Surface, account: &ServiceAccount, document: Value) -> Result<Value, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    root.drop_owned(&["name"]);
    let audience = root.text("audience").unwrap_or_default();
    if audience.is_empty() {
        root.say("audience", "is required");
    }
    let with_email = root.boolean("includeEmail").unwrap_or(false);
    root.unserved(&["organizationNumberIncluded"]);
    root.finish();
    findings.done()?;
    let (issuer, now) = (surface.keys.issuer(), surface.seconds());
    let token = if with_email {
        issuer.mint_identity(&caller(account), &audience, now)
    } else {
        issuer.mint_identity_without_email(&caller(account), &audience, now)
    };
    Ok(json!({ "token": token }))
}

/// The account with the key that signs for it here, made when it is first needed.
async fn managed(surface: &Surface, account: Arc<ServiceAccount>) -> Result<(Arc<ServiceAccount>, ManagedKey), Error> {
    if let Some(key) = account.managed.clone() {
        return Ok((account, key));
    }
    let (seal, of, now) = (surface.keys.seal().clone(), account.clone(), (surface.now)());
    let made = tokio::task::spawn_blocking(move || identity::new_managed_key(&seal, &of, now)).await;
    let made = made
        .map_err(|error| Error::new(Code::Unavailable, error.to_string()))?
        .map_err(|error| Error::new(Code::Unavailable, error.to_string()))?;
    let unique_id = account.unique_id.clone();
    let stored = change(surface, &account.email, move |account| {
        if account.unique_id != unique_id {
            return Err(super::accounts::absent(&unique_id));
        }
        // another call may have been quicker, and then its key is the one
        account.managed.get_or_insert(made);
        Ok(())
    })
    .await?;
    let key = stored.managed.clone().expect("put a line above");
    Ok((stored, key))
}

fn unavailable(error: identity::AccountError) -> Error {
    tracing::error!(error = &error as &dyn std::error::Error, "nothing was signed");
    Error::new(Code::Unavailable, error.to_string())
}

/// The claims that are to be signed.
fn claims(document: Value, now: u64) -> Result<Value, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    root.drop_owned(&["name"]);
    let payload = root.text("payload").unwrap_or_default();
    let claims: Option<Value> = serde_json::from_str(&payload).ok().filter(Value::is_object);
    match &claims {
        None => root.say("payload", "expected the claims as a JSON object in a text"),
        Some(claims) if claims.get("exp").is_some_and(|exp| !exp.is_null()) => {
            let ends = claims["exp"].as_u64();
            if ends.is_none_or(|ends| ends > now + MAX_JWT_LIFE) {
                root.say("payload", format!("exp must be seconds within {MAX_JWT_LIFE} from now"));
            }
        }
        Some(_) => {}
    }
    root.finish();
    findings.done()?;
    Ok(claims.unwrap_or_default())
}

async fn sign_jwt(surface: &Surface, account: Arc<ServiceAccount>, document: Value) -> Result<Value, Error> {
    let claims = claims(document, surface.seconds())?;
    let (account, key) = managed(surface, account).await?;
    let token = identity::sign_jwt(surface.keys.seal(), &account, &key, &claims).map_err(unavailable)?;
    Ok(json!({ "keyId": key.id, "signedJwt": token }))
}

/// The bytes that are to be signed.
fn blob(document: Value) -> Result<Vec<u8>, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    root.drop_owned(&["name"]);
    let text = root.text("payload").unwrap_or_default();
    let payload = STANDARD.decode(&text).ok().filter(|bytes| !bytes.is_empty());
    match &payload {
        None => root.say("payload", "expected some bytes in base64"),
        Some(bytes) if bytes.len() > MAX_BLOB => {
            root.say(
                "payload",
                format!("has {} bytes, at most {MAX_BLOB} are allowed", bytes.len()),
            );
        }
        Some(_) => {}
    }
    root.finish();
    findings.done()?;
    Ok(payload.unwrap_or_default())
}

async fn sign_blob(surface: &Surface, account: Arc<ServiceAccount>, document: Value) -> Result<Value, Error> {
    let payload = blob(document)?;
    let (account, key) = managed(surface, account).await?;
    let signed = identity::sign_blob(surface.keys.seal(), &account, &key, &payload).map_err(unavailable)?;
    Ok(json!({ "keyId": key.id, "signedBlob": STANDARD.encode(signed) }))
}
