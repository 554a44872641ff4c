//! What has nothing to do with services: tokens, defaults, pointing other clients here, import.

use serde_json::{Value, json};

use crate::cloud::{self, Cloud, Seat};

#[test]
fn apis_and_tokens() {
    let cloud = Cloud::start();
    let enabled = cloud.run(&["services", "enable", "run.googleapis.com"]).ok();
    assert_eq!((enabled.out.as_str(), enabled.err.as_str()), ("", ""));
    let list = cloud.run(&["services", "list", "--enabled"]).ok().out;
    assert_eq!(list, "NAME                TITLE\nrun.googleapis.com  Cloud Run\n");
    assert_eq!(cloud.run(&["auth", "print-access-token"]).ok().out, "token-for-scope\n");
    assert_eq!(
        cloud.run(&["auth", "print-identity-token"]).ok().out,
        "id-for-32555940559.apps.googleusercontent.com\n"
    );
    let words = ["auth", "print-identity-token", "--audiences=https://a.test"];
    assert_eq!(cloud.run(&words).ok().out, "id-for-https%3A%2F%2Fa.test\n");
}

#[test]
fn defaults_of_this_client() {
    let cloud = Cloud::start();
    let project = ["config", "get-value", "project"];
    assert_eq!(cloud.run(&project).ok().out, "my-project\n", "the server's own");
    cloud.run(&["config", "set", "project", "other-project"]).ok();
    assert_eq!(cloud.run(&project).ok().out, "other-project\n");
    cloud.run(&["config", "set", "run/region", "europe-west1"]).ok();
    let list = cloud.run(&["config", "list"]).ok().out;
    assert_eq!(list, "[core]\nproject = other-project\n[run]\nregion = europe-west1\n");
    cloud.run(&["run", "services", "list"]);
    let last = cloud.state().seen.last().cloned().expect("calls");
    assert_eq!(
        last,
        "GET run.googleapis.com /v1/projects/other-project/locations/-/services"
    );
    cloud.run(&["config", "unset", "project"]).ok();
    assert_eq!(cloud.run(&project).ok().out, "my-project\n");
    for (property, value) in [("project", "NO"), ("run/region", "a b"), ("compute/zone", "x")] {
        let ran = cloud.run(&["config", "set", property, value]);
        assert_eq!(ran.code, 1, "{property}");
        assert!(ran.err.contains(property), "{}", ran.err);
    }
}

#[test]
fn variables_of_gcloud_count_under_its_name() {
    let cloud = Cloud::start();
    let mut seat = Seat {
        environment: vec![("CLOUDSDK_CORE_PROJECT".to_owned(), "from-gcloud".to_owned())],
        ..Seat::default()
    };
    let words = ["config", "get-value", "project"];
    assert_eq!(cloud.run_as(&words, &seat).ok().out, "my-project\n");
    seat.gcloud = true;
    assert_eq!(cloud.run_as(&words, &seat).ok().out, "from-gcloud\n");
    seat.environment = vec![("HOMERUN_API".to_owned(), cloud.api.clone())];
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let ran = cloud::run(&words, cloud.dir.path().join("config"), &seat);
    assert_eq!(ran.ok().out, "my-project\n");
}

#[test]
fn env_points_gcloud_here() {
    let cloud = Cloud::start();
    let seat = Seat {
        environment: vec![
            ("CLOUDSDK_PROXY_PORT".to_owned(), "1".to_owned()),
            ("CLOUDSDK_CORE_PROJECT".to_owned(), "elsewhere".to_owned()),
            ("CLOUDSDK_PYTHON".to_owned(), "python3".to_owned()),
        ],
        ..Seat::default()
    };
    let printed = cloud.run_as(&["env"], &seat).ok().out;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "unset CLOUDSDK_PROXY_PORT");
    assert_eq!(lines[1], "unset CLOUDSDK_CORE_PROJECT");
    assert!(!printed.contains("CLOUDSDK_PYTHON"), "{printed}");
    assert!(!printed.contains("HTTPS_PROXY"), "{printed}");
    let value = |name: &str| {
        let start = format!("export {name}=");
        let line = lines.iter().find(|line| line.starts_with(&start)).expect(name);
        line[start.len()..].to_owned()
    };
    assert_eq!(value("CLOUDSDK_ACTIVE_CONFIG_NAME"), "homerun");
    assert_eq!(value("HOMERUN_API"), cloud.api);
    let dir = value("CLOUDSDK_CONFIG");
    let ini = std::fs::read_to_string(format!("{dir}/configurations/config_homerun")).expect("was written");
    let port = cloud.api.rsplit(':').next().expect("a port");
    assert!(
        ini.contains(&format!("[proxy]\naddress = 127.0.0.1\nport = {port}\ntype = http\n")),
        "{ini}"
    );
    let all = cloud.run_as(&["env", "--all"], &seat).ok().out;
    assert!(
        all.contains(&format!("export HTTPS_PROXY=http://{}\n", cloud.api)),
        "{all}"
    );
    assert!(all.contains("export SSL_CERT_FILE="), "{all}");
}

