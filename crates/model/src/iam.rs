//! Policies: who holds which role on what, and whether a caller may therefore do a thing.
//!
//! A resource's policy and those of all above it (here: the project's) add up; nothing is ever taken away further
//! down. Whether a condition holds is asked of whoever can read it (`identity`), since that takes a clock.

mod account;
mod member;
mod permission;
mod resource;
mod role;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use account::{
    AccountIdError, AccountKey, Group, Groups, MAX_ACCOUNT_KEYS, ManagedKey, RevokedToken, ServiceAccount,
};
pub use member::{Member, Principal};
pub use permission::Permission;
pub use resource::Resource;
pub use role::{INVOKER_ROLE, OWNER_ROLE, Predefined, Role};

use crate::Violation;

/// Most members of one policy, each counted once per binding, as at Google.
pub const MAX_POLICY_MEMBERS: usize = 1500;

/// When a binding holds: an expression of CEL over the request and the resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingCondition {
    pub expression: String,
    pub title: String,
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub role: Role,
    pub members: Vec<Member>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<BindingCondition>,
}

/// The bindings of one resource, with the number of the write that made them (the etag).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub bindings: Vec<Binding>,
    pub version: u64,
}

/// A policy with what it is on, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcePolicy {
    pub resource: Resource,
    pub policy: Policy,
}

/// A binding as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pub role: String,
    pub members: Vec<String>,
    pub condition: Option<BindingCondition>,
}

impl Policy {
    /// Whether the policy alone lets `who` (None: somebody unknown) do it. `holds` says whether a condition does.
    pub fn allows(
        &self,
        who: Option<&Principal>,
        permission: Permission,
        groups: &Groups,
        holds: &dyn Fn(&BindingCondition) -> bool,
    ) -> bool {
        self.bindings.iter().any(|binding| {
            binding.role.holds(permission)
                && binding.members.iter().any(|member| member.is(who, groups))
                && binding.condition.as_ref().is_none_or(holds)
        })
    }

    /// Whether anyone, without a token and under no condition, may call the service.
    pub fn invokable_by_anyone(&self) -> bool {
        self.allows(None, Permission::RUN_ROUTES_INVOKE, &Groups::new(), &|_| false)
    }

    /// Whether some binding has a condition, which is version 3 of the form.
    pub fn has_conditions(&self) -> bool {
        self.bindings.iter().any(|binding| binding.condition.is_some())
    }

    /// What `members` say once the account is deleted; None when it is not among them.
    pub fn without_account(&self, account: &ServiceAccount) -> Option<Self> {
        let mut after = self.clone();
        let mut found = false;
        for member in after.bindings.iter_mut().flat_map(|binding| &mut binding.members) {
            if matches!(member, Member::ServiceAccount(email) if email.eq_ignore_ascii_case(&account.email)) {
                *member = account.as_deleted();
                found = true;
            }
        }
        after.version += 1;
        found.then_some(after)
    }

    /// Reads bindings, naming each that is malformed.
    ///
    /// # Errors
    /// A violation for each role or member that cannot be read, for a role that is not known here, and for more members
    /// than a policy may have.
    pub fn bindings(given: impl IntoIterator<Item = Given>, path: &str) -> Result<Vec<Binding>, Vec<Violation>> {
        let mut bindings = Vec::new();
        let mut violations = Vec::new();
        let mut count = 0;
        for (index, given) in given.into_iter().enumerate() {
            let Given {
                role,
                members,
                condition,
            } = given;
            count += members.len();
            let role = match Role::parse(&role) {
                Some(known) if known.predefined().is_some() => Some(known),
                Some(_) => {
                    violations.push(Violation::new(
                        format!("{path}[{index}].role"),
                        format!(
                            "Role {role} is not supported: custom roles and roles of other products are not served"
                        ),
                    ));
                    None
                }
                None => {
                    violations.push(Violation::new(
                        format!("{path}[{index}].role"),
                        format!("\"{role}\" is not a role, such as {INVOKER_ROLE}"),
                    ));
                    None
                }
            };
            let mut known: Vec<Member> = Vec::new();
            for (number, member) in members.iter().enumerate() {
                match Member::parse(member) {
                    Some(member) if known.contains(&member) => {}
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
                bindings.push(Binding {
                    role,
                    members: known,
                    condition,
                });
            }
        }
        if count > MAX_POLICY_MEMBERS {
            violations.push(Violation::new(
                path,
                format!("{count} members are too many: at most {MAX_POLICY_MEMBERS}"),
            ));
        }
        if violations.is_empty() {
            Ok(bindings)
        } else {
            Err(violations)
        }
    }
}

/// Everything that decides on one resource: its policy, those above it, and who is in which group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub resource: Resource,
    /// From the resource up to the project.
    pub policies: Vec<Arc<Policy>>,
    pub groups: Arc<Groups>,
}

