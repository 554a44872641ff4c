//! Who a policy speaks of, and who calls.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Groups;

/// Who a binding speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Member {
    AllUsers,
    AllAuthenticatedUsers,
    User(String),
    ServiceAccount(String),
    /// An account that was deleted: whoever has its e-mail now is another.
    DeletedServiceAccount {
        email: String,
        unique_id: String,
    },
    Group(String),
    Domain(String),
}

/// Every service account's e-mail ends so.
const ACCOUNTS: &str = ".gserviceaccount.com";

fn email(text: &str) -> Option<String> {
    let (name, host) = text.split_once('@')?;
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_graphic() && !matches!(c, '@' | ':' | '/' | '?'))
    };
    (text.len() <= 254 && plain(name) && plain(host)).then(|| text.to_owned())
}

impl Member {
    pub fn parse(text: &str) -> Option<Self> {
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
            Some(("deleted", rest)) => {
                let (of, unique_id) = rest.strip_prefix("serviceAccount:")?.split_once("?uid=")?;
                let digits = !unique_id.is_empty() && unique_id.bytes().all(|b| b.is_ascii_digit());
                digits.then_some(Self::DeletedServiceAccount {
                    email: email(of)?,
                    unique_id: unique_id.to_owned(),
                })
            }
            _ => None,
        }
    }

    /// Whether it speaks of `who`; None is a caller that nobody knows.
    pub fn is(&self, who: Option<&Principal>, groups: &Groups) -> bool {
        self.is_within(who, groups, &mut Vec::new())
    }

    /// `asked` are the groups that were looked into already: one may hold another, and itself.
    fn is_within<'m>(&'m self, who: Option<&Principal>, groups: &'m Groups, asked: &mut Vec<&'m str>) -> bool {
        let Some(who) = who else {
            return *self == Self::AllUsers;
        };
        match self {
            Self::AllUsers | Self::AllAuthenticatedUsers => true,
            Self::User(email) => matches!(who, Principal::User(_)) && who.has(email),
            Self::ServiceAccount(email) => matches!(who, Principal::ServiceAccount(_)) && who.has(email),
            Self::DeletedServiceAccount { .. } => false,
            Self::Domain(domain) => who
                .email()
                .rsplit_once('@')
                .is_some_and(|(_, host)| host.eq_ignore_ascii_case(domain)),
            Self::Group(email) => {
                let Some((name, group)) = groups.get_key_value(email.to_ascii_lowercase().as_str()) else {
                    return false;
                };
                if asked.contains(&name.as_str()) {
                    return false;
                }
                asked.push(name);
                group
                    .members
                    .iter()
                    .any(|member| member.is_within(Some(who), groups, asked))
            }
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
            Self::DeletedServiceAccount { email, unique_id } => {
                write!(f, "deleted:serviceAccount:{email}?uid={unique_id}")
            }
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

/// A caller whose token was checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    User(String),
    ServiceAccount(String),
}

impl Principal {
    pub fn of(email: &str) -> Self {
        if email.ends_with(ACCOUNTS) {
            Self::ServiceAccount(email.to_owned())
        } else {
            Self::User(email.to_owned())
        }
    }

    pub fn email(&self) -> &str {
        match self {
            Self::User(email) | Self::ServiceAccount(email) => email,
        }
    }

    fn has(&self, email: &str) -> bool {
        self.email().eq_ignore_ascii_case(email)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::iam::Group;

    #[test]
    fn members() {
        for text in [
            "allUsers",
            "allAuthenticatedUsers",
            "user:a@b.c",
            "serviceAccount:x@p.iam.gserviceaccount.com",
            "deleted:serviceAccount:x@p.iam.gserviceaccount.com?uid=123",
            "group:all@example.com",
            "domain:example.com",
        ] {
            assert_eq!(Member::parse(text).expect(text).to_string(), text);
        }
        for text in [
            "everyone",
            "user:",
            "user:ab",
            "user:a@b@c",
            "user:a@b?uid=1",
            "robot:a@b.c",
            "domain:x y",
            "deleted:user:a@b.c?uid=1",
            "deleted:serviceAccount:x@p?uid=",
            "deleted:serviceAccount:x@p?uid=1a",
            "deleted:serviceAccount:x@p",
            "",
        ] {
            assert!(Member::parse(text).is_none(), "{text}");
        }
    }

    fn groups(all: &[(&str, &[&str])]) -> Groups {
        all.iter()
            .map(|(email, members)| {
                let members = members.iter().map(|m| Member::parse(m).expect(m)).collect();
                let email = (*email).to_owned();
                (email.clone(), Arc::new(Group { email, members }))
            })
            .collect()
    }

    #[test]
    fn who_is_who() {
        const ACCOUNT: &str = "x@p.iam.gserviceaccount.com";
        let groups = groups(&[
            ("devs@b.c", &["user:a@b.c", "group:ops@b.c"]),
            (
                "ops@b.c",
                &["serviceAccount:x@p.iam.gserviceaccount.com", "group:devs@b.c"],
            ),
        ]);
        for (member, who, is) in [
            ("allUsers", None, true),
            ("allAuthenticatedUsers", None, false),
            ("user:a@b.c", None, false),
            ("allUsers", Some("a@b.c"), true),
            ("allAuthenticatedUsers", Some("a@b.c"), true),
            ("user:a@b.c", Some("a@b.c"), true),
            ("user:A@B.c", Some("a@b.c"), true),
            ("user:a@b.c", Some("b@b.c"), false),
            // an e-mail alone does not make a user of an account, nor the other way round
            ("user:x@p.iam.gserviceaccount.com", Some(ACCOUNT), false),
            ("serviceAccount:a@b.c", Some("a@b.c"), false),
            ("serviceAccount:x@p.iam.gserviceaccount.com", Some(ACCOUNT), true),
            (
                "deleted:serviceAccount:x@p.iam.gserviceaccount.com?uid=1",
                Some(ACCOUNT),
                false,
            ),
            ("domain:b.c", Some("a@b.c"), true),
            ("domain:c", Some("a@b.c"), false),
            ("group:devs@b.c", Some("a@b.c"), true),
            ("group:Devs@b.c", Some(ACCOUNT), true),
            ("group:ops@b.c", Some("a@b.c"), true),
            ("group:ops@b.c", Some("z@b.c"), false),
            ("group:none@b.c", Some("a@b.c"), false),
        ] {
            // "domain:c" has no dot and is no member; it cannot be written
            let Some(member) = Member::parse(member) else {
                assert!(!is, "{member}");
                continue;
            };
            let who = who.map(Principal::of);
            assert_eq!(member.is(who.as_ref(), &groups), is, "{member} {who:?}");
        }
    }
}
