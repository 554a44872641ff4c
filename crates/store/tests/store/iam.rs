//! Policies, accounts and revoked tokens.

use homerun_store::Store;
use model::{Resource, RevokedToken, Timestamp};

use super::{dir, golden, service, write};

/// A deleted account leaves nothing to the next of its name: no role anywhere, no policy of its own.
#[tokio::test]
async fn a_deleted_account_is_named_no_more() {
    const EMAIL: &str = "runner@my-project.iam.gserviceaccount.com";
    const DELETED: &str = "deleted:serviceAccount:runner@my-project.iam.gserviceaccount.com?uid=100000000000000000001";
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let binding = || {
        let text = format!(
            r#"{{"bindings":[{{"role":"roles/viewer","members":["serviceAccount:{EMAIL}","user:a@b.c"]}}],"version":3}}"#
        );
        serde_json::from_str::<model::Policy>(&text).expect("a policy")
    };
    let mut service = service("s");
    service.policy = binding();
    let of_service = Resource::Service(service.key.clone());
    let own = Resource::ServiceAccount(EMAIL.to_owned());
    let (first, of) = (own.clone(), of_service.clone());
    write(&store, move |tx| {
        tx.put_service(service);
        tx.put_account(golden().accounts.swap_remove(0));
        tx.put_policy(first, binding());
        tx.put_policy(Resource::Project, binding());
        tx.put_policy(of, binding());
    })
    .await
    .expect("written");
    write(&store, |tx| tx.delete_account(EMAIL)).await.expect("deleted");
    for snapshot in [store.snapshot(), {
        drop(store);
        Store::open(dir.path()).expect("again").snapshot()
    }] {
        assert!(snapshot.account(EMAIL).is_none());
        assert_eq!(*snapshot.policy(&own), model::Policy::default());
        for resource in [&of_service, &Resource::Project] {
            let policy = snapshot.policy(resource);
            let members: Vec<String> = policy.bindings[0].members.iter().map(ToString::to_string).collect();
            assert_eq!(members, [DELETED, "user:a@b.c"], "{resource}");
            assert_eq!(
                policy.version, 4,
                "{resource}: who read it before writes on a stale one"
            );
        }
    }
}

#[tokio::test]
async fn a_repository_takes_its_policy_along() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let repository = golden().repositories.swap_remove(0);
    let of = Resource::Repository(repository.key.clone());
    let (key, policy) = (repository.key.clone(), golden().policies.swap_remove(0).policy);
    let on = of.clone();
    write(&store, move |tx| {
        tx.put_repository(repository);
        tx.put_policy(on, policy);
    })
    .await
    .expect("written");
    assert_eq!(store.snapshot().access(&of).policies[0].version, 1);
    write(&store, move |tx| tx.delete_repository(&key))
        .await
        .expect("deleted");
    assert_eq!(store.snapshot().access(&of).policies[0].version, 0);
}

#[tokio::test]
async fn revoked_tokens_are_forgotten_once_they_have_ended() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let at = Timestamp::from_micros;
    let token = |id: &str, until| RevokedToken {
        id: id.to_owned(),
        until: at(until),
    };
    let (one, two) = (token("one", 10), token("two", 20));
    write(&store, move |tx| tx.revoke(one, at(5))).await.expect("written");
    write(&store, move |tx| tx.revoke(two, at(10))).await.expect("written");
    drop(store);
    let store = Store::open(dir.path()).expect("again");
    let known: Vec<_> = store.snapshot().revoked.keys().cloned().collect();
    assert_eq!(known, ["two"]);
}