impl Access {
    /// Whether `who` (None: somebody unknown) has the permission on the resource. `holds` says whether a condition does,
    /// for this resource.
    pub fn allows(
        &self,
        who: Option<&Principal>,
        permission: Permission,
        holds: &dyn Fn(&BindingCondition, &Resource) -> bool,
    ) -> bool {
        let holds = |condition: &BindingCondition| holds(condition, &self.resource);
        self.policies
            .iter()
            .any(|policy| policy.allows(who, permission, &self.groups, &holds))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Timestamp;

    fn given(role: &str, members: &[&str]) -> Given {
        Given {
            role: role.to_owned(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
            condition: None,
        }
    }

    fn policy(given: impl IntoIterator<Item = Given>) -> Policy {
        Policy {
            bindings: Policy::bindings(given, "p").expect("bindings"),
            version: 1,
        }
    }

    fn invokers(members: &[&str]) -> Policy {
        policy([given(INVOKER_ROLE, members)])
    }

    fn access(policies: &[&Policy]) -> Access {
        Access {
            resource: Resource::Project,
            policies: policies.iter().map(|policy| Arc::new((*policy).clone())).collect(),
            groups: Arc::default(),
        }
    }

    fn may(access: &Access, who: Option<&str>, permission: Permission) -> bool {
        let who = who.map(Principal::of);
        access.allows(who.as_ref(), permission, &|condition, _| condition.expression == "true")
    }

    #[test]
    fn who_may_invoke() {
        let invoke = |policy: &Policy, who| may(&access(&[policy]), who, Permission::RUN_ROUTES_INVOKE);
        assert!(invokers(&["allUsers"]).invokable_by_anyone());
        assert!(!invokers(&["allAuthenticatedUsers"]).invokable_by_anyone());
        assert!(!Policy::default().invokable_by_anyone());
        assert!(invoke(&invokers(&["allUsers"]), None));
        assert!(invoke(&invokers(&["allAuthenticatedUsers"]), Some("x@y.z")));
        assert!(!invoke(&invokers(&["allAuthenticatedUsers"]), None));
        assert!(invoke(&invokers(&["user:a@b.c"]), Some("a@b.c")));
        assert!(!invoke(&invokers(&["user:a@b.c"]), Some("b@b.c")));
        assert!(!invoke(
            &policy([given("roles/run.viewer", &["user:a@b.c"])]),
            Some("a@b.c")
        ));
    }

    #[test]
    fn the_project_s_policy_holds_for_all_below() {
        let below = invokers(&["user:a@b.c"]);
        let project = policy([given("roles/run.admin", &["user:root@b.c"])]);
        let both = access(&[&below, &project]);
        let invoke = Permission::RUN_ROUTES_INVOKE;
        assert!(may(&both, Some("a@b.c"), invoke) && may(&both, Some("root@b.c"), invoke));
        assert!(!may(&both, Some("a@b.c"), Permission::RUN_SERVICES_GET));
        assert!(may(&both, Some("root@b.c"), Permission::RUN_SERVICES_SET_IAM_POLICY));
        assert!(!may(&both, None, invoke));
    }

    #[test]
    fn a_binding_holds_when_its_condition_does() {
        let under = |expression: &str| {
            let mut given = given(INVOKER_ROLE, &["allUsers"]);
            given.condition = Some(BindingCondition {
                expression: expression.to_owned(),
                title: "t".to_owned(),
                description: String::new(),
            });
            policy([given])
        };
        let invoke = Permission::RUN_ROUTES_INVOKE;
        assert!(may(&access(&[&under("true")]), None, invoke));
        assert!(!may(&access(&[&under("false")]), None, invoke));
        assert!(!under("true").invokable_by_anyone(), "not without asking");
        assert!(under("true").has_conditions() && !invokers(&["allUsers"]).has_conditions());
    }

    #[test]
    fn a_deleted_account_leaves_its_place_to_nobody() {
        let email = "x@p.iam.gserviceaccount.com";
        let account = ServiceAccount {
            email: email.to_owned(),
            unique_id: "17".to_owned(),
            display_name: String::new(),
            description: String::new(),
            disabled: false,
            created: Timestamp::from_micros(0),
            version: 1,
            keys: Vec::new(),
            managed: None,
        };
        let before = invokers(&["serviceAccount:x@p.iam.gserviceaccount.com", "user:a@b.c"]);
        assert!(may(&access(&[&before]), Some(email), Permission::RUN_ROUTES_INVOKE));
        let after = before.without_account(&account).expect("it is named");
        assert_eq!(after.version, 2, "a policy read before is stale");
        let members: Vec<_> = after.bindings[0].members.iter().map(ToString::to_string).collect();
        assert_eq!(
            members,
            [
                "deleted:serviceAccount:x@p.iam.gserviceaccount.com?uid=17",
                "user:a@b.c"
            ]
        );
        assert!(!may(&access(&[&after]), Some(email), Permission::RUN_ROUTES_INVOKE));
        assert_eq!(after.without_account(&account), None);
    }

    #[test]
    fn malformed_bindings_are_named() {
        let all = [
            given("run.invoker", &["me"]),
            given("roles/run.invokr", &["allUsers"]),
            given("projects/p/roles/mine", &["allUsers"]),
        ];
        let found = Policy::bindings(all, "policy.bindings").expect_err("malformed");
        let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "policy.bindings[0].role",
                "policy.bindings[0].members[0]",
                "policy.bindings[1].role",
                "policy.bindings[2].role"
            ]
        );
        let many: Vec<String> = (0..=MAX_POLICY_MEMBERS).map(|n| format!("user:u{n}@b.c")).collect();
        let many = Given {
            role: INVOKER_ROLE.to_owned(),
            members: many,
            condition: None,
        };
        let found = Policy::bindings([many], "policy.bindings").expect_err("too many");
        assert!(found[0].description.contains("1501"), "{found:?}");
    }

