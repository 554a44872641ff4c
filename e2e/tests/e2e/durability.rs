//! What was acknowledged survives SIGKILL at any moment, and what the dead one ran does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use homerun_e2e::{Answer, Client, User, exchange};
use serde_json::{Value, json};

const ROUNDS: u32 = 5;
const HELLO: &str = "us-docker.pkg.dev/cloudrun/container/hello";

/// What one client was told had happened, and the one change whose answer never came.
#[derive(Debug, Default, Clone)]
struct Told {
    /// Of `counter`: the number in its environment, and the generation that came with it.
    count: u64,
    generation: u64,
    /// Services that were made and not deleted, with whether everyone may call them.
    services: BTreeMap<String, bool>,
    deleted: BTreeSet<String>,
    /// Tags of the registry, with their digests.
    tags: BTreeMap<String, String>,
    acknowledged: u32,
    /// What was asked last, if its answer was not seen.
    open: Option<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Count(u64),
    Create(String),
    Open(String),
    Delete(String),
    Tag(String),
}

/// The Run API and the registry, as one who remembers what was acknowledged.
#[derive(Debug, Clone)]
struct Api {
    address: SocketAddr,
    token: String,
}

impl Api {
    fn ask(&self, method: &str, path: &str, host: &str, kind: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\ncontent-type: {kind}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            self.token,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        exchange(self.address, request)
    }

    fn run(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        let path = format!("/apis/serving.knative.dev/v1/namespaces/my-project/services{path}");
        self.google(method, &path, body)
    }

    fn google(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        let host = "us-central1-run.googleapis.com";
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = self.ask(method, path, host, "application/json", body.as_bytes())?;
        Ok((answer.status, serde_json::from_str(&answer.body)?))
    }

    fn registry(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let path = format!("/v2/my-project/e2e/kept/{path}");
        self.ask(method, &path, &self.address.to_string(), kind, body)
    }
}

fn service(name: &str, count: u64) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [
            {"image": HELLO, "env": [{"name": "COUNT", "value": count.to_string()}]},
        ]}}},
    })
}

fn policy_path(name: &str, verb: &str) -> String {
    format!("/v1/projects/my-project/locations/us-central1/services/{name}:{verb}")
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest that no other call makes: what it names was pushed before.
fn manifest(tag: &str, pushed: &Value) -> Vec<u8> {
    let mut manifest = pushed.clone();
    manifest["annotations"] = json!({"tag": tag});
    manifest.to_string().into_bytes()
}

/// One change after the other until the server is gone or the order to end comes.
fn change(api: &Api, told: &Mutex<Told>, pushed: &Value, enough: &AtomicBool) {
    let mut step = 0;
    while !enough.load(Ordering::SeqCst) {
        let next = {
            let mut told = told.lock().expect("whole");
            let made = told.services.keys().next().cloned();
            let shut = told
                .services
                .iter()
                .find(|(_, open)| !**open)
                .map(|(name, _)| name.clone());
            let fresh = format!("s{}-{}", told.acknowledged, told.deleted.len());
            let next = match (step % 5, shut, made) {
                (1, _, _) => Change::Create(fresh),
                (2, Some(name), _) => Change::Open(name),
                (3, _, _) => Change::Tag(format!("v{}", told.acknowledged)),
                (4, _, Some(name)) if told.services.len() > 2 => Change::Delete(name),
                _ => Change::Count(told.count + 1),
            };
            told.open = Some(next.clone());
            next
        };
        step += 1;
        let answered = match &next {
            Change::Count(count) => api.run("PUT", "/counter", &service("counter", *count)),
            Change::Create(name) => api.run("POST", "", &service(name, 0)),
            Change::Open(name) => {
                let everyone =
                    json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}]}});
                api.google("POST", &policy_path(name, "setIamPolicy"), &everyone)
            }
            Change::Delete(name) => api.run("DELETE", &format!("/{name}"), &Value::Null),
            Change::Tag(tag) => api
                .registry("PUT", &format!("manifests/{tag}"), MANIFEST, &manifest(tag, pushed))
                .map(|answer| (answer.status, Value::Null)),
        };
        // A connection that broke is how the death is seen; an answer is an answer.
        let Ok((status, body)) = answered else { return };
        assert!((200..300).contains(&status), "{next:?}: {status} {body}");
        let mut told = told.lock().expect("whole");
        told.open = None;
        told.acknowledged += 1;
        match next {
            Change::Count(count) => {
                told.count = count;
                told.generation = body["metadata"]["generation"].as_u64().expect("a number");
            }
            Change::Create(name) => drop(told.services.insert(name, false)),
            Change::Open(name) => drop(told.services.insert(name, true)),
            Change::Delete(name) => {
                told.services.remove(&name);
                told.deleted.insert(name);
            }
            Change::Tag(tag) => {
                let digest = digest_of(&manifest(&tag, pushed));
                told.tags.insert(tag, digest);
            }
        }
    }
}

fn digest_of(content: &[u8]) -> String {
    use std::io::Write as _;
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("there is one");
    child.stdin.take().expect("a pipe").write_all(content).expect("taken");
    let output = child.wait_with_output().expect("ends").stdout;
    format!("sha256:{}", String::from_utf8_lossy(&output[..64]))
}

