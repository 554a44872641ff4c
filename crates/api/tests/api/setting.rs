//! A surface to call, and what control would do in its stead: make revisions ready or failed, and route.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use homerun_api::{self as api, About, Surface, answer};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use identity::{Ask, CLOUD_PLATFORM_SCOPE, JWT_BEARER, Keys, ServiceAccountKey, sign_assertion};
use model::{
    Entry, ProjectId, Reason, Region, Revision, RevisionKey, RevisionName, RevisionState, Routed, Scheme, Service,
    ServiceKey, ServiceName, Site, Timestamp, assign,
};
use serde_json::{Value, json};

pub(crate) const RUN: &str = "us-central1-run.googleapis.com";
pub(crate) const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/my-project/services";
pub(crate) const REVISIONS: &str = "/apis/serving.knative.dev/v1/namespaces/my-project/revisions";

pub(crate) const IAM: &str = "iam.googleapis.com";
pub(crate) const ACCOUNTS: &str = "/v1/projects/my-project/serviceAccounts";
pub(crate) const PROJECTS: &str = "cloudresourcemanager.googleapis.com";
pub(crate) const PROJECT: &str = "/v1/projects/my-project";

thread_local! {
    /// Microseconds since 1970, as the surface's clock shows them on this test's thread.
    static NOW: Cell<i64> = const { Cell::new(1_800_000_000_043_143) };
}

fn now() -> Timestamp {
    Timestamp::from_micros(NOW.get())
}

/// The same as tokens count it.
pub(crate) fn seconds() -> u64 {
    u64::try_from(now().as_seconds()).expect("after 1970")
}

pub(crate) fn pass(seconds: i64) {
    NOW.set(NOW.get() + seconds * 1_000_000);
}

pub(crate) struct Setting {
    pub(crate) surface: Arc<Surface>,
    pub(crate) token: String,
    pub(crate) journal: Arc<Mutex<Vec<Entry>>>,
    /// What revisions would hold.
    pub(crate) held: Arc<Mutex<BTreeSet<image::Digest>>>,
    _dir: tempfile::TempDir,
}

pub(crate) fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

