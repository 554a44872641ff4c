//! Secrets and their versions.

use std::fs;

use homerun_store::Store;
use model::SecretVersion;

use super::{dir, golden, write};

#[tokio::test]
async fn secrets_survive_reopen_and_a_destroyed_value_is_nowhere_in_the_files() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let (secrets, versions) = (golden().secrets, golden().secret_versions);
    let mut marked = versions[1].clone();
    let sealed = "c2VhbGVkLWJ5LXRoaXMtdGVzdA".repeat(40);
    let held = |version: &mut SecretVersion| match &mut version.state {
        model::SecretVersionState::Enabled(held) | model::SecretVersionState::Disabled(held) => {
            held.value.clone_from(&sealed);
        }
        model::SecretVersionState::Destroyed { .. } => panic!("has a value"),
    };
    held(&mut marked);
    let written = marked.clone();
    write(&store, move |tx| {
        for secret in secrets {
            tx.put_secret(secret);
        }
        for version in versions {
            tx.put_secret_version(version);
        }
        tx.put_secret_version(written);
    })
    .await
    .expect("written");
    drop(store);
    let store = Store::open(dir.path()).expect("the same store");
    let snapshot = store.snapshot();
    let name = &golden().secrets[0].name;
    let numbers: Vec<u64> = snapshot.versions_of(name).map(|version| version.key.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(snapshot.secret_versions[&marked.key].as_ref(), &marked);
    let mut destroyed = marked.clone();
    destroyed.state = model::SecretVersionState::Destroyed {
        at: model::Timestamp::from_micros(9),
    };
    write(&store, move |tx| tx.put_secret_version(destroyed))
        .await
        .expect("written");
    // The last connection brings the write-ahead log into the database and removes it.
    drop(store);
    for file in fs::read_dir(dir.path()).expect("files") {
        let path = file.expect("a file").path();
        if path.is_file() {
            let bytes = fs::read(&path).expect("read");
            let found = bytes.windows(40).any(|part| part == &sealed.as_bytes()[..40]);
            assert!(!found, "{}", path.display());
        }
    }
    let store = Store::open(dir.path()).expect("the same store");
    let name = name.clone();
    let gone = name.clone();
    write(&store, move |tx| tx.delete_secret(&gone)).await.expect("written");
    let snapshot = store.snapshot();
    assert_eq!(snapshot.versions_of(&name).count(), 0);
    assert_eq!(snapshot.secrets.len(), 1);
}