#[test]
fn googles_gcloud_is_run_with_the_configuration() {
    let cloud = Cloud::start();
    let bin = cloud.dir.path().join("bin");
    std::fs::create_dir(&bin).expect("a directory");
    let none = cloud.run(&["gcloud", "version"]);
    assert_eq!(none.code, 1);
    assert!(none.err.contains("Google's gcloud is not on PATH"), "{}", none.err);
    std::fs::write(bin.join("gcloud"), "").expect("a file");
    let own = cloud.dir.path().join("own");
    let seat = Seat {
        environment: vec![
            ("PATH".to_owned(), format!("/nowhere:{}", bin.display())),
            ("CLOUDSDK_CONFIG".to_owned(), own.display().to_string()),
            ("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE".to_owned(), "x".to_owned()),
        ],
        ..Seat::default()
    };
    let ran = cloud.run_as(
        &[
            "gcloud",
            "--quiet",
            "run",
            "services",
            "list",
            "--format=json",
            "--help",
        ],
        &seat,
    );
    let exec = ran.exec.expect("was called");
    assert_eq!(exec.program, bin.join("gcloud"));
    assert_eq!(
        exec.words,
        ["--quiet", "run", "services", "list", "--format=json", "--help"]
    );
    assert_eq!(exec.unset, ["CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"]);
    let config = ("CLOUDSDK_CONFIG".to_owned(), own.display().to_string());
    assert!(exec.set.contains(&config), "{:?}", exec.set);
    assert!(own.join("configurations/config_homerun").is_file());
    assert_eq!(ran.code, 1, "it came back");
}

/// A layout with an image of one layer, as `skopeo copy ... oci:DIR` makes it.
fn layout(dir: &std::path::Path) -> (String, Vec<String>) {
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a directory");
    let put = |letter: &str, text: &str| std::fs::write(blobs.join(letter.repeat(64)), text).expect("a file");
    put("c", "{}");
    put("d", &"layer".repeat(10_000));
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": {"digest": digest("c")}, "layers": [{"digest": digest("d")}]});
    put("e", &manifest.to_string());
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": manifest_type, "digest": digest("e")}]});
    std::fs::write(dir.join("index.json"), index.to_string()).expect("a file");
    (digest("e"), vec![digest("c"), digest("d")])
}

