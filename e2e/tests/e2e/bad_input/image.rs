//! Images that are not there, or not what they should be.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    thread,
};

use homerun_e2e::Client;
use serde_json::Value;

use super::{HELLO, REPOSITORY, Stand};

/// Answers every request for a manifest with this one, and every request for a blob with zeros of the length that the
/// manifest says.
fn lying_registry(manifest: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let manifest = manifest.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                loop {
                    let mut first = String::new();
                    if reader.read_line(&mut first).is_err() || first.is_empty() {
                        return;
                    }
                    let mut header = String::new();
                    while reader.read_line(&mut header).is_ok_and(|length| length > 2) {
                        header.clear();
                    }
                    let parsed: Value = serde_json::from_slice(&manifest).expect("a manifest");
                    let blobs = [&parsed["config"], &parsed["layers"][0]];
                    let body = match blobs
                        .iter()
                        .find(|blob| first.contains(blob["digest"].as_str().expect("a digest")))
                    {
                        Some(blob) => vec![0; usize::try_from(blob["size"].as_u64().expect("a size")).expect("small")],
                        None if first.contains("/manifests/") => manifest.clone(),
                        None => Vec::new(),
                    };
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    let body = if first.starts_with("HEAD") { Vec::new() } else { body };
                    if (&stream).write_all(&[head.into_bytes(), body].concat()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[test]
fn images_that_are_not_there_or_not_what_they_should_be() {
    let mut stand = Stand::new(Client::Homerun);
    let layout = stand.layout("good", "amd64");
    let good = stand.import("good", &layout);
    let none = format!("sha256:{}", "0".repeat(64));

    for unknown in [
        "us-docker.pkg.dev/cloudrun/container/nothing".to_owned(),
        format!("{REPOSITORY}/nothing:v1"),
        good.replace("latest", "v9"),
        good.replace(":latest", &format!("@{none}")),
    ] {
        stand.deploy_fails(
            &format!("--image={unknown}"),
            &[&format!("Image '{unknown}' not found.")],
        );
    }
    // Nobody listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound");
    let image = format!("{nowhere}/repo/app:v1");
    stand.deploy_fails(
        &format!("--image={image}"),
        &[&format!("image {image} cannot be pulled"), "Connection refused"],
    );

    // References that are none are refused before anything is stored.
    let field = "(gcloud.run.deploy) spec.template.spec.containers[0].image:";
    for (image, error) in [
        ("", "an image is required".to_owned()),
        (
            "$HELLO@sha256:00",
            format!(
                "image reference \"{HELLO}@sha256:00\" has no valid digest: \"sha256:00\" is not a digest: expected sha256: \
                 and 64 lower-case hexadecimal digits"
            ),
        ),
        (
            "$HELLO:.tag",
            "tag \".tag\" is not valid: expected at most 128 of A-Z a-z 0-9 _ . -, not beginning with . or -"
                .to_owned(),
        ),
    ] {
        let command = format!("gcloud run deploy kept $REGION --quiet --image={image}");
        stand.refused(&command, 1, &format!("{field} {error}"));
    }

    // For another CPU, alone and by a push.
    let arm = stand.layout("arm", "arm64");
    let image = stand.import("arm", &arm);
    stand.deploy_fails(
        &format!("--image={image}"),
        &[&format!(
            "image {image} cannot run here: image is for linux/arm64, this machine runs linux/amd64"
        )],
    );

    // A registry that gives something else than was asked for.
    let layout = stand.layout("elsewhere", "amd64");
    let manifest = layout
        .dir
        .join("blobs/sha256")
        .join(layout.digest.trim_start_matches("sha256:"));
    let port = lying_registry(std::fs::read(manifest).expect("a manifest"));
    let image = format!("127.0.0.1:{port}/repo/app@{none}");
    stand.deploy_fails(
        &format!("--image={image}"),
        &[&format!(
            "image {image}: content was to be {none} but is {}",
            layout.digest
        )],
    );
    let image = format!("127.0.0.1:{port}/repo/app:v1");
    stand.deploy_fails(
        &format!("--image={image}"),
        &[&format!("image {image}: content was to be sha256:"), "but is sha256:"],
    );

    // A push of something else than it says.
    let basic = stand
        .user
        .ok("printf oauth2accesstoken:%s \"$(gcloud auth print-access-token)\" | base64 -w0");
    let push = |what: &str, body: &str| {
        let api = stand.user.homerun.api().to_string();
        stand.ask(what, &api, &format!("Basic {}", basic.trim()), body)
    };
    let answer = push(
        &format!("POST /v2/my-project/e2e/good/blobs/uploads/?digest={none}"),
        "abc",
    );
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(
        answer.body.contains("DIGEST_INVALID") && answer.body.contains(&format!("content was to be {none} but is")),
        "{answer:?}"
    );
    let answer = push("PUT /v2/my-project/e2e/good/manifests/latest", "{\"schemaVersion\":2");
    assert!(
        answer.status == 400 && answer.body.contains("MANIFEST_INVALID"),
        "{answer:?}"
    );
    // The tag still leads to what it led to.
    let url = stand.user.deploy("good", &format!("--image={good}"));
    assert_eq!(stand.user.get(&format!("{url}/name")), "good");
    stand.kept();
    stand.user.leaves();
}
