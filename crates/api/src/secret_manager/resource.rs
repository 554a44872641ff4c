//! Secrets: made, listed, described, changed, deleted. Nothing here sees a value.

use model::{Secret, SecretName};
use serde_json::{Value, json};

use super::{
    absent,
    document::{decode, encode, etag},
    name_of, stale,
};
use crate::{
    document::{self, short},
    error::{Code, Error},
    page::page,
    query::Query,
    reply::Body,
    surface::Surface,
};

/// Most items of one page (Secret Manager's limit), also where none is asked for.
pub(super) const PAGE: usize = 25_000;

pub(super) fn get(surface: &Surface, name: &SecretName) -> Result<Value, Error> {
    let snapshot = surface.store.snapshot();
    let secret = snapshot.secret(name, (surface.now)());
    Ok(encode(surface, secret.ok_or_else(|| absent(surface, name))?))
}

pub(super) fn list(surface: &Surface, mut query: Query) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?.unwrap_or(PAGE).min(PAGE);
    let token = query.take("pageToken")?;
    unfiltered(&mut query)?;
    query.finish()?;
    let (snapshot, now) = (surface.store.snapshot(), (surface.now)());
    let live = snapshot.secrets.values().filter(|secret| !secret.is_expired(now));
    let items: Vec<(String, Value)> = live
        .map(|secret| (secret.name.to_string(), encode(surface, secret)))
        .collect();
    listed("secrets", items, limit, token.as_deref())
}

/// A page of a list, with how many there are on all pages.
pub(super) fn listed(
    field: &str,
    items: Vec<(String, Value)>,
    limit: usize,
    token: Option<&str>,
) -> Result<Value, Error> {
    let total = items.len();
    let page = page(items, Some(limit), token, "pageToken")?;
    let mut answer = json!({});
    if !page.items.is_empty() {
        answer[field] = page.items.into();
    }
    if total > 0 {
        answer["totalSize"] = total.into();
    }
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

pub(super) fn unfiltered(query: &mut Query) -> Result<(), Error> {
    match query.take("filter")? {
        None => Ok(()),
        Some(_) => Err(Error::field("filter", "is not served by this Homerun: lists are whole")),
    }
}

pub(super) async fn create(surface: &Surface, mut query: Query, body: Body) -> Result<Value, Error> {
    let id = query.take("secretId")?;
    query.finish()?;
    let id = id.ok_or_else(|| Error::field("secretId", "is required"))?;
    let name = SecretName::parse(&id).map_err(|error| Error::field("secretId", error.to_string()))?;
    let now = (surface.now)();
    let asked = decode(document::read_json(body).await?, now)?;
    let replication = asked
        .replication
        .ok_or_else(|| Error::field("replication", "is required: automatic or userManaged"))?;
    if !asked.aliases.is_empty() {
        return Err(Error::field("versionAliases", "a new secret has no version yet"));
    }
    let secret = Secret {
        labels: asked.labels,
        annotations: asked.annotations,
        expires: asked.expires,
        ..Secret::new(name, replication, now)
    };
    let (made, shown) = (secret.clone(), name_of(surface, &secret.name));
    let written = surface.store.transact(move |transaction| {
        if transaction.snapshot().secret(&made.name, now).is_some() {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("Secret [{shown}] already exists."),
            ));
        }
        // One whose time is over goes with its versions.
        transaction.delete_secret(&made.name);
        transaction.put_secret(made);
        Ok(())
    });
    written.await?;
    Ok(encode(surface, &secret))
}

/// What may change, as masks name it.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one for each field")]
struct Mask {
    labels: bool,
    annotations: bool,
    aliases: bool,
    expiry: bool,
}

impl Mask {
    fn parse(text: Option<&str>) -> Result<Self, Error> {
        let mut mask = Self::default();
        for field in text.unwrap_or_default().split(',').map(str::trim) {
            match field {
                "labels" => mask.labels = true,
                "annotations" => mask.annotations = true,
                "versionAliases" | "version_aliases" => mask.aliases = true,
                "expireTime" | "expire_time" | "ttl" => mask.expiry = true,
                "etag" => {}
                "" => {
                    return Err(Error::field(
                        "updateMask",
                        "is required: the fields to change, with commas",
                    ));
                }
                other => {
                    let why = format!("{} cannot be changed here", short(other));
                    return Err(Error::field("updateMask", why));
                }
            }
        }
        Ok(mask)
    }
}

pub(super) async fn patch(surface: &Surface, name: SecretName, mut query: Query, body: Body) -> Result<Value, Error> {
    let mask = query.take("updateMask")?;
    query.finish()?;
    let mask = Mask::parse(mask.as_deref())?;
    let now = (surface.now)();
    let asked = decode(document::read_json(body).await?, now)?;
    let (missing, shown) = (absent(surface, &name), name_of(surface, &name));
    let written = surface.store.transact(move |transaction| {
        let found = transaction.snapshot().secret(&name, now);
        let mut secret = found.ok_or(missing)?.clone();
        if asked
            .etag
            .is_some_and(|given| given != etag(secret.created, secret.changes))
        {
            return Err(stale(&format!("Secret [{shown}]")));
        }
        if mask.aliases {
            for (alias, number) in &asked.aliases {
                if *number > secret.made {
                    return Err(Error::field(
                        format!("versionAliases.{alias}"),
                        format!("the secret has no version {number}"),
                    ));
                }
            }
            secret.aliases = asked.aliases;
        }
        if mask.labels {
            secret.labels = asked.labels;
        }
        if mask.annotations {
            secret.annotations = asked.annotations;
        }
        if mask.expiry {
            secret.expires = asked.expires;
        }
        secret.changes += 1;
        transaction.put_secret(secret.clone());
        Ok::<_, Error>(secret)
    });
    Ok(encode(surface, &written.await?))
}

/// With all its versions.
pub(super) async fn delete(surface: &Surface, name: SecretName, mut query: Query) -> Result<Value, Error> {
    let given = query.take("etag")?;
    query.finish()?;
    let now = (surface.now)();
    let (missing, shown) = (absent(surface, &name), name_of(surface, &name));
    let written = surface.store.transact(move |transaction| {
        let secret = transaction.snapshot().secret(&name, now).ok_or(missing)?;
        if given.is_some_and(|given| given != etag(secret.created, secret.changes)) {
            return Err(stale(&format!("Secret [{shown}]")));
        }
        transaction.delete_secret(&name);
        Ok(())
    });
    written.await?;
    Ok(json!({}))
}
