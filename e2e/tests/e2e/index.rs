//! The package index that build steps may read: what it gives them, and what it keeps from them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
};

use homerun_e2e::{Client, Files, User};

/// A web server that answers each path in words of the test, and remembers the heads of requests.
struct Site {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// `answer` gives the rest of a status line with headers, and the content, where SELF is the server's port.
    fn serve(answer: impl Fn(&str) -> (String, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let site = Self {
            address,
            seen: Arc::clone(&seen),
        };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut head = String::new();
                let mut lines = BufReader::new(stream.try_clone().expect("a copy"));
                while lines.read_line(&mut head).is_ok_and(|read| read > 2) {}
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                seen.lock().expect("no panic").push(head);
                let (status, content) = answer(&path);
                let content = content.replace("SELF", &address.port().to_string());
                let length = content.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{content}"
                );
            }
        });
        site
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }
}

const HTML: &str = "200 OK\r\nContent-Type: text/html";
const FILE: &str = "200 OK\r\nContent-Type: application/octet-stream";

/// A step that asks the index; each line that is not as it should be fails the build.
const STEP: &str = r#"
ask() {
    exec 3<>/dev/tcp/127.0.0.1/3128 || exit 1
    printf '%s %s HTTP/1.0\r\nHost: pypi\r\nAuthorization: Basic c3RlcA==\r\nCookie: step\r\n\r\n' "$1" "$2" >&3
    cat <&3
    exec 3>&-
}
gives() { said=$(ask GET "$1"); [[ $said == *"$2"* ]] || { echo "no $2 of $1: $said"; exit 1; }; }
refuses() { said=$(ask "${3:-GET}" "$1"); [[ $said == HTTP/1.?" $2 "* ]] || { echo "not $2 of $1: $said"; exit 1; }; }
gives /pip/thing/ 'href="/pip-link/'
link=${said#*href=\"}; link=${link%%#*}
gives "$link" "a file elsewhere"
gives "$link.metadata" "about that file"
gives /pip/thing/beside.whl "a file beside"
gives /pip/moved/ "where it moved"
refuses /pip/away/ 403
refuses /pip/private/ 403
refuses /pip/absent/ 404
refuses /pip/../admin 403
refuses /pip/%2e%2e/admin 403
refuses "${link}x" 403
refuses "${link/elsewhere/other}" 403
refuses /pip/thing/ 405 POST
refuses http://127.0.0.1:SITE/simple/thing/ 407
[[ $(cat /etc/pip.conf) == *"index-url = http://127.0.0.1:3128/pip/"* ]] || { echo "no pip.conf"; exit 1; }
echo all is as it should be
"#;

#[test]
fn steps_read_what_the_index_names_and_nothing_else() {
    let files = Site::serve(|path| match path {
        "/elsewhere/thing.whl" => (FILE.to_owned(), "a file elsewhere".to_owned()),
        "/elsewhere/thing.whl.metadata" => (FILE.to_owned(), "about that file".to_owned()),
        _ => (FILE.to_owned(), "what nobody named".to_owned()),
    });
    let at = files.address;
    let index = Site::serve(move |path| match path {
        "/simple/thing/" => (
            HTML.to_owned(),
            format!("<a href=\"http://{at}/elsewhere/thing.whl#sha256=ab\">thing</a>"),
        ),
        "/simple/thing/beside.whl" => (FILE.to_owned(), "a file beside".to_owned()),
        "/simple/moved/" => ("301 Moved\r\nLocation: /simple/moved-to/".to_owned(), String::new()),
        "/simple/moved-to/" => (HTML.to_owned(), "where it moved".to_owned()),
        "/simple/away/" => (
            format!("302 Found\r\nLocation: http://{at}/simple/away/"),
            String::new(),
        ),
        "/simple/private/" => ("401 Unauthorized".to_owned(), String::new()),
        "/admin" => (HTML.to_owned(), "what is not the index".to_owned()),
        _ => ("404 Not Found".to_owned(), String::new()),
    });
    let port = index.address.port();
    let flag = format!("pip=http://owner:ue8fq@127.0.0.1:{port}/simple");
    let mut user = User::with(&["--build-index", &flag], Client::Google);
    let base = user.import_base();
    let dir = user.homerun.root().join("home/app");
    fs::create_dir_all(&dir).expect("made");
    fs::write(
        dir.join("Dockerfile"),
        format!("FROM {base}\nCOPY script /script\nRUN [\"/bin/sh\", \"/script\"]\nENTRYPOINT [\"/probe\"]\n"),
    )
    .expect("written");
    fs::write(dir.join("script"), STEP.replace("SITE", &port.to_string())).expect("written");
    let said = user.ok("gcloud builds submit app --tag=us-central1-docker.pkg.dev/my-project/built/app");
    assert!(said.contains("all is as it should be"), "{said}");
    assert!(
        said.contains(&format!("package index of pip: http://127.0.0.1:{port}/simple/")),
        "{said}"
    );
    assert!(!said.contains("ue8fq"), "{said}");
    let (asked, elsewhere) = (index.seen(), files.seen());
    let owner = "Basic b3duZXI6dWU4ZnE=";
    assert!(asked.iter().all(|head| head.contains(owner)), "{asked:?}");
    assert_eq!(elsewhere.len(), 2, "the file and its metadata alone: {elsewhere:?}");
    for head in asked.iter().chain(&elsewhere) {
        assert!(!head.contains("c3RlcA==") && !head.contains("step"), "{head}");
    }
    assert!(!elsewhere.iter().any(|head| head.contains(owner)), "{elsewhere:?}");
    assert!(!asked.iter().any(|head| head.contains("admin")), "{asked:?}");
    user.leaves();
}

/// The same for the other kinds; `ask` and what uses it are above.
const OTHERS: &str = r#"
gives /npm/@a%2fb '"tarball":"http://127.0.0.1:3128/npm-link/'
link=${said#*\"tarball\":\"http://127.0.0.1:3128}; link=${link%%\"*}
gives "$link" "a file elsewhere"
refuses "${link/elsewhere/other}" 403
refuses "${link/npm-link/pip-link}" 404
gives /npm/b '"tarball":"http://127.0.0.1:3128/npm/b/-/b-1.tgz"'
gives /npm/b/-/b-1.tgz "a file of b"
refuses /npm/-/npm/v1/security/audits/quick 405 POST
refuses /npm/@a%2f..%2f..%2fadmin 403
gives /cargo/config.json '"dl":"http://127.0.0.1:3128/cargo-link/'
link=${said#*\"dl\":\"http://127.0.0.1:3128}; link=${link%%\"*}
link=${link/\{crate\}/thing}; link=${link/\{version\}/1.0.0}
gives "${link/\{sha256-checksum\}/SUM}" "a crate"
refuses "${link/\{sha256-checksum\}/..}" 403
refuses "${link/elsewhere/other}" 403
gives /go/example.com/!thing/@v/list v1.0.0
gives /go/sumdb/sum.golang.org/supported "is passed on"
gives http://127.0.0.1:SITE/apt/dists/a/InRelease "a signed list"
refuses http://127.0.0.1:SITE/admin 403
refuses http://127.0.0.1:SITE/apt/../admin 403
refuses http://other.example:SITE/apt/dists/a/InRelease 403
refuses https://127.0.0.1:SITE/apt/dists/a/InRelease 403
refuses http://127.0.0.1:SITE/apt/dists/a/InRelease 405 POST
refuses 127.0.0.1:SITE 407 CONNECT
for of in "registry=http://127.0.0.1:3128/npm/ /usr/local/etc/npmrc" \
    "registry=http://127.0.0.1:3128/npm/ /etc/npmrc" "registry=http://127.0.0.1:3128/npm/ /usr/etc/npmrc" \
    "sparse+http://127.0.0.1:3128/cargo/ /.cargo/config.toml" "GOPROXY=http://127.0.0.1:3128/go /root/.config/go/env"; do
    [[ $(cat ${of#* }) == *"${of% *}"* ]] || { echo "no ${of% *} in ${of#* }"; exit 1; }
done
refuses /pip/thing/ 404
echo all of them are as they should be
"#;

#[test]
fn each_kind_has_an_index_of_its_own() {
    let files = Site::serve(|path| {
        let content = match path {
            "/elsewhere/ab.tgz" => "a file elsewhere",
            "/elsewhere/crates/thing/1.0.0/download" => "a crate",
            _ => "what nobody named",
        };
        (FILE.to_owned(), content.to_owned())
    });
    let at = files.address;
    let index = Site::serve(move |path| {
        const JSON: &str = "200 OK\r\nContent-Type: application/vnd.npm.install-v1+json; charset=utf-8";
        let (head, content) = match path {
            "/npm/@a%2fb" => (
                JSON,
                format!("{{\"versions\":{{\"1\":{{\"dist\":{{\"tarball\":\"http://{at}/elsewhere/ab.tgz\"}}}}}}}}"),
            ),
            "/npm/b" => (
                JSON,
                "{\"versions\":{\"1\":{\"dist\":{\"tarball\":\"http://127.0.0.1:SELF/npm/b/-/b-1.tgz\"}}}}".to_owned(),
            ),
            "/npm/b/-/b-1.tgz" => (FILE, "a file of b".to_owned()),
            "/cargo/config.json" => (
                FILE,
                format!("{{\"dl\":\"http://{at}/elsewhere/crates\",\"api\":\"http://{at}\"}}"),
            ),
            "/go/example.com/!thing/@v/list" => ("200 OK\r\nContent-Type: text/plain", "v1.0.0\n".to_owned()),
            "/apt/dists/a/InRelease" => (FILE, "a signed list".to_owned()),
            "/go/sumdb/sum.golang.org/supported" => ("200 OK", "is passed on".to_owned()),
            "/admin" => (FILE, "what is not an index".to_owned()),
            _ => ("404 Not Found", String::new()),
        };
        (head.to_owned(), content)
    });
    let port = index.address.port();
    let flag = ["npm", "cargo", "go", "apt"].map(|kind| format!("{kind}=http://127.0.0.1:{port}/{kind}"));
    let mut user = User::with(&["--build-index", &flag.join(",")], Client::Homerun);
    let base = user.import_base();
    let dir = user.homerun.root().join("home/app");
    fs::create_dir_all(&dir).expect("made");
    fs::write(
        dir.join("Dockerfile"),
        format!("FROM {base}\nCOPY script /script\nRUN [\"/bin/sh\", \"/script\"]\nENTRYPOINT [\"/probe\"]\n"),
    )
    .expect("written");
    let (asks, _) = STEP.split_once("gives /pip/").expect("what asks");
    let script = format!("{asks}{OTHERS}").replace("SUM", &"0123456789abcdef".repeat(4));
    let script = script.replace("SITE", &port.to_string());
    fs::write(dir.join("script"), script).expect("written");
    let said = user.ok("gcloud builds submit app --tag=us-central1-docker.pkg.dev/my-project/built/app 2>&1");
    assert!(said.contains("all of them are as they should be"), "{said}");
    for kind in ["npm", "cargo", "go", "apt"] {
        let line = format!("package index of {kind}: http://127.0.0.1:{port}/{kind}/");
        assert!(said.contains(&line), "no {line} in {said}");
    }
    let (asked, elsewhere) = (index.seen(), files.seen());
    assert_eq!(elsewhere.len(), 2, "what was named alone: {elsewhere:?}");
    assert!(!asked.iter().any(|head| head.contains("admin")), "{asked:?}");
    user.leaves();
}

/// Real apt, of Debian, installs what a mirror has.
#[test]
fn a_step_installs_by_apt() {
    let mirror = tempfile::tempdir().expect("a directory");
    let at = mirror.path().join("mirror");
    let package = mirror.path().join("package");
    fs::create_dir_all(package.join("DEBIAN")).expect("made");
    fs::create_dir_all(package.join("usr/bin")).expect("made");
    fs::create_dir_all(&at).expect("made");
    fs::write(
        package.join("DEBIAN/control"),
        "Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@example.com>\nDescription: greets\n",
    )
    .expect("written");
    fs::write(package.join("usr/bin/greet"), "#!/bin/sh\necho greetings by apt\n").expect("written");
    let files = Files::serve(mirror.path()).expect("a server");
    let mut user = User::with(
        &["--build-index", &format!("apt={}/mirror", files.url)],
        Client::Homerun,
    );
    user.ok(&format!(
        "chmod 755 {package}/usr/bin/greet && dpkg-deb --root-owner-group --build {package} {at}/greeting.deb >/dev/null && \
         (dpkg-deb --field {at}/greeting.deb && echo Filename: ./greeting.deb && \
          echo Size: $(stat -c %s {at}/greeting.deb) && echo SHA256: $(sha256sum {at}/greeting.deb | cut -d' ' -f1)) >{at}/Packages",
        package = package.display(),
        at = at.display(),
    ));
    let base = user.import_language("python");
    let dir = user.homerun.root().join("home/app");
    fs::create_dir_all(&dir).expect("made");
    fs::write(
        dir.join("Dockerfile"),
        format!(
            "FROM {base}\nRUN echo 'deb [trusted=yes] {}/mirror ./' >/etc/apt/sources.list\n\
             RUN apt-get update && apt-get install --yes greeting\nRUN greet\n",
            files.url
        ),
    )
    .expect("written");
    let said = user.ok("gcloud builds submit app --tag=us-central1-docker.pkg.dev/my-project/built/app 2>&1");
    assert!(said.contains("greetings by apt"), "{said}");
    // Another host is out of reach, and the step says why.
    fs::write(
        dir.join("Dockerfile"),
        format!(
            "FROM {base}\nRUN echo 'deb http://deb.debian.org/debian bookworm main' >/etc/apt/sources.list\n\
             RUN apt-get update --error-on=any\n"
        ),
    )
    .expect("written");
    let said = user.refused("gcloud builds submit app --tag=us-central1-docker.pkg.dev/my-project/built/app 2>&1");
    assert!(said.contains("deb.debian.org is another host"), "{said}");
    user.leaves();
}

#[test]
fn without_an_index_a_step_reads_nothing() {
    let mut user = User::with(&[], Client::Google);
    let base = user.import_base();
    let dir = user.homerun.root().join("home/app");
    fs::create_dir_all(&dir).expect("made");
    let script = format!(
        "{}said=$(ask GET /pip/thing/); [[ $said == *\" 404 no package index of pip: homerun up --build-index \"* ]] || exit 1\n\
         [ ! -s /etc/pip.conf ] || exit 1\necho nothing was read\n",
        STEP.split_once("gives()").expect("a helper").0
    );
    fs::write(
        dir.join("Dockerfile"),
        format!("FROM {base}\nCOPY script /script\nRUN [\"/bin/sh\", \"/script\"]\n"),
    )
    .expect("written");
    fs::write(dir.join("script"), script).expect("written");
    let said = user.ok("gcloud builds submit app --tag=us-central1-docker.pkg.dev/my-project/built/app");
    assert!(said.contains("nothing was read"), "{said}");
    user.leaves();
}
