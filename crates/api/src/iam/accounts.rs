//! `iam.googleapis.com`: service accounts, their policies, keys, and roles.

use std::sync::Arc;

use http::{Method, Response, StatusCode, request::Parts};
use identity::Caller;
use model::{ServiceAccount, Site};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use store::Snapshot;

use super::{
    keys,
    permit::{Asked, email_of},
    policy::{self, account_name},
    roles,
};
use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    page::page,
    query::Query,
    reply::{self, Body},
    run::{
        call::{check_project, unimplemented},
        v1::opaque,
    },
    surface::Surface,
};

/// Longest title and description, as at Google.
const MAX_TITLE: usize = 100;
const MAX_DESCRIPTION: usize = 256;
/// Most accounts of the project, as at Google.
const MAX_ACCOUNTS: usize = 100;
/// Most items of a page.
const MAX_PAGE: usize = 100;

pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    asked: &Asked,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let answer = serve(surface, host, caller, asked, &head, body).await?;
    Ok(reply::json(StatusCode::OK, &answer))
}

async fn serve(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    asked: &Asked,
    head: &Parts,
    body: Body,
) -> Result<Value, Error> {
    let path = head.uri.path();
    let unknown = || unimplemented(host, &head.method, path);
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| unknown())?;
    let parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    let query = Query::parse(head.uri.query());
    let (project, rest) = match parts.as_slice() {
        ["v1", "roles", rest @ ..] => return roles::answer(rest, query).ok_or_else(unknown)?,
        ["v1", "projects", project, "roles"] => {
            check_project(project, &surface.site)?;
            return roles::custom(query);
        }
        ["v1", "projects", project, "serviceAccounts", rest @ ..] => (*project, rest),
        _ => return Err(unknown()),
    };
    if project != "-" {
        check_project(project, &surface.site)?;
    }
    match (&head.method, rest) {
        (&Method::GET, []) => list(surface, query),
        (&Method::POST, []) => {
            query.finish()?;
            create(surface, document::read_json(body).await?).await
        }
        (method, [name]) => {
            let (name, verb) = match name.rsplit_once(':') {
                Some((name, verb)) => (name, Some(verb)),
                None => (*name, None),
            };
            match (method, verb) {
                (&Method::GET, None) => {
                    query.finish()?;
                    let snapshot = surface.store.snapshot();
                    Ok(encode(&*find(&snapshot, name)?, &surface.site))
                }
                (&Method::PATCH, None) => {
                    query.finish()?;
                    patch(surface, name, document::read_json(body).await?).await
                }
                (&Method::DELETE, None) => {
                    query.finish()?;
                    delete(surface, name).await
                }
                (&Method::POST, Some("disable" | "enable")) => {
                    query.finish()?;
                    empty(document::read_json(body).await?)?;
                    switch(surface, name, verb == Some("disable")).await
                }
                (&Method::POST, Some("undelete")) => Err(Error::unimplemented(
                    "a deleted service account cannot be brought back by this Homerun: make another of the same name",
                )),
                (&Method::POST, Some("getIamPolicy")) => {
                    policy::asked_by_query(query)?;
                    policy::asked_by_document(document::read_json(body).await?)?;
                    policy::get(surface, &asked.resource)
                }
                _ => {
                    let verb = policy::Verb::of(method, verb).ok_or_else(unknown)?;
                    policy::answer(surface, caller, &asked.resource, verb, query, body).await
                }
            }
        }
        (method, [name, "keys", rest @ ..]) => keys::answer(surface, method, name, rest, query, body)
            .await
            .unwrap_or_else(|| Err(unknown())),
        _ => Err(unknown()),
    }
}

/// A body that says nothing.
pub(super) fn empty(document: Value) -> Result<(), Error> {
    let findings = Findings::default();
    Object::root(document, &findings).finish();
    findings.done()
}

pub(crate) fn absent(name: &str) -> Error {
    Error::new(
        Code::NotFound,
        format!("Unknown service account: \"{}\" does not exist", short(name)),
    )
}

