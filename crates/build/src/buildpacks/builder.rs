//! What a builder's image says of itself, in its labels and environment: who builds, which versions of the platform
//! interface its lifecycle speaks, what apps run on, which buildpacks it has.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::PathBuf,
};

use image::{ImageConfig, MAX_OWNER};
use serde::Deserialize;
use serde_json::json;

use super::descriptor::Member;

/// The lifecycle's program that does all of a build.
pub(crate) const CREATOR: &str = "/cnb/lifecycle/creator";
/// What a lifecycle says of itself.
const LIFECYCLE: &str = "/cnb/lifecycle/lifecycle.toml";
/// Versions of the platform interface that are spoken here, oldest first.
pub(crate) const APIS: [&str; 13] = [
    "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "0.10", "0.11", "0.12", "0.13", "0.14", "0.15",
];
/// Largest file of a builder that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What is needed to run one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Builder {
    pub(crate) user: u32,
    pub(crate) group: u32,
    /// `NAME=VALUE`.
    pub(crate) environment: Vec<String>,
    /// The newest version that both sides speak.
    pub(crate) api: &'static str,
    /// What apps run on, best first.
    pub(crate) run_images: Vec<String>,
    /// The names of buildpacks in the order in which they are tried, each once.
    pub(crate) tried: Vec<String>,
    /// All buildpacks with their versions.
    buildpacks: BTreeMap<String, Vec<String>>,
}

