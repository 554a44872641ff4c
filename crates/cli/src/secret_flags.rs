//! The flags that give secrets to a container: `--set-secrets`, `--update-secrets`, `--remove-secrets`,
//! `--clear-secrets`.
//!
//! A key that begins with `/` is a file, any other a variable. As in `template`, the flags are carried into the document
//! in gcloud's fields: a directory of files is a mount of a volume of one secret.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::change::object;
use crate::flag;
use crate::settings::OfContainer;
use crate::template::{container, container_named, object_of};

/// What the flags of one container ask for.
struct Asked {
    /// Name or path, secret, version.
    updates: Vec<(String, String, String)>,
    removes: Vec<String>,
    clear: bool,
}

fn is_path(key: &str) -> bool {
    key.starts_with('/')
}

fn failed<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Failed(why.into()))
}

impl Asked {
    fn of(flags: &OfContainer) -> Result<Option<Self>, Error> {
        let mut given = flag::joined(&flags.set_secrets);
        given.extend(flag::joined(&flags.update_secrets));
        let mut updates = Vec::new();
        for (key, value) in given {
            let (key, value) = (key.trim().to_owned(), value.trim());
            if is_path(&key) {
                check_path(&key)?;
            }
            if value.starts_with("projects/") {
                return failed(format!(
                    "secrets of other projects are not served by Homerun: name the secret of {key} as SECRET:VERSION"
                ));
            }
            let Some((secret, version)) = value.split_once(':') else {
                return failed(format!(
                    "No secret version specified for {key}. Use {key}:latest to reference the latest version."
                ));
            };
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            if secret.is_empty() || secret.len() > 255 || !secret.bytes().all(plain) {
                return failed(format!("'{secret}' is not a valid secret name."));
            }
            updates.push((key, secret.to_owned(), version.to_owned()));
        }
        let removes: Vec<String> = flag::listed(&flags.remove_secrets)
            .iter()
            .map(|key| key.trim().to_owned())
            .collect();
        let clear = flags.clear_secrets || !flags.set_secrets.is_empty();
        let any = clear || !updates.is_empty() || !removes.is_empty();
        Ok(any.then_some(Self {
            updates,
            removes,
            clear,
        }))
    }
}

fn check_path(path: &str) -> Result<(), Error> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    if parts.len() < 2 || parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return failed(format!("Mount path [{path}] must be in the form /<mountPath>/<path>"));
    }
    Ok(())
}

/// Carries the flags of one container, of that name or of the one that takes requests, into the document.
pub(crate) fn apply(service: &mut Value, name: Option<&str>, flags: &OfContainer) -> Result<bool, Error> {
    let Some(asked) = Asked::of(flags)? else {
        return Ok(false);
    };
    let find = |service: &mut Value| -> Result<String, Error> {
        let container = match name {
            Some(name) => container_named(service, name)?,
            None => container(service)?,
        };
        variables(object_of(container)?, &asked)?;
        // One that has no name yet is told from the others by having none.
        Ok(container["name"].as_str().unwrap_or_default().to_owned())
    };
    let name = find(service)?;
    files(service, &name, &asked)?;
    Ok(true)
}

fn is_secret(variable: &Value) -> bool {
    variable
        .pointer("/valueFrom/secretKeyRef")
        .is_some_and(|of| !of.is_null())
}

fn variables(container: &mut Map<String, Value>, asked: &Asked) -> Result<(), Error> {
    let mut variables = match container.remove("env") {
        Some(Value::Array(variables)) => variables,
        Some(_) | None => Vec::new(),
    };
    variables.retain(|variable| {
        let removed = asked.removes.iter().any(|name| variable["name"] == name.as_str());
        !is_secret(variable) || !(asked.clear || removed)
    });
    for (key, secret, version) in asked.updates.iter().filter(|(key, ..)| !is_path(key)) {
        let source = json!({ "secretKeyRef": { "name": secret, "key": version } });
        match variables.iter_mut().find(|variable| variable["name"] == key.as_str()) {
            Some(variable) if is_secret(variable) => variable["valueFrom"] = source,
            Some(_) => {
                return failed(format!(
                    "Cannot update environment variable [{key}] to the given type because it has already been set \
                     with a different type."
                ));
            }
            None => variables.push(json!({ "name": key, "valueFrom": source })),
        }
    }
    if !variables.is_empty() {
        container.insert("env".to_owned(), Value::Array(variables));
    }
    Ok(())
}

