//! Policies of every kind of resource: read, set with an etag, and asked which permissions they give.

use http::Method;
use identity::{Caller, Conditions};
use model::{
    Binding, BindingCondition, Given, Member, OWNER_ROLE, Permission, Policy, Resource, ServiceAccount, Site, Violation,
};
use serde_json::{Value, json};
use store::Snapshot;

use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    query::Query,
    reply::Body,
    run::v1::opaque,
    surface::Surface,
};

/// Most permissions of one question.
const MAX_PERMISSIONS: usize = 100;
/// Longest title and description of a condition, as at Google.
const MAX_TITLE: usize = 100;
const MAX_DESCRIPTION: usize = 256;
/// The form that has conditions.
const CONDITIONAL: i64 = 3;

/// What is asked of a policy, of every kind of resource alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Set,
    Test,
}

impl Verb {
    /// By the method and what stands behind the resource's colon. A policy is got by GET; the two APIs in which it is got by
    /// POST look for that themselves.
    pub(crate) fn of(method: &Method, verb: Option<&str>) -> Option<Self> {
        match (method.as_str(), verb?) {
            ("GET", "getIamPolicy") => Some(Self::Get),
            ("POST", "setIamPolicy") => Some(Self::Set),
            ("POST", "testIamPermissions") => Some(Self::Test),
            _ => None,
        }
    }
}

/// Answers what is asked of the resource's policy. The permission was asked for before.
pub(crate) async fn answer(
    surface: &Surface,
    caller: &Caller,
    resource: &Resource,
    verb: Verb,
    query: Query,
    body: Body,
) -> Result<Value, Error> {
    match verb {
        Verb::Get => {
            asked_by_query(query)?;
            get(surface, resource)
        }
        Verb::Set => {
            query.finish()?;
            set(surface, resource.clone(), document::read_json(body).await?).await
        }
        Verb::Test => {
            query.finish()?;
            test(surface, caller, resource, document::read_json(body).await?)
        }
    }
}

fn encode(policy: &Policy) -> Value {
    let bindings: Vec<Value> = policy
        .bindings
        .iter()
        .map(|binding| {
            let members: Vec<String> = binding.members.iter().map(ToString::to_string).collect();
            let mut shown = json!({ "role": binding.role.as_str(), "members": members });
            if let Some(condition) = &binding.condition {
                shown["condition"] = json!({ "expression": condition.expression, "title": condition.title });
                if !condition.description.is_empty() {
                    shown["condition"]["description"] = condition.description.as_str().into();
                }
            }
            shown
        })
        .collect();
    let version = if policy.has_conditions() { CONDITIONAL } else { 1 };
    let mut shown = json!({ "version": version, "etag": opaque(policy.version) });
    if !bindings.is_empty() {
        shown["bindings"] = bindings.into();
    }
    shown
}

/// Whether the resource is there to have a policy.
fn there(resource: &Resource, state: &Snapshot, site: &Site) -> Result<(), Error> {
    let found = match resource {
        Resource::Project => true,
        Resource::Service(key) => {
            return match state.service(key) {
                Some(_) => Ok(()),
                None => Err(crate::run::services::absent(key, site)),
            };
        }
        Resource::Repository(key) => state.repositories.contains_key(key),
        Resource::ServiceAccount(email) => state.accounts.contains_key(email),
        Resource::Secret(name) => state.secrets.contains_key(name),
    };
    if found {
        return Ok(());
    }
    Err(Error::new(
        Code::NotFound,
        format!(
            "Requested entity was not found: {}",
            short(&resource.name(&site.project))
        ),
    ))
}

/// The version that is asked for in the query of a GET.
pub(crate) fn asked_by_query(mut query: Query) -> Result<(), Error> {
    let version = query.take("options.requestedPolicyVersion")?;
    query.finish()?;
    match version {
        Some(text) if !["0", "1", "2", "3"].contains(&text.as_str()) => Err(Error::field(
            "options.requestedPolicyVersion",
            format!("\"{}\" is out of range: 1 to 3", short(&text)),
        )),
        _ => Ok(()),
    }
}

/// The same in the document of a POST.
pub(crate) fn asked_by_document(document: Value) -> Result<(), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let mut options = root.object("options");
    if let Some(version) = options
        .integer("requestedPolicyVersion")
        .filter(|v| !(0..=3).contains(v))
    {
        options.say("requestedPolicyVersion", format!("{version} is out of range: 1 to 3"));
    }
    options.finish();
    root.finish();
    findings.done()
}

/// The resource's own policy. Conditions are shown whatever version was asked for: who reads, changes and writes would
/// lose them otherwise.
pub(crate) fn get(surface: &Surface, resource: &Resource) -> Result<Value, Error> {
    let snapshot = surface.store.snapshot();
    there(resource, &snapshot, &surface.site)?;
    Ok(encode(&snapshot.policy(resource)))
}

/// What a request wants a policy to be.
struct Wanted {
    bindings: Vec<Binding>,
    /// Of the policy that it changes.
    etag: Option<String>,
    version: i64,
}

