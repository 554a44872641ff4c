//! Who may do what: the permission of each method, policies, service accounts with their keys, roles, groups, and
//! tokens in an account's name.

pub(crate) mod accounts;
pub(crate) mod credentials;
pub(crate) mod groups;
mod keys;
mod owner;
pub(crate) mod permit;
pub(crate) mod policy;
mod roles;

use identity::Caller;
use model::{Permission, Principal, Resource};

use crate::{error::Error, surface::Surface};

impl Surface {
    /// Whether the caller holds the permission on the resource now.
    pub(crate) fn allows(&self, caller: &Caller, permission: Permission, resource: &Resource) -> bool {
        let access = self.store.snapshot().access(resource);
        let who = Principal::of(&caller.email);
        access.allows(Some(&who), permission, &|condition, resource| {
            self.conditions
                .hold(condition, resource, &self.site.project, self.seconds())
        })
    }

    /// The same, as a refusal in Google's words.
    pub(crate) fn require(&self, caller: &Caller, permission: Permission, resource: &Resource) -> Result<(), Error> {
        if self.allows(caller, permission, resource) {
            return Ok(());
        }
        let name = format!("//{}/{}", resource.service(), resource.name(&self.site.project));
        Err(Error::denied(permission, &name))
    }

    /// Whether the caller may make something run as the account, which has to be there.
    pub(crate) fn require_act_as(&self, caller: &Caller, email: &str) -> Result<(), Error> {
        let there = self.store.snapshot().account(email).is_some();
        let account = Resource::ServiceAccount(email.to_owned());
        if there && self.allows(caller, Permission::IAM_SERVICE_ACCOUNTS_ACT_AS, &account) {
            return Ok(());
        }
        Err(Error::new(
            crate::error::Code::PermissionDenied,
            format!("Permission 'iam.serviceaccounts.actAs' denied on service account {email} (or it may not exist)."),
        ))
    }
}
