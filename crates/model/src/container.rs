//! A container of a revision: image, process, environment, port, resources, probes, and what it mounts.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::{Cpu, Memory, Probe, ProbeKind, SecretRef, Violation};

/// Names that Cloud Run sets itself; a container that sets one is refused. A sidecar gets no `PORT` and may set its own.
pub const RESERVED_ENV: [&str; 4] = ["PORT", "K_SERVICE", "K_REVISION", "K_CONFIGURATION"];

/// Longest value of one environment variable: 32 KiB (Cloud Run quotas).
const LONGEST_ENV: usize = 32 * 1024;

/// One container of an instance: the ingress container, which listens on the template's port, or a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The name in the document, empty when the caller gave none.
    pub name: String,
    /// The image reference as the caller wrote it; resolved to a digest when the revision is made.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty. With `command` set and `args` empty the image's is dropped.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    /// In the caller's order; of two entries with one name the last wins. The name of a secret's variable has one entry.
    pub env: Vec<EnvVar>,
    pub resources: Resources,
    /// None: for the ingress container the implicit one, a TCP connect to the port that must succeed within 240 s; for
    /// a sidecar none at all.
    pub startup_probe: Option<Probe>,
    /// Begins when the startup probe has passed; when it fails the container is restarted.
    pub liveness_probe: Option<Probe>,
    /// While it fails, the instance gets no new request.
    pub readiness_probe: Option<Probe>,
    pub mounts: Vec<crate::VolumeMount>,
    /// Names of containers whose startup probe must have passed before this one is started
    /// (`run.googleapis.com/container-dependencies`).
    pub depends_on: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    pub name: String,
    #[serde(flatten)]
    pub value: EnvValue,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    #[serde(rename = "value")]
    Literal(String),
    /// What the version holds when an instance starts.
    #[serde(rename = "secret")]
    Secret(SecretRef),
}

impl EnvVar {
    pub fn literal(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: EnvValue::Literal(value.into()),
        }
    }
}

/// Where the container listens, default 8080.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub number: NonZeroU16,
    pub protocol: Protocol,
}

/// What the container speaks on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1; a client's HTTP/2 is brought down to it.
    Http1,
    /// HTTP/2 with prior knowledge (`--use-http2`).
    H2c,
}

impl Default for Port {
    fn default() -> Self {
        Self {
            number: NonZeroU16::new(8080).expect("8080 is not zero"),
            protocol: Protocol::Http1,
        }
    }
}

/// Hard limits of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu: Cpu,
    pub memory: Memory,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: Cpu::from_millis(1000),
            memory: Memory::mebibytes(512),
        }
    }
}

/// What a container is in its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It takes the requests.
    Ingress,
    Sidecar,
}

/// Every rule that one container breaks by itself, with `path` in front of the fields.
pub(crate) fn container_violations(container: &Container, place: Place, path: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    if container.image.is_empty() {
        found.push(Violation::new(format!("{path}.image"), "an image is required"));
    }
    for (index, variable) in container.env.iter().enumerate() {
        let field = format!("{path}.env[{index}].name");
        let name = variable.name.as_str();
        let own_port = name == "PORT" && place == Place::Sidecar;
        if RESERVED_ENV.contains(&name) && !own_port {
            found.push(Violation::new(
                field,
                format!("{name} is reserved: Cloud Run sets it itself"),
            ));
        } else if !is_env_name(name) {
            found.push(Violation::new(
                field,
                format!(
                    "\"{}\" is no name of an environment variable: letters, digits, '_', '-' and '.', no digit first",
                    name.chars().take(80).collect::<String>()
                ),
            ));
        }
        let EnvValue::Literal(value) = &variable.value else {
            if container.env.iter().filter(|other| other.name == name).count() > 1 {
                found.push(Violation::new(
                    format!("{path}.env[{index}].name"),
                    format!("{name} is set more than once: the variable of a secret has one entry"),
                ));
            }
            continue;
        };
        let holds_nul = value.contains('\0');
        if value.len() > LONGEST_ENV || holds_nul {
            let why = if holds_nul {
                format!("the value of {name} holds a zero byte")
            } else {
                format!(
                    "the value of {name} has {} bytes, the limit is {LONGEST_ENV}",
                    value.len()
                )
            };
            found.push(Violation::new(format!("{path}.env[{index}].value"), why));
        }
    }
    for (list, name) in [(&container.command, "command"), (&container.args, "args")] {
        for (index, word) in list.iter().enumerate() {
            if word.contains('\0') {
                found.push(Violation::new(format!("{path}.{name}[{index}]"), "holds a zero byte"));
            }
        }
    }
    if let Some(dir) = &container.working_dir
        && (!dir.starts_with('/') || dir.contains('\0'))
    {
        found.push(Violation::new(
            format!("{path}.workingDir"),
            format!("\"{dir}\" is not an absolute path"),
        ));
    }
    for (probe, kind, field) in [
        (&container.startup_probe, ProbeKind::Startup, "startupProbe"),
        (&container.liveness_probe, ProbeKind::Liveness, "livenessProbe"),
        (&container.readiness_probe, ProbeKind::Readiness, "readinessProbe"),
    ] {
        if let Some(probe) = probe {
            probe.violations(kind, &format!("{path}.{field}"), &mut found);
        }
    }
    found
}