#[test]
fn a_layout_is_pushed_from_a_directory_and_from_a_tar() {
    let cloud = Cloud::start();
    let dir = cloud.dir.path().join("layout");
    let (manifest, blobs) = layout(&dir);
    let archive = cloud.dir.path().join("layout.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&archive).expect("a file"));
    tar.append_dir_all(".", &dir).expect("an archive");
    tar.finish().expect("an archive");
    for from in [&dir, &archive] {
        cloud.state().blobs.clear();
        cloud.state().manifests.clear();
        let words = [
            "images",
            "import",
            from.to_str().expect("text"),
            "us-central1-docker.pkg.dev/p/r/app:v1",
        ];
        let ran = cloud.run(&words).ok();
        assert_eq!(ran.out, format!("us-central1-docker.pkg.dev/p/r/app@{manifest}\n"));
        let known: Vec<String> = cloud.state().blobs.keys().cloned().collect();
        assert_eq!(known, blobs);
        assert_eq!(cloud.state().blobs[&blobs[1]].len(), 50_000);
        let (media_type, text) = cloud.state().manifests["v1"].clone();
        assert_eq!(media_type, "application/vnd.oci.image.manifest.v1+json");
        assert!(text.starts_with(b"{\"schemaVersion\":2"));
        let again = cloud.run(&words).ok();
        assert!(
            !again.err.contains("Pushing"),
            "what is there is not sent: {}",
            again.err
        );
    }
    // The same by `docker save`: no manifest of its own, the older layer a link, names that tell the digests.
    let layer = std::fs::read(dir.join(format!("blobs/{}", blobs[1].replace(':', "/")))).expect("the layer");
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"diff_ids":["{}"]}}}}"#,
        blobs[1]
    );
    let config_name = "c".repeat(64);
    let saved = cloud.dir.path().join("saved.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&saved).expect("a file"));
    let manifests = format!(r#"[{{"Config":"{config_name}.json","RepoTags":["x:v9"],"Layers":["one/layer.tar"]}}]"#);
    for (name, content) in [
        (format!("{config_name}.json"), config.as_bytes()),
        ("one/layer.tar".to_owned(), &layer),
        ("manifest.json".to_owned(), manifests.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).expect("an archive");
    }
    tar.finish().expect("an archive");
    cloud.state().blobs.clear();
    cloud.state().manifests.clear();
    let words = [
        "images",
        "import",
        saved.to_str().expect("text"),
        "us-central1-docker.pkg.dev/p/r/app:v2",
    ];
    let ran = cloud.run(&words).ok();
    assert!(
        ran.out.starts_with("us-central1-docker.pkg.dev/p/r/app@sha256:"),
        "{}",
        ran.out
    );
    let sent = cloud.state().blobs.clone();
    assert_eq!(sent[&blobs[1]].len(), 50_000);
    assert_eq!(sent[&format!("sha256:{config_name}")], config.as_bytes());
    let (_, text) = cloud.state().manifests["v2"].clone();
    let made: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(made["layers"][0]["digest"], blobs[1].as_str());
    let none = cloud.run(&[
        "images",
        "import",
        cloud.dir.path().to_str().expect("text"),
        "us-central1-docker.pkg.dev/p/r/app:v1",
    ]);
    assert_eq!(none.code, 1);
    assert!(none.err.contains("is neither an OCI image layout nor"), "{}", none.err);
    let name = cloud.run(&["images", "import", dir.to_str().expect("text"), "app:v1"]);
    assert_eq!(name.code, 2);
}

#[test]
fn nobody_and_strangers() {
    let cloud = Cloud::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let ran = cloud.run(&["--api", &nobody, "run", "services", "list"]);
    assert_eq!(
        (ran.code, ran.err),
        (
            1,
            format!("ERROR: (homerun.run.services.list) no Homerun answers at {nobody}; start one with `homerun up`\n")
        )
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let stranger = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 404 no\r\ncontent-length: 0\r\n\r\n").expect("writes");
    });
    let ran = cloud.run(&["--api", &stranger, "run", "services", "list"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("is no Homerun: it answered 404"), "{}", ran.err);
}

#[test]
fn without_the_key_nobody_is_the_owner() {
    let cloud = Cloud::start();
    std::fs::remove_file(cloud.dir.path().join("identity/owner-key.json")).expect("is there");
    let ran = cloud.run(&["run", "services", "list"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("cannot read the owner's key"), "{}", ran.err);
    assert!(ran.err.contains("run this as the user who runs Homerun"), "{}", ran.err);
}

#[test]
fn a_token_is_kept_for_the_next_command_and_only_there() {
    use std::os::unix::fs::PermissionsExt as _;
    let cloud = Cloud::start();
    let tokens = |cloud: &Cloud| {
        let state = cloud.state();
        state.seen.iter().filter(|call| call.ends_with(" /token")).count()
    };
    let list = ["run", "services", "list"];
    cloud.run(&list).ok();
    cloud.run(&list).ok();
    assert_eq!(tokens(&cloud), 1);
    let dir = cloud.dir.path().join("config/access_tokens");
    let files: Vec<_> = std::fs::read_dir(&dir).expect("is there").collect();
    assert_eq!(files.len(), 1);
    let file = files[0].as_ref().expect("a file").path();
    let mode = std::fs::metadata(&file).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // a server made anew knows nothing of it
    cloud.state().age = "-2".to_owned();
    cloud.run(&list).ok();
    assert_eq!(tokens(&cloud), 2);
    cloud.run(&list).ok();
    assert_eq!(tokens(&cloud), 2);

    // at its end it is not used
    let text = std::fs::read_to_string(&file).expect("is there");
    assert!(text.contains("1800003599"), "{text}");
    std::fs::write(&file, text.replace("1800003599", "1800000299")).expect("writes");
    cloud.run(&list).ok();
    assert_eq!(tokens(&cloud), 3);

    // who cannot read the key has no use for it
    std::fs::remove_file(cloud.dir.path().join("identity/owner-key.json")).expect("is there");
    assert_eq!(cloud.run(&list).code, 1);
}