impl Setting {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keys = Arc::new(Keys::open(&dir.path().join("keys"), "my-project", seconds()).expect("keys"));
        let journal: Arc<Mutex<Vec<Entry>>> = Arc::default();
        let sink = journal.clone();
        let held: Arc<Mutex<BTreeSet<image::Digest>>> = Arc::default();
        let surface = Arc::new(Surface {
            store: store::Store::open(dir.path()).expect("a store"),
            images: image::Images::open_with_docker_config(&dir.path().join("images"), None).expect("images"),
            objects: bucket::Objects::open(&dir.path().join("storage")).expect("objects"),
            vault: Arc::new(secret::Vault::open(&dir.path().join("secrets"), None).expect("keys of secrets")),
            keys: keys.clone(),
            conditions: Arc::default(),
            site: Site {
                project: ProjectId::parse("my-project").expect("an id"),
                region: Region::parse("us-central1").expect("a region"),
                domain: "a.run.localhost".to_owned(),
                scheme: Scheme::Https,
                port: 8443,
                default_sandbox: model::Sandbox::Gen2,
            },
            now,
            journal: Box::new(move |entry| sink.lock().expect("no panic before").push(entry)),
            decisions: Box::new(|key| vec![decision(key)]),
            held: {
                let held = held.clone();
                Box::new(move || Some(held.lock().expect("no panic before").clone()))
            },
            operations: api::Operations::default(),
            build_logs: dir.path().join("logs"),
            about: About {
                version: "0.1.0".to_owned(),
                data_dir: "/var/lib/homerun".into(),
                api: address(8787),
                http: address(8081),
                https: address(8443),
            },
        });
        surface.establish().await.expect("an owner");
        let mut setting = Self {
            surface,
            token: String::new(),
            journal,
            held,
            _dir: dir,
        };
        setting.token = setting.token().await;
        setting
    }

    /// An access token by the way that gcloud goes: a signed assertion to the token endpoint.
    pub(crate) async fn token(&self) -> String {
        let key = ServiceAccountKey::read(self.surface.keys.owner_key_file()).expect("a key");
        self.token_of(&key).await
    }

    /// The same by any account's key.
    pub(crate) async fn token_of(&self, key: &ServiceAccountKey) -> String {
        let (status, body) = self.exchange(key).await;
        assert_eq!(status, 200, "{body}");
        body["access_token"].as_str().expect("a token").to_owned()
    }

    /// What the token endpoint answers to the key's holder.
    pub(crate) async fn exchange(&self, key: &ServiceAccountKey) -> (u16, Value) {
        let assertion = sign_assertion(key, Ask::Scope(CLOUD_PLATFORM_SCOPE), seconds()).expect("signs");
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", JWT_BEARER)
            .append_pair("assertion", &assertion)
            .finish();
        let request = Request::post("/token")
            .body(Full::new(Bytes::from(form)))
            .expect("a request");
        read(answer(&self.surface, "oauth2.googleapis.com", request).await).await
    }

    /// Makes a service account with a key, and gives it these roles on the project.
    pub(crate) async fn account(&self, id: &str, roles: &[&str]) -> ServiceAccountKey {
        let account = json!({ "accountId": id, "serviceAccount": { "displayName": id } });
        let (status, made) = self.call_at(IAM, "POST", ACCOUNTS, Some(&account)).await;
        assert_eq!(status, 200, "{made}");
        let email = made["email"].as_str().expect("an e-mail");
        for role in roles {
            self.bind(&format!("serviceAccount:{email}"), role).await;
        }
        self.key_of(email).await
    }

    /// Another key of the account.
    pub(crate) async fn key_of(&self, email: &str) -> ServiceAccountKey {
        let (status, key) = self
            .call_at(IAM, "POST", &format!("{ACCOUNTS}/{email}/keys"), Some(&json!({})))
            .await;
        assert_eq!(status, 200, "{key}");
        let text = key["privateKeyData"].as_str().expect("the file");
        let text = String::from_utf8(STANDARD.decode(text).expect("base64")).expect("text");
        ServiceAccountKey::from_json(&text).expect("a key file")
    }

    /// Gives the member a role on the project, as gcloud does.
    pub(crate) async fn bind(&self, member: &str, role: &str) {
        let (status, mut policy) = self
            .call_at(PROJECTS, "POST", &format!("{PROJECT}:getIamPolicy"), Some(&json!({})))
            .await;
        assert_eq!(status, 200, "{policy}");
        let bindings = policy["bindings"].as_array_mut().expect("the owner's at least");
        bindings.push(json!({ "role": role, "members": [member] }));
        let set = json!({ "policy": policy });
        let (status, set) = self
            .call_at(PROJECTS, "POST", &format!("{PROJECT}:setIamPolicy"), Some(&set))
            .await;
        assert_eq!(status, 200, "{set}");
    }

    /// A call as the holder of the token makes it.
    pub(crate) async fn call_as(
        &self,
        token: &str,
        host: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let content = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .extension(api::Peer(address(4321)))
            .body(Full::new(Bytes::from(content)))
            .expect("a request");
        read(self.send(host, request).await).await
    }

    pub(crate) async fn send(&self, host: &str, request: Request<Full<Bytes>>) -> Response<api::Body> {
        answer(&self.surface, host, request).await
    }

    /// A call as the owner makes it.
    pub(crate) async fn call_at(&self, host: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let content = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::new(Bytes::from(content)))
            .expect("a request");
        read(self.send(host, request).await).await
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.call_at(RUN, method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) async fn service(&self, name: &str) -> Value {
        self.get(&format!("{SERVICES}/{name}")).await
    }

    pub(crate) async fn create(&self, document: &Value) -> Value {
        let (status, body) = self.call("POST", SERVICES, Some(document)).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub(crate) async fn replace(&self, document: &Value) -> Value {
        let name = document["metadata"]["name"].as_str().expect("a name");
        let (status, body) = self.call("PUT", &format!("{SERVICES}/{name}"), Some(document)).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub(crate) fn stored(&self, name: &str) -> Service {
        let snapshot = self.surface.store.snapshot();
        snapshot.service(&key(name)).expect("it is stored").clone()
    }

    /// What control does: the revision of the newest template comes to this end, and traffic goes where it can.
    pub(crate) async fn settle(&self, name: &str, good: bool) -> String {
        let key = key(name);
        self.surface
            .store
            .transact(move |tx| {
                let mut service = tx.snapshot().service(&key).expect("it is stored").clone();
                let generation = service.template_generation;
                let letter = char::from(b'a' + u8::try_from(generation % 26).expect("below 26"));
                let name = service
                    .template
                    .name
                    .clone()
                    .unwrap_or_else(|| RevisionName::numbered(&service.key.name, generation, ['x', 'y', letter]));
                let digest = "us-central1-docker.pkg.dev/my-project/docker-repo/my-api@sha256:00".to_owned();
                let state = if good {
                    RevisionState::Ready { digest }
                } else {
                    RevisionState::Failed {
                        reason: Reason::HealthCheckContainerError,
                        message: "the container exited with code 7".to_owned(),
                        digest: Some(digest),
                    }
                };
                let at = Timestamp::from_micros(service.updated.as_micros() + 1_000_000);
                tx.put_revision(Revision {
                    key: RevisionKey {
                        service: key.clone(),
                        name: name.clone(),
                    },
                    uid: format!("revision-{generation}"),
                    service_uid: service.uid.clone(),
                    template_generation: generation,
                    created: service.updated,
                    creator: service.modifier.clone(),
                    template: service.template.clone(),
                    sidecar_digests: service
                        .template
                        .sidecars
                        .iter()
                        .map(|sidecar| format!("{}@sha256:11", sidecar.image))
                        .collect(),
                    state,
                    since: at,
                });
                let revisions: Vec<Revision> = tx.snapshot().revisions_of(&service).cloned().collect();
                if let Some(targets) = assign(&service.traffic, revisions.iter()) {
                    service.routed = Routed {
                        generation: service.generation,
                        since: at,
                        targets,
                    };
                    tx.put_service(service);
                }
                Ok::<_, ()>(name.to_string())
            })
            .await
            .expect("it is written")
    }
}

pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey {
        region: Region::parse("us-central1").expect("a region"),
        name: ServiceName::parse(name).expect("a name"),
    }
}

