//! Services: what a create, replace or delete makes of the state, and what is read of it.
//!
//! A write is decided by the pure [`next`] on the state inside the transaction, where nothing moves under it. Generation
//! counts changes of the spec (template or traffic), as in Knative; changed labels or annotations of the service alone
//! leave it, and therefore make no revision and no new route.

use std::sync::Arc;

use identity::{Caller, Conditions};
use model::{
    BindingCondition, Policy, Probe, Region, Resource, Revision, RevisionName, RevisionState, RevisionTemplate, Routed,
    Service, ServiceKey, ServiceName, Site, Target, Timestamp, Traffic, Violation, is_service_account,
    template_violations,
};
use serde_json::Value;
use store::Snapshot;

use crate::{
    document::Findings,
    error::{Code, Error},
    query::Query,
    run::{
        Deletion,
        call::Where,
        deleted, revisions,
        v1::{
            list::Wanted,
            opaque,
            service::{Asked, decode, encode, shown_labels},
        },
    },
    surface::Surface,
};

/// How a service, or a view of it, is shown.
type Encode = fn(&Service, &Snapshot, &Site) -> Value;

pub(crate) fn absent(key: &ServiceKey, site: &Site) -> Error {
    Error::not_found(format!(
        "service \"{}\" does not exist in region {} of project {}",
        key.name, key.region, site.project
    ))
}

pub(crate) fn get(surface: &Surface, key: &ServiceKey, query: Query, encode: Encode) -> Result<Value, Error> {
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let service = snapshot.service(key).ok_or_else(|| absent(key, &surface.site))?;
    Ok(encode(service, &snapshot, &surface.site))
}

pub(crate) fn list(
    surface: &Surface,
    place: &Where,
    wanted: &Wanted,
    kind: &str,
    encode: Encode,
) -> Result<Value, Error> {
    let snapshot = surface.store.snapshot();
    let is_view = kind != "ServiceList";
    let items = snapshot
        .services
        .values()
        .filter(|service| place.holds(&service.key.region))
        .filter(|service| {
            let mut labels = shown_labels(service);
            if is_view {
                let name = service.key.name.to_string();
                labels.insert("serving.knative.dev/service".to_owned(), name);
            }
            wanted.admits(service.key.name.as_str(), &labels)
        })
        .map(|service| (service.key.to_string(), service))
        .collect();
    wanted.encode(kind, snapshot.version, items, |service| {
        encode(service, &snapshot, &surface.site)
    })
}

/// A write that was decided: who asks for what, and when.
struct Write {
    key: ServiceKey,
    asked: Asked,
    violations: Vec<Violation>,
    caller: String,
    now: Timestamp,
    site: Site,
    conditions: Arc<Conditions>,
}

/// Whether the caller may make instances run as the template's account. One that cannot be an account is named with the
/// other broken rules.
fn may_run(surface: &Surface, caller: &Caller, asked: &Asked) -> Result<(), Error> {
    let account = asked.template.account(&surface.site);
    if is_service_account(&account) {
        surface.require_act_as(caller, &account)
    } else {
        Ok(())
    }
}

pub(crate) async fn create(
    surface: &Surface,
    region: Region,
    caller: &Caller,
    mut query: Query,
    document: Value,
) -> Result<Value, Error> {
    let dry = query.dry_run()?;
    query.finish()?;
    let findings = Findings::default();
    let asked = decode(document, None, &region, &surface.site, &findings);
    let mut violations = findings.into_violations();
    let name = match asked.name.as_deref().map(ServiceName::parse) {
        Some(Ok(name)) => name,
        refused => {
            let why = match refused {
                Some(Err(error)) => error.to_string(),
                _ => "a name is required".to_owned(),
            };
            violations.insert(0, Violation::new("metadata.name", why));
            return Err(Error::violations(violations));
        }
    };
    if violations.is_empty() {
        may_run(surface, caller, &asked)?;
    }
    let write = Write {
        key: ServiceKey { region, name },
        asked,
        violations,
        caller: caller.email.clone(),
        now: (surface.now)(),
        site: surface.site.clone(),
        conditions: surface.conditions.clone(),
    };
    let uid = uuid::Uuid::new_v4().to_string();
    let make = move |snapshot: &Snapshot| created(snapshot, write, uid);
    commit(surface, dry, make).await
}

pub(crate) async fn replace(
    surface: &Surface,
    key: ServiceKey,
    caller: &Caller,
    mut query: Query,
    document: Value,
) -> Result<Value, Error> {
    let dry = query.dry_run()?;
    query.finish()?;
    let findings = Findings::default();
    let asked = decode(document, Some(&key.name), &key.region, &surface.site, &findings);
    if let Some(name) = asked.name.as_deref().filter(|name| *name != key.name.as_str()) {
        findings.say(
            "metadata.name",
            format!(
                "\"{}\" is not the service of the path, \"{}\"",
                crate::document::short(name),
                key.name
            ),
        );
    }
    let violations = findings.into_violations();
    if violations.is_empty() {
        may_run(surface, caller, &asked)?;
    }
    let write = Write {
        key,
        asked,
        violations,
        caller: caller.email.clone(),
        now: (surface.now)(),
        site: surface.site.clone(),
        conditions: surface.conditions.clone(),
    };
    commit(surface, dry, move |snapshot| replaced(snapshot, write)).await
}

