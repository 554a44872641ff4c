//! Sources without a Dockerfile, by Google's own gcloud and by our command line: what is detected, what is refused, and a
//! Python and a Node app that get their packages from indexes on loopback.

use std::fs;

use homerun_e2e::{Client, Packages, User, Wheels};

/// The base image of sites is the one that [`User::import_base`] imports.
const SITES: [&str; 2] = [
    "--build-base",
    "static=us-central1-docker.pkg.dev/my-project/e2e/base:latest",
];

fn site_user(client: Client) -> User {
    let mut user = User::with(&SITES, client);
    user.import_base();
    user
}

fn log_of_the_last(user: &mut User) -> String {
    user.ok("gcloud builds log $(gcloud builds list $REGION --limit=1 --format='value(id)') $REGION")
}

/// A directory at `~/NAME` with these files.
fn directory(user: &User, name: &str, files: &[(&str, &str)]) {
    let dir = user.homerun.root().join("home").join(name);
    fs::create_dir_all(&dir).expect("made");
    for (file, text) in files {
        fs::write(dir.join(file), text).expect("written");
    }
}

/// What is told of a site without a Dockerfile.
const DETECTED: [&str; 6] = [
    "detected static site: the source has index.html",
    "entrypoint [\"/bin/sh\",\"-c\",\"exec httpd -f -p \\\"$PORT\\\" -h /srv\"]: files are served by busybox's httpd, because of \
     index.html",
    "base image us-central1-docker.pkg.dev/my-project/e2e/base:latest",
    "    FROM us-central1-docker.pkg.dev/my-project/e2e/base:latest",
    "    COPY . .",
    "    USER 1000:1000",
];

#[test]
fn a_site_without_a_dockerfile_is_deployed() {
    let mut user = site_user(Client::Google);
    directory(
        &user,
        "site",
        &[
            ("index.html", "<p>first\n"),
            ("page.txt", "a page\n"),
            ("Procfile.old", "x"),
        ],
    );
    let deploy = "gcloud run deploy site --source=site $REGION --allow-unauthenticated --quiet";
    user.ok(deploy);
    let url = user.describe("site", "value(status.url)").trim().to_owned();
    assert_eq!(user.get(&format!("{url}/")).trim(), "<p>first");
    assert_eq!(user.get(&format!("{url}/page.txt")).trim(), "a page");
    let log = log_of_the_last(&mut user);
    for line in ["DETECT"].iter().chain(&DETECTED) {
        assert!(log.lines().any(|of| of == *line), "no line {line} in {log}");
    }
    directory(&user, "site", &[("index.html", "<p>second\n")]);
    user.ok(deploy);
    assert_eq!(user.get(&format!("{url}/")).trim(), "<p>second");
    directory(
        &user,
        "site",
        &[("Procfile", "web: exec httpd -f -p \"$PORT\" -h /etc\n")],
    );
    user.ok(deploy);
    assert!(user.ok(&format!("curl --silent {url}/")).contains("404 Not Found"));
    let log = log_of_the_last(&mut user);
    assert!(log.contains("the Procfile's line web"), "{log}");
    user.leaves();
}

#[test]
fn our_own_words_tell_what_was_detected() {
    let mut user = site_user(Client::Homerun);
    directory(&user, "site", &[("index.html", "<p>ours\n")]);
    let said = user.ok("gcloud run deploy site --source=site $REGION --allow-unauthenticated --quiet 2>&1");
    for line in DETECTED {
        assert!(said.lines().any(|of| of == line), "no line {line} in {said}");
    }
    let url = user.describe("site", "value(status.url)").trim().to_owned();
    assert_eq!(user.get(&format!("{url}/")).trim(), "<p>ours");
    user.leaves();
}

#[test]
fn sources_that_say_not_how_to_build_them_are_refused() {
    for client in [Client::Google, Client::Homerun] {
        let mut user = site_user(client);
        directory(&user, "empty", &[]);
        directory(&user, "notes", &[("notes.txt", "x")]);
        let start = "{\"scripts\": {\"start\": \"x\"}}";
        directory(&user, "both", &[("go.mod", "module x\n"), ("package.json", start)]);
        directory(&user, "half", &[("package.json", "{}")]);
        directory(
            &user,
            "name",
            &[("go.mod", "module $(id)\n"), ("main.go", "package main\n")],
        );
        for (dir, told) in [
            (
                "empty",
                if client == Client::Google {
                    "the source is empty"
                } else {
                    "holds no file"
                },
            ),
            ("notes", "add a Dockerfile, or one of requirements.txt"),
            (
                "both",
                "may be Node (it has package.json) or Go (it has go.mod): add a Dockerfile, or a Procfile",
            ),
            ("half", "Node was detected by package.json, but not what to run"),
            ("name", "go.mod: the name \"$(id)\" does not fit"),
        ] {
            let said = user.refused(&format!("gcloud run deploy x --source={dir} $REGION --quiet 2>&1"));
            assert!(said.contains(told), "{dir}: no {told:?} in {said}");
        }
        user.leaves();
    }
}