/// Why an image cannot be used as one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuilderError {
    #[error("it has no {CREATOR}, so that it is not a builder of buildpacks")]
    NoLifecycle,
    #[error("its environment has no {name}, so that it is not a builder of buildpacks")]
    NoUser { name: &'static str },
    #[error("{name} is \"{value}\" in its environment: a number up to {MAX_OWNER} is expected, and not root's user")]
    User { name: &'static str, value: String },
    #[error("its label {label} is not understood: {why}")]
    Label { label: &'static str, why: String },
    #[error("it does not say which versions of the platform interface its lifecycle speaks")]
    NoApi,
    #[error(
        "its lifecycle speaks versions {} of the platform interface, and this Homerun {} to {}",
        .its.join(", "), APIS[0], APIS[APIS.len() - 1]
    )]
    Api { its: Vec<String> },
    #[error("it has no buildpack \"{id}\"; it has {}", .has.join(", "))]
    Buildpack { id: String, has: Vec<String> },
    #[error("its buildpack \"{id}\" has the versions {}, not {wanted}", .has.join(", "))]
    Version {
        id: String,
        wanted: String,
        has: Vec<String>,
    },
    #[error("it cannot be read")]
    Disk(#[from] io::Error),
}

const USER: &str = "CNB_USER_ID";
const GROUP: &str = "CNB_GROUP_ID";
const METADATA: &str = "io.buildpacks.builder.metadata";
const LIFECYCLE_APIS: &str = "io.buildpacks.lifecycle.apis";
const ORDER: &str = "io.buildpacks.buildpack.order";
const LAYERS: &str = "io.buildpacks.buildpack.layers";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    stack: Stack,
    images: Vec<RunImage>,
    lifecycle: Lifecycle,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stack {
    run_image: RunImage,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RunImage {
    image: String,
    mirrors: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lifecycle {
    apis: Apis,
    /// The older form: one version.
    api: OneApi,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Apis {
    platform: Versions,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Versions {
    deprecated: Option<Vec<String>>,
    supported: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OneApi {
    platform: Option<String>,
}

#[derive(Deserialize)]
struct Order {
    group: Vec<Member>,
}

impl Versions {
    fn all(self) -> Vec<String> {
        [self.supported, self.deprecated]
            .into_iter()
            .flatten()
            .flatten()
            .collect()
    }
}

/// The same of the file and of the labels.
impl Lifecycle {
    fn versions(self) -> Vec<String> {
        let mut all = self.apis.platform.all();
        if all.is_empty() {
            all.extend(self.api.platform);
        }
        all
    }
}

impl Builder {
    /// Reads it from an image that lies in `layers`, lowest first. Blocks on the disk.
    pub(crate) fn read(config: &ImageConfig, layers: &[PathBuf]) -> Result<Self, BuilderError> {
        if image::file(layers, CREATOR)?.is_none() {
            return Err(BuilderError::NoLifecycle);
        }
        let mut text = Vec::new();
        if let Some(file) = image::file(layers, LIFECYCLE)? {
            file.take(MAX_BYTES).read_to_end(&mut text)?;
        }
        Self::of(config, &String::from_utf8_lossy(&text))
    }

    /// `lifecycle` is what its lifecycle says of itself.
    fn of(config: &ImageConfig, lifecycle: &str) -> Result<Self, BuilderError> {
        let metadata: Metadata = label(config, METADATA)?.unwrap_or_default();
        let mut its = label::<Apis>(config, LIFECYCLE_APIS)?.map(|apis| apis.platform.all());
        for other in [
            metadata.lifecycle.versions(),
            toml::from_str::<Lifecycle>(lifecycle).unwrap_or_default().versions(),
        ] {
            its = its.filter(|its| !its.is_empty()).or(Some(other));
        }
        let its = its.filter(|its| !its.is_empty()).ok_or(BuilderError::NoApi)?;
        let api = APIS.into_iter().rev().find(|api| its.iter().any(|one| one == api));
        let api = api.ok_or(BuilderError::Api { its })?;
        let stack = metadata.stack.run_image;
        let mut run_images: Vec<String> = Vec::new();
        for one in metadata.images.into_iter().chain([stack]) {
            for name in std::iter::once(one.image).chain(one.mirrors.unwrap_or_default()) {
                if !name.is_empty() && !run_images.contains(&name) {
                    run_images.push(name);
                }
            }
        }
        let mut tried: Vec<String> = Vec::new();
        for order in label::<Vec<Order>>(config, ORDER)?.unwrap_or_default() {
            for member in order.group {
                if !tried.contains(&member.id) {
                    tried.push(member.id);
                }
            }
        }
        let buildpacks = label::<BTreeMap<String, BTreeMap<String, serde_json::Value>>>(config, LAYERS)?;
        let buildpacks = buildpacks.unwrap_or_default().into_iter();
        Ok(Self {
            user: id(config, USER)?,
            group: id(config, GROUP)?,
            environment: config.env.clone(),
            api,
            run_images,
            tried,
            buildpacks: buildpacks
                .map(|(id, versions)| (id, versions.into_keys().collect()))
                .collect(),
        })
    }

    /// The text of an `order.toml` with one group.
    pub(crate) fn order(&self, group: &[Member]) -> Result<String, BuilderError> {
        let mut members = Vec::new();
        for Member { id, version } in group {
            let has = self.buildpacks.get(id).ok_or_else(|| BuilderError::Buildpack {
                id: id.clone(),
                has: self.buildpacks.keys().cloned().collect(),
            })?;
            let version = match (version, has.as_slice()) {
                (None, [only]) => only,
                (Some(version), _) if has.contains(version) => version,
                (version, _) => {
                    return Err(BuilderError::Version {
                        id: id.clone(),
                        wanted: version.clone().unwrap_or_else(|| "none".to_owned()),
                        has: has.clone(),
                    });
                }
            };
            members.push(json!({ "id": id, "version": version }));
        }
        let order = json!({ "order": [{ "group": members }] });
        Ok(toml::to_string(&order).expect("texts in tables"))
    }
}

/// A label that holds JSON; None where it is absent.
fn label<T: for<'de> Deserialize<'de>>(config: &ImageConfig, name: &'static str) -> Result<Option<T>, BuilderError> {
    let Some(text) = config.labels.get(name) else {
        return Ok(None);
    };
    serde_json::from_str(text)
        .map(Some)
        .map_err(|error| BuilderError::Label {
            label: name,
            why: error.to_string(),
        })
}

fn id(config: &ImageConfig, name: &'static str) -> Result<u32, BuilderError> {
    let value = config
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .find(|(of, _)| *of == name)
        .map(|(_, value)| value)
        .ok_or(BuilderError::NoUser { name })?;
    match value.parse::<u32>() {
        // Root's group is what some builders have.
        Ok(id) if u64::from(id) <= MAX_OWNER && (id > 0 || name == GROUP) => Ok(id),
        Ok(_) | Err(_) => Err(BuilderError::User {
            name,
            value: value.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `pack` writes them, shortened.
    fn config(labels: &[(&str, &str)]) -> ImageConfig {
        ImageConfig {
            env: ["PATH=/bin", "CNB_USER_ID=33", "CNB_GROUP_ID=0"]
                .map(str::to_owned)
                .to_vec(),
            labels: labels
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..ImageConfig::default()
        }
    }

    const OF_PACK: &str = r#"{"description":"x","stack":{"runImage":{"image":"gcr.io/run","mirrors":null}},
        "images":[{"image":"gcr.io/run","mirrors":["other/run"]}],
        "lifecycle":{"version":"0.21.14","api":{"buildpack":"0.7","platform":"0.7"},
        "apis":{"buildpack":{"deprecated":[],"supported":["0.7"]},
        "platform":{"deprecated":["0.7"],"supported":["0.8","0.12","0.99"]}}}}"#;

    #[test]
    fn what_a_builder_says_of_itself() {
        let order = r#"[{"group":[{"id":"a","version":"1"},{"id":"b"}]},{"group":[{"id":"a"},{"id":"c"}]}]"#;
        // Some labels have more about a member than its name.
        let order = order.replace(r#""version":"1""#, r#""version":"1","optional":true"#);
        let layers = r#"{"a":{"1":{"api":"0.7"}},"b":{"1":{},"2":{}}}"#;
        let builder = Builder::of(&config(&[(METADATA, OF_PACK), (ORDER, &order), (LAYERS, layers)]), "");
        let builder = builder.expect("a builder");
        assert_eq!((builder.user, builder.group, builder.api), (33, 0, "0.12"));
        assert_eq!(builder.run_images, ["gcr.io/run", "other/run"]);
        assert_eq!(builder.tried, ["a", "b", "c"]);
        let member = |id: &str, version: Option<&str>| Member {
            id: id.to_owned(),
            version: version.map(str::to_owned),
        };
        let order = builder
            .order(&[member("b", Some("2")), member("a", None)])
            .expect("an order");
        let read: toml::Table = toml::from_str(&order).expect("TOML");
        assert_eq!(read["order"][0]["group"][0]["id"].as_str(), Some("b"));
        assert_eq!(read["order"][0]["group"][1]["version"].as_str(), Some("1"));
        for (asked, told) in [
            (member("x", None), "no buildpack \"x\"; it has a, b"),
            (member("a", Some("7")), "\"a\" has the versions 1, not 7"),
            (member("b", None), "\"b\" has the versions 1, 2, not none"),
        ] {
            let said = builder.order(&[asked]).expect_err("refused").to_string();
            assert!(said.contains(told), "{said}");
        }
    }

    #[test]
    fn where_versions_are_found() {
        let apis = r#"{"buildpack":{},"platform":{"deprecated":null,"supported":["0.3","0.4"]}}"#;
        let file = "[apis]\n[apis.platform]\ndeprecated = []\nsupported = [\"0.9\", \"0.10\"]\n";
        for (labels, lifecycle, api) in [
            (vec![(METADATA, OF_PACK), (LIFECYCLE_APIS, apis)], file, Some("0.4")),
            (vec![], file, Some("0.10")),
            (
                vec![(METADATA, r#"{"lifecycle":{"api":{"platform":"0.3"}}}"#)],
                file,
                Some("0.3"),
            ),
            (vec![], "", None),
            (vec![], "[apis.platform]\nsupported = [\"0.2\", \"7\"]", None),
        ] {
            let builder = Builder::of(&config(&labels), lifecycle);
            assert_eq!(builder.as_ref().ok().map(|builder| builder.api), api, "{builder:?}");
        }
        let said = Builder::of(&config(&[]), "[apis.platform]\nsupported = [\"7\"]").expect_err("none in common");
        assert!(said.to_string().contains("speaks versions 7 of"), "{said}");
    }

    #[test]
    fn what_is_no_builder() {
        let with = |env: &[&str]| ImageConfig {
            env: env.iter().map(|pair| (*pair).to_owned()).collect(),
            ..config(&[(METADATA, OF_PACK)])
        };
        for (env, told) in [
            (&["CNB_GROUP_ID=1"][..], "has no CNB_USER_ID"),
            (&["CNB_USER_ID=1"], "has no CNB_GROUP_ID"),
            (&["CNB_USER_ID=0", "CNB_GROUP_ID=1"], "CNB_USER_ID is \"0\""),
            (&["CNB_USER_ID=70000", "CNB_GROUP_ID=1"], "CNB_USER_ID is \"70000\""),
            (&["CNB_USER_ID=cnb", "CNB_GROUP_ID=1"], "CNB_USER_ID is \"cnb\""),
        ] {
            let said = Builder::of(&with(env), "").expect_err("none").to_string();
            assert!(said.contains(told), "{said}");
        }
        let said = Builder::of(&config(&[(METADATA, "{")]), "")
            .expect_err("none")
            .to_string();
        assert!(said.contains(METADATA), "{said}");
    }
}