/// By e-mail or unique id.
pub(crate) fn find(state: &Snapshot, name: &str) -> Result<Arc<ServiceAccount>, Error> {
    let found = state.account(email_of(name, state)).cloned();
    found.ok_or_else(|| absent(name))
}

pub(super) fn encode(account: &ServiceAccount, site: &Site) -> Value {
    let mut shown = json!({
        "name": account_name(account, site),
        "projectId": site.project.as_str(),
        "uniqueId": account.unique_id,
        "email": account.email,
        "etag": opaque(account.version),
        "oauth2ClientId": account.unique_id,
    });
    for (field, text) in [
        ("displayName", &account.display_name),
        ("description", &account.description),
    ] {
        if !text.is_empty() {
            shown[field] = text.as_str().into();
        }
    }
    if account.disabled {
        shown["disabled"] = true.into();
    }
    shown
}

fn list(surface: &Surface, mut query: Query) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?.unwrap_or(MAX_PAGE).min(MAX_PAGE);
    let token = query.take("pageToken")?;
    query.take("name")?;
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let items = snapshot
        .accounts
        .values()
        .map(|account| (account.email.clone(), account))
        .collect();
    let page = page(items, Some(limit), token.as_deref(), "pageToken")?;
    let accounts: Vec<Value> = page
        .items
        .iter()
        .map(|account| encode(account, &surface.site))
        .collect();
    let mut shown = json!({ "accounts": accounts });
    if let Some(next) = page.next {
        shown["nextPageToken"] = next.into();
    }
    Ok(shown)
}

/// The two texts that people give an account.
struct Texts {
    display_name: Option<String>,
    description: Option<String>,
}

fn texts(account: &mut Object<'_>) -> Texts {
    let display_name = account.exact_text("displayName");
    let description = account.exact_text("description");
    for (field, text, most) in [
        ("displayName", &display_name, MAX_TITLE),
        ("description", &description, MAX_DESCRIPTION),
    ] {
        let bytes = text.as_ref().map_or(0, String::len);
        if bytes > most {
            account.say(field, format!("has {bytes} bytes, at most {most} are allowed"));
        }
    }
    account.drop_owned(&[
        "name",
        "projectId",
        "uniqueId",
        "email",
        "etag",
        "oauth2ClientId",
        "disabled",
    ]);
    Texts {
        display_name,
        description,
    }
}

/// The id of a new account, and what is said of it.
fn creation(document: Value) -> Result<(String, Texts), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let id = root.text("accountId").unwrap_or_default();
    if let Err(error) = ServiceAccount::check_id(&id) {
        root.say("accountId", error.to_string());
    }
    root.drop_owned(&["name"]);
    let mut account = root.object("serviceAccount");
    let texts = texts(&mut account);
    account.finish();
    root.finish();
    findings.done()?;
    Ok((id, texts))
}

async fn create(surface: &Surface, document: Value) -> Result<Value, Error> {
    let (id, texts) = creation(document)?;
    let account = ServiceAccount {
        email: ServiceAccount::email_of(&id, &surface.site.project),
        unique_id: identity::new_unique_id(),
        display_name: texts.display_name.unwrap_or_default(),
        description: texts.description.unwrap_or_default(),
        disabled: false,
        created: (surface.now)(),
        version: 0,
        keys: Vec::new(),
        managed: None,
    };
    let project = surface.site.project.clone();
    let stored = surface
        .store
        .transact(move |tx| {
            if tx.snapshot().account(&account.email).is_some() {
                return Err(Error::new(
                    Code::AlreadyExists,
                    format!("Service account {id} already exists within project projects/{project}."),
                ));
            }
            if tx.snapshot().accounts.len() >= MAX_ACCOUNTS {
                return Err(Error::new(
                    Code::FailedPrecondition,
                    format!("the project has {MAX_ACCOUNTS} service accounts, the limit"),
                ));
            }
            let email = account.email.clone();
            tx.put_account(account);
            find(tx.snapshot(), &email)
        })
        .await?;
    Ok(encode(&stored, &surface.site))
}

