//! Volumes: storage that the containers of one instance share, and where they find it.

use serde::{Deserialize, Serialize};

use crate::{Memory, SecretName, VersionRef, Violation};

/// Storage that the containers of one instance share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// `emptyDir` with medium `Memory`: empty at the instance's start, gone with it, counted as its memory. None: as
    /// large as the memory of all containers.
    Memory { size_limit: Option<Memory> },
    /// Versions of one secret as files, to be read only. A file holds what its version holds now.
    Secret {
        secret: SecretName,
        /// None given: one file named after the secret, which holds the newest version.
        items: Vec<SecretItem>,
        /// Of files that give no mode of their own, before nobody may write them.
        mode: Option<u32>,
    },
}

/// One file of a secret's volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretItem {
    pub version: VersionRef,
    /// Below the volume.
    pub path: String,
    pub mode: Option<u32>,
}

/// Most files of one secret's volume.
const MOST_ITEMS: usize = 100;

/// Where a container finds a volume of its template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Absolute; not `/`, nor below `/dev`, `/proc` or `/sys`.
    pub path: String,
}

/// A DNS label (RFC 1123), as names of containers and volumes must be.
pub fn is_dns_label(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 63
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
        && text.bytes().all(|b| plain(b) || b == b'-')
}

/// Every rule that the volumes of a template break by themselves, with `path` (such as `spec.template.spec.volumes`) in
/// front of the fields.
pub(crate) fn volume_violations(volumes: &[Volume], path: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, volume) in volumes.iter().enumerate() {
        let name = volume.name.as_str();
        let mut say = |description: String| found.push(Violation::new(format!("{path}[{index}].name"), description));
        if !is_dns_label(name) {
            say(format!(
                "\"{}\" is no name of a volume: lowercase letters, digits and hyphens, no hyphen first or last, and at \
                 most 63 characters",
                name.chars().take(80).collect::<String>()
            ));
        } else if name == "cloudsql" {
            say("cloudsql is reserved for Cloud SQL".to_owned());
        } else if volumes[..index].iter().any(|other| other.name == name) {
            say(format!("{name} is the name of another volume too"));
        }
        match &volume.source {
            VolumeSource::Memory { size_limit } => {
                if size_limit.as_ref().is_some_and(|limit| limit.bytes() == 0) {
                    found.push(Violation::new(
                        format!("{path}[{index}].emptyDir.sizeLimit"),
                        "0 is out of range: more than 0 bytes",
                    ));
                }
            }
            VolumeSource::Secret { items, mode, .. } => {
                secret_violations(items, *mode, &format!("{path}[{index}].secret"), &mut found);
            }
        }
    }
    found
}

fn secret_violations(items: &[SecretItem], mode: Option<u32>, path: &str, found: &mut Vec<Violation>) {
    let wrong_mode = |mode: Option<u32>| {
        let mode = mode.filter(|mode| *mode > 0o777)?;
        Some(format!("{mode} is out of range: 0 to 511 (0777)"))
    };
    if let Some(why) = wrong_mode(mode) {
        found.push(Violation::new(format!("{path}.defaultMode"), why));
    }
    if items.len() > MOST_ITEMS {
        let why = format!("{} files are too many: at most {MOST_ITEMS}", items.len());
        found.push(Violation::new(format!("{path}.items"), why));
    }
    for (index, item) in items.iter().enumerate() {
        if let Some(why) = wrong_mode(item.mode) {
            found.push(Violation::new(format!("{path}.items[{index}].mode"), why));
        }
        let shown = item.path.chars().take(80).collect::<String>();
        let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains('\0');
        let why = if item.path.len() > 4095 || !item.path.split('/').all(plain) {
            Some("is no path of a file: relative, without '.', '..' and empty parts")
        } else {
            let clash = |other: &SecretItem| within(&other.path, &item.path) || within(&item.path, &other.path);
            let clashes = items[..index].iter().any(clash);
            clashes.then_some("is the path of another file too, or lies in one")
        };
        if let Some(why) = why {
            found.push(Violation::new(
                format!("{path}.items[{index}].path"),
                format!("\"{shown}\" {why}"),
            ));
        }
    }
}

/// Every rule that the mounts of one container break, with `path` (such as `...containers[0].volumeMounts`) in front.
pub(crate) fn mount_violations(mounts: &[VolumeMount], volumes: &[Volume], path: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        if !volumes.iter().any(|volume| volume.name == mount.volume) {
            found.push(Violation::new(
                format!("{path}[{index}].name"),
                format!(
                    "\"{}\" is no volume of this template",
                    mount.volume.chars().take(80).collect::<String>()
                ),
            ));
        }
        if let Some(why) = broken_path(&mount.path, &mounts[..index]) {
            found.push(Violation::new(
                format!("{path}[{index}].mountPath"),
                format!("\"{}\" {why}", mount.path.chars().take(80).collect::<String>()),
            ));
        }
    }
    found
}

