//! What clients ask of Google's sign-in: tokens, what a token is, taking one back, and the keys by which ID tokens are
//! checked. All of it is public, and under this Homerun's own address too.

use http::{Method, Request, Response, StatusCode, header};
use identity::{Caller, SelfSignedError, TokenError};
use model::{RevokedToken, Timestamp};
use serde_json::{Value, json};

use crate::{
    document,
    error::{Code, Error},
    query::Query,
    reply::{self, Body},
    run::call::unimplemented,
    surface::Surface,
};

/// What is asked for.
enum Call<'p> {
    Token,
    Revoke,
    TokenInfo,
    Discovery,
    Keys,
    Certificates,
    /// Of one account, by its e-mail.
    AccountCertificates(&'p str),
}

fn parse<'p>(host: &str, method: &Method, path: &'p str) -> Option<Call<'p>> {
    let own = !host.ends_with(".googleapis.com") && !host.ends_with(".google.com");
    let is = |name: &str| own || host == name;
    let (get, post) = (*method == Method::GET, *method == Method::POST);
    Some(match path {
        "/token" if post && is("oauth2.googleapis.com") => Call::Token,
        "/o/oauth2/token" if post && is("accounts.google.com") => Call::Token,
        "/oauth2/v4/token" if post && is("www.googleapis.com") => Call::Token,
        "/revoke" if post && is("oauth2.googleapis.com") => Call::Revoke,
        "/o/oauth2/revoke" if (post || get) && is("accounts.google.com") => Call::Revoke,
        "/tokeninfo" if is("oauth2.googleapis.com") => Call::TokenInfo,
        "/oauth2/v3/tokeninfo" if is("www.googleapis.com") => Call::TokenInfo,
        "/.well-known/openid-configuration" if get && is("accounts.google.com") => Call::Discovery,
        "/oauth2/v3/certs" if get && is("www.googleapis.com") => Call::Keys,
        "/oauth2/v1/certs" if get && is("www.googleapis.com") => Call::Certificates,
        _ => {
            let email = path.strip_prefix("/robot/v1/metadata/x509/")?;
            (get && is("www.googleapis.com")).then_some(Call::AccountCertificates(email))?
        }
    })
}

/// Whether this is one of the paths that are answered on the API port too.
pub(crate) fn is_public(method: &Method, path: &str) -> bool {
    matches!(
        parse("localhost", method, path),
        Some(Call::Discovery | Call::Keys | Call::Certificates | Call::AccountCertificates(_) | Call::Token)
    )
}

pub(crate) async fn answer(surface: &Surface, host: &str, request: Request<Body>) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let unknown = || unimplemented(host, &head.method, head.uri.path());
    let call = parse(host, &head.method, head.uri.path()).ok_or_else(unknown)?;
    let now = surface.seconds();
    let answer = match call {
        Call::Token => {
            let form = form(&document::read(body).await?);
            let find = |email: &str| surface.store.snapshot().account(email).cloned();
            return Ok(match surface.keys.token_endpoint(&form, find, now) {
                Ok(token) => uncached(reply::json(StatusCode::OK, &token)),
                Err(refused) => reply::json(StatusCode::BAD_REQUEST, &refused.body()),
            });
        }
        Call::Revoke => {
            let token = parameter(head.uri.query(), "token", &document::read(body).await?);
            revoke(surface, token.as_deref().unwrap_or_default()).await?
        }
        Call::TokenInfo => {
            let token = parameter(head.uri.query(), "access_token", &document::read(body).await?);
            token_info(surface, token.as_deref().unwrap_or_default(), now)?
        }
        Call::Discovery => {
            Query::parse(head.uri.query()).finish()?;
            discovery()
        }
        Call::Keys => surface.keys.issuer().jwks(now),
        Call::Certificates => surface.keys.issuer().certificates(now),
        Call::AccountCertificates(email) => account_certificates(surface, email)?,
    };
    Ok(reply::json(StatusCode::OK, &answer))
}

fn form(content: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(content).into_owned().collect()
}

/// Of the query, or of the form.
fn parameter(query: Option<&str>, name: &str, content: &[u8]) -> Option<String> {
    let of = |text: &[u8]| {
        form(text)
            .into_iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    };
    of(query.unwrap_or_default().as_bytes()).or_else(|| of(content))
}

