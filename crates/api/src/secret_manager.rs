//! Secret Manager: secrets, their versions and values.
//!
//! A path becomes one [`Call`]; its permission was asked for before (`iam::permit`).
//! Values come in with [`version::add`] and go out with [`version::access`]; between them they are sealed. `latest` is
//! the version that was made last, whatever its state, as at Google.

mod document;
mod key;
mod resource;
mod version;

use http::{Method, Response, StatusCode};
use identity::Caller;
use model::{SecretName, SecretRef, VersionRef};
use percent_encoding::percent_decode_str;
use serde_json::Value;

pub(crate) use key::rotate as rotate_key;

use crate::{
    document::short,
    error::{Code, Error},
    iam::{permit::Asked, policy},
    query::Query,
    reply::{self, Body},
    run::call::{check_project, unimplemented},
    surface::Surface,
};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    ListSecrets,
    CreateSecret,
    GetSecret(SecretName),
    UpdateSecret(SecretName),
    DeleteSecret(SecretName),
    AddVersion(SecretName),
    ListVersions(SecretName),
    GetVersion(SecretRef),
    AccessVersion(SecretRef),
    EnableVersion(SecretRef),
    DisableVersion(SecretRef),
    DestroyVersion(SecretRef),
    /// Of the secret that the permission was asked for.
    Policy(policy::Verb),
}

pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    asked: &Asked,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let call = parse(surface, host, &head.method, head.uri.path())?;
    let query = Query::parse(head.uri.query());
    let answer = serve(surface, caller, asked, call, query, body).await?;
    Ok(reply::json(StatusCode::OK, &answer))
}

async fn serve(
    surface: &Surface,
    caller: &Caller,
    asked: &Asked,
    call: Call,
    query: Query,
    body: Body,
) -> Result<Value, Error> {
    match call {
        Call::Policy(verb) => policy::answer(surface, caller, &asked.resource, verb, query, body).await,
        Call::ListSecrets => resource::list(surface, query),
        Call::CreateSecret => resource::create(surface, query, body).await,
        Call::GetSecret(name) => {
            query.finish()?;
            resource::get(surface, &name)
        }
        Call::UpdateSecret(name) => resource::patch(surface, name, query, body).await,
        Call::DeleteSecret(name) => resource::delete(surface, name, query).await,
        Call::AddVersion(name) => version::add(surface, name, query, body).await,
        Call::ListVersions(name) => version::list(surface, &name, query),
        Call::GetVersion(of) => {
            query.finish()?;
            version::get(surface, &of)
        }
        Call::AccessVersion(of) => {
            query.finish()?;
            version::access(surface, &of)
        }
        Call::EnableVersion(of) => version::change(surface, &of, version::Change::Enable, query, body).await,
        Call::DisableVersion(of) => version::change(surface, &of, version::Change::Disable, query, body).await,
        Call::DestroyVersion(of) => version::change(surface, &of, version::Change::Destroy, query, body).await,
    }
}

fn parse(surface: &Surface, host: &str, method: &Method, path: &str) -> Result<Call, Error> {
    let unknown = || unimplemented(host, method, path);
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| unknown())?;
    let parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    let ["v1", "projects", project, "secrets", rest @ ..] = parts.as_slice() else {
        return Err(unknown());
    };
    check_project(project, &surface.site)?;
    let verb = rest.last().and_then(|last| last.split_once(':'));
    let verb = verb.map(|(_, verb)| verb);
    let bare = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
    match *rest {
        [] => match *method {
            Method::GET => Ok(Call::ListSecrets),
            Method::POST => Ok(Call::CreateSecret),
            _ => Err(unknown()),
        },
        [secret] => {
            let name = secret_name(surface, &bare(secret));
            match (method.as_str(), verb) {
                ("GET", None) => Ok(Call::GetSecret(name?)),
                ("PATCH", None) => Ok(Call::UpdateSecret(name?)),
                ("DELETE", None) => Ok(Call::DeleteSecret(name?)),
                ("POST", Some("addVersion")) => Ok(Call::AddVersion(name?)),
                _ => {
                    let verb = policy::Verb::of(method, verb).ok_or_else(unknown)?;
                    name.map(|_| Call::Policy(verb))
                }
            }
        }
        [secret, "versions"] if *method == Method::GET => Ok(Call::ListVersions(secret_name(surface, secret)?)),
        [secret, "versions", version] => {
            let of = || -> Result<SecretRef, Error> {
                let secret = secret_name(surface, secret)?;
                let version = VersionRef::parse(&bare(version)).map_err(|why| Error::field("name", why))?;
                Ok(SecretRef { secret, version })
            };
            match (method.as_str(), verb) {
                ("GET", None) => Ok(Call::GetVersion(of()?)),
                ("GET", Some("access")) => Ok(Call::AccessVersion(of()?)),
                ("POST", Some("enable")) => Ok(Call::EnableVersion(of()?)),
                ("POST", Some("disable")) => Ok(Call::DisableVersion(of()?)),
                ("POST", Some("destroy")) => Ok(Call::DestroyVersion(of()?)),
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}

/// `projects/NUMBER`, as Secret Manager names it.
fn parent(surface: &Surface) -> String {
    format!("projects/{}", surface.site.number())
}

/// `projects/NUMBER/secrets/SECRET`.
fn name_of(surface: &Surface, secret: &SecretName) -> String {
    format!("{}/secrets/{secret}", parent(surface))
}

/// What could never have been made is not there.
fn secret_name(surface: &Surface, text: &str) -> Result<SecretName, Error> {
    SecretName::parse(text).map_err(|_| not_found(&format!("{}/secrets/{}", parent(surface), short(text))))
}

fn not_found(name: &str) -> Error {
    Error::new(Code::NotFound, format!("Secret [{name}] not found."))
}

fn absent(surface: &Surface, secret: &SecretName) -> Error {
    not_found(&name_of(surface, secret))
}

/// A write on what has changed since the client read it.
fn stale(what: &str) -> Error {
    Error::new(
        Code::Aborted,
        format!("{what} was changed since it was read: read it again and repeat the change"),
    )
}