fn decode(document: Value) -> Result<Wanted, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    if !root.has("policy") {
        root.say("policy", "is required");
    }
    let mut policy = root.object("policy");
    let etag = policy.text("etag");
    let version = policy.integer("version").unwrap_or(0);
    if !(0..=3).contains(&version) {
        policy.say("version", format!("{version} is out of range: 1 to 3"));
    }
    let given: Vec<Given> = policy
        .objects("bindings")
        .into_iter()
        .map(|mut binding| {
            let role = binding.text("role").unwrap_or_default();
            let members = binding.texts("members");
            let condition = condition(&mut binding, &role);
            binding.drop_owned(&["bindingId"]);
            binding.finish();
            Given {
                role,
                members,
                condition,
            }
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
    match Policy::bindings(given, "policy.bindings") {
        Ok(bindings) if violations.is_empty() => Ok(Wanted {
            bindings,
            etag,
            version,
        }),
        Ok(_) => Err(Error::violations(violations)),
        Err(found) => {
            violations.extend(found);
            Err(Error::violations(violations))
        }
    }
}

fn condition(binding: &mut Object<'_>, role: &str) -> Option<BindingCondition> {
    let mut condition = binding.object("condition");
    if condition.is_empty() {
        return None;
    }
    let expression = condition.text("expression").unwrap_or_default();
    let title = condition.text("title").unwrap_or_default();
    let description = condition.text("description").unwrap_or_default();
    condition.drop_owned(&["location"]);
    if title.is_empty() {
        condition.say("title", "is required");
    }
    for (field, text, most) in [
        ("title", &title, MAX_TITLE),
        ("description", &description, MAX_DESCRIPTION),
    ] {
        let count = text.chars().count();
        if count > most {
            condition.say(field, format!("has {count} characters, at most {most} are allowed"));
        }
    }
    if let Err(error) = Conditions::check(&expression) {
        condition.say("expression", error.to_string());
    }
    if matches!(role, "roles/owner" | "roles/editor" | "roles/viewer") {
        condition.say("expression", format!("{role} cannot be given under a condition"));
    }
    condition.finish();
    Some(BindingCondition {
        expression,
        title,
        description,
    })
}

/// What a policy on this resource may not say.
fn rules(wanted: &Wanted, before: &Policy, resource: &Resource, state: &Snapshot, site: &Site) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut say = |field: String, why: String| found.push(Violation::new(field, why));
    let conditional = wanted.bindings.iter().any(|binding| binding.condition.is_some());
    if conditional && wanted.version != CONDITIONAL {
        say(
            "policy.version".to_owned(),
            format!("must be {CONDITIONAL} for a policy with conditions"),
        );
    } else if before.has_conditions() && wanted.version != CONDITIONAL {
        say(
            "policy.version".to_owned(),
            format!(
                "{} cannot be less than the existing policy version, {CONDITIONAL}",
                wanted.version
            ),
        );
    }
    let own = format!("@{}.iam.gserviceaccount.com", site.project);
    for (index, binding) in wanted.bindings.iter().enumerate() {
        for (number, member) in binding.members.iter().enumerate() {
            let field = || format!("policy.bindings[{index}].members[{number}]");
            match member {
                Member::AllUsers | Member::AllAuthenticatedUsers if *resource == Resource::Project => {
                    say(field(), format!("{member} cannot be a member of the project's policy"));
                }
                Member::ServiceAccount(email) if email.ends_with(&own) && state.account(email).is_none() => {
                    let known = before.bindings.iter().any(|binding| binding.members.contains(member));
                    if !known {
                        say(field(), format!("Service account {email} does not exist."));
                    }
                }
                Member::AllUsers
                | Member::AllAuthenticatedUsers
                | Member::User(_)
                | Member::ServiceAccount(_)
                | Member::DeletedServiceAccount { .. }
                | Member::Group(_)
                | Member::Domain(_) => {}
            }
        }
    }
    if *resource == Resource::Project {
        let owned = wanted.bindings.iter().any(|binding| {
            let by = |member: &Member| matches!(member, Member::User(_) | Member::ServiceAccount(_) | Member::Group(_));
            binding.role.as_str() == OWNER_ROLE && binding.members.iter().any(by)
        });
        if !owned {
            say(
                "policy.bindings".to_owned(),
                format!("there must be at least one member with {OWNER_ROLE}"),
            );
        }
    }
    found
}

async fn set(surface: &Surface, resource: Resource, document: Value) -> Result<Value, Error> {
    let wanted = decode(document)?;
    let site = surface.site.clone();
    let stored = surface
        .store
        .transact(move |tx| {
            there(&resource, tx.snapshot(), &site)?;
            let before = tx.snapshot().policy(&resource);
            if let Some(etag) = &wanted.etag
                && *etag != opaque(before.version)
            {
                return Err(Error::new(
                    Code::Aborted,
                    format!(
                        "There were concurrent policy changes. Please retry the whole read-modify-write: the policy of {resource} is not the one of etag {} any more.",
                        short(etag)
                    ),
                ));
            }
            let broken = rules(&wanted, &before, &resource, tx.snapshot(), &site);
            if !broken.is_empty() {
                return Err(Error::violations(broken));
            }
            let policy = Policy {
                bindings: wanted.bindings,
                version: before.version + 1,
            };
            tx.put_policy(resource, policy.clone());
            Ok::<_, Error>(policy)
        })
        .await?;
    Ok(encode(&stored))
}

/// Answers which of the permissions the caller holds. As at Google the resource need not be there yet: then the answer
/// is the project's.
fn test(surface: &Surface, caller: &Caller, resource: &Resource, document: Value) -> Result<Value, Error> {
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
        if !Permission::is_well_formed(permission) {
            root.say(
                &format!("permissions[{index}]"),
                format!("\"{}\" is no permission, such as run.services.get", short(permission)),
            );
        }
    }
    root.finish();
    findings.done()?;
    let held: Vec<String> = asked
        .into_iter()
        .filter(|text| Permission::known(text).is_some_and(|permission| surface.allows(caller, permission, resource)))
        .collect();
    Ok(if held.is_empty() {
        json!({})
    } else {
        json!({ "permissions": held })
    })
}

/// An account by its e-mail, which a policy may name.
pub(crate) fn account_name(account: &ServiceAccount, site: &Site) -> String {
    Resource::ServiceAccount(account.email.clone()).name(&site.project)
}
