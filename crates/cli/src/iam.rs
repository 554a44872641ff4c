//! `run services *-iam-policy*`: who may do what with a service.
//!
//! Read, change, write with the etag that was read: a change in between is refused by the server, not lost.

use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::words::{Binding, SetPolicy};
use crate::{Error, Order, Outside, format, service};

const HOST: &str = "run.googleapis.com";
/// Who has it may call the service.
pub(crate) const INVOKER: &str = "roles/run.invoker";

fn path(server: &Server, service: &str, verb: &str) -> String {
    format!(
        "/v1/projects/{}/locations/{}/services/{}:{verb}",
        escape(&server.project),
        escape(server.region()),
        escape(service)
    )
}

fn read(outside: &Outside<'_>, server: &Server, service: &str) -> Result<Value, Error> {
    let path = path(server, service, "getIamPolicy?options.requestedPolicyVersion=3");
    server.get(outside, HOST, &path)
}

fn write(outside: &Outside<'_>, server: &Server, service: &str, policy: &Value) -> Result<Value, Error> {
    server.json(
        outside,
        &Method::POST,
        HOST,
        &path(server, service, "setIamPolicy"),
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

fn is_of(binding: &Value, role: &str) -> bool {
    binding["role"] == role && binding["condition"].is_null()
}

/// Puts a member into a role.
fn put(policy: &mut Value, member: &str, role: &str) -> Result<(), Error> {
    let bindings = bindings(policy)?;
    let members = bindings
        .iter_mut()
        .find(|binding| is_of(binding, role))
        .and_then(|binding| binding["members"].as_array_mut());
    match members {
        Some(members) if members.iter().any(|known| known == member) => {}
        Some(members) => members.push(json!(member)),
        None => bindings.push(json!({"role": role, "members": [member]})),
    }
    Ok(())
}

/// Takes a member out of a role; says whether it was in.
fn pull(policy: &mut Value, member: &str, role: &str) -> Result<bool, Error> {
    let mut was_in = false;
    let bindings = bindings(policy)?;
    for binding in bindings.iter_mut().filter(|binding| is_of(binding, role)) {
        if let Some(members) = binding["members"].as_array_mut() {
            let before = members.len();
            members.retain(|known| known != member);
            was_in |= members.len() < before;
        }
    }
    bindings.retain(|binding| binding["members"].as_array().is_none_or(|m| !m.is_empty()));
    Ok(was_in)
}

pub(crate) fn give(outside: &Outside<'_>, server: &Server, binding: &Binding) -> Result<Value, Error> {
    let mut policy = read(outside, server, &binding.service)?;
    put(&mut policy, &binding.member, &binding.role)?;
    write(outside, server, &binding.service, &policy)
}

/// Takes the member out of the role; nothing is written where it was not in.
pub(crate) fn take(outside: &Outside<'_>, server: &Server, binding: &Binding) -> Result<Option<Value>, Error> {
    let mut policy = read(outside, server, &binding.service)?;
    if pull(&mut policy, &binding.member, &binding.role)? {
        write(outside, server, &binding.service, &policy).map(Some)
    } else {
        Ok(None)
    }
}

fn show(outside: &mut Outside<'_>, order: &Order<'_>, policy: &Value) -> Result<(), Error> {
    order.print_one(outside, policy, |_| format::yaml_text(policy))
}

fn updated(outside: &mut Outside<'_>, order: &Order<'_>, service: &str, policy: &Value) -> Result<(), Error> {
    outside.say(&format!("Updated IAM policy for service [{service}]."));
    show(outside, order, policy)
}

pub(crate) fn add(outside: &mut Outside<'_>, order: &Order<'_>, binding: &Binding) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let policy = give(outside, &server, binding)?;
    updated(outside, order, &binding.service, &policy)
}

pub(crate) fn remove(outside: &mut Outside<'_>, order: &Order<'_>, binding: &Binding) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let policy = take(outside, &server, binding)?
        .ok_or_else(|| Error::Failed("Policy binding with the specified principal and role not found!".to_owned()))?;
    updated(outside, order, &binding.service, &policy)
}

pub(crate) fn get(outside: &mut Outside<'_>, order: &Order<'_>, service: &str) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let policy = read(outside, &server, service)?;
    show(outside, order, &policy)
}

pub(crate) fn set(outside: &mut Outside<'_>, order: &Order<'_>, set: &SetPolicy) -> Result<(), Error> {
    let policy = service::read_document(outside, &set.file)?;
    if !policy.is_object() {
        return Err(Error::Failed(format!("{} holds no policy", set.file.display())));
    }
    let server = Server::find(outside, order.global)?;
    if policy["etag"].is_null() {
        let question = "The specified policy has no \"etag\" value; it will replace the existing \
                        policy without looking at changes made meanwhile.";
        order.confirm(outside, question)?;
    }
    let policy = write(outside, &server, &set.service, &policy)?;
    updated(outside, order, &set.service, &policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_and_go() {
        let mut policy = json!({"etag": "x"});
        put(&mut policy, "allUsers", INVOKER).expect("a policy");
        put(&mut policy, "user:a@b", INVOKER).expect("a policy");
        put(&mut policy, "user:a@b", INVOKER).expect("a policy");
        let both = json!([{"role": INVOKER, "members": ["allUsers", "user:a@b"]}]);
        assert_eq!(policy["bindings"], both);
        assert_eq!(policy["etag"], "x");
        assert!(!pull(&mut policy, "user:c@d", INVOKER).expect("a policy"));
        assert!(pull(&mut policy, "allUsers", INVOKER).expect("a policy"));
        assert!(pull(&mut policy, "user:a@b", INVOKER).expect("a policy"));
        assert_eq!(policy["bindings"], json!([]));
    }

    #[test]
    fn bindings_with_a_condition_are_let_be() {
        let conditional = json!({"role": INVOKER, "members": ["allUsers"], "condition": {"expression": "e"}});
        let mut policy = json!({"bindings": [conditional]});
        assert!(!pull(&mut policy, "allUsers", INVOKER).expect("a policy"));
        put(&mut policy, "allUsers", INVOKER).expect("a policy");
        assert_eq!(policy["bindings"][0], conditional);
        assert_eq!(policy["bindings"][1]["members"], json!(["allUsers"]));
    }
}