    /// The stored form of before there were conditions is read, and not changed by reading.
    #[test]
    fn bindings_of_earlier_versions_are_read() {
        let text = r#"{"role":"roles/run.invoker","members":["allUsers"]}"#;
        let binding: Binding = serde_json::from_str(text).expect("reads");
        assert_eq!(binding.condition, None);
        assert_eq!(serde_json::to_string(&binding).expect("writes"), text);
    }

    fn any_member() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "allUsers",
            "allAuthenticatedUsers",
            "user:a@b.c",
            "user:b@b.c",
            "serviceAccount:x@p.iam.gserviceaccount.com",
            "deleted:serviceAccount:x@p.iam.gserviceaccount.com?uid=1",
            "domain:b.c",
            "group:g@b.c",
        ])
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let role = prop::sample::select(Predefined::all().to_vec());
        let binding = (role, prop::collection::vec(any_member(), 0..4));
        prop::collection::vec(binding, 0..5)
            .prop_map(|all| policy(all.into_iter().map(|(role, members)| given(role.name, &members))))
    }

    proptest! {
        /// A further policy, above or below, never takes a permission away, and order does not matter.
        #[test]
        fn policies_only_add(
            one in any_policy(),
            two in any_policy(),
            who in prop::option::of(prop::sample::select(vec!["a@b.c", "z@y.x", "x@p.iam.gserviceaccount.com"])),
            permission in prop::sample::select(Permission::ALL.to_vec()),
        ) {
            let alone = may(&access(&[&one]), who, permission);
            let other = may(&access(&[&two]), who, permission);
            prop_assert_eq!(may(&access(&[&one, &two]), who, permission), alone || other);
            prop_assert_eq!(may(&access(&[&two, &one]), who, permission), alone || other);
            // Whom nobody knows may what everybody may, and no more.
            if may(&access(&[&one]), None, permission) {
                prop_assert!(alone);
            }
        }
    }
}
