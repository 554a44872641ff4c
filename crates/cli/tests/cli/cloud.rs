//! A small Homerun for these tests: enough of its API over real HTTP to be written to, polled and read back.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Cursor, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::{cell::RefCell, thread};

use homerun_cli::{self as cli, Ask, Exec, Name, Outside};
use serde_json::{Value, json};

/// What the server holds and has seen.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) services: BTreeMap<String, Value>,
    pub(crate) revisions: BTreeMap<String, Value>,
    pub(crate) policies: BTreeMap<String, Value>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// `METHOD host path` of every request.
    pub(crate) seen: Vec<String>,
    /// The last body of a create or replace.
    pub(crate) written: Value,
    /// Reads of a service until its conditions settle.
    pub(crate) delay: u32,
    /// The end of every access token that counts.
    pub(crate) age: String,
    pending: u32,
    clock: u32,
}

pub(crate) struct Cloud {
    pub(crate) api: String,
    pub(crate) dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) exec: Option<Exec>,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.err);
        self
    }
}

/// Who sits in front.
#[derive(Default, Clone)]
pub(crate) struct Seat {
    pub(crate) terminal: bool,
    pub(crate) input: String,
    pub(crate) gcloud: bool,
    pub(crate) environment: Vec<(String, String)>,
}

impl Cloud {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for sub in ["identity", "ca", "config"] {
            std::fs::create_dir(dir.path().join(sub)).expect("a directory");
        }
        std::fs::write(dir.path().join("identity/owner-key.json"), "the key").expect("a file");
        std::fs::write(dir.path().join("ca/ca.pem"), "the authority").expect("a file");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let api = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(Mutex::new(State {
            delay: 2,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        let data_dir = dir.path().to_owned();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (state, data_dir) = (Arc::clone(&shared), data_dir.clone());
                thread::spawn(move || serve(&stream, &state, &data_dir));
            }
        });
        Self { api, dir, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic in the server")
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        self.run_as(words, &Seat::default())
    }

    pub(crate) fn run_as(&self, words: &[&str], seat: &Seat) -> Ran {
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        if words.first().map(String::as_str) != Some("--api") {
            words.splice(0..0, ["--api".to_owned(), self.api.clone()]);
        }
        run(&words, self.dir.path().join("config"), seat)
    }
}

pub(crate) fn run(words: &[String], config_dir: PathBuf, seat: &Seat) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut input = Cursor::new(seat.input.clone());
    let exec = RefCell::new(None);
    let code = cli::run(
        words,
        Outside {
            name: if seat.gcloud { Name::Gcloud } else { Name::Homerun },
            environment: seat.environment.clone(),
            input: &mut input,
            out: &mut out,
            err: &mut err,
            input_is_terminal: seat.terminal,
            out_is_terminal: seat.terminal,
            err_is_terminal: seat.terminal,
            sign: &|key, ask, now| {
                assert_eq!((key, now), ("the key", 1_800_000_000));
                Ok(match ask {
                    Ask::Scope(scope) => format!("scope {scope}"),
                    Ask::Audience(audience) => format!("audience {audience}"),
                })
            },
            now: 1_800_000_000,
            chance: 12_345_678_901_234,
            config_dir,
            executable: PathBuf::from("/nowhere/homerun"),
            exec: &|wanted| {
                *exec.borrow_mut() = Some(wanted.clone());
                io::Error::other("this is a test")
            },
            serve: &|_, _| Err("this is a test".to_owned()),
        },
    );
    Ran {
        code,
        out: String::from_utf8(out).expect("text"),
        err: String::from_utf8(err).expect("text"),
        exec: exec.into_inner(),
    }
}

struct Request {
    method: String,
    host: String,
    path: String,
    query: String,
    content_type: String,
    authorization: String,
    body: Vec<u8>,
}

struct Answer {
    code: u16,
    location: Option<String>,
    body: Vec<u8>,
}

fn ok(value: &Value) -> Answer {
    Answer {
        code: 200,
        location: None,
        body: value.to_string().into_bytes(),
    }
}