#[test]
fn what_only_buildpacks_do_is_refused_without_them() {
    let mut user = site_user(Client::Google);
    directory(
        &user,
        "site",
        &[("index.html", "x"), ("project.toml", "[_]\nname = \"x\"\n")],
    );
    let deploy = "gcloud run deploy x --source=site $REGION --quiet --no-allow-unauthenticated";
    let said = user.refused(&format!("{deploy} --base-image=python312 2>&1"));
    assert!(said.contains("buildpackBuild.baseImage"), "{said}");
    assert_eq!(
        user.ok("gcloud builds list $REGION --format='value(id)' 2>/dev/null"),
        ""
    );
    let said = user.refused(&format!("{deploy} --set-build-env-vars=A=b 2>&1"));
    assert!(said.contains("needs a builder of buildpacks"), "{said}");
    // Its descriptor names no builder.
    let said = user.refused(&format!("{deploy} 2>&1"));
    assert!(
        said.contains("project.toml: a project of buildpacks is not built"),
        "{said}"
    );
    directory(
        &user,
        "site",
        &[("project.toml", "[[build.env]]\nname = \"A\"\nvalue = \"b\"\n")],
    );
    let said = user.refused(&format!("{deploy} 2>&1"));
    assert!(said.contains("variables of the build in its project.toml"), "{said}");
    user.leaves();
}

const FLASK: &str = r#"
import os
from importlib.metadata import version

from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/")
def home():
    return jsonify(flask=version("flask"), user=os.getuid(), configuration=open("/etc/pip.conf").read())
"#;

#[test]
fn a_python_app_gets_its_packages_from_the_index() {
    let wheels = Wheels::serve().expect("an index");
    let index = format!("pip={}", wheels.url);
    let mut user = User::who_builds("python", &index, &[], Client::Google);
    directory(
        &user,
        "app",
        &[("main.py", FLASK), ("requirements.txt", "flask>=3.0.0\ngunicorn\n")],
    );
    let url = user.deploy("app", "--source=app");
    let said = user.get(&url);
    for part in ["\"flask\":\"3.", "\"user\":1000", "\"configuration\":\"\""] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    let log = log_of_the_last(&mut user);
    for line in [
        "detected Python: the source has requirements.txt",
        "base image us-central1-docker.pkg.dev/my-project/base/python:debian",
        "note: packages by pip, because of requirements.txt",
        &format!("package index of pip: {}/", wheels.url),
    ] {
        assert!(log.lines().any(|of| of == line), "no line {line} in {log}");
    }
    user.leaves();
}

#[test]
fn what_uv_and_poetry_lock_comes_from_the_index() {
    let wheels = Wheels::serve().expect("an index");
    let index = format!("pip={}", wheels.url);
    let mut user = User::who_builds("python", &index, &[], Client::Homerun);
    for name in ["uv", "poetry"] {
        let of = |file: &str| fs::read_to_string(wheels.locks.join(name).join(file)).expect("of the script");
        let lock = format!("{name}.lock");
        // Nothing but the lock file tells the version.
        assert!(of(&lock).contains("https://pypi.org/simple"));
        let files = [
            ("main.py", FLASK),
            ("pyproject.toml", &of("pyproject.toml")),
            (&lock, &of(&lock)),
        ];
        directory(&user, name, &files);
        let url = user.deploy(name, &format!("--source={name}"));
        let said = user.get(&url);
        assert!(said.contains("\"flask\":\"3."), "{said}");
        let log = log_of_the_last(&mut user);
        for line in [
            &format!("note: packages by pip in the versions that {name} knows, because of {lock}"),
            &format!("package index of pip: {}/", wheels.url),
        ] {
            assert!(log.lines().any(|of| of == line), "no line {line} in {log}");
        }
        let text = of(&lock);
        let (first, rest) = text.split_once("sha256:").expect("hashes");
        let others = rest.split("sha256:").map(|hash| format!("sha256:0000{}", &hash[4..]));
        let wrong = first.to_owned() + &others.collect::<String>();
        directory(&user, name, &[(&lock, &wrong)]);
        let said = user.refused(&format!(
            "gcloud run deploy {name} --source={name} $REGION --quiet 2>&1"
        ));
        assert!(said.contains("DO NOT MATCH THE HASHES"), "{said}");
    }
    user.leaves();
}