/// The volumes and mounts of a template, taken out of the document while they are changed.
struct Mounts {
    volumes: Vec<Value>,
    /// Of each container, in order.
    of_containers: Vec<Vec<Value>>,
    /// The container that is changed.
    own: usize,
}

fn items_of(fields: &mut Map<String, Value>, key: &str) -> Vec<Value> {
    match fields.remove(key) {
        Some(Value::Array(items)) => items,
        Some(_) | None => Vec::new(),
    }
}

fn files(service: &mut Value, name: &str, asked: &Asked) -> Result<(), Error> {
    let spec = object(service, &["spec", "template", "spec"])?;
    let volumes = items_of(spec, "volumes");
    let Some(Value::Array(containers)) = spec.get_mut("containers") else {
        return Ok(());
    };
    let named = |container: &Value| container["name"].as_str().unwrap_or_default() == name;
    let own = containers.iter().position(named).unwrap_or(0);
    let mounts = containers.iter_mut().map(|container| match container.as_object_mut() {
        Some(fields) => items_of(fields, "volumeMounts"),
        None => Vec::new(),
    });
    let mut all = Mounts {
        of_containers: mounts.collect(),
        volumes,
        own,
    };
    all.change(asked)?;
    for (container, mounts) in containers.iter_mut().zip(all.of_containers) {
        if !mounts.is_empty() {
            container["volumeMounts"] = Value::Array(mounts);
        }
    }
    if !all.volumes.is_empty() {
        spec.insert("volumes".to_owned(), Value::Array(all.volumes));
    }
    Ok(())
}

/// A directory with the files that are put into it, all of one secret.
struct Directory<'a> {
    path: &'a str,
    secret: &'a str,
    /// Name and version.
    files: Vec<(&'a str, &'a str)>,
}

impl Mounts {
    fn change(&mut self, asked: &Asked) -> Result<(), Error> {
        if asked.clear {
            let secrets = self.secret_names();
            self.of_containers[self.own].retain(|mount| !secrets.contains(mount["name"].as_str().unwrap_or_default()));
        }
        for path in asked.removes.iter().filter(|key| is_path(key)) {
            self.remove(path);
        }
        for directory in directories(asked)? {
            self.put(&directory)?;
        }
        let used: BTreeSet<String> = self.of_containers.iter().flatten().filter_map(name_of).collect();
        let is_used = |volume: &Value| name_of(volume).is_some_and(|name| used.contains(&name));
        self.volumes
            .retain(|volume| volume["secret"].is_null() || is_used(volume));
        Ok(())
    }

    fn secret_names(&self) -> BTreeSet<String> {
        let secrets = self.volumes.iter().filter(|volume| !volume["secret"].is_null());
        secrets.filter_map(name_of).collect()
    }

    fn mount_at(&self, path: &str) -> Option<usize> {
        let plain = |mount: &Value| mount["mountPath"].as_str().unwrap_or_default().trim_end_matches('/') == path;
        self.of_containers[self.own].iter().position(plain)
    }

    /// The secret's volume of a mount of the own container, for it alone: one that others use too is copied. None: it is
    /// of another kind.
    fn volume_of(&mut self, mount: usize) -> Option<usize> {
        let name = name_of(&self.of_containers[self.own][mount])?;
        let at = self.volumes.iter().position(|volume| volume["name"] == name.as_str())?;
        if self.volumes[at]["secret"].is_null() {
            return None;
        }
        let uses = self
            .of_containers
            .iter()
            .flatten()
            .filter(|mount| mount["name"] == name.as_str());
        if uses.count() < 2 {
            return Some(at);
        }
        let mut copy = self.volumes[at].clone();
        let fresh = self.fresh_name();
        copy["name"] = json!(fresh);
        self.of_containers[self.own][mount]["name"] = json!(fresh);
        self.volumes.push(copy);
        Some(self.volumes.len() - 1)
    }

    fn fresh_name(&self) -> String {
        let taken = |name: &String| self.volumes.iter().any(|volume| volume["name"] == name.as_str());
        let mut names = (1..).map(|number| format!("secret-{number}"));
        names
            .find(|name| !taken(name))
            .expect("there are more numbers than volumes")
    }

