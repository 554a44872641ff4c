//! The JSON documents of an image: manifest, index, configuration. Both families are read, OCI's and docker's schema 2,
//! which differ in the names of their media types only. Of an index the one manifest for this machine is chosen.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;

/// Media types of manifests and what they hold.
pub mod media_type {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Every type of manifest that is stored and asked for.
    pub const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
}

/// Most layers of one image: overlayfs stacks no more.
pub const MAX_LAYERS: usize = 500;

/// Why a document is not a manifest we can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest is not valid")]
    Json(#[source] serde_json::Error),
    #[error("image configuration {digest} is not valid")]
    Config {
        digest: Digest,
        #[source]
        source: serde_json::Error,
    },
    #[error("manifest schema version {version} is not supported, only 2 is")]
    SchemaVersion { version: i64 },
    #[error("manifest media type {media_type:?} is not supported")]
    MediaType { media_type: String },
    #[error("manifest was sent as {sent} but says it is {written}")]
    MediaTypeDiffers { sent: String, written: String },
    #[error("manifest has {layers} layers but its configuration lists {diff_ids} diff ids")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("image has {layers} layers, the limit is {MAX_LAYERS}")]
    TooManyLayers { layers: usize },
    /// Neither the index nor the configuration offers what this machine runs.
    #[error("image is for {}, this machine runs linux/{}", found_list(.found), machine_architecture())]
    Platform { found: Vec<Platform> },
    #[error("index {digest} leads to indexes only")]
    IndexDepth { digest: Digest },
}

fn found_list(found: &[Platform]) -> String {
    if found.is_empty() {
        return "no platform at all".to_owned();
    }
    found.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

/// The CPU of this machine in the words of images: `amd64`, `arm64`.
pub fn machine_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What an image was built for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Whether this machine runs it. The variant is not looked at.
    pub fn runs_here(&self) -> bool {
        self.os == "linux" && self.architecture == machine_architecture()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str| {
            if text.is_empty() {
                "unnamed".to_owned()
            } else {
                text.to_owned()
            }
        };
        write!(f, "{}/{}", part(&self.os), part(&self.architecture))?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

/// A pointer to content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether it points at a manifest, by its type.
    pub(crate) fn is_manifest(&self) -> bool {
        media_type::MANIFESTS.contains(&self.media_type.as_str())
    }

    /// Content that its publisher does not let registries keep; it may be absent from ours.
    pub(crate) fn is_foreign(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<Descriptor>,
}

/// What a manifest of either kind says beside its content (OCI image specification 1.1).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Remarks {
    /// The manifest that this one speaks about: a signature's or a bill of materials' image.
    #[serde(default)]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default)]
    pub(crate) artifact_type: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) manifests: Vec<Descriptor>,
}

/// A manifest of either kind.
#[derive(Clone, Debug)]
pub(crate) enum Manifest {
    Image(ImageManifest),
    Index(Index),
}

/// What every manifest begins with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: i64,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest; `sent` is the media type it came with, if any. Answers with the type that holds.
    pub(crate) fn read(content: &[u8], sent: Option<&str>) -> Result<(Manifest, String), ManifestError> {
        let head: Head = serde_json::from_slice(content).map_err(ManifestError::Json)?;
        if head.schema_version != 2 {
            return Err(ManifestError::SchemaVersion {
                version: head.schema_version,
            });
        }
        let holds = match (head.media_type, sent) {
            (Some(written), Some(sent)) if written != sent => {
                return Err(ManifestError::MediaTypeDiffers {
                    sent: sent.to_owned(),
                    written,
                });
            }
            (Some(written), _) => written,
            (None, Some(sent)) => sent.to_owned(),
            // OCI lets it be left out; the shape tells.
            (None, None) if head.config.is_some() => media_type::OCI_MANIFEST.to_owned(),
            (None, None) => media_type::OCI_INDEX.to_owned(),
        };
        let manifest = match holds.as_str() {
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => {
                let image: ImageManifest = serde_json::from_slice(content).map_err(ManifestError::Json)?;
                if image.layers.len() > MAX_LAYERS {
                    return Err(ManifestError::TooManyLayers {
                        layers: image.layers.len(),
                    });
                }
                Manifest::Image(image)
            }
            media_type::OCI_INDEX | media_type::DOCKER_LIST => {
                Manifest::Index(serde_json::from_slice(content).map_err(ManifestError::Json)?)
            }
            _ => return Err(ManifestError::MediaType { media_type: holds }),
        };
        Ok((manifest, holds))
    }
}

impl Index {
    /// The manifest for this machine: without a variant if there is one, else the first in the order of the index; an
    /// entry that names no platform only when nothing else fits.
    pub(crate) fn choose(&self) -> Result<&Descriptor, ManifestError> {
        let here = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_some_and(Platform::runs_here);
        let plain = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_some_and(|platform| {
                platform
                    .variant
                    .as_deref()
                    .is_none_or(|variant| variant.is_empty() || variant == "v1")
            })
        };
        self.manifests
            .iter()
            .filter(here)
            .find(plain)
            .or_else(|| self.manifests.iter().find(here))
            .or_else(|| self.manifests.iter().find(|descriptor| descriptor.platform.is_none()))
            .ok_or_else(|| ManifestError::Platform {
                found: self
                    .manifests
                    .iter()
                    .filter_map(|descriptor| descriptor.platform.clone())
                    // How build tools mark provenance, which nobody runs.
                    .filter(|platform| platform.os != "unknown")
                    .collect(),
            })
    }
}

/// What an image says about how to run it. Fields are empty where the image is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// Empty means `/`.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty means root. See [`crate::user`].
    pub user: String,
    /// `8080/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// The configuration blob, as far as it is read.
