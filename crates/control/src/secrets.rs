//! Values of secrets for instances: read when one starts, and followed while it runs. A build reads by the same reader, once,
//! when it begins.
//!
//! A variable is what its version holds when the instance starts, and stays so. A file is always what its version holds
//! now: when another version becomes `latest`, or one is disabled or destroyed, every instance that has it gets the file
//! anew, or loses it. An instance that is parked has not started: when its variables would be others by now it goes, and
//! another one is parked in its place.
//!
//! What an instance was given is remembered as numbers of versions, never as values; of an instance that was taken over
//! from another server nothing is known, so that its files are written once more.

use std::{collections::BTreeMap, fmt};

use model::{
    InstanceId, InstanceState, Observed, Revealed, RevealedFile, RevealedVariable, Revision, RevisionKey, SecretName,
    SecretPlace, SecretRef, SecretUse, SecretValue, SecretVersion, Site, Timestamp, with_causes,
};
use secret::{Owner, Vault};
use store::Snapshot;

use crate::turn::Holds;

/// The versions behind the uses of a template, in their order. None: there is no value to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Numbers {
    variables: Vec<Option<u64>>,
    files: Vec<Option<u64>>,
}

/// Something that must follow a change of secrets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Write the files of an instance of that revision anew.
    Renew(InstanceId, RevisionKey),
    /// It is parked with variables of before.
    Stop(InstanceId),
}

/// What instances were given.
#[derive(Debug, Default)]
pub(crate) struct Given(BTreeMap<InstanceId, Numbers>);

fn uses(revision: &Revision) -> Vec<SecretUse> {
    if !revision.template.has_secrets() {
        return Vec::new();
    }
    revision
        .template
        .secret_uses(&revision.key.service.name, "spec.template")
}

fn numbers(uses: &[SecretUse], revision: &Revision, reader: &Reader<'_>) -> Numbers {
    let mut numbers = Numbers::default();
    for found in uses {
        let version = reader.version(revision, found);
        let number = version.ok().map(|version| version.key.number);
        match found.place {
            SecretPlace::Variable { .. } => numbers.variables.push(number),
            SecretPlace::File { .. } => numbers.files.push(number),
        }
    }
    numbers
}

impl Given {
    /// An instance is started, or parked, with what the snapshot has now.
    pub(crate) fn start(&mut self, id: &InstanceId, revision: &Revision, reader: &Reader<'_>) {
        let uses = uses(revision);
        if !uses.is_empty() {
            self.0.insert(id.clone(), numbers(&uses, revision, reader));
        }
    }

    /// What must follow the snapshot. Takes it as done.
    pub(crate) fn plan(&mut self, reader: &Reader<'_>, observed: &Observed) -> Vec<Follow> {
        self.0.retain(|id, _| observed.instances.contains_key(id));
        let mut due = Vec::new();
        for (id, instance) in &observed.instances {
            let of = reader.snapshot.revision(&instance.of);
            let Some(revision) = of.filter(|_| instance.state.is_alive()) else {
                continue;
            };
            let uses = uses(revision);
            if uses.is_empty() {
                continue;
            }
            let wanted = numbers(&uses, revision, reader);
            let had = self.0.insert(id.clone(), wanted.clone());
            let variables = had.as_ref().is_some_and(|had| had.variables == wanted.variables);
            let files = had.as_ref().is_some_and(|had| had.files == wanted.files);
            if instance.state == InstanceState::Parked && !variables && !wanted.variables.is_empty() {
                due.push(Follow::Stop(id.clone()));
            } else if !files && !wanted.files.is_empty() {
                due.push(Follow::Renew(id.clone(), instance.of.clone()));
            }
        }
        due
    }
}

/// The secrets whose time is over.
pub(crate) fn expired(snapshot: &Snapshot, now: Timestamp) -> Vec<SecretName> {
    let over = snapshot.secrets.values().filter(|secret| secret.is_expired(now));
    over.map(|secret| secret.name.clone()).collect()
}

/// When the next of them is.
pub(crate) fn next_expiry(snapshot: &Snapshot) -> Option<Timestamp> {
    snapshot.secrets.values().filter_map(|secret| secret.expires).min()
}