/// Runs `make` on the state and, unless it is only tried, stores what it made; answers the service either way.
async fn commit(
    surface: &Surface,
    dry: bool,
    make: impl FnOnce(&Snapshot) -> Result<Service, Error> + Send + 'static,
) -> Result<Value, Error> {
    if dry {
        let snapshot = surface.store.snapshot();
        return Ok(encode(&make(&snapshot)?, &snapshot, &surface.site));
    }
    let stored = surface
        .store
        .transact(move |tx| {
            let service = make(tx.snapshot())?;
            let key = service.key.clone();
            tx.put_service(service);
            Ok::<_, Error>(tx.snapshot().service(&key).expect("put a line above").clone())
        })
        .await?;
    // Revisions may be newer than the service, never older: what they lack cannot look ready.
    Ok(encode(&stored, &surface.store.snapshot(), &surface.site))
}

fn created(snapshot: &Snapshot, write: Write, uid: String) -> Result<Service, Error> {
    if snapshot.service(&write.key).is_some() {
        return Err(Error::new(
            Code::AlreadyExists,
            format!(
                "service \"{}\" already exists in region {} of project {}",
                write.key.name, write.key.region, write.site.project
            ),
        ));
    }
    let (template, traffic) = settled(snapshot, &write, None)?;
    let Write {
        key,
        asked,
        caller,
        now,
        ..
    } = write;
    Ok(Service {
        key,
        uid,
        generation: 1,
        template_generation: 1,
        resource_version: 0,
        created: now,
        updated: now,
        creator: caller.clone(),
        modifier: caller,
        labels: asked.labels,
        annotations: asked.annotations,
        template,
        scaling: asked.scaling,
        custom_audiences: asked.custom_audiences,
        traffic,
        policy: Policy::default(),
        routed: Routed::default(),
    })
}

fn replaced(snapshot: &Snapshot, write: Write) -> Result<Service, Error> {
    let before = snapshot
        .service(&write.key)
        .ok_or_else(|| absent(&write.key, &write.site))?;
    let (template, traffic) = settled(snapshot, &write, Some(before))?;
    if let Some(read) = &write.asked.resource_version
        && *read != opaque(before.resource_version)
    {
        return Err(Error::new(
            Code::Aborted,
            format!(
                "service \"{}\" was changed since it was read (resourceVersion {}, now {}): read it again and repeat the change",
                write.key.name,
                crate::document::short(read),
                opaque(before.resource_version)
            ),
        ));
    }
    let new_template = template != before.template;
    let new_spec = new_template || traffic != before.traffic;
    let mut after = before.clone();
    after.template_generation += u64::from(new_template);
    after.generation += u64::from(new_spec);
    if new_spec {
        after.updated = write.now;
    }
    after.modifier = write.caller;
    after.labels = write.asked.labels;
    after.annotations = write.asked.annotations;
    after.scaling = write.asked.scaling;
    after.custom_audiences = write.asked.custom_audiences;
    after.template = template;
    after.traffic = traffic;
    Ok(after)
}

/// The template and traffic that the write leads to, when every rule is kept.
fn settled(snapshot: &Snapshot, write: &Write, before: Option<&Service>) -> Result<(RevisionTemplate, Traffic), Error> {
    let mut template = write.asked.template.clone();
    keep_implicit_probe(&mut template, before);
    let mut violations = write.violations.clone();
    let unreadable: Vec<String> = violations.iter().map(|v| v.field.clone()).collect();
    violations.extend(
        template_violations(&template, &write.key.name, "spec.template")
            .into_iter()
            .filter(|found| !follows(found, &unreadable)),
    );
    // Of a template that cannot be read in full, what it uses is not known.
    if violations.is_empty() && before.is_none_or(|before| before.template != template) {
        violations.extend(unreadable_secrets(snapshot, write, &template));
    }
    let traffic = match &write.asked.traffic {
        None => None,
        Some(traffic) => match reachable(snapshot, write, &template, traffic, before) {
            Ok(traffic) => Some(traffic),
            Err(found) => {
                violations.extend(found);
                None
            }
        },
    };
    match traffic {
        Some(traffic) if violations.is_empty() => {
            unused_name(snapshot, &write.key, &template, before)?;
            Ok((template, traffic))
        }
        _ => Err(Error::violations(violations)),
    }
}