fn uncached(mut response: Response<Body>) -> Response<Body> {
    let value = http::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

fn invalid(why: &str) -> Error {
    Error::invalid(format!("invalid_token: {why}"))
}

async fn revoke(surface: &Surface, token: &str) -> Result<Value, Error> {
    let now = (surface.now)();
    let read = surface.keys.issuer().read_access(token, surface.seconds());
    let token = read.map_err(|error| invalid(&error.to_string()))?;
    let until = i64::try_from(token.expires)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000);
    let gone = RevokedToken {
        id: token.id,
        until: Timestamp::from_micros(until),
    };
    let done = surface.store.transact(move |tx| {
        tx.revoke(gone, now);
        Ok::<_, Error>(())
    });
    done.await?;
    Ok(json!({}))
}

fn token_info(surface: &Surface, token: &str, now: u64) -> Result<Value, Error> {
    let read = surface.keys.issuer().read_access(token, now);
    let token = read.map_err(|error| invalid(&error.to_string()))?;
    still_good(surface, &token).map_err(|error| invalid(&error.to_string()))?;
    let subject = &token.caller.subject;
    Ok(json!({
        "azp": subject,
        "aud": subject,
        "sub": subject,
        "scope": token.scope,
        "exp": token.expires.to_string(),
        "expires_in": token.expires.saturating_sub(now).to_string(),
        "email": token.caller.email,
        "email_verified": "true",
        "access_type": "online",
    }))
}

fn discovery() -> Value {
    json!({
        "issuer": identity::IDENTITY_ISSUER,
        "authorization_endpoint": "https://accounts.google.com/o/oauth2/v2/auth",
        "token_endpoint": identity::TOKEN_URI,
        "revocation_endpoint": "https://oauth2.googleapis.com/revoke",
        "jwks_uri": "https://www.googleapis.com/oauth2/v3/certs",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid", "email"],
        "claims_supported": ["aud", "azp", "email", "email_verified", "exp", "iat", "iss", "sub"],
        "grant_types_supported": [identity::JWT_BEARER],
    })
}

/// The keys of one account that can be used now, as X.509 by their ids.
fn account_certificates(surface: &Surface, email: &str) -> Result<Value, Error> {
    let email = percent_encoding::percent_decode_str(email).decode_utf8_lossy();
    let snapshot = surface.store.snapshot();
    let account = snapshot.account(&email).filter(|account| !account.disabled);
    let account = account.ok_or_else(|| Error::new(Code::NotFound, "Unable to find metadata for the account"))?;
    let now = (surface.now)();
    let own = account
        .keys
        .iter()
        .filter(|key| account.usable_key(&key.id, now).is_some())
        .map(|key| (key.id.clone(), Value::from(key.certificate.as_str())));
    let managed = account
        .managed
        .iter()
        .map(|key| (key.id.clone(), Value::from(key.certificate.as_str())));
    Ok(Value::Object(own.chain(managed).collect()))
}

/// Whether a token that is good by itself still counts: it was not taken back, and its account is there.
fn still_good(surface: &Surface, token: &identity::AccessToken) -> Result<(), TokenError> {
    let snapshot = surface.store.snapshot();
    if snapshot.revoked.contains_key(&token.id) {
        return Err(TokenError::Revoked);
    }
    let account = snapshot.account(&token.caller.email);
    token.caller.check_account(account.map(AsRef::as_ref))
}

/// Who sent a request to an API: by an access token, or by a token that a service account signed itself, for an audience for
/// which `accepts` is true, or for every API by its scope.
pub(crate) fn authenticate_at(
    surface: &Surface,
    accepts: impl Fn(&str) -> bool,
    scopes: &[&str],
    token: &str,
) -> Result<Caller, Error> {
    let refused = |of_scope: bool, why: String| {
        if of_scope {
            Error::new(Code::PermissionDenied, why)
        } else {
            Error::new(
                Code::Unauthenticated,
                format!("the access token is not accepted: {why}"),
            )
        }
    };
    let is_jwt = token.bytes().filter(|byte| *byte == b'.').count() == 2;
    if !is_jwt {
        return authenticate_with(surface, scopes, token)
            .map_err(|error| refused(matches!(error, TokenError::Scope { .. }), error.to_string()));
    }
    let find = |email: &str| surface.store.snapshot().account(email).cloned();
    surface
        .keys
        .check_self_signed(token, accepts, scopes, find, surface.seconds())
        .map_err(|error| refused(matches!(error, SelfSignedError::Scope(_)), error.to_string()))
}

/// Who sent the access token.
pub(crate) fn authenticate(surface: &Surface, token: &str) -> Result<Caller, TokenError> {
    authenticate_with(surface, &[identity::CLOUD_PLATFORM_SCOPE], token)
}

fn authenticate_with(surface: &Surface, scopes: &[&str], token: &str) -> Result<Caller, TokenError> {
    let issuer = surface.keys.issuer();
    let token = issuer.check_access_with(token, scopes, surface.seconds())?;
    still_good(surface, &token)?;
    Ok(token.caller)
}
