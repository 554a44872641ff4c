//! `... *-iam-policy*`: who may do what with a service, a service account or the whole project.
//!
//! Read, change, write with the etag that was read: a change in between is refused by the server, not lost.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::account;
use crate::call::{Content, Server, escape};
use crate::flag;
use crate::{Error, Order, Outside, format, secret, service};

const RUN: &str = "run.googleapis.com";
pub(crate) const PROJECTS: &str = "cloudresourcemanager.googleapis.com";
/// Who has it may call the service.
pub(crate) const INVOKER: &str = "roles/run.invoker";
/// The form of policies that has conditions.
const CONDITIONAL: u64 = 3;

/// What a policy is on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum On<'a> {
    Service(&'a str),
    /// By e-mail or unique id.
    Account(&'a str),
    /// By id or number.
    Project(&'a str),
    Secret(&'a str),
}

/// Which role for whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct Grant {
    /// Such as allUsers, user:EMAIL, group:EMAIL or serviceAccount:EMAIL
    #[arg(long)]
    pub(crate) member: String,
    /// Such as roles/run.invoker
    #[arg(long)]
    pub(crate) role: String,
    /// When it holds: expression=CEL,title=TITLE[,description=TEXT], or None
    #[arg(long, value_parser = condition, value_name = "KEY=VALUE,...")]
    pub(crate) condition: Option<Condition>,
}

/// When a binding holds; null: always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition(Value);

fn condition(text: &str) -> Result<Condition, String> {
    if text == "None" {
        return Ok(Condition(Value::Null));
    }
    let mut read = json!({});
    for (key, value) in flag::joined(&[flag::pairs(text)?]) {
        if !["expression", "title", "description"].contains(&key.as_str()) {
            return Err(format!("[{key}] is none of expression, title and description"));
        }
        read[key] = value.into();
    }
    for needed in ["expression", "title"] {
        if read[needed].is_null() {
            return Err(format!("{needed} is required"));
        }
    }
    Ok(Condition(read))
}

impl Grant {
    pub(crate) fn new(member: &str, role: &str) -> Self {
        Self {
            member: member.to_owned(),
            role: role.to_owned(),
            condition: None,
        }
    }

    fn condition(&self) -> &Value {
        self.condition.as_ref().map_or(&Value::Null, |condition| &condition.0)
    }

    /// Whether the binding is of this role under this condition.
    fn is_in(&self, binding: &Value) -> bool {
        let same = |field: &str| binding["condition"][field] == self.condition()[field];
        binding["role"] == self.role.as_str() && ["expression", "title", "description"].into_iter().all(same)
    }
}

fn path(server: &Server, on: On<'_>, verb: &str) -> String {
    match on {
        On::Service(service) => format!(
            "/v1/projects/{}/locations/{}/services/{}:{verb}",
            escape(&server.project),
            escape(server.region()),
            escape(service)
        ),
        On::Account(account) => format!(
            "/v1/projects/{}/serviceAccounts/{}:{verb}",
            escape(&server.project),
            escape(account)
        ),
        On::Project(project) => format!("/v1/projects/{}:{verb}", escape(project)),
        On::Secret(name) => format!("{}:{verb}", secret::path(server, name)),
    }
}

fn host(on: On<'_>) -> &'static str {
    match on {
        On::Service(_) => RUN,
        On::Account(_) => account::HOST,
        On::Project(_) => PROJECTS,
        On::Secret(_) => secret::HOST,
    }
}

fn read(outside: &Outside<'_>, server: &Server, on: On<'_>) -> Result<Value, Error> {
    const VERSION: &str = "getIamPolicy?options.requestedPolicyVersion=3";
    let post = |verb: &str, body: &Value| {
        server.json(
            outside,
            &Method::POST,
            host(on),
            &path(server, on, verb),
            Content::Json(body),
        )
    };
    match on {
        On::Service(_) | On::Secret(_) => server.get(outside, host(on), &path(server, on, VERSION)),
        On::Account(_) => post(VERSION, &json!({})),
        On::Project(_) => post(
            "getIamPolicy",
            &json!({ "options": { "requestedPolicyVersion": CONDITIONAL } }),
        ),
    }
}

fn write(outside: &Outside<'_>, server: &Server, on: On<'_>, policy: &Value) -> Result<Value, Error> {
    server.json(
        outside,
        &Method::POST,
        host(on),
        &path(server, on, "setIamPolicy"),
        Content::Json(&json!({"policy": policy})),
    )
}

/// The bindings of a policy, made where there are none.
fn bindings(policy: &mut Value) -> Result<&mut Vec<Value>, Error> {
    if !policy.is_object() {
        *policy = json!({});
    }
    let bindings = &mut policy["bindings"];
    if bindings.is_null() {
        *bindings = json!([]);
    }
    bindings.as_array_mut().ok_or_else(|| Error::Answer {
        call: "getIamPolicy".to_owned(),
        what: "bindings that are no list".to_owned(),
    })
}

/// Puts a member into a role.
fn put(policy: &mut Value, grant: &Grant) -> Result<(), Error> {
    let member = &grant.member;
    if !grant.condition().is_null() {
        policy["version"] = CONDITIONAL.into();
    }
    let bindings = bindings(policy)?;
    let members = bindings
        .iter_mut()
        .find(|binding| grant.is_in(binding))
        .and_then(|binding| binding["members"].as_array_mut());
    match members {
        Some(members) if members.iter().any(|known| known == member) => {}
        Some(members) => members.push(json!(member)),
        None => {
            let mut binding = json!({"role": grant.role, "members": [member]});
            if !grant.condition().is_null() {
                binding["condition"] = grant.condition().clone();
            }
            bindings.push(binding);
        }
    }
    Ok(())
}

/// Takes a member out of a role; says whether it was in.
fn pull(policy: &mut Value, grant: &Grant) -> Result<bool, Error> {
    let mut was_in = false;
    let bindings = bindings(policy)?;
    for binding in bindings.iter_mut().filter(|binding| grant.is_in(binding)) {
        if let Some(members) = binding["members"].as_array_mut() {
            let before = members.len();
            members.retain(|known| known != &grant.member);
            was_in |= members.len() < before;
        }
    }
    bindings.retain(|binding| binding["members"].as_array().is_none_or(|m| !m.is_empty()));
    Ok(was_in)
}

pub(crate) fn give(outside: &Outside<'_>, server: &Server, on: On<'_>, grant: &Grant) -> Result<Value, Error> {
    let mut policy = read(outside, server, on)?;
    put(&mut policy, grant)?;
    write(outside, server, on, &policy)
}

/// Takes the member out of the role; nothing is written where it was not in.
pub(crate) fn take(outside: &Outside<'_>, server: &Server, on: On<'_>, grant: &Grant) -> Result<Option<Value>, Error> {
    let mut policy = read(outside, server, on)?;
    if pull(&mut policy, grant)? {
        write(outside, server, on, &policy).map(Some)
    } else {
        Ok(None)
    }
}

fn show(outside: &mut Outside<'_>, order: &Order<'_>, policy: &Value) -> Result<(), Error> {
    order.print_one(outside, policy, |_| format::yaml_text(policy))
}

fn updated(outside: &mut Outside<'_>, order: &Order<'_>, on: On<'_>, policy: &Value) -> Result<(), Error> {
    let (kind, name) = match on {
        On::Service(name) => ("service", name),
        On::Account(name) => ("serviceAccount", name),
        On::Project(name) => ("project", name),
        On::Secret(name) => ("secret", name),
    };
    outside.say(&format!("Updated IAM policy for {kind} [{name}]."));
    show(outside, order, policy)
}

pub(crate) fn add(outside: &mut Outside<'_>, order: &Order<'_>, on: On<'_>, grant: &Grant) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let policy = give(outside, &server, on, grant)?;
    updated(outside, order, on, &policy)
}

pub(crate) fn remove(outside: &mut Outside<'_>, order: &Order<'_>, on: On<'_>, grant: &Grant) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let policy = take(outside, &server, on, grant)?
        .ok_or_else(|| Error::Failed("Policy binding with the specified principal and role not found!".to_owned()))?;
    updated(outside, order, on, &policy)
}

pub(crate) fn get(outside: &mut Outside<'_>, order: &Order<'_>, on: On<'_>) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let policy = read(outside, &server, on)?;
    show(outside, order, &policy)
}

pub(crate) fn set(outside: &mut Outside<'_>, order: &Order<'_>, on: On<'_>, file: &Path) -> Result<(), Error> {
    let policy = service::read_document(outside, file)?;
    if !policy.is_object() {
        return Err(Error::Failed(format!("{} holds no policy", file.display())));
    }
    let server = Server::find(outside, order.global)?;
    if policy["etag"].is_null() {
        let question = "The specified policy has no \"etag\" value; it will replace the existing \
                        policy without looking at changes made meanwhile.";
        order.confirm(outside, question)?;
    }
    let policy = write(outside, &server, on, &policy)?;
    updated(outside, order, on, &policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_and_go() {
        let mut policy = json!({"etag": "x"});
        put(&mut policy, &Grant::new("allUsers", INVOKER)).expect("a policy");
        put(&mut policy, &Grant::new("user:a@b", INVOKER)).expect("a policy");
        put(&mut policy, &Grant::new("user:a@b", INVOKER)).expect("a policy");
        let both = json!([{"role": INVOKER, "members": ["allUsers", "user:a@b"]}]);
        assert_eq!(policy["bindings"], both);
        assert_eq!(policy["etag"], "x");
        assert!(!pull(&mut policy, &Grant::new("user:c@d", INVOKER)).expect("a policy"));
        assert!(pull(&mut policy, &Grant::new("allUsers", INVOKER)).expect("a policy"));
        assert!(pull(&mut policy, &Grant::new("user:a@b", INVOKER)).expect("a policy"));
        assert_eq!(policy["bindings"], json!([]));
    }

    #[test]
    fn bindings_with_a_condition_are_let_be() {
        let conditional = json!({"role": INVOKER, "members": ["allUsers"], "condition": {"expression": "e"}});
        let mut policy = json!({"bindings": [conditional]});
        assert!(!pull(&mut policy, &Grant::new("allUsers", INVOKER)).expect("a policy"));
        put(&mut policy, &Grant::new("allUsers", INVOKER)).expect("a policy");
        assert_eq!(policy["bindings"][0], conditional);
        assert_eq!(policy["bindings"][1]["members"], json!(["allUsers"]));
    }

    #[test]
    fn a_condition_is_part_of_the_binding() {
        let text = "expression=resource.name == 'a',title=t";
        let grant = Grant {
            condition: Some(condition(text).expect("a condition")),
            ..Grant::new("user:a@b", INVOKER)
        };
        let mut policy = json!({"version": 1, "bindings": [{"role": INVOKER, "members": ["user:a@b"]}]});
        put(&mut policy, &grant).expect("a policy");
        assert_eq!(policy["version"], 3);
        assert_eq!(policy["bindings"][1]["condition"]["expression"], "resource.name == 'a'");
        assert!(pull(&mut policy, &Grant::new("user:a@b", INVOKER)).expect("a policy"));
        assert_eq!(policy["bindings"].as_array().map(Vec::len), Some(1), "the other stays");
        assert!(pull(&mut policy, &grant).expect("a policy"));
        assert_eq!(condition("None"), Ok(Condition(Value::Null)));
        for text in ["expression=x", "title=t", "expression=x,title=t,location=l", "none"] {
            assert!(condition(text).is_err(), "{text}");
        }
    }
}