fn is_env_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && !bytes[0].is_ascii_digit()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

#[cfg(test)]
pub(crate) fn example() -> Container {
    Container {
        name: String::new(),
        image: "us-docker.pkg.dev/cloudrun/container/hello".to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: None,
        env: Vec::new(),
        resources: Resources::default(),
        startup_probe: None,
        liveness_probe: None,
        readiness_probe: None,
        mounts: Vec::new(),
        depends_on: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(container: &Container) -> Vec<String> {
        container_violations(container, Place::Ingress, "c")
            .into_iter()
            .map(|v| v.field)
            .collect()
    }

    #[test]
    fn a_plain_container_breaks_nothing() {
        assert!(fields(&example()).is_empty());
    }

    #[test]
    fn each_rule_names_its_field() {
        let mut container = example();
        container.image = String::new();
        let env = |name: &str, value: &str| EnvVar::literal(name, value);
        container.env = vec![
            env("GOOD", "1"),
            env("PORT", "1"),
            env("1A", "1"),
            env("LONG", &"x".repeat(LONGEST_ENV + 1)),
            env("", "1"),
        ];
        container.working_dir = Some("relative".to_owned());
        container.args = vec!["a\0b".to_owned()];
        container.startup_probe = Some(Probe {
            initial_delay: 241,
            period: 5,
            timeout: 6,
            failures: 49,
            ..Probe::implicit(NonZeroU16::new(9).expect("not zero"))
        });
        assert_eq!(
            fields(&container),
            [
                "c.image",
                "c.env[1].name",
                "c.env[2].name",
                "c.env[3].value",
                "c.env[4].name",
                "c.args[0]",
                "c.workingDir",
                "c.startupProbe.initialDelaySeconds",
                "c.startupProbe.periodSeconds",
                "c.startupProbe.failureThreshold",
            ]
        );
    }

    #[test]
    fn the_variable_of_a_secret_has_one_entry() {
        let secret = |name: &str| EnvVar {
            name: name.to_owned(),
            value: EnvValue::Secret(SecretRef {
                secret: "db-password".parse().expect("a name"),
                version: crate::VersionRef::Latest,
            }),
        };
        let mut container = example();
        container.env = vec![secret("A"), EnvVar::literal("B", "1"), EnvVar::literal("B", "2")];
        assert!(fields(&container).is_empty());
        let text = serde_json::to_string(&container.env[..2]).expect("written");
        assert_eq!(
            text,
            r#"[{"name":"A","secret":{"secret":"db-password","version":"latest"}},{"name":"B","value":"1"}]"#
        );
        assert_eq!(
            serde_json::from_str::<Vec<EnvVar>>(&text).expect("read"),
            container.env[..2]
        );
        container.env.push(EnvVar::literal("A", "1"));
        assert_eq!(fields(&container), ["c.env[0].name"]);
    }

    #[test]
    fn a_sidecar_may_set_its_own_port() {
        let mut container = example();
        container.env = ["PORT", "K_SERVICE"].map(|name| EnvVar::literal(name, "8888")).to_vec();
        let found = container_violations(&container, Place::Sidecar, "c");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].field, "c.env[1].name");
    }
}