    fn remove(&mut self, path: &str) {
        let Some((directory, file)) = path.rsplit_once('/') else {
            return;
        };
        let Some(mount) = self.mount_at(directory) else { return };
        let Some(volume) = self.volume_of(mount) else { return };
        let mut left = files_of(&self.volumes[volume]["secret"]);
        left.retain(|item| item["path"] != file);
        if left.is_empty() {
            self.of_containers[self.own].remove(mount);
        } else {
            self.volumes[volume]["secret"]["items"] = Value::Array(left);
        }
    }

    fn put(&mut self, directory: &Directory<'_>) -> Result<(), Error> {
        let path = directory.path;
        let mut items: Vec<Value> = directory
            .files
            .iter()
            .map(|(file, version)| json!({ "key": version, "path": file }))
            .collect();
        let Some(mount) = self.mount_at(path) else {
            let name = self.fresh_name();
            self.volumes
                .push(json!({ "name": name, "secret": { "secretName": directory.secret, "items": items } }));
            self.of_containers[self.own].push(json!({ "name": name, "mountPath": path }));
            return Ok(());
        };
        let Some(volume) = self.volume_of(mount) else {
            return failed(format!(
                "Cannot update mount [{path}] because its mounted volume is of a different source type."
            ));
        };
        let source = &mut self.volumes[volume]["secret"];
        let before = files_of(source);
        let others = before.into_iter().filter(|item| {
            let same = |(file, _): &(&str, &str)| item["path"] == *file;
            !directory.files.iter().any(same)
        });
        let others: Vec<Value> = others.collect();
        if source["secretName"] != directory.secret && !others.is_empty() {
            return failed(format!(
                "Multiple secrets are specified for directory [{path}]. Cloud Run only supports one secret per directory"
            ));
        }
        items.extend(others);
        source["secretName"] = json!(directory.secret);
        source["items"] = Value::Array(items);
        Ok(())
    }
}

fn name_of(named: &Value) -> Option<String> {
    named["name"].as_str().map(str::to_owned)
}

/// The files of a secret's volume, also where it does not list them.
fn files_of(source: &Value) -> Vec<Value> {
    match source["items"].as_array() {
        Some(items) if !items.is_empty() => items.clone(),
        _ => vec![json!({ "key": "latest", "path": source["secretName"] })],
    }
}

