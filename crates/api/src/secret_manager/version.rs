//! Versions of secrets: added, listed, given out, switched off and on, destroyed.

use base64::{
    Engine as _,
    engine::{
        GeneralPurpose,
        general_purpose::{GeneralPurposeConfig, STANDARD},
    },
};
use model::{
    MAX_SECRET_BYTES, MAX_SECRET_VERSIONS, Secret, SecretName, SecretRef, SecretValue, SecretVersion, SecretVersionKey,
    SecretVersionState, Unavailable, VersionRef,
};
use secret::Owner;
use serde_json::{Value, json};

use super::{
    absent,
    document::{etag, replication_status},
    name_of,
    resource::{PAGE, listed, unfiltered},
    stale,
};
use crate::{
    document::{self, Findings, Object},
    error::{Code, Error},
    query::Query,
    reply::Body,
    run::v1::rfc3339,
    surface::Surface,
};

/// Bytes in JSON, with the padding or without, as Google's APIs read them.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
const READ: [GeneralPurpose; 2] = [
    GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT),
    GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT),
];

fn path(surface: &Surface, key: &SecretVersionKey) -> String {
    format!("{}/versions/{}", name_of(surface, &key.secret), key.number)
}

fn encode(surface: &Surface, secret: &Secret, version: &SecretVersion) -> Value {
    let mut shown = json!({
        "name": path(surface, &version.key),
        "createTime": rfc3339(version.created),
        "state": version.state.as_str(),
        "replicationStatus": replication_status(&secret.replication),
        "etag": etag(version.created, version.changes),
    });
    if let SecretVersionState::Destroyed { at } = version.state {
        shown["destroyTime"] = rfc3339(at).into();
    }
    if version.checked {
        shown["clientSpecifiedPayloadChecksum"] = true.into();
    }
    shown
}

/// Why there is no such version, in Secret Manager's words.
fn refused(surface: &Surface, of: &SecretRef, why: Unavailable) -> Error {
    let state = |number: u64, state: &str| {
        let key = SecretVersionKey {
            secret: of.secret.clone(),
            number,
        };
        in_state(surface, &key, state)
    };
    match (why, &of.version) {
        (Unavailable::NoSecret | Unavailable::NoVersion, VersionRef::Latest) => Error::new(
            Code::NotFound,
            format!(
                "Secret [{}] not found or has no versions.",
                name_of(surface, &of.secret)
            ),
        ),
        // What an account may is asked of instances alone; callers were asked before.
        (Unavailable::NoSecret | Unavailable::Denied, _) => absent(surface, &of.secret),
        (Unavailable::NoVersion, _) => Error::new(
            Code::NotFound,
            format!("Secret Version [{}] not found.", of.path(surface.site.number())),
        ),
        (Unavailable::Disabled { number }, _) => state(number, "DISABLED"),
        (Unavailable::Destroyed { number }, _) => state(number, "DESTROYED"),
    }
}

fn in_state(surface: &Surface, key: &SecretVersionKey, state: &str) -> Error {
    Error::new(
        Code::FailedPrecondition,
        format!("Secret Version [{}] is in {state} state.", path(surface, key)),
    )
}

/// The value of a request, and whether it came with a checksum, which is then right.
fn payload(document: Value) -> Result<(SecretValue, bool), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let mut payload = root.object("payload");
    // Wiped, as the bytes are.
    let text = payload
        .exact_text("data")
        .map(|text| SecretValue::new(text.into_bytes()));
    let sum = payload.integer("dataCrc32c");
    let value = text.as_ref().and_then(|text| {
        let read = READ.iter().find_map(|engine| engine.decode(text.as_bytes()).ok());
        if read.is_none() {
            payload.say("data", "is no base64");
        }
        read.map(SecretValue::new)
    });
    match &value {
        None if text.is_none() => payload.say("data", "is required: the value, in base64"),
        Some(value) if value.len() > MAX_SECRET_BYTES => {
            let size = value.len();
            payload.say("data", format!("has {size} bytes, the limit is {MAX_SECRET_BYTES}"));
        }
        Some(value) if value.is_empty() => payload.say("data", "is empty: a version has at least one byte"),
        Some(value) if sum.is_some_and(|sum| sum != i64::from(crc32c::crc32c(value.as_bytes()))) => {
            payload.say("dataCrc32c", "is not the CRC32C of the data: it was changed on its way");
        }
        Some(_) | None => {}
    }
    payload.finish();
    root.finish();
    let violations = findings.into_violations();
    match value {
        Some(value) if violations.is_empty() => Ok((value, sum.is_some())),
        _ => Err(Error::violations(violations)),
    }
}