pub(crate) async fn read(response: Response<api::Body>) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let value =
        serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    (status, value)
}

/// The first deploy as gcloud 528 sends it.
pub(crate) fn deploy(name: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "my-project",
            "labels": {},
            "annotations": {
                "run.googleapis.com/client-name": "gcloud",
                "run.googleapis.com/client-version": "528.0.0",
            },
        },
        "spec": { "template": {
            "metadata": {
                "labels": { "client.knative.dev/nonce": "tfneitycfq" },
                "annotations": {
                    "autoscaling.knative.dev/maxScale": "100",
                    "run.googleapis.com/startup-cpu-boost": "True",
                    "run.googleapis.com/client-name": "gcloud",
                    "run.googleapis.com/client-version": "528.0.0",
                },
            },
            "spec": {
                "nodeSelector": {},
                "containers": [{
                    "image": "us-central1-docker.pkg.dev/my-project/docker-repo/my-api:v1.0.0",
                    "name": "",
                    "ports": [{ "containerPort": 8080 }],
                    "resources": { "limits": { "cpu": "1", "memory": "512Mi" }, "requests": {} },
                }],
            },
        } },
        "status": { "address": {} },
    })
}

/// Compares with `tests/golden/NAME.snap`; uids, which are chance, are replaced.
pub(crate) fn golden(name: &str, value: &Value, service: &Value) {
    let mut text = serde_json::to_string_pretty(value).expect("JSON");
    let uid = service["metadata"]["uid"].as_str().expect("a uid");
    let view = &uid[..uid.len() - 2];
    let mut at = 0;
    while let Some(found) = text[at..].find(view) {
        let start = at + found;
        let label = if text[start..].starts_with(uid) {
            "SERVICE-UID"
        } else {
            "VIEW-UID"
        };
        text.replace_range(start..start + uid.len(), label);
        at = start + label.len();
    }
    insta::with_settings!({ snapshot_path => "../golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

/// What control would tell of a service, the same of each.
fn decision(service: &model::ServiceKey) -> model::ScalingDecision {
    model::ScalingDecision {
        at: model::Timestamp::from_micros(1_700_000_000_000_000),
        revision: model::RevisionName::parse(&format!("{}-00001-abc", service.name)).expect("a name"),
        stands: true,
        kind: model::DecisionKind::Scale,
        instances: 2,
        alive: 1,
        rule: "demand",
        text: "requests".to_owned(),
        inputs: vec![("queued", 81)],
    }
}
