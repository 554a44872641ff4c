//! IAM policies of services.

use identity::Caller;
use model::{Binding, Policy, ServiceKey};
use serde_json::{Value, json};

use crate::{
    document::{Findings, Object, short},
    error::{Code, Error},
    query::Query,
    run::{services::absent, v1::opaque},
    surface::Surface,
};

/// What the owner holds on a service. Every caller is the owner as yet.
const PERMISSIONS: &[&str] = &[
    "run.configurations.get",
    "run.configurations.list",
    "run.locations.list",
    "run.revisions.delete",
    "run.revisions.get",
    "run.revisions.list",
    "run.routes.get",
    "run.routes.invoke",
    "run.routes.list",
    "run.services.create",
    "run.services.delete",
    "run.services.get",
    "run.services.getIamPolicy",
    "run.services.list",
    "run.services.setIamPolicy",
    "run.services.update",
];
/// Most permissions of one question.
const MAX_PERMISSIONS: usize = 100;

fn encode(policy: &Policy) -> Value {
    let bindings: Vec<Value> = policy
        .bindings
        .iter()
        .map(|Binding { role, members }| {
            let members: Vec<String> = members.iter().map(ToString::to_string).collect();
            json!({ "role": role.as_str(), "members": members })
        })
        .collect();
    let mut shown = json!({ "version": 1, "etag": opaque(policy.version) });
    if !bindings.is_empty() {
        shown["bindings"] = bindings.into();
    }
    shown
}

pub(crate) fn get(surface: &Surface, key: &ServiceKey, mut query: Query) -> Result<Value, Error> {
    if let Some(version) = query.take("options.requestedPolicyVersion")?
        && !["0", "1", "2", "3"].contains(&version.as_str())
    {
        return Err(Error::field(
            "options.requestedPolicyVersion",
            format!("\"{}\" is out of range: 1 to 3", short(&version)),
        ));
    }
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let service = snapshot.service(key).ok_or_else(|| absent(key, &surface.site))?;
    Ok(encode(&service.policy))
}

/// The bindings that a request wants, and the etag of the policy that it changes.
fn decode(document: Value) -> Result<(Vec<Binding>, Option<String>), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    if !root.has("policy") {
        root.say("policy", "is required");
    }
    let mut policy = root.object("policy");
    let etag = policy.text("etag");
    if let Some(version) = policy.integer("version").filter(|version| !(0..=3).contains(version)) {
        policy.say("version", format!("{version} is out of range: 1 to 3"));
    }
    let given: Vec<(String, Vec<String>)> = policy
        .objects("bindings")
        .into_iter()
        .map(|mut binding| {
            let role = binding.text("role").unwrap_or_default();
            let members = binding.texts("members");
            binding.unserved(&["condition"]);
            binding.drop_owned(&["bindingId"]);
            binding.finish();
            (role, members)
        })
        .collect();
    policy.unserved(&["auditConfigs", "rules"]);
    policy.finish();
    if let Some(mask) = root.text("updateMask") {
        let known = mask
            .split(',')
            .all(|field| matches!(field.trim(), "bindings" | "etag" | "version"));
        if !known || !mask.contains("bindings") {
            root.say(
                "updateMask",
                format!("\"{}\" is not served: a policy is set whole", short(&mask)),
            );
        }
    }
    root.finish();
    let mut violations = findings.into_violations();
    let bindings = match Policy::bindings(given, "policy.bindings") {
        Ok(bindings) => bindings,
        Err(found) => {
            violations.extend(found);
            return Err(Error::violations(violations));
        }
    };
    if !violations.is_empty() {
        return Err(Error::violations(violations));
    }
    Ok((bindings, etag))
}

pub(crate) async fn set(
    surface: &Surface,
    key: ServiceKey,
    caller: &Caller,
    query: Query,
    document: Value,
) -> Result<Value, Error> {
    query.finish()?;
    let (bindings, etag) = decode(document)?;
    let site = surface.site.clone();
    let of = key.clone();
    let stored = surface
        .store
        .transact(move |tx| {
            let mut service = tx.snapshot().service(&of).ok_or_else(|| absent(&of, &site))?.clone();
            if let Some(etag) = &etag
                && *etag != opaque(service.policy.version)
            {
                return Err(Error::new(
                    Code::Aborted,
                    format!(
                        "the policy of service \"{}\" was changed since it was read (etag {}): read it again and repeat the change",
                        of.name,
                        short(etag)
                    ),
                ));
            }
            service.policy = Policy { bindings, version: service.policy.version + 1 };
            let policy = service.policy.clone();
            tx.put_service(service);
            Ok::<_, Error>(policy)
        })
        .await?;
    surface.audit(&key, caller, "SetIamPolicy");
    Ok(encode(&stored))
}

/// Answers which of the permissions the caller holds. As at Google the service need not be there yet: then the answer is
/// the project's, which is the owner's too.
pub(crate) fn test(query: Query, document: Value) -> Result<Value, Error> {
    query.finish()?;
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let asked = root.texts("permissions");
    if asked.len() > MAX_PERMISSIONS {
        root.say(
            "permissions",
            format!("{} permissions are too many: at most {MAX_PERMISSIONS}", asked.len()),
        );
    }
    for (index, permission) in asked.iter().enumerate() {
        let parts: Vec<&str> = permission.split('.').collect();
        let plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        if parts.len() != 3 || !parts.iter().all(plain) {
            root.say(
                &format!("permissions[{index}]"),
                format!("\"{}\" is no permission, such as run.services.get", short(permission)),
            );
        }
    }
    root.finish();
    let violations = findings.into_violations();
    if !violations.is_empty() {
        return Err(Error::violations(violations));
    }
    let held: Vec<String> = asked
        .into_iter()
        .filter(|p| PERMISSIONS.contains(&p.as_str()))
        .collect();
    Ok(if held.is_empty() {
        json!({})
    } else {
        json!({ "permissions": held })
    })
}
