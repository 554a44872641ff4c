//! Where a template uses secrets, and the values that one instance is given for it.

use crate::{EnvValue, EnvVar, RevisionTemplate, SecretRef, SecretValue, ServiceName, VersionRef, VolumeSource};

/// One use of a secret in a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUse {
    /// The field that names it, as Cloud Run's errors do.
    pub field: String,
    pub of: SecretRef,
    pub place: SecretPlace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPlace {
    /// Read once, when the instance starts.
    Variable { container: String, name: String },
    /// Always what the version holds now.
    File {
        /// Its place among the template's volumes.
        volume: usize,
        /// Below the volume.
        path: String,
        mode: u32,
    },
}

impl RevisionTemplate {
    /// Whether it uses any secret.
    pub fn has_secrets(&self) -> bool {
        let variable = |variable: &EnvVar| matches!(variable.value, EnvValue::Secret(_));
        self.has_secret_volumes() || self.containers().any(|container| container.env.iter().any(variable))
    }

    /// Every use of a secret, with `path` (such as `spec.template`) in front of the fields.
    pub fn secret_uses(&self, service: &ServiceName, path: &str) -> Vec<SecretUse> {
        let mut uses = Vec::new();
        let names = self.container_names(service);
        for (index, (container, name)) in self.containers().zip(&names).enumerate() {
            for (at, variable) in container.env.iter().enumerate() {
                if let EnvValue::Secret(of) = &variable.value {
                    uses.push(SecretUse {
                        field: format!("{path}.spec.containers[{index}].env[{at}].value_from.secret_key_ref.name"),
                        of: of.clone(),
                        place: SecretPlace::Variable {
                            container: name.clone(),
                            name: variable.name.clone(),
                        },
                    });
                }
            }
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            let VolumeSource::Secret { secret, items, mode } = &volume.source else {
                continue;
            };
            let file = |version: &VersionRef, path: &str, own: Option<u32>, field: &str| SecretUse {
                field: field.to_owned(),
                of: SecretRef {
                    secret: secret.clone(),
                    version: version.clone(),
                },
                place: SecretPlace::File {
                    volume: index,
                    path: path.to_owned(),
                    mode: own.or(*mode).unwrap_or(0o444) & 0o555,
                },
            };
            let volume = format!("{path}.spec.volumes[{index}].secret");
            if items.is_empty() {
                let field = format!("{volume}.secret_name");
                uses.push(file(&VersionRef::Latest, secret.as_str(), None, &field));
            }
            for (at, item) in items.iter().enumerate() {
                let field = format!("{volume}.items[{at}].key");
                uses.push(file(&item.version, &item.path, item.mode, &field));
            }
        }
        uses
    }
}

/// The values of secrets that one instance is given. Never written down: an instance that is taken over from another
/// server has its values already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revealed {
    pub variables: Vec<RevealedVariable>,
    pub files: Vec<RevealedFile>,
}

impl Revealed {
    /// Names and values of the variables of one container.
    pub fn variables_of<'a>(&'a self, container: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let own = self.variables.iter().filter(move |of| of.container == container);
        own.filter_map(|variable| Some((variable.name.as_str(), variable.value.as_variable()?)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevealedVariable {
    /// The container's name in its instance.
    pub container: String,
    pub name: String,
    pub value: SecretValue,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevealedFile {
    /// Its place among the instance's volumes.
    pub volume: usize,
    /// Below the volume.
    pub path: String,
    pub mode: u32,
    /// None: there is nothing to read now, and no file.
    pub value: Option<SecretValue>,
}