fn refuse(code: u16, status: &str, message: &str) -> Answer {
    let body = json!({"error": {"code": code, "status": status, "message": message}});
    Answer {
        code,
        location: None,
        body: body.to_string().into_bytes(),
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    assert!(!headers.contains_key("transfer-encoding"), "bodies have a length");
    let length = headers
        .get("content-length")
        .map_or(0, |l| l.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    Some(Request {
        method,
        host: header("host"),
        path: path.to_owned(),
        query: query.to_owned(),
        content_type: header("content-type"),
        authorization: header("authorization"),
        body,
    })
}

fn serve(stream: &TcpStream, state: &Mutex<State>, data_dir: &Path) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        let mut state = state.lock().expect("no panic in the server");
        state
            .seen
            .push(format!("{} {} {}", request.method, request.host, request.path));
        let answer = answer(&request, &mut state, data_dir);
        drop(state);
        let location = answer.location.map_or(String::new(), |l| format!("location: {l}\r\n"));
        let head = format!(
            "HTTP/1.1 {} x\r\ncontent-type: application/json\r\n{location}content-length: {}\r\n\r\n",
            answer.code,
            answer.body.len()
        );
        let mut to = stream;
        let body: &[u8] = if request.method == "HEAD" { &[] } else { &answer.body };
        if to.write_all(&[head.as_bytes(), body].concat()).is_err() {
            return;
        }
    }
}

fn answer(request: &Request, state: &mut State, data_dir: &Path) -> Answer {
    if request.path == "/homerun/about" {
        return ok(&json!({
            "project": "my-project", "projectNumber": "123", "region": "us-central1",
            "domain": "a.run.localhost", "dataDir": data_dir, "version": "0", "urls": {},
        }));
    }
    if request.path == "/token" {
        return token(request, &state.age);
    }
    if request.authorization != format!("Bearer token-for-scope{}", state.age) {
        return refuse(401, "UNAUTHENTICATED", "no token");
    }
    let path = request.path.clone();
    if let Some(rest) = path.strip_prefix("/apis/serving.knative.dev/v1/namespaces/my-project/") {
        assert_eq!(request.host, "us-central1-run.googleapis.com");
        return knative(request, state, rest);
    }
    if let Some(rest) = path.strip_prefix("/v2/") {
        return registry(request, state, rest);
    }
    match (request.method.as_str(), path.as_str()) {
        ("GET", "/v1/projects/my-project/locations/-/services") => {
            ok(&json!({"items": state.services.values().collect::<Vec<_>>()}))
        }
        ("GET", "/v1/projects/my-project/locations") => {
            ok(&json!({"locations": [{"locationId": "us-east1"}, {"locationId": "us-central1"}]}))
        }
        ("POST", "/v1/projects/my-project/services/run.googleapis.com:enable") => {
            assert_eq!(request.host, "serviceusage.googleapis.com");
            ok(&json!({"name": "operations/x", "done": true}))
        }
        ("GET", "/v1/projects/my-project/services") => {
            ok(&json!({"services": [{"config": {"name": "run.googleapis.com", "title": "Cloud Run"}}]}))
        }
        _ => {
            let Some(rest) = path.strip_prefix("/v1/projects/my-project/locations/us-central1/services/") else {
                return refuse(404, "NOT_FOUND", &path);
            };
            let (service, verb) = rest.split_once(':').expect("a verb");
            policy(request, state, service, verb)
        }
    }
}

fn token(request: &Request, age: &str) -> Answer {
    assert_eq!(request.host, "oauth2.googleapis.com");
    assert_eq!(request.content_type, "application/x-www-form-urlencoded");
    let form = String::from_utf8(request.body.clone()).expect("a form");
    assert!(form.contains("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer"));
    if form.contains("assertion=scope%20") {
        ok(&json!({"access_token": format!("token-for-scope{age}"), "expires_in": 3599, "token_type": "Bearer"}))
    } else {
        let (_, audience) = form.split_once("assertion=audience%20").expect("an audience");
        ok(&json!({"id_token": format!("id-for-{audience}")}))
    }
}

fn policy(request: &Request, state: &mut State, service: &str, verb: &str) -> Answer {
    assert_eq!(request.host, "run.googleapis.com");
    let stored = state.policies.get(service).cloned();
    let stored = stored.unwrap_or(json!({"version": 1, "etag": "e0"}));
    if verb == "getIamPolicy" {
        return ok(&stored);
    }
    assert_eq!(verb, "setIamPolicy");
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    let mut policy = body["policy"].clone();
    if !policy["etag"].is_null() && policy["etag"] != stored["etag"] {
        return refuse(409, "ABORTED", "stale etag");
    }
    state.clock += 1;
    policy["etag"] = json!(format!("e{}", state.clock));
    state.policies.insert(service.to_owned(), policy.clone());
    ok(&policy)
}

