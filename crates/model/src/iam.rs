//! Policies: who holds which role on a service.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Violation;

/// The role whose members may call a service.
pub const INVOKER_ROLE: &str = "roles/run.invoker";

/// A role's name, `roles/...` or a custom one's full path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Role(String);

impl Role {
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("roles/").or_else(|| {
            text.strip_prefix("projects/")
                .and_then(|rest| rest.split_once("/roles/"))
                .map(|(_, name)| name)
        })?;
        let valid = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        valid.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Who a binding speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Member {
    AllUsers,
    AllAuthenticatedUsers,
    User(String),
    ServiceAccount(String),
    Group(String),
    Domain(String),
}

impl Member {
    pub fn parse(text: &str) -> Option<Self> {
        let email = |text: &str| {
            let (name, host) = text.split_once('@')?;
            let plain = |part: &str| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_ascii_graphic() && !matches!(c, '@' | ':' | '/'))
            };
            (plain(name) && plain(host)).then(|| text.to_owned())
        };
        match text.split_once(':') {
            None if text == "allUsers" => Some(Self::AllUsers),
            None if text == "allAuthenticatedUsers" => Some(Self::AllAuthenticatedUsers),
            Some(("user", rest)) => email(rest).map(Self::User),
            Some(("serviceAccount", rest)) => email(rest).map(Self::ServiceAccount),
            Some(("group", rest)) => email(rest).map(Self::Group),
            Some(("domain", rest)) => {
                let valid = rest.contains('.')
                    && rest
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
                valid.then(|| Self::Domain(rest.to_owned()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllUsers => f.write_str("allUsers"),
            Self::AllAuthenticatedUsers => f.write_str("allAuthenticatedUsers"),
            Self::User(email) => write!(f, "user:{email}"),
            Self::ServiceAccount(email) => write!(f, "serviceAccount:{email}"),
            Self::Group(email) => write!(f, "group:{email}"),
            Self::Domain(domain) => write!(f, "domain:{domain}"),
        }
    }
}

impl TryFrom<String> for Member {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("\"{text}\" is not a member"))
    }
}

impl From<Member> for String {
    fn from(member: Member) -> Self {
        member.to_string()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub role: Role,
    pub members: Vec<Member>,
}

/// The bindings of one resource, with the number of the write that made them (the etag).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub bindings: Vec<Binding>,
    pub version: u64,
}

impl Policy {
    /// Whether anyone, without a token, may call the service.
    pub fn invokable_by_anyone(&self) -> bool {
        self.invokers().any(|member| *member == Member::AllUsers)
    }

    /// Whether the holder of a checked identity token for `email` may call the service.
    pub fn invokable_by(&self, email: &str) -> bool {
        self.invokers().any(|member| match member {
            Member::AllUsers | Member::AllAuthenticatedUsers => true,
            Member::User(name) | Member::ServiceAccount(name) => name == email,
            Member::Domain(domain) => email.split_once('@').is_some_and(|(_, host)| host == domain),
            // Groups have no members yet, so nobody is in one.
            Member::Group(_) => false,
        })
    }

    pub fn invokers(&self) -> impl Iterator<Item = &Member> {
        self.bindings
            .iter()
            .filter(|b| b.role.as_str() == INVOKER_ROLE)
            .flat_map(|b| &b.members)
    }

    /// Reads bindings, naming each that is malformed.
    ///
    /// # Errors
    /// A violation for each role or member that cannot be read.
    pub fn bindings(
        given: impl IntoIterator<Item = (String, Vec<String>)>,
        path: &str,
    ) -> Result<Vec<Binding>, Vec<Violation>> {
        let mut bindings = Vec::new();
        let mut violations = Vec::new();
        for (index, (role, members)) in given.into_iter().enumerate() {
            let role = Role::parse(&role).or_else(|| {
                violations.push(Violation::new(
                    format!("{path}[{index}].role"),
                    format!("\"{role}\" is not a role, such as {INVOKER_ROLE}"),
                ));
                None
            });
            let mut known = Vec::new();
            for (number, member) in members.iter().enumerate() {
                match Member::parse(member) {
                    Some(member) => known.push(member),
                    None => violations.push(Violation::new(
                        format!("{path}[{index}].members[{number}]"),
                        format!(
                            "\"{member}\" is not a member: allUsers, allAuthenticatedUsers, user:EMAIL, serviceAccount:EMAIL, group:EMAIL or domain:NAME"
                        ),
                    )),
                }
            }
            if let Some(role) = role
                && !known.is_empty()
            {
                bindings.push(Binding { role, members: known });
            }
        }
        if violations.is_empty() {
            Ok(bindings)
        } else {
            Err(violations)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(members: &[&str]) -> Policy {
        let members = members.iter().map(|m| (*m).to_owned()).collect();
        let bindings = Policy::bindings([(INVOKER_ROLE.to_owned(), members)], "p").expect("members");
        Policy { bindings, version: 1 }
    }

    #[test]
    fn members() {
        for text in [
            "allUsers",
            "user:a@b.c",
            "serviceAccount:x@p.iam.gserviceaccount.com",
            "domain:example.com",
        ] {
            assert_eq!(Member::parse(text).expect(text).to_string(), text);
        }
        for text in [
            "everyone",
            "user:",
            "user:ab",
            "user:a@b@c",
            "robot:a@b.c",
            "domain:x y",
            "",
        ] {
            assert!(Member::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn who_may_invoke() {
        assert!(policy(&["allUsers"]).invokable_by_anyone());
        assert!(!policy(&["allAuthenticatedUsers"]).invokable_by_anyone());
        assert!(policy(&["allAuthenticatedUsers"]).invokable_by("x@y.z"));
        assert!(policy(&["user:a@b.c"]).invokable_by("a@b.c"));
        assert!(!policy(&["user:a@b.c"]).invokable_by("b@b.c"));
        assert!(policy(&["domain:b.c"]).invokable_by("a@b.c"));
        assert!(!policy(&["group:a@b.c"]).invokable_by("a@b.c"));
        assert!(!Policy::default().invokable_by_anyone());
    }

    #[test]
    fn malformed_bindings_are_named() {
        let given = [("run.invoker".to_owned(), vec!["me".to_owned()])];
        let found = Policy::bindings(given, "policy.bindings").expect_err("malformed");
        let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["policy.bindings[0].role", "policy.bindings[0].members[0]"]);
    }
}
