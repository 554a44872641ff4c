//! A client of the registry that the platform names, with the credentials that it gives.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use ureq::{Agent, http::Response};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One repository of it.
pub(crate) struct Repository {
    agent: Agent,
    base: String,
    authorization: String,
    /// A tag or a digest.
    version: String,
}

type Outcome<T> = Result<T, String>;

pub(crate) fn digest(content: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(content) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Repository {
    /// Of a reference with its registry.
    pub(crate) fn of(reference: &str) -> Outcome<Self> {
        let (host, rest) = reference.split_once('/').ok_or("no registry")?;
        let (path, version) = rest
            .split_once('@')
            .or_else(|| rest.rsplit_once(':'))
            .ok_or("neither a tag nor a digest")?;
        let given = std::env::var("CNB_REGISTRY_AUTH").map_err(|_| "CNB_REGISTRY_AUTH is not set")?;
        let given: Value = serde_json::from_str(&given).map_err(|error| error.to_string())?;
        Ok(Self {
            agent: Agent::config_builder()
                .http_status_as_error(false)
                .proxy(None)
                .build()
                .into(),
            base: format!("http://{host}/v2/{path}"),
            authorization: given[host].as_str().unwrap_or_default().to_owned(),
            version: version.to_owned(),
        })
    }

    fn get(&self, what: &str) -> Outcome<Response<ureq::Body>> {
        let asked = self
            .agent
            .get(format!("{}/{what}", self.base))
            .header("Authorization", &self.authorization);
        asked.call().map_err(|error| error.to_string())
    }

    fn bytes(mut answer: Response<ureq::Body>) -> Outcome<Vec<u8>> {
        let read = answer.body_mut().with_config().limit(1 << 30).read_to_vec();
        let read = read.map_err(|error| error.to_string())?;
        if answer.status() == 200 {
            Ok(read)
        } else {
            Err(format!("{}: {}", answer.status(), String::from_utf8_lossy(&read)))
        }
    }

    /// None: there is none yet.
    pub(crate) fn manifest(&self) -> Outcome<Option<Value>> {
        let answer = self.get(&format!("manifests/{}", self.version))?;
        if answer.status() == 404 {
            return Ok(None);
        }
        let read = Self::bytes(answer)?;
        serde_json::from_slice(&read)
            .map(Some)
            .map_err(|error| error.to_string())
    }

    pub(crate) fn blob(&self, digest: &Value) -> Outcome<Vec<u8>> {
        Self::bytes(self.get(&format!("blobs/{}", digest.as_str().unwrap_or_default()))?)
    }

    /// Pushes in chunks, unless it is there. Answers its descriptor.
    fn push_blob(&self, kind: &str, content: &[u8]) -> Outcome<Value> {
        let digest = digest(content);
        let descriptor = serde_json::json!({"mediaType": kind, "digest": digest, "size": content.len()});
        let head = self
            .agent
            .head(format!("{}/blobs/{digest}", self.base))
            .header("Authorization", &self.authorization)
            .call()
            .map_err(|error| error.to_string())?;
        if head.status() == 200 {
            return Ok(descriptor);
        }
        let begun = self
            .agent
            .post(format!("{}/blobs/uploads/", self.base))
            .header("Authorization", &self.authorization)
            .send_empty()
            .map_err(|error| error.to_string())?;
        let mut place = location(begun, 202)?;
        let chunk = self
            .agent
            .patch(self.at(&place))
            .header("Authorization", &self.authorization)
            .send(content)
            .map_err(|error| error.to_string())?;
        place = location(chunk, 202)?;
        let ended = self
            .agent
            .put(format!("{}?digest={digest}", self.at(&place)))
            .header("Authorization", &self.authorization)
            .send_empty()
            .map_err(|error| error.to_string())?;
        location(ended, 201)?;
        Ok(descriptor)
    }

    fn at(&self, location: &str) -> String {
        let (host, _) = self.base.split_once("/v2/").expect("as made above");
        format!("{host}{location}")
    }

    /// Pushes an image: layers that are there already by their descriptors, new ones as plain tar.
    pub(crate) fn push(&self, there: Vec<Value>, new: &[Vec<u8>], config: &Value) -> Outcome<String> {
        let mut layers = there;
        for layer in new {
            layers.push(self.push_blob(LAYER, layer)?);
        }
        let config = self.push_blob(CONFIG, config.to_string().as_bytes())?;
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let text = manifest.to_string();
        // As the real one does: what is there already is not pushed again.
        if self.manifest()?.as_ref() == Some(&manifest) {
            return Ok(digest(text.as_bytes()));
        }
        let answer = self
            .agent
            .put(format!("{}/manifests/{}", self.base, self.version))
            .header("Authorization", &self.authorization)
            .header("Content-Type", MANIFEST)
            .send(&text)
            .map_err(|error| error.to_string())?;
        location(answer, 201)?;
        Ok(digest(text.as_bytes()))
    }
}

fn location(mut answer: Response<ureq::Body>, expected: u16) -> Outcome<String> {
    if answer.status() != expected {
        let said = answer.body_mut().read_to_string().unwrap_or_default();
        return Err(format!("{}: {said}", answer.status()));
    }
    let location = answer
        .headers()
        .get("location")
        .and_then(|location| location.to_str().ok());
    location.map(str::to_owned).ok_or_else(|| "no Location".to_owned())
}