/// Every acknowledged change is there; the open one may be, and is then taken as told.
fn compare(api: &Api, told: &mut Told, pushed: &Value) {
    let open = told.open.take();
    let (status, counter) = api.run("GET", "/counter", &Value::Null).expect("answers");
    assert_eq!(status, 200, "{counter}");
    let env = &counter["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"];
    let count: u64 = env.as_str().expect("a text").parse().expect("a number");
    let generation = counter["metadata"]["generation"].as_u64().expect("a number");
    let may_be_next = open == Some(Change::Count(told.count + 1));
    if may_be_next && count == told.count + 1 {
        assert_eq!(generation, told.generation + 1);
        (told.count, told.generation) = (count, generation);
    }
    assert_eq!(
        (count, generation),
        (told.count, told.generation),
        "counter; open: {open:?}"
    );

    let (_, list) = api.run("GET", "", &Value::Null).expect("answers");
    let items = list["items"].as_array().expect("a list");
    let mut there: BTreeSet<String> = items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().expect("a name").to_owned())
        .collect();
    assert!(there.remove("counter"), "{there:?}");
    if let Some(Change::Create(name)) = &open
        && there.contains(name)
    {
        told.services.insert(name.clone(), false);
    }
    if let Some(Change::Delete(name)) = &open
        && !there.contains(name)
    {
        told.services.remove(name);
        told.deleted.insert(name.clone());
    }
    let wanted: BTreeSet<String> = told.services.keys().cloned().collect();
    assert_eq!(there, wanted, "open: {open:?}");
    for (name, everyone) in &mut told.services {
        let (_, policy) = api
            .google("GET", &policy_path(name, "getIamPolicy"), &Value::Null)
            .expect("answers");
        let opened = policy["bindings"][0]["members"][0] == "allUsers";
        if open == Some(Change::Open(name.clone())) {
            *everyone = opened;
        }
        assert_eq!(opened, *everyone, "{name}: {policy}; open: {open:?}");
    }
    for (tag, digest) in &told.tags {
        let answer = api
            .registry("GET", &format!("manifests/{tag}"), MANIFEST, b"")
            .expect("answers");
        assert_eq!(answer.status, 200, "{tag}: {answer:?}");
        assert_eq!(answer.body.as_bytes(), manifest(tag, pushed), "{tag} {digest}");
        let answer = api
            .registry("GET", &format!("manifests/{digest}"), MANIFEST, b"")
            .expect("answers");
        assert_eq!(answer.status, 200, "{digest}: {answer:?}");
    }
}

/// The counter serves what was stored last, within the time that a deploy and a cold start take.
fn serves(http: SocketAddr, host: &str, count: u64) {
    let request = format!("GET /env HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let wanted = format!("\"COUNT\":\"{count}\"");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = exchange(http, &request).expect("answered");
        if answer.status == 200 && answer.body.contains(&wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "not {wanted} but {answer:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a run that failed is repeated by its seed")]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            u64::from(now.subsec_nanos())
        });
    println!("SEED={seed}");
    let mut chance = seed;
    // Without a window nothing of the dead one is taken over.
    let mut user = User::with(&["--adoption-window", "0"], Client::Homerun);
    let layout = user.layout("kept");
    user.import_probe("kept");
    let pushed = std::fs::read(
        layout
            .dir
            .join("blobs/sha256")
            .join(layout.digest.trim_start_matches("sha256:")),
    );
    let pushed: Value = serde_json::from_slice(&pushed.expect("a manifest")).expect("JSON");
    let url = user.deploy("counter", "--image=$HELLO --set-env-vars=COUNT=0");
    let host = url.strip_prefix("http://").expect("as it was started");
    let host = host.split(':').next().expect("a host").to_owned();
    let token = user.ok("gcloud auth print-access-token").trim().to_owned();
    let User { mut homerun, session } = user;
    drop(session);
    let mut api = Api {
        address: homerun.api(),
        token,
    };
    let (_, counter) = api.run("GET", "/counter", &Value::Null).expect("answers");
    let told = Arc::new(Mutex::new(Told {
        generation: counter["metadata"]["generation"].as_u64().expect("a number"),
        ..Told::default()
    }));

    for round in 0..ROUNDS {
        // An instance at work, and changes one after the other.
        let count = told.lock().expect("whole").count;
        serves(homerun.http(), &host, count);
        let enough = Arc::new(AtomicBool::new(false));
        let client = {
            let (api, told, pushed, enough) = (api.clone(), told.clone(), pushed.clone(), enough.clone());
            thread::spawn(move || change(&api, &told, &pushed, &enough))
        };
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_millis(200 + (chance >> 33) % 800));
        let footprint = homerun.footprint().expect("seen");
        assert!(
            !footprint.instances.is_empty() && !footprint.processes.is_empty(),
            "{footprint:?}"
        );
        let seen = footprint.remains().expect("seen");
        assert!(!seen.is_empty(), "what lives is found, so what is left would be");
        let before = told.lock().expect("whole").acknowledged;

        homerun.kill_and_restart().expect("starts after a kill");
        enough.store(true, Ordering::SeqCst);
        client.join().expect("every answer was a success");
        assert!(before > 0, "the kill came in the midst of changes");
        println!(
            "round {round}: {} acknowledged, {:?} open",
            before,
            told.lock().expect("whole").open
        );

        let left = footprint.remains().expect("seen");
        assert!(
            left.is_empty(),
            "left by the dead one:\n{}\n{}",
            left.join("\n"),
            homerun.log()
        );
        api.address = homerun.api();
        let mut now = told.lock().expect("whole");
        compare(&api, &mut now, &pushed);
        let count = now.count;
        drop(now);
        serves(homerun.http(), &host, count);
    }
    // The kill took no data and no order: it still ends well, and leaves nothing.
    homerun.stop().expect("ends in order");
}