pub(super) async fn add(surface: &Surface, secret: SecretName, query: Query, body: Body) -> Result<Value, Error> {
    query.finish()?;
    let (value, checked) = payload(document::read_json(body).await?)?;
    let now = (surface.now)();
    let (missing, shown) = (absent(surface, &secret), name_of(surface, &secret));
    let (vault, project) = (surface.vault.clone(), surface.site.project.clone());
    let written = surface.store.transact(move |transaction| {
        let found = transaction.snapshot().secret(&secret, now);
        let mut secret = found.ok_or(missing)?.clone();
        let all = transaction.snapshot().versions_of(&secret.name);
        let held = all.filter(|version| version.state.sealed().is_some()).count();
        if held >= MAX_SECRET_VERSIONS {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!(
                    "Secret [{shown}] has {held} versions that are not destroyed, the limit is {MAX_SECRET_VERSIONS}."
                ),
            ));
        }
        secret.made += 1;
        secret.changes += 1;
        let key = SecretVersionKey {
            secret: secret.name.clone(),
            number: secret.made,
        };
        let owner = Owner {
            project: &project,
            version: &key,
        };
        let sealed = vault.seal(owner, &value);
        let version = SecretVersion {
            key,
            created: now,
            state: SecretVersionState::Enabled(sealed),
            checked,
            changes: 1,
        };
        transaction.put_secret(secret.clone());
        transaction.put_secret_version(version.clone());
        Ok::<_, Error>((secret, version))
    });
    let (secret, version) = written.await?;
    Ok(encode(surface, &secret, &version))
}

/// Newest first.
pub(super) fn list(surface: &Surface, secret: &SecretName, mut query: Query) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?.unwrap_or(PAGE).min(PAGE);
    let token = query.take("pageToken")?;
    unfiltered(&mut query)?;
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let found = snapshot.secret(secret, (surface.now)());
    let of = found.ok_or_else(|| absent(surface, secret))?;
    let items = snapshot.versions_of(secret).map(|version| {
        let key = format!("{:020}", u64::MAX - version.key.number);
        (key, encode(surface, of, version))
    });
    listed("versions", items.collect(), limit, token.as_deref())
}

pub(super) fn get(surface: &Surface, of: &SecretRef) -> Result<Value, Error> {
    let (snapshot, now) = (surface.store.snapshot(), (surface.now)());
    let found = snapshot.secret_version(&of.secret, &of.version, now);
    let version = found.map_err(|why| refused(surface, of, why))?;
    let secret = snapshot.secret(&of.secret, now);
    Ok(encode(
        surface,
        secret.ok_or_else(|| absent(surface, &of.secret))?,
        version,
    ))
}

pub(super) fn access(surface: &Surface, of: &SecretRef) -> Result<Value, Error> {
    let snapshot = surface.store.snapshot();
    let found = snapshot.enabled_version(of, (surface.now)());
    let version = found.map_err(|why| refused(surface, of, why))?;
    let sealed = version
        .state
        .sealed()
        .ok_or_else(|| in_state(surface, &version.key, "DESTROYED"))?;
    let owner = Owner {
        project: &surface.site.project,
        version: &version.key,
    };
    let value = surface.vault.open_value(owner, sealed).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "a value does not open");
        Error::new(Code::FailedPrecondition, error.to_string())
    })?;
    Ok(json!({
        "name": path(surface, &version.key),
        "payload": {
            "data": STANDARD.encode(value.as_bytes()),
            "dataCrc32c": crc32c::crc32c(value.as_bytes()).to_string(),
        },
    }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Enable,
    Disable,
    Destroy,
}

/// Of the version as the client read it.
fn given_etag(document: Value) -> Result<Option<String>, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let etag = root.text("etag");
    root.finish();
    let violations = findings.into_violations();
    if violations.is_empty() {
        Ok(etag)
    } else {
        Err(Error::violations(violations))
    }
}

pub(super) async fn change(
    surface: &Surface,
    of: &SecretRef,
    change: Change,
    query: Query,
    body: Body,
) -> Result<Value, Error> {
    query.finish()?;
    let VersionRef::Number(number) = of.version else {
        return Err(Error::field(
            "name",
            "a version is changed by its number, not by latest or an alias",
        ));
    };
    let given = given_etag(document::read_json(body).await?)?;
    let now = (surface.now)();
    let key = SecretVersionKey {
        secret: of.secret.clone(),
        number,
    };
    let no_secret = refused(surface, of, Unavailable::NoSecret);
    let no_version = refused(surface, of, Unavailable::NoVersion);
    let (destroyed, shown) = (in_state(surface, &key, "DESTROYED"), path(surface, &key));
    let written = surface.store.transact(move |transaction| {
        let snapshot = transaction.snapshot();
        let secret = snapshot.secret(&key.secret, now).ok_or(no_secret)?.clone();
        let mut version = snapshot.secret_versions.get(&key).ok_or(no_version)?.as_ref().clone();
        if given.is_some_and(|given| given != etag(version.created, version.changes)) {
            return Err(stale(&format!("Secret Version [{shown}]")));
        }
        let state = match (change, &version.state) {
            (_, SecretVersionState::Destroyed { .. }) => return Err(destroyed),
            (Change::Destroy, _) => SecretVersionState::Destroyed { at: now },
            (Change::Enable, SecretVersionState::Enabled(sealed) | SecretVersionState::Disabled(sealed)) => {
                SecretVersionState::Enabled(sealed.clone())
            }
            (Change::Disable, SecretVersionState::Enabled(sealed) | SecretVersionState::Disabled(sealed)) => {
                SecretVersionState::Disabled(sealed.clone())
            }
        };
        if state != version.state {
            version.state = state;
            version.changes += 1;
            transaction.put_secret_version(version.clone());
        }
        Ok::<_, Error>((secret, version))
    });
    let (secret, version) = written.await?;
    Ok(encode(surface, &secret, &version))
}