/// Changes the account of this name in one transaction.
pub(super) async fn change(
    surface: &Surface,
    name: &str,
    change: impl FnOnce(&mut ServiceAccount) -> Result<(), Error> + Send + 'static,
) -> Result<Arc<ServiceAccount>, Error> {
    let name = name.to_owned();
    let stored = surface.store.transact(move |tx| {
        let mut account = ServiceAccount::clone(&*find(tx.snapshot(), &name)?);
        let email = account.email.clone();
        change(&mut account)?;
        tx.put_account(account);
        find(tx.snapshot(), &email)
    });
    Ok(stored.await?)
}

/// What of an account is to be changed.
struct Patch {
    etag: Option<String>,
    texts: Texts,
    set_display_name: bool,
    set_description: bool,
}

/// `{"serviceAccount": {...}, "updateMask": "displayName,description"}`.
fn patching(document: Value) -> Result<Patch, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let mask = root.text("updateMask").unwrap_or_default();
    let mut account = root.object("serviceAccount");
    let etag = account.text("etag");
    let texts = texts(&mut account);
    account.finish();
    let (mut set_display_name, mut set_description) = (false, false);
    for field in mask.split(',').map(str::trim).filter(|field| !field.is_empty()) {
        match field {
            "displayName" | "display_name" => set_display_name = true,
            "description" => set_description = true,
            "etag" => {}
            other => root.say("updateMask", format!("\"{}\" cannot be changed", short(other))),
        }
    }
    if mask.is_empty() {
        set_display_name = texts.display_name.is_some();
        set_description = texts.description.is_some();
    }
    root.finish();
    findings.done()?;
    Ok(Patch {
        etag,
        texts,
        set_display_name,
        set_description,
    })
}

async fn patch(surface: &Surface, name: &str, document: Value) -> Result<Value, Error> {
    let Patch {
        etag,
        texts,
        set_display_name,
        set_description,
    } = patching(document)?;
    let stored = change(surface, name, move |account| {
        if let Some(etag) = &etag
            && *etag != opaque(account.version)
        {
            return Err(Error::new(
                Code::Aborted,
                format!(
                    "service account \"{}\" was changed since it was read (etag {}): read it again and repeat the change",
                    account.email,
                    short(etag)
                ),
            ));
        }
        if set_display_name {
            account.display_name = texts.display_name.unwrap_or_default();
        }
        if set_description {
            account.description = texts.description.unwrap_or_default();
        }
        Ok(())
    });
    Ok(encode(&*stored.await?, &surface.site))
}

/// The owner's account opens everything else: it stays.
fn not_the_owner(surface: &Surface, name: &str, what: &str) -> Result<(), Error> {
    let snapshot = surface.store.snapshot();
    let owner = &surface.keys.owner().caller().email;
    if email_of(name, &snapshot) == owner {
        return Err(Error::new(
            Code::FailedPrecondition,
            format!("service account \"{owner}\" is the owner of this Homerun and cannot be {what}"),
        ));
    }
    Ok(())
}

async fn switch(surface: &Surface, name: &str, disabled: bool) -> Result<Value, Error> {
    if disabled {
        not_the_owner(surface, name, "disabled")?;
    }
    let done = change(surface, name, move |account| {
        account.disabled = disabled;
        Ok(())
    });
    done.await?;
    Ok(json!({}))
}

async fn delete(surface: &Surface, name: &str) -> Result<Value, Error> {
    not_the_owner(surface, name, "deleted")?;
    let name = name.to_owned();
    let done = surface.store.transact(move |tx| {
        let email = find(tx.snapshot(), &name)?.email.clone();
        tx.delete_account(&email);
        Ok::<_, Error>(())
    });
    done.await?;
    Ok(json!({}))
}
