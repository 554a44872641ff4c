//! Who may come in: whoever shows an access token of this Homerun, or a key for which one is given.
//!
//! Clients log in with a user and a password, as at Google: `oauth2accesstoken` or `_dcgcloud_token` (gcloud's credential
//! helper) with an access token, `_json_key` with a service account's key file, `_json_key_base64` with the same in
//! base64. They send it with every request (Basic), or exchange it once at `/v2/token` for a token (Bearer), which is
//! where an answer of 401 sends them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use identity::{Ask, CLOUD_PLATFORM_SCOPE, Caller, JWT_BEARER, ServiceAccountKey, TOKEN_SECONDS, sign_assertion};
use image::is_own_host;
use serde_json::json;

use super::Refusal;
use crate::{
    document::{self, short},
    oauth::authenticate,
    reply::{self, Body},
    surface::Surface,
};

/// What a client that nobody knows is told: where to get a token. By the name that it used itself: TLS is spoken for
/// Google's hosts alone.
pub(super) fn challenge(host: &str, request: &Request<Body>) -> HeaderValue {
    let named = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| request.uri().authority().map(http::uri::Authority::as_str))
        .filter(|named| named.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c)));
    let (scheme, named) = match named {
        Some(named) if !is_own_host(named.split(':').next().unwrap_or_default()) => ("http", named),
        Some(_) | None => ("https", host),
    };
    let text = format!("Bearer realm=\"{scheme}://{named}/v2/token\",service=\"{host}\"");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer"))
}

/// Who sent the request, by its `Authorization`.
pub(super) fn admit(surface: &Surface, head: &Parts) -> Result<Caller, Refusal> {
    let Some((scheme, rest)) = authorization(head) else {
        return Err(Refusal::unauthorized(
            "an access token is required: log in as oauth2accesstoken".to_owned(),
        ));
    };
    if scheme.eq_ignore_ascii_case("bearer") {
        return known(surface, rest);
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let (user, password) = basic(rest)?;
        let (token, _) = by_password(surface, &user, &password)?;
        return known(surface, &token);
    }
    Err(Refusal::unauthorized("only Basic and Bearer are accepted".to_owned()))
}

/// `/v2/token`: by GET with Basic, or by POST with a form (as docker and containerd do).
pub(super) async fn token(surface: &Surface, head: &Parts, body: Body) -> Result<Response<Body>, Refusal> {
    let (user, password) = match head.method {
        Method::GET => match authorization(head) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("basic") => basic(rest)?,
            Some(_) | None => {
                return Err(Refusal::unauthorized(
                    "nothing is given to nobody: log in as oauth2accesstoken with an access token".to_owned(),
                ));
            }
        },
        Method::POST => {
            let content = document::read(body)
                .await
                .map_err(|error| Refusal::unauthorized(error.message))?;
            let form: Vec<(String, String)> = form_urlencoded::parse(&content).into_owned().collect();
            let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            match field("grant_type").as_deref() {
                Some("password") => (
                    field("username").unwrap_or_default(),
                    field("password").unwrap_or_default(),
                ),
                // Such a token was never given out.
                Some(_) | None => {
                    return Err(Refusal::unauthorized(
                        "only the grant type password is served".to_owned(),
                    ));
                }
            }
        }
        _ => return Err(Refusal::unsupported(head)),
    };
    let (token, seconds) = by_password(surface, &user, &password)?;
    let answer = json!({ "token": token, "access_token": token, "expires_in": seconds });
    Ok(reply::json(StatusCode::OK, &answer))
}

fn authorization(head: &Parts) -> Option<(&str, &str)> {
    let value = head.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    Some((scheme, rest.trim()))
}

fn basic(text: &str) -> Result<(String, String), Refusal> {
    let decoded = STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    decoded
        .as_deref()
        .and_then(|pair| pair.split_once(':'))
        .map(|(user, password)| (user.to_owned(), password.to_owned()))
        .ok_or_else(|| Refusal::unauthorized("the Basic credentials cannot be read".to_owned()))
}

/// The access token that a user and a password stand for, and for how many seconds a client may keep it at least.
fn by_password(surface: &Surface, user: &str, password: &str) -> Result<(String, u64), Refusal> {
    match user {
        "_dcgcloud_token" | "oauth2accesstoken" => {
            known(surface, password)?;
            // The least that clients take; how long it is good is told by the token itself.
            Ok((password.to_owned(), 60))
        }
        "_json_key" => Ok((by_key(surface, password)?, TOKEN_SECONDS)),
        "_json_key_base64" => {
            let text = STANDARD.decode(password.trim()).ok();
            let text = text.and_then(|text| String::from_utf8(text).ok());
            let text = text.ok_or_else(|| Refusal::unauthorized("the key is not base64".to_owned()))?;
            Ok((by_key(surface, &text)?, TOKEN_SECONDS))
        }
        _ => Err(Refusal::unauthorized(format!(
            "user \"{}\" is not known: log in as oauth2accesstoken with an access token, or as _json_key with a key file",
            short(user)
        ))),
    }
}

fn known(surface: &Surface, token: &str) -> Result<Caller, Refusal> {
    authenticate(surface, token)
        .map_err(|error| Refusal::unauthorized(format!("the access token is not accepted: {error}")))
}

/// An access token for whoever holds an account's private key: by the same exchange that gcloud makes.
fn by_key(surface: &Surface, text: &str) -> Result<String, Refusal> {
    let refused = |why: String| Refusal::unauthorized(format!("the key is not accepted: {why}"));
    let key = ServiceAccountKey::from_json(text).map_err(|error| refused(error.to_string()))?;
    let now = surface.seconds();
    let assertion =
        sign_assertion(&key, Ask::Scope(CLOUD_PLATFORM_SCOPE), now).map_err(|error| refused(error.to_string()))?;
    let form = [("grant_type", JWT_BEARER), ("assertion", &assertion)];
    let form: Vec<(String, String)> = form
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let find = |email: &str| surface.store.snapshot().account(email).cloned();
    let answer = surface.keys.token_endpoint(&form, find, now);
    let answer = answer.map_err(|error| refused(error.to_string()))?;
    let token = answer["access_token"].as_str();
    token
        .map(str::to_owned)
        .ok_or_else(|| refused("it gives no access token".to_owned()))
}