const HONO: &str = r#"
import { readFileSync } from "node:fs";
import { serve } from "@hono/node-server";
import { Hono } from "hono";

const app = new Hono();
const configuration = readFileSync("/usr/etc/npmrc", "utf8");
app.get("/", (c) => c.json({ node: process.versions.node, user: process.getuid(), configuration }));
serve({ fetch: app.fetch, port: Number(process.env.PORT) });
"#;

#[test]
fn a_node_app_gets_its_packages_from_the_registry() {
    let packages = Packages::serve().expect("a registry");
    let index = format!("npm={}", packages.url);
    let mut user = User::who_builds("node", &index, &[], Client::Google);
    let of_app = |name: &str| fs::read_to_string(packages.dir.join(name)).expect("of the script");
    let lock = of_app("package-lock.json");
    directory(
        &user,
        "app",
        &[
            ("server.js", HONO),
            ("package.json", &of_app("package.json")),
            ("package-lock.json", &lock),
        ],
    );
    assert!(
        lock.contains("https://registry.npmjs.org/@hono/node-server/-/"),
        "{lock}"
    );
    let url = user.deploy("app", "--source=app");
    let said = user.get(&url);
    for part in ["\"node\":\"18.", "\"user\":1000", "\"configuration\":\"\""] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    let log = log_of_the_last(&mut user);
    for line in [
        "detected Node: the source has package.json",
        "note: packages by npm, because of package-lock.json",
        &format!("package index of npm: {}/", packages.url),
    ] {
        assert!(log.lines().any(|of| of == line), "no line {line} in {log}");
    }
    let seen = packages.seen();
    assert_eq!(seen.len(), 2, "the two files: {seen:?}");
    assert!(seen.iter().all(|path| path.contains(".tgz")), "{seen:?}");

    // Without the lock file npm asks what versions there are.
    user.ok("rm app/package-lock.json");
    user.deploy("app", "--source=app");
    assert!(user.get(&url).contains("\"node\":\"18."));
    let seen = packages.seen();
    for path in ["/@hono%2fnode-server", "/hono"] {
        assert!(seen.iter().any(|of| of == path), "no {path} in {seen:?}");
    }
    user.leaves();
}

#[test]
fn what_yarn_locks_comes_from_the_registry() {
    let packages = Packages::serve().expect("a registry");
    let index = format!("npm={}", packages.url);
    let mut user = User::who_builds("node", &index, &[], Client::Homerun);
    let of_app = |name: &str| fs::read_to_string(packages.dir.join("yarn").join(name)).expect("of the script");
    directory(
        &user,
        "app",
        &[
            ("server.js", HONO),
            ("package.json", &of_app("package.json")),
            ("yarn.lock", &of_app("yarn.lock")),
            (".yarnrc.yml", ""),
        ],
    );
    let url = user.deploy("app", "--source=app");
    let said = user.get(&url);
    assert!(said.contains("\"node\":\"18."), "{said}");
    let log = log_of_the_last(&mut user);
    assert!(log.contains("note: packages by yarn, because of yarn.lock"), "{log}");
    let seen = packages.seen();
    for part in ["/@yarnpkg/cli-dist/-/", "/hono/-/", "/@hono/node-server/-/"] {
        let is_it = |path: &String| path.replace("%2f", "/").contains(part);
        assert!(seen.iter().any(is_it), "no {part} in {seen:?}");
    }
    user.leaves();
}

#[test]
fn npm_without_a_registry_is_told_of_the_flag() {
    let flags = [
        "--build-base",
        "node=us-central1-docker.pkg.dev/my-project/base/node:debian",
    ];
    let mut user = User::with(&flags, Client::Homerun);
    user.import_language("node");
    let package = r#"{"dependencies": {"hono": "4"}, "scripts": {"start": "node x.js"}}"#;
    // npm waits for minutes before it tries again.
    directory(
        &user,
        "app",
        &[("package.json", package), (".npmrc", "fetch-retries=0\n")],
    );
    let said = user.refused("gcloud run deploy app --source=app $REGION --quiet 2>&1");
    assert!(
        said.contains("homerun up --build-index npm=https://registry.npmjs.org"),
        "{said}"
    );
    user.leaves();
}