fn knative(request: &Request, state: &mut State, rest: &str) -> Answer {
    let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
    match (request.method.as_str(), kind, name) {
        ("POST" | "PUT", "services", _) => {
            let body: Value = serde_json::from_slice(&request.body).expect("JSON");
            write(state, &body, request.query.contains("dryRun=all"))
        }
        ("GET", "services", "") => ok(&json!({"items": state.services.values().collect::<Vec<_>>()})),
        ("GET", "services", name) => {
            if !state.services.contains_key(name) {
                return refuse(404, "NOT_FOUND", "no such service");
            }
            if state.pending > 0 {
                state.pending -= 1;
                if state.pending == 0 {
                    settle(state, name);
                }
            }
            ok(&state.services[name])
        }
        ("DELETE", "services", name) => match state.services.remove(name) {
            Some(_) => ok(&json!({"status": "Success"})),
            None => refuse(404, "NOT_FOUND", "no such service"),
        },
        ("GET", "revisions", "") => {
            let selected = |revision: &&Value| {
                let service = revision["metadata"]["labels"]["serving.knative.dev/service"].as_str();
                let selector = format!(
                    "labelSelector=serving.knative.dev%2Fservice%20%3D%20{}",
                    service.unwrap_or_default()
                );
                request.query.is_empty() || request.query == selector
            };
            ok(&json!({"items": state.revisions.values().filter(selected).collect::<Vec<_>>()}))
        }
        ("GET", "revisions", name) => match state.revisions.get(name) {
            Some(revision) => ok(revision),
            None => refuse(404, "NOT_FOUND", "no such revision"),
        },
        ("DELETE", "revisions", name) => match state.revisions.remove(name) {
            Some(_) => ok(&json!({"status": "Success"})),
            None => refuse(404, "NOT_FOUND", "no such revision"),
        },
        _ => refuse(400, "UNIMPLEMENTED", rest),
    }
}

