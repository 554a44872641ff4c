//! Google's own sign-in libraries, unmodified, inside containers.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, User, Wheels, auth_clients};
use serde_json::Value;

use super::{PATIENCE, RUNNER};

const PYTHON: &str = r#"
import json
import os
import socket
import ssl
import urllib.request

import google.auth
import google.auth.transport.requests
import google.oauth2.id_token
import requests
from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/who")
def who():
    transport = google.auth.transport.requests.Request()
    credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(transport)
    return jsonify(
        project=project,
        email=credentials.service_account_email,
        kind=type(credentials).__name__,
        valid=credentials.valid,
        metadata=socket.gethostbyname("metadata.google.internal"),
    )


@app.get("/call")
def call():
    url = request.args["url"]
    transport = google.auth.transport.requests.Request()
    token = google.oauth2.id_token.fetch_id_token(transport, url)
    bearer = {"Authorization": f"Bearer {token}"}
    host = url.split("//")[1].split(":")[0]
    answer = requests.get(url + "/name", headers=bearer, timeout=30)
    plain = urllib.request.Request(url + "/name", headers=bearer)
    try:
        status = urllib.request.urlopen(plain, timeout=30).status
    except urllib.error.HTTPError as error:
        status = error.code
    return jsonify(
        status=answer.status_code,
        body=answer.text,
        without=requests.get(url + "/name", timeout=30).status_code,
        urllib=status,
        address=socket.gethostbyname(host),
    )
"#;

/// As an answer of one of the programs above.
#[track_caller]
fn json(user: &mut User, url: &str) -> Value {
    let said = user.get(url);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn directory(user: &User, name: &str, files: &[(&str, &str)]) {
    let dir = user.homerun.root().join("home").join(name);
    fs::create_dir_all(&dir).expect("made");
    for (file, text) in files {
        fs::write(dir.join(file), text).expect("written");
    }
}

/// A private service with TLS, and the URL.
fn private(user: &mut User) -> String {
    let image = user.import_probe("caller");
    user.ok("gcloud iam service-accounts create runner");
    user.ok(&format!(
        "gcloud run deploy b --image={image} $REGION --no-allow-unauthenticated --quiet"
    ));
    let b = user.describe("b", "value(status.url)").trim().to_owned();
    assert!(b.starts_with("https://"), "{b}");
    b
}

fn let_in(user: &mut User) {
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding b $REGION --member=serviceAccount:{RUNNER} --role=roles/run.invoker"
    ));
}

/// The address of a service as who calls it from outside has to say it.
fn outside(user: &mut User, service: &str) -> String {
    let url = user.describe(service, "value(status.url)").trim().to_owned();
    let host = url
        .trim_start_matches("https://")
        .rsplit_once(':')
        .expect("a port")
        .0
        .to_owned();
    format!("http://{host}:{}", user.homerun.http().port())
}

#[test]
fn googles_python_library_finds_who_it_is_and_calls_a_private_service() {
    let wheels = Wheels::serve().expect("an index");
    let index = format!("pip={}", wheels.url);
    let mut user = User::who_builds("python", &index, &["--url-scheme", "https"], Client::Homerun);
    let b = private(&mut user);
    let requirements = "flask\ngunicorn\ngoogle-auth\nrequests\n";
    directory(&user, "app", &[("main.py", PYTHON), ("requirements.txt", requirements)]);
    let account = format!("--service-account={RUNNER}");
    user.deploy(
        "second",
        &format!("--source=app {account} --execution-environment=gen2"),
    );
    let image = user.describe("second", "value(spec.template.spec.containers[0].image)");
    user.deploy(
        "first",
        &format!("--image={} {account} --execution-environment=gen1", image.trim()),
    );
    let urls = ["second", "first"].map(|service| outside(&mut user, service));
    for a in &urls {
        let who = json(&mut user, &format!("{a}/who"));
        assert_eq!(who["project"], "my-project", "{who}");
        assert_eq!(who["email"], RUNNER, "{who}");
        assert_eq!(who["valid"], true, "{who}");
        assert_eq!(who["metadata"], "169.254.169.254", "{who}");
        let call = json(&mut user, &format!("{a}/call?url={b}"));
        assert_eq!(call["status"], 403, "{call}");
        assert_eq!(call["urllib"], 403, "{call}");
    }
    let_in(&mut user);
    for a in &urls {
        let begin = Instant::now();
        loop {
            let call = json(&mut user, &format!("{a}/call?url={b}"));
            if call["status"] == 200 {
                assert_eq!(call["body"], "caller", "{call}");
                assert_eq!(call["without"], 403, "{call}");
                assert_eq!(call["urllib"], 200, "{call}");
                assert_eq!(call["address"], "169.254.169.253", "{call}");
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "{call}");
            thread::sleep(Duration::from_millis(100));
        }
    }
    user.leaves();
}

const NODE: &str = r#"
import http from "node:http";
import { GoogleAuth } from "google-auth-library";

const auth = new GoogleAuth({ scopes: "https://www.googleapis.com/auth/cloud-platform" });

async function answer(url) {
  if (url.pathname === "/who") {
    const client = await auth.getClient();
    const token = await client.getAccessToken();
    const { client_email: email } = await auth.getCredentials();
    return { project: await auth.getProjectId(), email, kind: client.constructor.name, token: token.token.slice(0, 5) };
  }
  const target = url.searchParams.get("url");
  const client = await auth.getIdTokenClient(target);
  const said = await client.request({ url: `${target}/name`, validateStatus: () => true, responseType: "text" });
  return { status: said.status, body: said.data };
}

http
  .createServer(async (request, response) => {
    try {
      response.end(JSON.stringify(await answer(new URL(request.url, "http://x"))));
    } catch (error) {
      response.end(JSON.stringify({ error: String(error), cause: String(error.cause) }));
    }
  })
  .listen(process.env.PORT);
"#;

#[test]
fn googles_node_library_finds_who_it_is_and_calls_a_private_service() {
    // A name that no program takes for its own machine's.
    let flags = ["--url-scheme", "https", "--domain", "apps.example.test"];
    let mut user = User::with(&flags, Client::Homerun);
    let base = user.import_language("node");
    let b = private(&mut user);
    let dockerfile = format!("FROM {base}\nWORKDIR /app\nCOPY . .\nUSER 1000\nCMD [\"node\", \"server.mjs\"]\n");
    directory(&user, "app", &[("server.mjs", NODE), ("Dockerfile", &dockerfile)]);
    let libraries = auth_clients().expect("Google's libraries");
    user.ok(&format!("cp -r {}/node_modules app/", libraries.display()));
    user.deploy("a", &format!("--source=app --service-account={RUNNER}"));
    let a = outside(&mut user, "a");
    let who = json(&mut user, &format!("{a}/who"));
    assert_eq!(who["project"], "my-project", "{who}");
    assert_eq!(who["email"], RUNNER, "{who}");
    assert_eq!(who["token"], "ya29.", "{who}");
    let call = json(&mut user, &format!("{a}/call?url={b}"));
    assert_eq!(call["status"], 403, "{call}");
    let_in(&mut user);
    let begin = Instant::now();
    loop {
        let call = json(&mut user, &format!("{a}/call?url={b}"));
        if call["status"] == 200 {
            assert_eq!(call["body"], "caller", "{call}");
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "{call}");
        thread::sleep(Duration::from_millis(100));
    }
    user.leaves();
}
