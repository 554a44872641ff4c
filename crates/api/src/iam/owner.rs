//! What is there from the first start on: the owner, with everything, and the default account of services and builds.

use model::{Binding, Member, OWNER_ROLE, Policy, Resource, Role, ServiceAccount, Timestamp};
use store::Transaction;

use crate::{error::Error, surface::Surface};

impl Surface {
    /// Writes down who owns this Homerun, where that is not written down yet. To be called before anything is answered.
    ///
    /// # Errors
    /// What the store says when it cannot write.
    pub async fn establish(&self) -> Result<(), store::Error> {
        let owner = self.keys.owner().caller().clone();
        let default = self.site.default_account();
        let (now, new_id) = ((self.now)(), identity::new_unique_id());
        let done = self.store.transact(move |tx| {
            account(tx, &owner.email, &owner.subject, "Owner of this Homerun", now);
            if tx.snapshot().account(&default).is_none() {
                account(tx, &default, &new_id, "Default account of services and builds", now);
            }
            own(tx, &owner.email);
            Ok::<_, Error>(())
        });
        match done.await {
            Ok(()) => Ok(()),
            Err(store::TransactError::Storage(error)) => Err(error),
            Err(store::TransactError::Refused(_)) => unreachable!("the work refuses nothing"),
        }
    }
}

/// Makes the account, or another in its place where the one that is there has another id: the owner's key file was
/// removed, and who has the former one owns nothing.
fn account(tx: &mut Transaction, email: &str, unique_id: &str, title: &str, now: Timestamp) {
    match tx.snapshot().account(email) {
        Some(account) if account.unique_id == unique_id => return,
        Some(_) => tx.delete_account(email),
        None => {}
    }
    tx.put_account(ServiceAccount {
        email: email.to_owned(),
        unique_id: unique_id.to_owned(),
        display_name: title.to_owned(),
        description: String::new(),
        disabled: false,
        created: now,
        version: 0,
        keys: Vec::new(),
        managed: None,
    });
}

/// Makes the account an owner of the project, unless it is.
fn own(tx: &mut Transaction, email: &str) {
    let mut policy = Policy::clone(&tx.snapshot().policy(&Resource::Project));
    let role = Role::parse(OWNER_ROLE).expect("a role's name");
    let owner = Member::ServiceAccount(email.to_owned());
    let of = policy
        .bindings
        .iter_mut()
        .find(|binding| binding.role == role && binding.condition.is_none());
    match of {
        Some(binding) if binding.members.contains(&owner) => return,
        Some(binding) => binding.members.push(owner),
        None => policy.bindings.push(Binding {
            role,
            members: vec![owner],
            condition: None,
        }),
    }
    policy.version += 1;
    tx.put_policy(Resource::Project, policy);
}
