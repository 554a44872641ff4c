//! Images: pushed by skopeo or by our own client, pulled from elsewhere, pinned to digests by deploys.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use homerun_e2e::{Client, Layout, User};

const REPOSITORY: &str = "us-central1-docker.pkg.dev/my-project/e2e";

#[test]
fn skopeo_pushes_and_pulls() {
    let mut user = User::of_homerun();
    let layout = user.layout("pushed");
    let dir = layout.dir.display();
    user.ok("TOKEN=$(gcloud auth print-access-token); PORT=docker://$HOMERUN_API/my-project/e2e");
    let refused = user.refused(&format!(
        "skopeo copy --dest-tls-verify=false oci:{dir} $PORT/pushed:v1"
    ));
    assert!(refused.contains("unauthorized"), "{refused}");
    let wrong = "--dest-tls-verify=false --dest-creds=oauth2accesstoken:wrong";
    let refused = user.refused(&format!("skopeo copy {wrong} oci:{dir} $PORT/pushed:v1"));
    assert!(refused.contains("unauthorized"), "{refused}");

    let push = "skopeo copy --dest-tls-verify=false --dest-creds=oauth2accesstoken:$TOKEN";
    user.ok(&format!("{push} oci:{dir} $PORT/pushed:v1"));
    user.ok("skopeo copy --src-tls-verify=false --src-creds=oauth2accesstoken:$TOKEN $PORT/pushed:v1 oci:back:latest");
    let back = user.ok("cat back/index.json");
    assert!(back.contains(&layout.digest), "{back}");
    let url = user.deploy("pushed", &format!("--image={REPOSITORY}/pushed:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "pushed");
    let (image, digest) = digest_of(&mut user, "pushed");
    assert_eq!((image, digest), (format!("{REPOSITORY}/pushed"), layout.digest));

    // The older format of the same image.
    user.ok(&format!("{push} --format=v2s2 oci:{dir} $PORT/docker:v1"));
    let url = user.deploy("docker", &format!("--image={REPOSITORY}/docker:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "pushed");
    let kind = user.ok("skopeo inspect --raw --tls-verify=false --creds=oauth2accesstoken:$TOKEN $PORT/docker:v1");
    assert!(kind.contains("docker.distribution.manifest.v2"), "{kind}");

    // The newer compression of its layers.
    user.ok(&format!(
        "skopeo copy --format=oci --dest-compress --dest-compress-format=zstd oci:{dir} oci:zstd:latest"
    ));
    user.ok(&format!("{push} oci:zstd $PORT/zstd:v1"));
    let kind = user.ok("skopeo inspect --raw --tls-verify=false --creds=oauth2accesstoken:$TOKEN $PORT/zstd:v1");
    assert!(kind.contains("tar+zstd"), "{kind}");
    let url = user.deploy("zstd", &format!("--image={REPOSITORY}/zstd:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "pushed");

    // Through the door, under the name that the world knows.
    user.ok("door() { HTTPS_PROXY=http://$HOMERUN_API NO_PROXY= SSL_CERT_FILE=$DATA_DIR/ca/ca.pem skopeo \"$@\"; }");
    let door = format!("docker://{REPOSITORY}/door:v1");
    user.refused(&format!("door copy oci:{dir} {door}"));
    user.ok(&format!(
        "door copy --dest-creds=oauth2accesstoken:$TOKEN oci:{dir} {door}"
    ));
    user.ok(&format!(
        "door copy --src-creds=oauth2accesstoken:$TOKEN {door} oci:again:latest"
    ));
    let url = user.deploy("door", &format!("--image={REPOSITORY}/door:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "pushed");
    user.leaves();
}

/// As docker's clients log in: by gcloud's credential helper, by a key file once for all, and not without.
#[test]
fn clients_log_in_as_at_google() {
    let mut user = User::with(&[], Client::Google);
    let layout = user.layout("helped");
    let dir = layout.dir.display();
    let door = format!("docker://{REPOSITORY}/helped:v1");
    user.ok("door() { HTTPS_PROXY=http://$HOMERUN_API NO_PROXY= SSL_CERT_FILE=$DATA_DIR/ca/ca.pem skopeo \"$@\"; }");
    // The helper is started by skopeo, so gcloud's surroundings are the shell's.
    user.ok("eval \"$(homerun env)\"");
    user.ok("gcloud auth configure-docker us-central1-docker.pkg.dev --quiet");
    user.ok(&format!(
        "door copy --dest-authfile $HOME/.docker/config.json oci:{dir} {door}"
    ));
    user.ok(&format!("door inspect --authfile $HOME/.docker/config.json {door}"));
    let refused = user.refused(&format!("door inspect --authfile /dev/null --no-creds {door}"));
    assert!(refused.contains("unauthorized"), "{refused}");

    user.ok(
        "skopeo login --tls-verify=false --authfile auth.json -u _json_key --password-stdin $HOMERUN_API \
         < $DATA_DIR/identity/owner-key.json",
    );
    let port = "--tls-verify=false --authfile auth.json docker://$HOMERUN_API/my-project/e2e/helped";
    let tags = user.ok(&format!("skopeo list-tags {port}"));
    assert!(tags.contains("\"v1\""), "{tags}");
    let refused = user.refused(
        "echo '{}' | skopeo login --tls-verify=false --authfile no.json -u _json_key --password-stdin $HOMERUN_API",
    );
    assert!(
        refused.contains("invalid username/password") || refused.contains("unauthorized"),
        "{refused}"
    );
    user.leaves();
}

/// A registry with a bound says so to whoever pushes, and goes on with what it has.
#[test]
fn a_full_registry_refuses_by_name() {
    let mut user = User::with(&["--registry-quota", "1MiB"], Client::Homerun);
    let layout = user.layout("large");
    let dir = layout.dir.display();
    let push = "skopeo copy --dest-tls-verify=false --dest-creds=oauth2accesstoken:$(gcloud auth print-access-token)";
    let refused = user.refused(&format!(
        "{push} oci:{dir} docker://$HOMERUN_API/my-project/e2e/large:v1"
    ));
    assert!(refused.contains("quota of 1048576 bytes"), "{refused}");
    let refused = user.refused(&format!("homerun images import {dir} {REPOSITORY}/large:v1"));
    assert!(refused.contains("quota of 1048576 bytes"), "{refused}");
    assert_eq!(user.ok("homerun images list --format='value(package)'"), "");
    let url = user.deploy("hello", "--image=$HELLO");
    assert!(user.get(&url).contains("\"service\":\"hello\""));
    user.leaves();
}

/// Pushes, deploys and deletes while the collector runs all the time: nobody notices it, and what nothing names goes.
#[test]
fn pushes_and_deploys_do_not_notice_the_collector() {
    let mut user = User::of_homerun();
    let dirs: Vec<_> = ["zero", "one", "two"].map(|name| user.layout(name).dir).into();
    let blobs = "ls $DATA_DIR/images/blobs/sha256";
    let before = user.ok(blobs).lines().count();
    user.ok("TOKEN=$(gcloud auth print-access-token); PORT=docker://$HOMERUN_API/my-project/e2e");
    user.ok("push() { skopeo copy --dest-tls-verify=false --dest-creds=oauth2accesstoken:$TOKEN oci:$1 $PORT/$2:v1; }");
    user.ok(
        "(touch collecting; while test -e collecting; do homerun images collect --older-than=1s \
         --format='value(blobs)' || echo failed; sleep 0.02; done > collected 2>&1) & COLLECTOR=$!",
    );
    for round in 0..4 {
        let push = dirs.iter().enumerate();
        let push: Vec<_> = push
            .map(|(n, dir)| format!("push {} app{n} > push{n} 2>&1 & P{n}=$!", dir.display()))
            .collect();
        user.ok(&push.join("\n"));
        user.ok("wait $P0 && wait $P1 && wait $P2 || (cat push?; false)");
        // One goes on under its name, one only as a revision's, one not at all.
        let url = user.deploy("kept", &format!("--image={REPOSITORY}/app0:v1"));
        let held = user.deploy("held", &format!("--image={REPOSITORY}/app1:v1"));
        for n in 1..3 {
            user.ok(&format!(
                "gcloud artifacts docker images delete {REPOSITORY}/app{n}:v1 --delete-tags --quiet"
            ));
        }
        // What is not named any more is old enough to go, also while the next round pushes it again.
        user.ok(&format!("sleep 1.{round}"));
        assert_eq!(user.get(&format!("{url}/name")), "zero");
        assert_eq!(user.get(&format!("{held}/name")), "one");
    }
    let collected = user.ok("rm collecting; wait $COLLECTOR; cat collected");
    assert!(!collected.contains("failed"), "{collected}");
    assert!(
        collected
            .lines()
            .any(|line| line.parse().is_ok_and(|blobs: u32| blobs > 0)),
        "the collector had nothing to do: {collected}"
    );
    let left = user.ok(blobs).lines().count() - before;
    assert_eq!(left, 6, "manifest, configuration and layer of two images");
    user.leaves();
}

/// Repository and digest that the service's latest revision runs.
#[track_caller]
fn digest_of(user: &mut User, service: &str) -> (String, String) {
    let revision = user.describe(service, "value(status.latestReadyRevisionName)");
    let image = user.ok(&format!(
        "gcloud run revisions describe {} $REGION --format='value(status.imageDigest)'",
        revision.trim()
    ));
    let (repository, digest) = image
        .trim()
        .split_once('@')
        .unwrap_or_else(|| panic!("no digest in {image}"));
    (repository.to_owned(), digest.to_owned())
}

#[test]
fn a_moved_tag_moves_with_the_next_deploy() {
    let mut user = User::of_homerun();
    let (one, two) = (user.layout("one"), user.layout("two"));
    let image = format!("{REPOSITORY}/moving:v1");
    user.ok(&format!("homerun images import {} {image}", one.dir.display()));
    let url = user.deploy("moving", &format!("--image={image}"));
    assert_eq!(user.get(&format!("{url}/name")), "one");
    user.ok(&format!("homerun images import {} {image}", two.dir.display()));
    // Asleep and awake again: still the digest of its deploy.
    thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(user.get(&format!("{url}/name")), "one");
    assert_eq!(digest_of(&mut user, "moving").1, one.digest);
    user.deploy("moving", &format!("--image={image}"));
    assert_eq!(user.get(&format!("{url}/name")), "two");
    assert_eq!(digest_of(&mut user, "moving").1, two.digest);
    user.ok("gcloud run services update-traffic moving $REGION --to-revisions=moving-00001=100");
    assert_eq!(user.get(&format!("{url}/name")), "one");

    let url = user.deploy("pinned", &format!("--image={REPOSITORY}/moving@{}", one.digest));
    assert_eq!(user.get(&format!("{url}/name")), "one");
    let wrong = one
        .digest
        .replace(|c: char| c.is_ascii_digit(), "0")
        .replace("sha000", "sha256");
    let said = user.refused(&format!(
        "gcloud run deploy pinned --image={REPOSITORY}/moving@{wrong} $REGION"
    ));
    assert!(said.contains(&wrong), "{said}");
    assert_eq!(user.get(&format!("{url}/name")), "one");
    user.leaves();
}

#[test]
fn a_list_gives_this_machines_image() {
    let mut user = User::of_homerun();
    let dir = user.homerun.root().join("list");
    let list = Layout::list(&dir, "this machine's").expect("a layout");
    user.ok(&format!("homerun images import {} {REPOSITORY}/list:v1", dir.display()));
    let url = user.deploy("list", &format!("--image={REPOSITORY}/list:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "this machine's");
    // And so from skopeo, all of it.
    user.ok(&format!(
        "skopeo copy --all --dest-tls-verify=false --dest-creds=oauth2accesstoken:$(gcloud auth print-access-token) \
         oci:{} docker://$HOMERUN_API/my-project/e2e/all:v1",
        dir.display()
    ));
    let url = user.deploy("all", &format!("--image={REPOSITORY}/all@{}", list.digest));
    assert_eq!(user.get(&format!("{url}/name")), "this machine's");
    user.leaves();
}

/// A registry of somebody else: one layout, read only, behind a user and a password, that counts what it is asked for.
struct Elsewhere {
    address: SocketAddr,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// `user:secret` in base64.
const BASIC: &str = "dXNlcjpzZWNyZXQ=";

impl Elsewhere {
    fn open(layout: &Layout) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let (dir, digest, counted) = (layout.dir.clone(), layout.digest.clone(), asked.clone());
        // Ends with the test's process.
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (dir, digest, counted) = (dir.clone(), digest.clone(), counted.clone());
                thread::spawn(move || drop(serve(&connection, &dir, &digest, &counted)));
            }
        });
        Self { address, asked }
    }

    /// How often each path was answered with content.
    fn asked(&self, part: &str) -> BTreeMap<String, usize> {
        let mut asked = self.asked.lock().expect("nobody panics").clone();
        asked.retain(|path, _| path.contains(part));
        asked
    }
}

fn serve(
    connection: &TcpStream,
    dir: &Path,
    digest: &str,
    counted: &Mutex<BTreeMap<String, usize>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (method, path) = line.split_once(' ').unwrap_or_default();
        let path = path.split(' ').next().unwrap_or_default();
        let mut known = false;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            known |= header.to_lowercase().starts_with("authorization:") && header.contains(BASIC);
        }
        let (status, kind, body) = if !known {
            ("401 Unauthorized", "application/json", b"{}".to_vec())
        } else if path == "/v2/" {
            ("200 OK", "application/json", b"{}".to_vec())
        } else {
            let last = path.rsplit('/').next().unwrap_or_default();
            let wanted = if last == "v1" { digest } else { last };
            let is_manifest = path.contains("/manifests/");
            match fs::read(dir.join("blobs").join(wanted.replace(':', "/"))) {
                Ok(content) if is_manifest => ("200 OK", "application/vnd.oci.image.manifest.v1+json", content),
                Ok(content) => ("200 OK", "application/octet-stream", content),
                Err(_) => ("404 Not Found", "application/json", b"{}".to_vec()),
            }
        };
        let challenge = if known {
            ""
        } else {
            "www-authenticate: Basic realm=\"elsewhere\"\r\n"
        };
        write!(
            writer,
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{challenge}content-length: {}\r\n\r\n",
            body.len()
        )?;
        if method == "GET" {
            if status == "200 OK" {
                *counted
                    .lock()
                    .expect("nobody panics")
                    .entry(path.to_owned())
                    .or_default() += 1;
            }
            writer.write_all(&body)?;
        }
    }
}

#[test]
fn another_registry_is_asked_once_and_with_credentials() {
    let mut user = User::of_homerun();
    let layout = user.layout("elsewhere");
    let elsewhere = Elsewhere::open(&layout);
    let image = format!("{}/team/app:v1", elsewhere.address);
    let said = user.refused(&format!("gcloud run deploy refused --image={image} $REGION --quiet"));
    assert!(said.contains(&image), "{said}");
    assert!(elsewhere.asked("blobs").is_empty());

    // As `docker login` leaves them, read by the server of its own home.
    user.ok(&format!(
        r#"mkdir -p $HOME/.docker; echo '{{"auths":{{"{}":{{"auth":"{BASIC}"}}}}}}' > $HOME/.docker/config.json"#,
        elsewhere.address
    ));
    let deploys: Vec<_> = (0..4)
        .map(|n| format!("gcloud run deploy app{n} --image={image} $REGION --quiet --allow-unauthenticated > out{n} 2>&1 & P{n}=$!"))
        .collect();
    user.ok(&deploys.join("\n"));
    user.ok("wait $P0 && wait $P1 && wait $P2 && wait $P3 || (cat out?; false)");
    for n in 0..4 {
        let url = user.describe(&format!("app{n}"), "value(status.url)");
        assert_eq!(user.get(&format!("{}/name", url.trim())), "elsewhere");
        let pinned = digest_of(&mut user, &format!("app{n}"));
        assert_eq!(
            pinned,
            (format!("{}/team/app", elsewhere.address), layout.digest.clone())
        );
    }
    let blobs = elsewhere.asked("/blobs/");
    assert_eq!(blobs.len(), 2, "configuration and layer: {blobs:?}");
    assert!(
        blobs.values().all(|times| *times == 1),
        "pulled more than once: {blobs:?}"
    );

    let missing = format!("{}/team/app:v2", elsewhere.address);
    let said = user.refused(&format!("gcloud run deploy app0 --image={missing} $REGION"));
    assert!(said.contains(&missing), "{said}");
    user.leaves();
}