#[derive(Debug)]
pub(crate) struct ConfigBlob {
    pub(crate) platform: Platform,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) config: ImageConfig,
}

impl ConfigBlob {
    pub(crate) fn read(content: &[u8], digest: Digest) -> Result<ConfigBlob, ManifestError> {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct Run {
            #[serde(deserialize_with = "null_is_default")]
            entrypoint: Vec<String>,
            #[serde(deserialize_with = "null_is_default")]
            cmd: Vec<String>,
            #[serde(deserialize_with = "null_is_default")]
            env: Vec<String>,
            #[serde(deserialize_with = "null_is_default")]
            working_dir: String,
            #[serde(deserialize_with = "null_is_default")]
            user: String,
            #[serde(deserialize_with = "null_is_default")]
            exposed_ports: BTreeMap<String, serde_json::Value>,
            #[serde(deserialize_with = "null_is_default")]
            labels: BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default, deserialize_with = "null_is_default")]
            diff_ids: Vec<Digest>,
        }
        #[derive(Deserialize)]
        struct Whole {
            #[serde(flatten)]
            platform: Platform,
            #[serde(default, deserialize_with = "null_is_default")]
            config: Run,
            rootfs: RootFs,
        }
        let whole: Whole =
            serde_json::from_slice(content).map_err(|source| ManifestError::Config { digest, source })?;
        let run = whole.config;
        Ok(ConfigBlob {
            platform: whole.platform,
            diff_ids: whole.rootfs.diff_ids,
            config: ImageConfig {
                entrypoint: run.entrypoint,
                cmd: run.cmd,
                env: run.env,
                working_dir: run.working_dir,
                user: run.user,
                exposed_ports: run.exposed_ports.into_keys().collect(),
                labels: run.labels,
            },
        })
    }

    /// Refuses what this machine cannot run, and a configuration that does not fit its manifest.
    pub(crate) fn check(&self, manifest: &ImageManifest) -> Result<(), ManifestError> {
        if !self.platform.runs_here() {
            return Err(ManifestError::Platform {
                found: vec![self.platform.clone()],
            });
        }
        if self.diff_ids.len() != manifest.layers.len() {
            return Err(ManifestError::LayerCount {
                layers: manifest.layers.len(),
                diff_ids: self.diff_ids.len(),
            });
        }
        Ok(())
    }
}

/// Go's encoders write `null` for what is empty.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digest: &str, platform: Option<(&str, &str, Option<&str>)>) -> Descriptor {
        Descriptor {
            media_type: media_type::OCI_MANIFEST.to_owned(),
            digest: Digest::of(digest.as_bytes()),
            size: 1,
            platform: platform.map(|(os, architecture, variant)| Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn chooses_the_manifest_for_this_machine() {
        let here = machine_architecture();
        for (entries, chosen) in [
            (
                vec![
                    entry("a", Some(("linux", "s390x", None))),
                    entry("b", Some(("linux", here, None))),
                ],
                Some("b"),
            ),
            (
                vec![
                    entry("a", Some(("windows", here, None))),
                    entry("b", Some(("linux", here, None))),
                ],
                Some("b"),
            ),
            (
                vec![
                    entry("a", Some(("linux", here, Some("v3")))),
                    entry("b", Some(("linux", here, None))),
                ],
                Some("b"),
            ),
            (
                vec![
                    entry("a", Some(("linux", here, Some("v3")))),
                    entry("b", Some(("unknown", "unknown", None))),
                ],
                Some("a"),
            ),
            (
                vec![entry("a", Some(("linux", "s390x", None))), entry("b", None)],
                Some("b"),
            ),
            (
                vec![
                    entry("a", Some(("linux", "s390x", None))),
                    entry("b", Some(("unknown", "unknown", None))),
                ],
                None,
            ),
        ] {
            let index = Index { manifests: entries };
            match (index.choose(), chosen) {
                (Ok(found), Some(chosen)) => {
                    assert_eq!(found.digest, Digest::of(chosen.as_bytes()));
                }
                (Err(refused), None) => {
                    let text = refused.to_string();
                    assert_eq!(
                        text,
                        format!("image is for linux/s390x, this machine runs linux/{here}")
                    );
                }
                (found, chosen) => panic!("{found:?} instead of {chosen:?}"),
            }
        }
    }

    #[test]
    fn reads_a_configuration_with_nulls() {
        let content = br#"{"architecture":"amd64","os":"linux","config":{"User":"app","Env":null,"Cmd":["a"],
            "ExposedPorts":{"9/tcp":{},"8/tcp":{}},"Entrypoint":null,"Labels":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let blob = ConfigBlob::read(content, Digest::of(content)).expect("valid");
        assert_eq!(blob.config.cmd, ["a"]);
        assert_eq!(blob.config.user, "app");
        assert_eq!(blob.config.exposed_ports, ["8/tcp", "9/tcp"]);
        assert!(blob.config.env.is_empty() && blob.diff_ids.is_empty());
    }

    #[test]
    fn refuses_manifests_it_does_not_know() {
        for (content, sent, says) in [
            ("{", None, "not valid"),
            (r#"{"schemaVersion":1}"#, None, "schema version 1"),
            (r#"{"schemaVersion":2,"mediaType":"x/y","config":{}}"#, None, "\"x/y\""),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
                Some(media_type::OCI_MANIFEST),
                "but says it is application/vnd.oci.image.index.v1+json",
            ),
            (
                r#"{"schemaVersion":2,"config":{"digest":"sha256:../x","size":1},"layers":[]}"#,
                None,
                "not valid",
            ),
        ] {
            let refused = Manifest::read(content.as_bytes(), sent).expect_err(content).to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
