//! An archive of `docker save` (and `podman save`, `skopeo copy ... docker-archive:`) as what an OCI layout would be:
//! its configuration and its layers as blobs, and a manifest that names them, which such an archive lacks.
//!
//! Members of the archive enter with their places; where each blob lies and the manifest leave. Nothing is hashed but
//! the manifest made here: the configuration is named by its digest and lists those of the layers, and the registry
//! checks every one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Where the files of an archive lie.
pub(crate) struct Members {
    /// Offset and length by name.
    pub(crate) files: BTreeMap<String, (u64, u64)>,
    /// Older docker writes a layer that occurs twice as a link: name to target.
    pub(crate) links: BTreeMap<String, String>,
}

impl Members {
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        if let Some(place) = self.files.get(name) {
            return Some(*place);
        }
        let target = self.links.get(name)?;
        // `../OTHER/layer.tar`, from the folder of the link.
        let mut parts: Vec<&str> = name.split('/').collect();
        parts.pop();
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        self.files.get(&parts.join("/")).copied()
    }
}

/// An image of the archive as a layout has it.
#[derive(Debug)]
pub(crate) struct Image {
    /// Places of configuration and layers by `sha256:HEX`.
    pub(crate) blobs: BTreeMap<String, (u64, u64)>,
    pub(crate) descriptor: Value,
    pub(crate) manifest: String,
}

/// Which image of `manifest.json` is meant: the only one, or the one with this tag; and the name of its configuration.
pub(crate) fn choose(manifests: &str, tag: &str) -> Result<Chosen, String> {
    let entries: Vec<Entry> =
        serde_json::from_str(manifests).map_err(|why| format!("manifest.json is not of docker's form: {why}"))?;
    let tags = |entry: &Entry| entry.repo_tags.clone().unwrap_or_default();
    let several = entries.len() > 1;
    let names: Vec<String> = entries.iter().flat_map(tags).collect();
    let is_meant = |entry: &Entry| {
        let ends = |name: &String| name.rsplit_once(':').is_some_and(|(_, of)| of == tag);
        !several || tags(entry).iter().any(ends)
    };
    let found = entries.into_iter().find(is_meant);
    let entry = found.ok_or_else(|| match names.as_slice() {
        [] => "it holds no image".to_owned(),
        names => format!("it holds several images and none is tagged {tag}: {}", names.join(", ")),
    })?;
    let stem = entry.config.rsplit('/').next().unwrap_or_default();
    let hex = stem.strip_suffix(".json").unwrap_or(stem).to_owned();
    if hex.len() != 64 || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(format!("its configuration {} is not named by its digest", entry.config));
    }
    Ok(Chosen { entry, hex })
}

#[derive(Debug)]
pub(crate) struct Chosen {
    entry: Entry,
    hex: String,
}

impl Chosen {
    /// The file with the image's configuration.
    pub(crate) fn config(&self) -> &str {
        &self.entry.config
    }

    /// With the configuration's text.
    pub(crate) fn image(&self, config: &str, members: &Members) -> Result<Image, String> {
        let read: Value = serde_json::from_str(config).map_err(|why| format!("{} is no JSON: {why}", self.config()))?;
        let diff_ids: Vec<&str> = read["rootfs"]["diff_ids"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if diff_ids.len() != self.entry.layers.len() {
            return Err(format!(
                "it has {} layers, but its configuration lists {}",
                self.entry.layers.len(),
                diff_ids.len()
            ));
        }
        let absent = |name: &str| format!("it has no {name}");
        let mut blobs = BTreeMap::new();
        let place = members.find(self.config()).ok_or_else(|| absent(self.config()))?;
        let digest = format!("sha256:{}", self.hex);
        blobs.insert(digest.clone(), place);
        let mut layers = Vec::new();
        for (name, diff_id) in self.entry.layers.iter().zip(diff_ids) {
            let (offset, length) = members.find(name).ok_or_else(|| absent(name))?;
            layers.push(json!({ "mediaType": LAYER, "digest": diff_id, "size": length }));
            blobs.insert(diff_id.to_owned(), (offset, length));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest, "size": place.1 },
            "layers": layers,
        })
        .to_string();
        let sum = Sha256::digest(manifest.as_bytes());
        let mut hex = String::new();
        for byte in sum {
            write!(hex, "{byte:02x}").expect("a string takes any write");
        }
        Ok(Image {
            blobs,
            descriptor: json!({ "mediaType": MANIFEST, "digest": format!("sha256:{hex}"), "size": manifest.len() }),
            manifest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_of_docker_becomes_an_image() {
        let hex = "a".repeat(64);
        let text = format!(
            r#"[{{"Config":"{hex}.json","RepoTags":["app:v1"],"Layers":["one/layer.tar","two/layer.tar"]}},
                {{"Config":"{hex}.json","RepoTags":null,"Layers":[]}}]"#
        );
        assert!(choose(&text, "v2").expect_err("no such tag").contains("app:v1"));
        let chosen = choose(&text, "v1").expect("tagged");
        let members = Members {
            files: BTreeMap::from([
                (format!("{hex}.json"), (512, 20)),
                ("one/layer.tar".to_owned(), (2048, 1024)),
            ]),
            links: BTreeMap::from([("two/layer.tar".to_owned(), "../one/layer.tar".to_owned())]),
        };
        let config = r#"{"rootfs":{"diff_ids":["sha256:1","sha256:2"]}}"#;
        let image = chosen.image(config, &members).expect("an image");
        assert_eq!(image.blobs["sha256:2"], (2048, 1024));
        assert_eq!(image.blobs[&format!("sha256:{hex}")], (512, 20));
        let manifest: Value = serde_json::from_str(&image.manifest).expect("JSON");
        assert_eq!(manifest["layers"][1]["digest"], "sha256:2");
        let few = chosen.image(r#"{"rootfs":{"diff_ids":[]}}"#, &members);
        assert!(few.expect_err("fewer").contains("2 layers"));
        assert!(choose("{}", "v1").is_err());
        assert!(
            choose(r#"[{"Config":"../x"}]"#, "v1")
                .expect_err("no digest")
                .contains("../x")
        );
        assert!(choose("[]", "v1").expect_err("none").contains("no image"));
    }
}
