//! The tables, their versions, and how a database of an older version becomes one of today's.

use std::{
    collections::BTreeMap,
    fs::{OpenOptions, Permissions},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension as _};
use serde::de::DeserializeOwned;

use crate::{OpenError, Snapshot};

/// "hmrn", so that another program's database is told from ours.
const APPLICATION: i64 = 0x686d_726e;

/// Step N leads from schema version N to N + 1. A step that has been released is never edited.
const STEPS: &[&str] = &[
    "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('schema', 0), ('version', 0);
    CREATE TABLE services (
        region TEXT NOT NULL,
        name TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (region, name)
    ) STRICT;
    CREATE TABLE revisions (
        region TEXT NOT NULL,
        service TEXT NOT NULL,
        name TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (region, service, name)
    ) STRICT;
",
    STEP_2,
    STEP_3,
    STEP_4,
    STEP_5,
    STEP_6,
];

/// Version 2: several containers, probes of every kind, bounds of a whole service.
const STEP_2: &str = "
    UPDATE services SET body = json_set(body, '$.scaling', json_object('min', 0, 'max', NULL, 'manual', NULL));
    UPDATE services SET body = json_set(json_remove(body, '$.template.container.startup_probe.port'),
        '$.template.container.startup_probe.successes', 1,
        '$.template.container.startup_probe.check',
            json_object('Tcp', json_object('port', json_extract(body, '$.template.container.startup_probe.port'))))
        WHERE json_extract(body, '$.template.container.startup_probe') IS NOT NULL;
    UPDATE services SET body = json_set(json_remove(body, '$.template.container.port'),
        '$.template.port', json_extract(body, '$.template.container.port'),
        '$.template.container.mounts', json('[]'),
        '$.template.container.depends_on', json('[]'),
        '$.template.sidecars', json('[]'),
        '$.template.ingress_position', 0,
        '$.template.volumes', json('[]'));
    UPDATE revisions SET body = json_set(json_remove(body, '$.template.container.startup_probe.port'),
        '$.template.container.startup_probe.successes', 1,
        '$.template.container.startup_probe.check',
            json_object('Tcp', json_object('port', json_extract(body, '$.template.container.startup_probe.port'))))
        WHERE json_extract(body, '$.template.container.startup_probe') IS NOT NULL;
    UPDATE revisions SET body = json_set(json_remove(body, '$.template.container.port'),
        '$.template.port', json_extract(body, '$.template.container.port'),
        '$.template.container.mounts', json('[]'),
        '$.template.container.depends_on', json('[]'),
        '$.template.sidecars', json('[]'),
        '$.template.ingress_position', 0,
        '$.template.volumes', json('[]'));
";

/// Version 3: the digests of the sidecars' images.
const STEP_3: &str = "
    UPDATE revisions SET body = json_set(body, '$.sidecar_digests', json('[]'));
";

/// Version 4: repositories of images, and buckets.
const STEP_4: &str = "
    CREATE TABLE repositories (
        location TEXT NOT NULL,
        name TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (location, name)
    ) STRICT;
    CREATE TABLE buckets (
        name TEXT NOT NULL PRIMARY KEY,
        body TEXT NOT NULL
    ) STRICT;
";

/// Version 5: builds, by their ids.
const STEP_5: &str = "
    CREATE TABLE builds (
        name TEXT NOT NULL PRIMARY KEY,
        body TEXT NOT NULL
    ) STRICT;
";