/// Where no volume may lie: what the container's kernel interfaces and its log socket need.
const KEPT_FREE: [&str; 3] = ["/dev", "/proc", "/sys"];

fn broken_path(path: &str, before: &[VolumeMount]) -> Option<String> {
    if !path.starts_with('/') || path.contains(['\0', ':']) || path.len() > 4095 {
        return Some("is no path to mount at: absolute, without ':', and at most 4095 bytes".to_owned());
    }
    let plain = trimmed(path);
    if plain.is_empty() {
        return Some("is the root of the container: mount below it".to_owned());
    }
    if plain[1..].split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Some("has a part that is empty, '.' or '..': write the path plainly".to_owned());
    }
    if let Some(kept) = KEPT_FREE.iter().find(|kept| within(plain, kept)) {
        return Some(format!("lies in {kept}, where nothing can be mounted"));
    }
    before.iter().map(|other| trimmed(&other.path)).find_map(|other| {
        if other == plain {
            Some("is the path of another mount of this container too".to_owned())
        } else if within(plain, other) || within(other, plain) {
            Some(format!(
                "and {other} lie in one another: nested mounts are not supported"
            ))
        } else {
            None
        }
    })
}

fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// Whether `path` is `parent` or lies below it.
fn within(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, limit: Option<&str>) -> Volume {
        Volume {
            name: name.to_owned(),
            source: VolumeSource::Memory {
                size_limit: limit.map(|limit| Memory::parse(limit).expect(limit)),
            },
        }
    }

    fn mounts(paths: &[&str]) -> Vec<String> {
        let mounts: Vec<VolumeMount> = paths
            .iter()
            .map(|path| VolumeMount {
                volume: "v".to_owned(),
                path: (*path).to_owned(),
            })
            .collect();
        mount_violations(&mounts, &[volume("v", None)], "m")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn names_of_volumes() {
        let volumes = [
            volume("good", Some("64Mi")),
            volume("good", None),
            volume("cloudsql", None),
            volume("Bad", None),
            volume("", None),
        ];
        let found = volume_violations(&volumes, "v");
        let fields: Vec<&str> = found.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(
            fields,
            ["v[1].name", "v[2].name", "v[3].name", "v[4].name"],
            "{found:?}"
        );
    }

    #[test]
    fn files_of_secrets() {
        let item = |path: &str, mode: Option<u32>| SecretItem {
            version: VersionRef::Latest,
            path: path.to_owned(),
            mode,
        };
        let fields = |items: &[SecretItem], mode: Option<u32>| -> Vec<String> {
            let mut found = Vec::new();
            secret_violations(items, mode, "s", &mut found);
            found.into_iter().map(|violation| violation.field).collect()
        };
        let good = [item("a", Some(0o400)), item("b/c", None), item("b/d", Some(0o777))];
        assert!(fields(&good, Some(0)).is_empty());
        assert_eq!(
            fields(&[item("a", Some(0o1000))], Some(512)),
            ["s.defaultMode", "s.items[0].mode"]
        );
        for bad in ["", "/a", "a/", "../a", "a/./b", "a//b"] {
            assert_eq!(fields(&[item(bad, None)], None), ["s.items[0].path"], "{bad}");
        }
        for clash in ["a", "a/b"] {
            assert_eq!(
                fields(&[item("a", None), item(clash, None)], None),
                ["s.items[1].path"],
                "{clash}"
            );
        }
        let many = vec![item("a", None); MOST_ITEMS + 1];
        assert_eq!(fields(&many, None)[0], "s.items");
    }

    #[test]
    fn places_of_mounts() {
        for good in [
            &["/data"][..],
            &["/data", "/database"],
            &["/var/log"],
            &["/device/x", "/system"],
            &["/a/b/", "/a/c"],
        ] {
            assert!(mounts(good).is_empty(), "{good:?}: {:?}", mounts(good));
        }
        for (paths, why) in [
            (&["data"][..], "absolute"),
            (&[""], "absolute"),
            (&["/a:b"], "':'"),
            (&["/"], "root"),
            (&["//"], "root"),
            (&["/a/../dev"], "'..'"),
            (&["/./a"], "'.'"),
            (&["//dev"], "empty"),
            (&["/a//b"], "empty"),
            (&["/dev"], "/dev"),
            (&["/dev/log"], "/dev"),
            (&["/proc/"], "/proc"),
            (&["/sys/fs"], "/sys"),
            (&["/a", "/a/"], "another mount"),
            (&["/a", "/a/b"], "nested"),
            (&["/a/b", "/a"], "nested"),
        ] {
            let found = mounts(paths);
            assert_eq!(found.len(), 1, "{paths:?}: {found:?}");
            assert!(found[0].contains(why), "{paths:?}: {found:?}");
        }
        let stray = VolumeMount {
            volume: "other".to_owned(),
            path: "/x".to_owned(),
        };
        let found = mount_violations(&[stray], &[volume("v", None)], "m");
        assert!(found[0].to_string().contains("m[0].name: \"other\""), "{found:?}");
    }
}