/// The secrets that instances of the template could not read. A template that is there already is not looked at again: its
/// instances tell when they start.
fn unreadable_secrets(snapshot: &Snapshot, write: &Write, template: &RevisionTemplate) -> Vec<Violation> {
    let uses = template.secret_uses(&write.key.name, "spec.template");
    if uses.is_empty() {
        return Vec::new();
    }
    let account = template.account(&write.site);
    let seconds = u64::try_from(write.now.as_seconds()).unwrap_or(0);
    let holds = |condition: &BindingCondition, resource: &Resource| {
        let project = &write.site.project;
        write.conditions.hold(condition, resource, project, seconds)
    };
    let refused = uses.into_iter().filter_map(|found| {
        let read = snapshot.readable_version(&found.of, &account, write.now, &holds);
        let reader = format!("Revision service account {account}");
        let why = read.err()?.told(&found.of, write.site.number(), &reader);
        Some(Violation::new(found.field, why))
    });
    refused.collect()
}

/// Whether a rule was only broken because a field could not be read and has its default.
fn follows(found: &Violation, unreadable: &[String]) -> bool {
    let beside = |field: &str| field.rsplit_once('.').map_or("", |(beside, _)| beside).to_owned();
    let limits = found.field.contains(".resources.limits.")
        || found.field.ends_with(".containerConcurrency")
        || found.field.ends_with("[run.googleapis.com/cpu-throttling]");
    unreadable.contains(&found.field)
        || (found.field.ends_with("].image") && unreadable.iter().any(|field| field.ends_with(".spec.containers")))
        || (limits
            && unreadable
                .iter()
                .any(|field| beside(field).ends_with(".resources.limits")))
}

/// A client that moves the port sends back the implicit probe of the old one, which it was shown: that is no probe of
/// its own.
fn keep_implicit_probe(template: &mut RevisionTemplate, before: Option<&Service>) {
    if let Some(before) = before
        && before.template.container.startup_probe.is_none()
        && template.container.startup_probe == Some(Probe::implicit(before.template.port.number))
    {
        template.container.startup_probe = None;
    }
}

/// The traffic with short names written out, when each entry's revision can take requests, now or once it is there.
fn reachable(
    snapshot: &Snapshot,
    write: &Write,
    template: &RevisionTemplate,
    traffic: &Traffic,
    before: Option<&Service>,
) -> Result<Traffic, Vec<Violation>> {
    let existing: Vec<&Revision> = before.map_or_else(Vec::new, |before| snapshot.revisions_of(before).collect());
    let names: Vec<RevisionName> = existing.iter().map(|revision| revision.key.name.clone()).collect();
    let coming = template.name.as_ref();
    let traffic = traffic
        .clone()
        .resolve(&write.key.name, &names, coming, "spec.traffic")?;
    let mut violations = Vec::new();
    for (index, target) in traffic.targets().iter().enumerate() {
        let Target::Revision(name) = &target.to else { continue };
        let Some(revision) = existing.iter().find(|revision| revision.key.name == *name) else {
            continue;
        };
        let known = before.is_some_and(|before| before.traffic.names(name));
        let why = match &revision.state {
            RevisionState::Ready { .. } => continue,
            RevisionState::Failed { .. } => "failed and cannot serve traffic".to_owned(),
            RevisionState::Resolving | RevisionState::Pulling { .. } | RevisionState::Probing { .. } if known => {
                continue;
            }
            RevisionState::Resolving | RevisionState::Pulling { .. } | RevisionState::Probing { .. } => {
                "is not ready yet".to_owned()
            }
        };
        let tag = target
            .tag
            .as_ref()
            .map_or_else(String::new, |tag| format!(" (tag {tag})"));
        violations.push(Violation::new(
            format!("spec.traffic[{index}].revisionName"),
            format!("revision \"{name}\"{tag} {why}"),
        ));
    }
    if violations.is_empty() {
        Ok(traffic)
    } else {
        Err(violations)
    }
}

/// A changed template needs a name that no revision has or had asked for: revisions are immutable.
fn unused_name(
    snapshot: &Snapshot,
    key: &ServiceKey,
    template: &RevisionTemplate,
    before: Option<&Service>,
) -> Result<(), Error> {
    let Some(name) = &template.name else { return Ok(()) };
    if before.is_some_and(|before| before.template == *template) {
        return Ok(());
    }
    let asked_for = before.is_some_and(|before| before.template.name.as_ref() == Some(name));
    if asked_for || revisions::find(snapshot, &key.region, name).is_some() {
        return Err(Error::new(
            Code::AlreadyExists,
            format!(
                "revision \"{name}\" already exists with another template: a revision never changes, choose another name"
            ),
        ));
    }
    Ok(())
}

pub(crate) async fn delete(surface: &Surface, key: ServiceKey, deletion: Deletion) -> Result<Value, Error> {
    let site = surface.site.clone();
    let uid = if deletion.dry {
        let snapshot = surface.store.snapshot();
        snapshot.service(&key).ok_or_else(|| absent(&key, &site))?.uid.clone()
    } else {
        let gone = key.clone();
        surface
            .store
            .transact(move |tx| {
                let uid = tx
                    .snapshot()
                    .service(&gone)
                    .ok_or_else(|| absent(&gone, &site))?
                    .uid
                    .clone();
                tx.delete_service(&gone);
                Ok::<_, Error>(uid)
            })
            .await?
    };
    Ok(deleted("services", key.name.as_str(), &uid))
}