/// Version 6: policies of everything but services (which hold their own), service accounts, groups, the access
/// tokens that were taken back, secrets, and their versions as `SECRET/NUMBER`.
const STEP_6: &str = "
    CREATE TABLE policies (name TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE accounts (name TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE local_groups (name TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE revoked (name TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE secrets (name TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE secret_versions (name TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL) STRICT;
";

/// Opens or makes the database and brings it to today's schema. Readable by its owner only; `SQLite` gives the files
/// beside it the same mode.
pub(crate) fn open(file: &Path) -> Result<Connection, OpenError> {
    let directory = |source| OpenError::Directory {
        dir: file.parent().unwrap_or(file).to_owned(),
        source,
    };
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(file)
        .and_then(|made| made.set_permissions(Permissions::from_mode(0o600)))
        .map_err(directory)?;
    let database = |source| OpenError::Database {
        file: file.to_owned(),
        source,
    };
    let mut connection = Connection::open(file).map_err(database)?;
    connection
        .busy_timeout(std::time::Duration::from_secs(1))
        .map_err(database)?;
    let application: i64 = pragma(&connection, "application_id").map_err(database)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(database)?;
    if application != APPLICATION && (application != 0 || tables != 0) {
        return Err(OpenError::Foreign { file: file.to_owned() });
    }
    let finding: String = pragma(&connection, "quick_check(1)").map_err(database)?;
    if finding != "ok" {
        return Err(OpenError::Damaged {
            file: file.to_owned(),
            finding,
        });
    }
    let known = i64::try_from(STEPS.len()).expect("a handful of steps");
    let found = if tables == 0 {
        0
    } else {
        number(&connection, "schema").map_err(database)?
    };
    if found > known {
        return Err(OpenError::Newer {
            file: file.to_owned(),
            found,
            known,
        });
    }
    // What is deleted is overwritten: the sealed value of a destroyed version does not stay in a free page.
    // A power failure right after a commit must not lose it: FULL syncs the write-ahead log at each commit.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;")
        .map_err(database)?;
    migrate(&mut connection, found).map_err(database)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let done = usize::try_from(found).unwrap_or(0);
    for (step, sql) in STEPS.iter().enumerate().skip(done) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        let reached = i64::try_from(step + 1).expect("a handful of steps");
        transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'schema'", [reached])?;
        transaction.commit()?;
    }
    Ok(())
}

fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> rusqlite::Result<T> {
    connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
}

fn number(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    let found = connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(0))
}

/// Everything there is, at the version that is written down with it.
pub(crate) fn load(connection: &Connection, file: &Path) -> Result<Snapshot, OpenError> {
    let database = |source| OpenError::Database {
        file: file.to_owned(),
        source,
    };
    let version = number(connection, "version").map_err(database)?;
    let services: Vec<Arc<model::Service>> = bodies(connection, file, "service", "services")?;
    let revisions: Vec<Arc<model::Revision>> = bodies(connection, file, "revision", "revisions")?;
    let repositories: Vec<Arc<model::ArtifactRepository>> = bodies(connection, file, "repository", "repositories")?;
    let buckets: Vec<Arc<model::Bucket>> = bodies(connection, file, "bucket", "buckets")?;
    let builds: Vec<Arc<model::Build>> = bodies(connection, file, "build", "builds")?;
    let policies: Vec<Arc<model::ResourcePolicy>> = bodies(connection, file, "policy", "policies")?;
    let accounts: Vec<Arc<model::ServiceAccount>> = bodies(connection, file, "service account", "accounts")?;
    let groups: Vec<Arc<model::Group>> = bodies(connection, file, "group", "local_groups")?;
    let revoked: Vec<Arc<model::RevokedToken>> = bodies(connection, file, "revoked token", "revoked")?;
    let secrets: Vec<Arc<model::Secret>> = bodies(connection, file, "secret", "secrets")?;
    let secret_versions: Vec<Arc<model::SecretVersion>> =
        bodies(connection, file, "version of a secret", "secret_versions")?;
    Ok(Snapshot {
        version: version.unsigned_abs(),
        services: services
            .into_iter()
            .map(|service| (service.key.clone(), service))
            .collect::<BTreeMap<_, _>>(),
        revisions: revisions
            .into_iter()
            .map(|revision| (revision.key.clone(), revision))
            .collect::<BTreeMap<_, _>>(),
        repositories: repositories
            .into_iter()
            .map(|repository| (repository.key.clone(), repository))
            .collect(),
        buckets: buckets
            .into_iter()
            .map(|bucket| (bucket.name.clone(), bucket))
            .collect(),
        builds: builds.into_iter().map(|build| (build.id.clone(), build)).collect(),
        policies: policies
            .into_iter()
            .map(|held| (held.resource.clone(), Arc::new(held.policy.clone())))
            .collect(),
        accounts: accounts
            .into_iter()
            .map(|account| (account.email.clone(), account))
            .collect(),
        groups: Arc::new(groups.into_iter().map(|group| (group.email.clone(), group)).collect()),
        revoked: revoked
            .into_iter()
            .map(|token| (token.id.clone(), token.until))
            .collect(),
        secrets: secrets
            .into_iter()
            .map(|secret| (secret.name.clone(), secret))
            .collect(),
        secret_versions: secret_versions
            .into_iter()
            .map(|version| (version.key.clone(), version))
            .collect(),
    })
}

fn bodies<T: DeserializeOwned>(
    connection: &Connection,
    file: &Path,
    kind: &'static str,
    table: &str,
) -> Result<Vec<Arc<T>>, OpenError> {
    let database = |source| OpenError::Database {
        file: file.to_owned(),
        source,
    };
    let mut statement = connection
        .prepare(&format!("SELECT name, body FROM {table}"))
        .map_err(database)?;
    let mut rows = statement.query([]).map_err(database)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(database)? {
        let body = row.get_ref(1).map_err(database)?;
        let body = body.as_str().map_err(|source| database(source.into()))?;
        let value = serde_json::from_str(body).map_err(|source| OpenError::Content {
            file: file.to_owned(),
            kind,
            name: row.get(0).unwrap_or_default(),
            source,
        })?;
        found.push(Arc::new(value));
    }
    Ok(found)
}