/// Opens values.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub vault: &'a Vault,
    pub site: &'a Site,
    pub holds: &'a Holds,
    pub snapshot: &'a Snapshot,
    pub now: Timestamp,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader<'_> {
    /// What an instance of the revision is given.
    ///
    /// # Errors
    /// Why a variable has no value, in Cloud Run's words and with its field. A file without one is not there.
    pub(crate) fn reveal(&self, revision: &Revision) -> Result<Revealed, String> {
        let mut revealed = Revealed::default();
        for found in uses(revision) {
            let value = self.open(revision, &found);
            match found.place {
                SecretPlace::Variable { container, name } => {
                    let field = &found.field;
                    let value = value.map_err(|why| format!("{field}: {why}"))?;
                    if value.as_variable().is_none() {
                        let of = found.of.path(self.site.number());
                        return Err(format!(
                            "{field}: Secret {of} is no text without zero bytes, which the variable {name} has to be: \
                             mount it as a file"
                        ));
                    }
                    revealed.variables.push(RevealedVariable { container, name, value });
                }
                SecretPlace::File { volume, path, mode } => {
                    if let Err(why) = &value {
                        tracing::warn!(revision = %revision.key, why, "a file of a secret is not there");
                    }
                    let value = value.ok();
                    revealed.files.push(RevealedFile {
                        volume,
                        path,
                        mode,
                        value,
                    });
                }
            }
        }
        Ok(revealed)
    }

    /// The files of an instance of the revision.
    pub(crate) fn files(&self, revision: &Revision) -> Vec<RevealedFile> {
        let mut files = Vec::new();
        for found in uses(revision) {
            if let SecretPlace::File { volume, path, mode } = &found.place {
                files.push(RevealedFile {
                    volume: *volume,
                    path: path.clone(),
                    mode: *mode,
                    value: self.open(revision, &found).ok(),
                });
            }
        }
        files
    }

    /// The version of a use, if the account of the revision may read it.
    fn version(&self, revision: &Revision, found: &SecretUse) -> Result<&SecretVersion, String> {
        self.version_for(
            &found.of,
            &revision.template.account(self.site),
            "Revision service account",
        )
    }

    /// The version of that name, if the account may read it, which is called `role` where it may not.
    fn version_for(&self, of: &SecretRef, account: &str, role: &str) -> Result<&SecretVersion, String> {
        let version = self.snapshot.readable_version(of, account, self.now, self.holds);
        version.map_err(|why| why.told(of, self.site.number(), &format!("{role} {account}")))
    }

    fn open(&self, revision: &Revision, found: &SecretUse) -> Result<SecretValue, String> {
        self.value(self.version(revision, found)?)
    }

    /// What a build is given, which runs as the default account: the number of the version, and its value.
    ///
    /// # Errors
    /// Why there is no value, in words for the client.
    pub fn for_build(&self, of: &SecretRef) -> Result<(u64, SecretValue), String> {
        let version = self.version_for(of, &self.site.default_account(), "Cloud Build service account")?;
        Ok((version.key.number, self.value(version)?))
    }

    fn value(&self, version: &SecretVersion) -> Result<SecretValue, String> {
        let sealed = version.state.sealed().ok_or("it has no value")?;
        let owner = Owner {
            project: &self.site.project,
            version: &version.key,
        };
        self.vault.open_value(owner, sealed).map_err(|error| {
            tracing::error!(error = with_causes(&error), "a value does not open");
            error.to_string()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::{
        Binding, EnvValue, EnvVar, Instance, Member, Policy, Replication, Resource, Role, SealedValue, Secret,
        SecretItem, SecretRef, SecretVersionKey, SecretVersionState, ServiceAccount, VersionRef, Volume, VolumeSource,
    };

    use super::*;
    use crate::turn::cases::{revision, service, site, snapshot};

    const NOW: Timestamp = Timestamp::from_micros(100);

    fn name() -> SecretName {
        "db-password".parse().expect("a name")
    }

    /// A revision with `latest` as a variable, as a file, or both.
    fn using(variable: bool, file: bool) -> Revision {
        let mut revision = revision(&service("my-api", 1), 1);
        if variable {
            revision.template.container.env.push(EnvVar {
                name: "DB_PASSWORD".to_owned(),
                value: EnvValue::Secret(SecretRef {
                    secret: name(),
                    version: VersionRef::Latest,
                }),
            });
        }
        if file {
            revision.template.volumes.push(Volume {
                name: "keys".to_owned(),
                source: VolumeSource::Secret {
                    secret: name(),
                    items: vec![SecretItem {
                        version: VersionRef::Latest,
                        path: "key".to_owned(),
                        mode: None,
                    }],
                    mode: Some(0o400),
                },
            });
        }
        revision
    }

    /// What values are read with.
    struct At {
        _dir: tempfile::TempDir,
        vault: Vault,
        site: Site,
        holds: Holds,
    }

    impl At {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            Self {
                vault: Vault::open(dir.path(), None).expect("opens"),
                _dir: dir,
                site: site(),
                holds: Box::new(|_, _| false),
            }
        }

        fn reader<'a>(&'a self, snapshot: &'a Snapshot) -> Reader<'a> {
            Reader {
                vault: &self.vault,
                site: &self.site,
                holds: &self.holds,
                snapshot,
                now: NOW,
            }
        }
    }

    /// The revision, and a secret with versions of these states that the default account may read.
    fn world(revision: &Revision, versions: Vec<SecretVersionState>) -> Snapshot {
        let mut world = snapshot(&[service("my-api", 1)], std::slice::from_ref(revision));
        let mut secret = Secret::new(name(), Replication::Automatic, Timestamp::from_micros(1));
        secret.made = versions.len() as u64;
        for (number, state) in (1..).zip(versions) {
            let key = SecretVersionKey { secret: name(), number };
            let version = SecretVersion {
                key: key.clone(),
                created: Timestamp::from_micros(1),
                state,
                checked: true,
                changes: 1,
            };
            world.secret_versions.insert(key, Arc::new(version));
        }
        world.secrets.insert(name(), Arc::new(secret));
        let email = site().default_account();
        let account = ServiceAccount {
            email: email.clone(),
            unique_id: "1".to_owned(),
            display_name: String::new(),
            description: String::new(),
            disabled: false,
            created: Timestamp::from_micros(1),
            version: 1,
            keys: Vec::new(),
            managed: None,
        };
        world.accounts.insert(email.clone(), Arc::new(account));
        let policy = Policy {
            bindings: vec![Binding {
                role: Role::parse("roles/secretmanager.secretAccessor").expect("a role"),
                members: vec![Member::ServiceAccount(email)],
                condition: None,
            }],
            version: 1,
        };
        world.policies.insert(Resource::Secret(name()), Arc::new(policy));
        world
    }

    fn enabled() -> SecretVersionState {
        SecretVersionState::Enabled(SealedValue {
            key: "k".to_owned(),
            data_key: String::new(),
            value: String::new(),
        })
    }

    fn seen(revision: &Revision, state: InstanceState) -> (InstanceId, Observed) {
        let id = InstanceId::new([1; 12]);
        let instance = Instance {
            of: revision.key.clone(),
            state,
            since: NOW,
            created: NOW,
        };
        let observed = Observed {
            instances: [(id.clone(), instance)].into(),
        };
        (id, observed)
    }

    #[test]
    fn files_follow_and_variables_stay() {
        let at = At::new();
        let destroyed = || SecretVersionState::Destroyed { at: NOW };
        for (variable, file, renewed) in [(true, false, false), (false, true, true), (true, true, true)] {
            let revision = using(variable, file);
            let (id, observed) = seen(&revision, InstanceState::Ready);
            let renew = || vec![Follow::Renew(id.clone(), revision.key.clone())];
            let expected = if renewed { renew() } else { Vec::new() };
            let mut given = Given::default();
            let one = world(&revision, vec![enabled()]);
            given.start(&id, &revision, &at.reader(&one));
            assert!(
                given.plan(&at.reader(&one), &observed).is_empty(),
                "nothing has changed"
            );
            let two = world(&revision, vec![enabled(), enabled()]);
            assert_eq!(given.plan(&at.reader(&two), &observed), expected, "a newer one");
            assert!(given.plan(&at.reader(&two), &observed).is_empty(), "it was done");
            let gone = world(&revision, vec![enabled(), destroyed()]);
            assert_eq!(
                given.plan(&at.reader(&gone), &observed),
                expected,
                "the newest is destroyed"
            );
            let (_, stopping) = seen(&revision, InstanceState::Stopping);
            assert_eq!(given.plan(&at.reader(&two), &stopping), expected, "it still runs");
        }
    }

    #[test]
    fn a_parked_one_with_variables_of_before_goes() {
        let at = At::new();
        let revision = using(true, true);
        let (id, observed) = seen(&revision, InstanceState::Parked);
        let mut given = Given::default();
        given.start(&id, &revision, &at.reader(&world(&revision, vec![enabled()])));
        let two = world(&revision, vec![enabled(), enabled()]);
        assert_eq!(given.plan(&at.reader(&two), &observed), [Follow::Stop(id)]);
    }

    #[test]
    fn of_an_instance_of_another_server_nothing_is_known() {
        let at = At::new();
        let revision = using(true, true);
        let world = world(&revision, vec![enabled()]);
        let (id, ready) = seen(&revision, InstanceState::Ready);
        let expected = [Follow::Renew(id.clone(), revision.key.clone())];
        assert_eq!(Given::default().plan(&at.reader(&world), &ready), expected);
        let (_, parked) = seen(&revision, InstanceState::Parked);
        assert_eq!(Given::default().plan(&at.reader(&world), &parked), [Follow::Stop(id)]);
        let (_, unused) = seen(&using(false, false), InstanceState::Ready);
        let plain = snapshot(&[service("my-api", 1)], &[using(false, false)]);
        assert!(Given::default().plan(&at.reader(&plain), &unused).is_empty());
    }

    #[test]
    fn what_is_given_at_a_start() {
        let at = At::new();
        let key = SecretVersionKey {
            secret: name(),
            number: 1,
        };
        let sealed = |bytes: &[u8]| {
            let owner = Owner {
                project: &at.site.project,
                version: &key,
            };
            at.vault.seal(owner, &SecretValue::new(bytes.to_vec()))
        };
        let reveal = |revision: &Revision, versions: Vec<SecretVersionState>| {
            at.reader(&world(revision, versions)).reveal(revision)
        };
        let both = using(true, true);
        let given = reveal(&both, vec![SecretVersionState::Enabled(sealed(b"hunter2"))]).expect("given");
        assert_eq!(given.variables.len(), 1);
        let variable = &given.variables[0];
        assert_eq!(
            (variable.name.as_str(), variable.value.as_variable()),
            ("DB_PASSWORD", Some("hunter2"))
        );
        let file = &given.files[0];
        assert_eq!((file.path.as_str(), file.mode), ("key", 0o400));
        assert_eq!(file.value.as_ref().map(SecretValue::as_bytes), Some(&b"hunter2"[..]));
        assert!(!format!("{given:?}").contains("hunter2"), "{given:?}");

        for (versions, why) in [
            (vec![], "was not found"),
            (vec![SecretVersionState::Disabled(sealed(b"x"))], "is in DISABLED state"),
            (vec![SecretVersionState::Destroyed { at: NOW }], "is in DESTROYED state"),
            (vec![SecretVersionState::Enabled(sealed(b"a\0b"))], "is no text"),
            (vec![enabled()], "the key k"),
        ] {
            let refused = reveal(&using(true, false), versions.clone()).expect_err(why);
            assert!(
                refused.starts_with("spec.template.spec.containers[0].env[0].value_from.secret_key_ref.name: ")
                    && refused.contains(why),
                "{refused}"
            );
            let files = reveal(&using(false, true), versions)
                .expect("nothing is asked of files")
                .files;
            assert_eq!(files[0].value.is_some(), why == "is no text");
        }
    }

    #[test]
    fn an_account_without_the_role_reads_nothing() {
        let at = At::new();
        let both = using(true, true);
        let (id, observed) = seen(&both, InstanceState::Ready);
        let granted = world(&both, vec![enabled()]);
        let mut taken = granted.clone();
        taken.policies.clear();
        let refused = at.reader(&taken).reveal(&both).expect_err("no role");
        let account = at.site.default_account();
        assert!(
            refused.contains("Permission denied on secret: projects/") && refused.contains(&account),
            "{refused}"
        );
        // Its files go when the role does, and are back with it.
        let mut given = Given::default();
        given.start(&id, &both, &at.reader(&granted));
        let renew = || [Follow::Renew(id.clone(), both.key.clone())];
        assert_eq!(given.plan(&at.reader(&taken), &observed), renew());
        assert_eq!(given.plan(&at.reader(&granted), &observed), renew());
        assert!(at.reader(&taken).files(&both)[0].value.is_none());
        // An account that is off, or another of its name that nobody granted anything.
        let mut off = granted.clone();
        let mut account_off = off.accounts[&account].as_ref().clone();
        account_off.disabled = true;
        off.accounts.insert(account, Arc::new(account_off));
        assert!(at.reader(&off).reveal(&both).is_err());
        assert!(at.reader(&granted).version(&both, &uses(&both)[0]).is_ok());
    }

    #[test]
    fn a_time_that_is_over() {
        let revision = using(false, false);
        let mut world = world(&revision, vec![enabled()]);
        assert_eq!((expired(&world, NOW), next_expiry(&world)), (vec![], None));
        let mut secret = world.secrets[&name()].as_ref().clone();
        secret.expires = Some(NOW);
        world.secrets.insert(name(), Arc::new(secret));
        assert_eq!((expired(&world, NOW), next_expiry(&world)), (vec![name()], Some(NOW)));
        assert!(expired(&world, Timestamp::from_micros(99)).is_empty());
        let of = SecretRef {
            secret: name(),
            version: VersionRef::Latest,
        };
        assert!(world.enabled_version(&of, NOW).is_err());
    }
}