fn directories(asked: &Asked) -> Result<Vec<Directory<'_>>, Error> {
    let mut directories: Vec<Directory<'_>> = Vec::new();
    for (key, secret, version) in asked.updates.iter().filter(|(key, ..)| is_path(key)) {
        let (path, file) = key.rsplit_once('/').unwrap_or(("", key));
        match directories.iter_mut().find(|known| known.path == path) {
            Some(known) if known.secret == secret => known.files.push((file, version)),
            Some(_) => {
                return failed(format!(
                    "Cannot update secret at [{key}] because a different secret is already mounted in the same \
                     directory."
                ));
            }
            None => directories.push(Directory {
                path,
                secret,
                files: vec![(file, version)],
            }),
        }
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flag::{List, pairs};

    /// A service with a literal, a secret variable, a secret file and a volume in memory.
    fn existing() -> Value {
        json!({"spec": {"template": {"spec": {
            "containers": [
                {
                    "name": "app",
                    "ports": [{"containerPort": 8080}],
                    "env": [
                        {"name": "A", "value": "1"},
                        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "1"}}},
                    ],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "k", "mountPath": "/keys"}],
                },
                {"name": "side", "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            ],
            "volumes": [
                {"name": "v", "emptyDir": {"medium": "Memory"}},
                {"name": "k", "secret": {"secretName": "s", "items": [{"key": "1", "path": "one"}]}},
            ],
        }}}})
    }

    fn flags(set: &str, update: &str, remove: &str, clear: bool) -> OfContainer {
        let map = |text: &str| {
            if text.is_empty() {
                Vec::new()
            } else {
                vec![pairs(text).expect(text)]
            }
        };
        let mut flags = OfContainer::of_words(&[]);
        flags.set_secrets = map(set);
        flags.update_secrets = map(update);
        flags.remove_secrets = if remove.is_empty() {
            Vec::new()
        } else {
            vec![List::from(remove.to_owned())]
        };
        flags.clear_secrets = clear;
        flags
    }

    fn changed(flags: &OfContainer) -> Result<(Value, Value, Value), String> {
        let mut service = existing();
        apply(&mut service, None, flags).map_err(|error| error.to_string())?;
        let spec = &service["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        assert_eq!(
            spec["containers"][1],
            existing()["spec"]["template"]["spec"]["containers"][1]
        );
        Ok((
            container["env"].clone(),
            container["volumeMounts"].clone(),
            spec["volumes"].clone(),
        ))
    }

    fn variable(name: &str, secret: &str, version: &str) -> Value {
        json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": version}}})
    }

    #[test]
    fn variables_of_secrets() {
        let literal = json!({"name": "A", "value": "1"});
        let env = |flags: OfContainer| changed(&flags).expect("applies").0;
        assert_eq!(
            env(flags("", "S=t:latest,N=u:2", "", false)),
            json!([literal, variable("S", "t", "latest"), variable("N", "u", "2")])
        );
        assert_eq!(
            env(flags("N=u:2", "", "", false)),
            json!([literal, variable("N", "u", "2")])
        );
        assert_eq!(
            env(flags("", "", "S,A", false)),
            json!([literal]),
            "a literal is no secret"
        );
        assert_eq!(env(flags("", "", "", true)), json!([literal]));
        for (set, why) in [
            ("A=u:2", "[A] to the given type"),
            ("N=u", "No secret version specified for N. Use N:latest"),
            ("N=projects/1/secrets/s:1", "not served"),
            ("N=a/b:1", "not a valid secret name"),
        ] {
            let refused = changed(&flags("", set, "", false)).expect_err(set);
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn files_of_secrets() {
        let memory = json!({"name": "v", "emptyDir": {"medium": "Memory"}});
        let at_v = json!({"name": "v", "mountPath": "/v"});
        let parts = |flags: OfContainer| {
            let (_, mounts, volumes) = changed(&flags).expect("applies");
            (mounts, volumes)
        };
        let keys = |secret: &str, items: Value| {
            (
                json!([at_v, {"name": "k", "mountPath": "/keys"}]),
                json!([memory, {"name": "k", "secret": {"secretName": secret, "items": items}}]),
            )
        };
        assert_eq!(
            parts(flags("", "/keys/two=s:latest", "", false)),
            keys(
                "s",
                json!([{"key": "latest", "path": "two"}, {"key": "1", "path": "one"}])
            )
        );
        assert_eq!(
            parts(flags("", "/keys/one=t:3", "", false)),
            keys("t", json!([{"key": "3", "path": "one"}]))
        );
        let gone = (json!([at_v]), json!([memory]));
        assert_eq!(parts(flags("", "", "/keys/one", false)), gone);
        assert_eq!(parts(flags("", "", "", true)), gone);
        let kept = keys("s", json!([{"key": "1", "path": "one"}]));
        assert_eq!(
            parts(flags("", "", "/v/one,/keys/other", false)),
            kept,
            "nothing of that name"
        );
        assert_eq!(
            parts(flags("/new/d=t:1,/new/e=t:2", "", "", false)),
            (
                json!([at_v, {"name": "secret-1", "mountPath": "/new"}]),
                json!([memory, {"name": "secret-1", "secret": {"secretName": "t", "items": [
                    {"key": "1", "path": "d"}, {"key": "2", "path": "e"},
                ]}}])
            )
        );
        for (set, why) in [
            ("/keys/two=t:1", "one secret per directory"),
            ("/n/a=s:1,/n/b=t:1", "[/n/b]"),
            ("/v/a=s:1", "different source type"),
            ("/a=s:1", "must be in the form"),
            ("/a/../b=s:1", "must be in the form"),
        ] {
            let refused = changed(&flags("", set, "", false)).expect_err(set);
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_volume_that_another_container_has_too_is_copied() {
        let mut service = existing();
        let spec = &mut service["spec"]["template"]["spec"];
        spec["containers"][1]["volumeMounts"] = json!([{"name": "k", "mountPath": "/keys"}]);
        apply(&mut service, Some("app"), &flags("", "/keys/two=s:2", "", false)).expect("applies");
        let spec = &service["spec"]["template"]["spec"];
        assert_eq!(spec["containers"][0]["volumeMounts"][1]["name"], "secret-1");
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "k");
        assert_eq!(
            spec["volumes"][1]["secret"]["items"],
            json!([{"key": "1", "path": "one"}])
        );
        let both = json!([{"key": "2", "path": "two"}, {"key": "1", "path": "one"}]);
        assert_eq!(spec["volumes"][2]["secret"]["items"], both);
    }
}
