//! The form in which things are stored: today's, and how earlier ones become it.

use homerun_store::Store;

use super::{GOLDEN, dir, golden, write};

/// The golden files of earlier versions.
const EARLIER: [&str; 5] = [
    include_str!("../golden/v1.json"),
    include_str!("../golden/v2.json"),
    include_str!("../golden/v3.json"),
    include_str!("../golden/v4.json"),
    include_str!("../golden/v5.json"),
];

#[tokio::test]
async fn the_stored_form_is_the_golden_file_of_its_version() {
    let read = golden();
    let again = serde_json::to_string_pretty(&read).expect("plain data") + "\n";
    assert_eq!(again, GOLDEN, "read and written again");

    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let golden = golden();
    write(&store, move |tx| {
        golden.services.into_iter().for_each(|s| tx.put_service(s));
        golden.revisions.into_iter().for_each(|r| tx.put_revision(r));
        golden.repositories.into_iter().for_each(|r| tx.put_repository(r));
        golden.buckets.into_iter().for_each(|b| tx.put_bucket(b));
        golden.builds.into_iter().for_each(|b| tx.put_build(b));
        golden
            .policies
            .into_iter()
            .for_each(|held| tx.put_policy(held.resource, held.policy));
        golden.accounts.into_iter().for_each(|a| tx.put_account(a));
        golden.groups.into_iter().for_each(|g| tx.put_group(g));
        let long_ago = model::Timestamp::from_micros(0);
        golden.revoked.into_iter().for_each(|token| tx.revoke(token, long_ago));
        golden.secrets.into_iter().for_each(|s| tx.put_secret(s));
        golden
            .secret_versions
            .into_iter()
            .for_each(|v| tx.put_secret_version(v));
    })
    .await
    .expect("written");
    drop(store);
    let database = rusqlite::Connection::open(dir.path().join("homerun.db")).expect("opens");
    let schema: i64 = database
        .query_row("SELECT value FROM meta WHERE name = 'schema'", [], |row| row.get(0))
        .expect("there");
    assert_eq!(schema, 6, "a new version needs its own golden file");
    let bodies = |table: &str| -> Vec<serde_json::Value> {
        let mut rows = database
            .prepare(&format!("SELECT body FROM {table} ORDER BY rowid"))
            .expect("a table");
        let bodies = rows.query_map([], |row| row.get::<_, String>(0)).expect("rows");
        bodies
            .map(|body| serde_json::from_str(&body.expect("text")).expect("JSON"))
            .collect()
    };
    let kept = serde_json::json!({
        "services": bodies("services"),
        "revisions": bodies("revisions"),
        "repositories": bodies("repositories"),
        "buckets": bodies("buckets"),
        "builds": bodies("builds"),
        "policies": bodies("policies"),
        "accounts": bodies("accounts"),
        "groups": bodies("local_groups"),
        "revoked": bodies("revoked"),
        "secrets": bodies("secrets"),
        "secret_versions": bodies("secret_versions"),
    });
    assert_eq!(
        serde_json::to_string_pretty(&kept).expect("plain data") + "\n",
        GOLDEN,
        "as it stands in the database"
    );
}

/// Every earlier version becomes today's form, and is read.
#[tokio::test]
async fn earlier_versions_are_brought_forward() {
    for (version, golden) in (1..).zip(EARLIER) {
        let dir = dir();
        drop(Store::open(dir.path()).expect("a new store"));
        let file = dir.path().join("homerun.db");
        let database = rusqlite::Connection::open(&file).expect("opens");
        let golden: serde_json::Value = serde_json::from_str(golden).expect("JSON");
        let all = |kind: &str| golden[kind].as_array().expect("a list").clone();
        let text = |of: &serde_json::Value| of.as_str().expect("text").to_owned();
        for service in all("services") {
            let key = &service["key"];
            let row = [text(&key["region"]), text(&key["name"]), service.to_string()];
            database
                .execute("INSERT INTO services VALUES (?1, ?2, ?3)", row)
                .expect("inserted");
        }
        for revision in all("revisions") {
            let key = &revision["key"];
            let of = &key["service"];
            let row = [
                text(&of["region"]),
                text(&of["name"]),
                text(&key["name"]),
                revision.to_string(),
            ];
            database
                .execute("INSERT INTO revisions VALUES (?1, ?2, ?3, ?4)", row)
                .expect("inserted");
        }
        if version < 4 {
            database
                .execute_batch("DROP TABLE repositories; DROP TABLE buckets;")
                .expect("tables of version 4");
        }
        if version < 5 {
            database
                .execute_batch("DROP TABLE builds;")
                .expect("the table of version 5");
        }
        database
            .execute_batch(
                "DROP TABLE policies; DROP TABLE accounts; DROP TABLE local_groups; DROP TABLE revoked;
                 DROP TABLE secrets; DROP TABLE secret_versions;",
            )
            .expect("the tables of version 6");
        database
            .execute("UPDATE meta SET value = ?1 WHERE name = 'schema'", [version])
            .expect("an older version");
        drop(database);

        let store = Store::open(dir.path()).expect("brought forward");
        let snapshot = store.snapshot();
        assert_eq!(snapshot.services.len(), all("services").len(), "version {version}");
        assert_eq!(snapshot.revisions.len(), all("revisions").len(), "version {version}");
        let today = super::golden();
        for service in today.services {
            let brought = snapshot.service(&service.key).expect("kept");
            assert_eq!(brought.template.port, service.template.port, "version {version}");
            let probe = &service.template.container.startup_probe;
            assert_eq!(&brought.template.container.startup_probe, probe, "version {version}");
        }
    }
}