fn write(state: &mut State, body: &Value, dry_run: bool) -> Answer {
    state.written = body.clone();
    let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
    if body["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "1X" {
        let body = json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "m", "details": [
            {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [
                {"field": "spec.template.spec.containers[0].resources.limits.memory", "description": "1X is no quantity"}]}]}});
        return Answer {
            code: 400,
            location: None,
            body: body.to_string().into_bytes(),
        };
    }
    let before = state.services.get(&name).cloned().unwrap_or_default();
    if before["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
        return refuse(409, "ABORTED", "the service was changed meanwhile");
    }
    let mut service = body.clone();
    state.clock += 1;
    let generation = before["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
    service["metadata"]["generation"] = json!(generation);
    service["metadata"]["resourceVersion"] = json!(format!("rv{}", state.clock));
    service["metadata"]["labels"]["cloud.googleapis.com/location"] = json!("us-central1");
    service["metadata"]["annotations"]["serving.knative.dev/lastModifier"] = json!("dev@example.com");
    if service["spec"]["traffic"].is_null() {
        service["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100}]);
    }
    service["status"] = before["status"].clone();
    service["status"]["observedGeneration"] = json!(generation);
    service["status"]["conditions"] = json!([
        {"type": "Ready", "status": "Unknown"}, {"type": "ConfigurationsReady", "status": "Unknown"}, {"type": "RoutesReady", "status": "Unknown"}]);
    if dry_run {
        return ok(&service);
    }
    if service["spec"]["template"] != before["spec"]["template"] {
        make_revision(state, &name, &service["spec"]["template"], generation);
        let newest = newest(state, &name);
        service["status"]["latestCreatedRevisionName"] = json!(newest);
    }
    state.services.insert(name.clone(), service);
    state.pending = state.delay;
    if state.pending == 0 {
        settle(state, &name);
    }
    ok(&state.services[&name])
}

fn make_revision(state: &mut State, service: &str, template: &Value, generation: u64) {
    let given = template["metadata"]["name"].as_str().map(str::to_owned);
    let revision = given.unwrap_or_else(|| format!("{service}-{generation:05}-abc"));
    let image = template["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    let repository = image.split([':', '@']).next().unwrap_or_default();
    let mut labels = json!({"serving.knative.dev/service": service, "cloud.googleapis.com/location": "us-central1"});
    for (key, value) in template["metadata"]["labels"].as_object().into_iter().flatten() {
        labels[key] = value.clone();
    }
    let document = json!({
        "metadata": {"name": revision, "labels": labels, "creationTimestamp": format!("2026-11-25T00:00:{:02}.5Z", state.clock),
            "annotations": {"serving.knative.dev/creator": "dev@example.com"}},
        "spec": template["spec"],
        "status": {"imageDigest": format!("{repository}@sha256:{}", "a".repeat(64)),
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Active", "status": if generation == 1 { "True" } else { "False" }}]},
    });
    state.revisions.insert(revision, document);
}

fn newest(state: &State, service: &str) -> String {
    state
        .revisions
        .values()
        .filter(|revision| revision["metadata"]["labels"]["serving.knative.dev/service"] == service)
        .max_by_key(|revision| revision["metadata"]["creationTimestamp"].to_string())
        .and_then(|revision| revision["metadata"]["name"].as_str())
        .expect("has one")
        .to_owned()
}

fn settle(state: &mut State, name: &str) {
    let mut service = state.services[name].clone();
    let condition = |kind: &str, status: &str, message: &str| json!({"type": kind, "status": status, "message": message, "lastTransitionTime": "2026-11-25T00:00:00Z"});
    let is_bad = service["spec"]["template"]["spec"]["containers"][0]["image"] == "bad";
    let message = "The container exited with code 3: no such file";
    if name.starts_with("fail") {
        service["status"]["conditions"] = json!([
            condition("Ready", "False", message),
            condition("ConfigurationsReady", "False", message),
            condition("RoutesReady", "Unknown", "")
        ]);
    } else if is_bad {
        service["status"]["conditions"] = json!([
            condition("Ready", "False", message),
            condition("ConfigurationsReady", "False", message),
            condition("RoutesReady", "True", "")
        ]);
        service["status"]["traffic"] = service["spec"]["traffic"].clone();
    } else {
        let latest = service["status"]["latestCreatedRevisionName"].clone();
        service["status"]["latestReadyRevisionName"] = latest.clone();
        service["status"]["url"] = json!(format!("https://{name}-h-uc.test"));
        service["status"]["conditions"] = json!([
            condition("Ready", "True", ""),
            condition("ConfigurationsReady", "True", ""),
            condition("RoutesReady", "True", "")
        ]);
        let mut traffic = service["spec"]["traffic"].clone();
        for entry in traffic.as_array_mut().expect("a list") {
            if entry["latestRevision"] == true {
                entry["revisionName"] = latest.clone();
            }
            if let Some(tag) = entry["tag"].as_str() {
                entry["url"] = json!(format!("https://{tag}---{name}-h-uc.test"));
            }
            entry
                .as_object_mut()
                .expect("a map")
                .retain(|_, value| !value.is_null());
        }
        service["status"]["traffic"] = traffic;
    }
    state.services.insert(name.to_owned(), service);
}

fn registry(request: &Request, state: &mut State, rest: &str) -> Answer {
    assert_eq!(request.host, "us-central1-docker.pkg.dev");
    let rest = rest.strip_prefix("p/r/app/").expect("the repository");
    let empty = |code| Answer {
        code,
        location: None,
        body: Vec::new(),
    };
    match (request.method.as_str(), rest.split_once('/').expect("two parts")) {
        ("HEAD", ("blobs", digest)) => empty(if state.blobs.contains_key(digest) { 200 } else { 404 }),
        ("POST", ("blobs", "uploads/")) => Answer {
            location: Some("/v2/p/r/app/blobs/uploads/1?state=s".to_owned()),
            ..empty(202)
        },
        ("PUT", ("blobs", "uploads/1")) => {
            let digest = request.query.strip_prefix("state=s&digest=").expect("a digest");
            state.blobs.insert(digest.replace("%3A", ":"), request.body.clone());
            empty(201)
        }
        ("PUT", ("manifests", reference)) => {
            let manifest = (request.content_type.clone(), request.body.clone());
            state.manifests.insert(reference.to_owned(), manifest);
            empty(201)
        }
        other => panic!("{other:?}"),
    }
}
