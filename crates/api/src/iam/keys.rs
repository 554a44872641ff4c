//! Keys of service accounts. The private half is shown once, in the answer that makes it, and kept nowhere.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use model::{AccountKey, MAX_ACCOUNT_KEYS, ManagedKey, ServiceAccount, Site};
use serde_json::{Value, json};

use super::{
    accounts::{change, find},
    policy::account_name,
};
use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    query::Query,
    reply::Body,
    run::v1::rfc3339,
    surface::Surface,
};

/// None: no method.
pub(super) async fn answer(
    surface: &Surface,
    method: &Method,
    name: &str,
    rest: &[&str],
    mut query: Query,
    body: Body,
) -> Option<Result<Value, Error>> {
    let outcome = match (method, rest) {
        (&Method::GET, []) => list(surface, name, query),
        (&Method::POST, []) => match query.finish() {
            Ok(()) => create(surface, name, body).await,
            Err(refused) => Err(refused),
        },
        (method, [id]) => {
            let (id, verb) = match id.split_once(':') {
                Some((id, verb)) => (id, Some(verb)),
                None => (*id, None),
            };
            match (method, verb) {
                (&Method::GET, None) => {
                    let with = query.take("publicKeyType");
                    match with.and_then(|with| query.finish().map(|()| with)) {
                        Ok(with) => get(surface, name, id, with.as_deref()),
                        Err(refused) => Err(refused),
                    }
                }
                (&Method::DELETE, None) => match query.finish() {
                    Ok(()) => delete(surface, name, id).await,
                    Err(refused) => Err(refused),
                },
                (&Method::POST, Some("disable" | "enable")) => match query.finish() {
                    Ok(()) => switch(surface, name, id, verb == Some("disable"), body).await,
                    Err(refused) => Err(refused),
                },
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(outcome)
}

fn absent(id: &str) -> Error {
    Error::new(
        Code::NotFound,
        format!("Service account key {} does not exist.", short(id)),
    )
}

fn encode(account: &ServiceAccount, key: &AccountKey, site: &Site) -> Value {
    let mut shown = json!({
        "name": format!("{}/keys/{}", account_name(account, site), key.id),
        "validAfterTime": rfc3339(key.created),
        "validBeforeTime": key.expires.map_or_else(|| "9999-12-31T23:59:59Z".to_owned(), rfc3339),
        "keyAlgorithm": "KEY_ALG_RSA_2048",
        "keyOrigin": "GOOGLE_PROVIDED",
        "keyType": "USER_MANAGED",
    });
    if key.disabled {
        shown["disabled"] = true.into();
        shown["disableReason"] = "SERVICE_ACCOUNT_KEY_DISABLE_REASON_USER_INITIATED".into();
    }
    shown
}

fn encode_managed(account: &ServiceAccount, key: &ManagedKey, site: &Site) -> Value {
    json!({
        "name": format!("{}/keys/{}", account_name(account, site), key.id),
        "validAfterTime": rfc3339(key.created),
        "validBeforeTime": "9999-12-31T23:59:59Z",
        "keyAlgorithm": "KEY_ALG_RSA_2048",
        "keyOrigin": "GOOGLE_PROVIDED",
        "keyType": "SYSTEM_MANAGED",
    })
}

/// With `keyTypes`, `USER_MANAGED` and `SYSTEM_MANAGED`.
fn list(surface: &Surface, name: &str, mut query: Query) -> Result<Value, Error> {
    let kinds = query.all("keyTypes");
    query.finish()?;
    let known = ["USER_MANAGED", "SYSTEM_MANAGED", "KEY_TYPE_UNSPECIFIED"];
    if let Some(other) = kinds.iter().find(|kind| !known.contains(&kind.as_str())) {
        return Err(Error::field(
            "keyTypes",
            format!("expected USER_MANAGED or SYSTEM_MANAGED, not \"{}\"", short(other)),
        ));
    }
    let wanted = |kind: &str| kinds.is_empty() || kinds.iter().any(|one| one == kind || one == "KEY_TYPE_UNSPECIFIED");
    let account = find(&surface.store.snapshot(), name)?;
    let mut keys = Vec::new();
    if wanted("USER_MANAGED") {
        keys.extend(account.keys.iter().map(|key| encode(&account, key, &surface.site)));
    }
    if wanted("SYSTEM_MANAGED") {
        let managed = account.managed.iter();
        keys.extend(managed.map(|key| encode_managed(&account, key, &surface.site)));
    }
    Ok(if keys.is_empty() {
        json!({})
    } else {
        json!({ "keys": keys })
    })
}

fn get(surface: &Surface, name: &str, id: &str, with: Option<&str>) -> Result<Value, Error> {
    let account = find(&surface.store.snapshot(), name)?;
    let own = account.keys.iter().find(|key| key.id == id);
    let managed = account.managed.as_ref().filter(|key| key.id == id);
    let (mut shown, certificate) = match (own, managed) {
        (Some(key), _) => (encode(&account, key, &surface.site), &key.certificate),
        (None, Some(key)) => (encode_managed(&account, key, &surface.site), &key.certificate),
        (None, None) => return Err(absent(id)),
    };
    match with {
        None | Some("TYPE_NONE") => {}
        Some("TYPE_X509_PEM_FILE") => shown["publicKeyData"] = STANDARD.encode(certificate).into(),
        Some(other) => {
            return Err(Error::field(
                "publicKeyType",
                format!(
                    "only TYPE_X509_PEM_FILE and TYPE_NONE are served, not \"{}\"",
                    short(other)
                ),
            ));
        }
    }
    Ok(shown)
}

/// What may be asked of a new key.
fn creation(document: Value) -> Result<(), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    for (field, served) in [
        ("privateKeyType", ["TYPE_GOOGLE_CREDENTIALS_FILE", "TYPE_UNSPECIFIED"]),
        ("keyAlgorithm", ["KEY_ALG_RSA_2048", "KEY_ALG_UNSPECIFIED"]),
    ] {
        if let Some(other) = root.text(field).filter(|text| !served.contains(&text.as_str())) {
            root.say(
                field,
                format!("only {} is served, not \"{}\"", served[0], short(&other)),
            );
        }
    }
    root.finish();
    findings.done()
}

async fn create(surface: &Surface, name: &str, body: Body) -> Result<Value, Error> {
    creation(document::read_json(body).await?)?;
    let account = find(&surface.store.snapshot(), name)?;
    full(&account)?;
    let (project, now) = (surface.site.project.to_string(), (surface.now)());
    let of = account.clone();
    // A tenth of a second of CPU.
    let made = tokio::task::spawn_blocking(move || identity::new_account_key(&project, &of, now)).await;
    let (file, key) = made
        .map_err(|error| Error::new(Code::Unavailable, error.to_string()))?
        .map_err(|error| Error::new(Code::Unavailable, error.to_string()))?;
    let kept = key.clone();
    let unique_id = account.unique_id.clone();
    let stored = change(surface, &account.email, move |account| {
        // Made again under the same name meanwhile, it is not the account that the file speaks of.
        if account.unique_id != unique_id {
            return Err(super::accounts::absent(&unique_id));
        }
        full(account)?;
        account.keys.push(kept);
        Ok(())
    });
    let mut shown = encode(&*stored.await?, &key, &surface.site);
    shown["privateKeyType"] = "TYPE_GOOGLE_CREDENTIALS_FILE".into();
    shown["privateKeyData"] = STANDARD.encode(file).into();
    Ok(shown)
}

fn full(account: &ServiceAccount) -> Result<(), Error> {
    if account.keys.len() < MAX_ACCOUNT_KEYS {
        return Ok(());
    }
    Err(Error::new(
        Code::FailedPrecondition,
        format!(
            "service account {} has {MAX_ACCOUNT_KEYS} keys, the limit: delete one first",
            account.email
        ),
    ))
}

async fn delete(surface: &Surface, name: &str, id: &str) -> Result<Value, Error> {
    let id = id.to_owned();
    let done = change(surface, name, move |account| {
        let before = account.keys.len();
        account.keys.retain(|key| key.id != id);
        if account.keys.len() == before {
            return Err(absent(&id));
        }
        Ok(())
    });
    done.await?;
    Ok(json!({}))
}

async fn switch(surface: &Surface, name: &str, id: &str, disabled: bool, body: Body) -> Result<Value, Error> {
    switching(document::read_json(body).await?)?;
    let id = id.to_owned();
    let done = change(surface, name, move |account| {
        let key = account.keys.iter_mut().find(|key| key.id == id);
        key.ok_or_else(|| absent(&id))?.disabled = disabled;
        Ok(())
    });
    done.await?;
    Ok(json!({}))
}

fn switching(document: Value) -> Result<(), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    root.drop_owned(&["serviceAccountKeyDisableReason", "extendedStatusMessage"]);
    root.finish();
    findings.done()
}
