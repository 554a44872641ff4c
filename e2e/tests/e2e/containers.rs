//! Several containers in one instance: the words that make them, what they share, their order, and what is refused.

use std::fs;

use homerun_e2e::{Client, User};
use serde_json::{Value, json};

/// The application, which takes requests, and one that it calls; between them a volume in memory.
fn groups(image: &str) -> String {
    format!(
        "--add-volume=name=scratch,type=in-memory,size-limit=8Mi \
         --container=app --image={image} --port=8080 --depends-on=side --set-env-vars=WHO=app \
         --add-volume-mount=volume=scratch,mount-path=/shared \
         --container=side --image={image} --set-env-vars=WHO=side,PORT=9000,LISTEN_AFTER_MS=1500 --memory=256Mi \
         --startup-probe=httpGet.port=9000,httpGet.path=/name,periodSeconds=1,failureThreshold=60,timeoutSeconds=1 \
         --add-volume-mount=volume=scratch,mount-path=/mine"
    )
}

fn nanos(start: &str) -> u128 {
    start.trim().parse().unwrap_or_else(|_| panic!("{start} is no start"))
}

/// What the two containers see of each other, asked through the one that takes requests.
#[track_caller]
fn are_together(user: &mut User, url: &str) {
    let app = nanos(&user.get(url));
    let side = nanos(&user.get(&format!("{url}/call/9000/")));
    assert!(
        app >= side + 1_500_000_000,
        "the application began {app}, when what it depends on had not listened, which began {side}"
    );
    // A volume is one thing at two places, with a size of its own.
    assert_eq!(user.get(&format!("{url}/write/shared/note?of-app")), "of-app");
    assert_eq!(user.get(&format!("{url}/call/9000/read/mine/note")), "of-app");
    let mounts = user.get(&format!("{url}/read/proc/self/mounts"));
    let shared = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/shared"));
    let shared = shared.unwrap_or_else(|| panic!("no /shared in {mounts}"));
    assert!(shared.contains(" tmpfs ") && shared.contains("size=8192k"), "{shared}");
    // The environment is each one's own.
    for (path, wanted, other) in [
        ("/read/proc/self/environ", "WHO=app\0", "LISTEN_AFTER_MS"),
        ("/call/9000/read/proc/self/environ", "WHO=side\0", "WHO=app"),
    ] {
        let seen = user.ok(&format!("curl --fail '{url}{path}' | tr '\\0' '\\n'"));
        assert!(
            seen.contains(wanted.trim_end_matches('\0')) && !seen.contains(other),
            "{path}: {seen}"
        );
    }
}

fn container<'a>(service: &'a Value, name: &str) -> &'a Value {
    let containers = service["spec"]["template"]["spec"]["containers"].as_array();
    let containers = containers.unwrap_or_else(|| panic!("no containers in {service}"));
    let found = containers.iter().find(|container| container["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {service}"))
}

fn shown(user: &mut User, service: &str) -> Value {
    serde_json::from_str(&user.describe(service, "json")).expect("JSON")
}

/// A service of two containers by flags, changed by flags, and read back and replaced as a document.
fn by_words_and_by_document(client: Client) {
    let mut user = User::with(&[], client);
    let image = user.import_probe("pair");
    let url = user.deploy("pair", &groups(&image));
    are_together(&mut user, &url);
    let told = user.ok("gcloud run services describe pair $REGION");
    for word in ["app", "side", "scratch", "/shared", "/mine", "256Mi", "9000"] {
        assert!(told.contains(word), "no {word} in\n{told}");
    }
    let before = shown(&mut user, "pair");
    assert_eq!(container(&before, "app")["ports"][0]["containerPort"], 8080);
    assert_eq!(container(&before, "side")["startupProbe"]["httpGet"]["port"], 9000);
    assert_eq!(container(&before, "side")["resources"]["limits"]["memory"], "256Mi");

    // One container changes, the other stays.
    user.ok("gcloud run services update pair $REGION --quiet --container=side --update-env-vars=MORE=1");
    let after = shown(&mut user, "pair");
    for field in ["env", "ports", "resources", "startupProbe", "volumeMounts"] {
        assert_eq!(
            container(&after, "app")[field],
            container(&before, "app")[field],
            "{field}"
        );
    }
    let variables = container(&after, "side")["env"].as_array().expect("a list").clone();
    assert!(
        variables.contains(&json!({"name": "MORE", "value": "1"})),
        "{variables:?}"
    );
    assert_eq!(variables.len(), 4, "{variables:?}");
    are_together(&mut user, &url);

    // The template as it is shown makes another service.
    let mut template = after["spec"]["template"].clone();
    template["metadata"].as_object_mut().expect("an object").remove("name");
    let twin = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "twin"},
        "spec": {"template": template},
    });
    let file = user.homerun.root().join("twin.yaml");
    fs::write(&file, twin.to_string()).expect("written");
    user.ok(&format!("gcloud run services replace {} $REGION", file.display()));
    user.ok("gcloud run services add-iam-policy-binding twin $REGION --member=allUsers --role=roles/run.invoker");
    let twin = user.describe("twin", "value(status.url)");
    are_together(&mut user, twin.trim());

    // Without the other container there is nothing behind its port.
    user.ok("gcloud run services update pair $REGION --remove-containers=side --quiet");
    assert_eq!(
        shown(&mut user, "pair")["spec"]["template"]["spec"]["containers"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    let refused = user.get(&format!("{url}/call/9000/"));
    assert!(refused.contains("Connection refused"), "{refused}");
    user.leaves();
}

#[test]
fn two_containers_by_googles_gcloud() {
    by_words_and_by_document(Client::Google);
}

#[test]
fn two_containers_by_our_own_words() {
    by_words_and_by_document(Client::Homerun);
}

/// The flags of a deploy, and what must be named. The service that was there goes on.
fn wrong_containers(client: Client) {
    let mut user = User::with(&[], client);
    let url = user.deploy("right", "--image=$HELLO");
    user.get(&url);
    for (flags, named) in [
        (
            "--container=app --image=$HELLO --port=8080 --container=side --image=$HELLO --port=9000",
            &[
                "[--container]",
                "Exactly one container must specify --port or --use-http2",
            ][..],
        ),
        (
            "--container=app --image=$HELLO --port=8080 --depends-on=side --container=side --image=$HELLO --depends-on=app",
            &["container-dependencies", "app -> side -> app"],
        ),
        (
            "--container=app --image=$HELLO --port=8080 --depends-on=ghost --container=side --image=$HELLO",
            &["ghost"],
        ),
        (
            "--container=app --image=$HELLO --port=8080 --add-volume-mount=volume=nowhere,mount-path=/x",
            &["volumeMounts[0].name", "nowhere"],
        ),
        (
            "--container=app --image=$HELLO --container=side --image=$HELLO",
            &[
                "[--container]",
                "Exactly one container must specify --port or --use-http2",
            ],
        ),
    ] {
        let output = user
            .session
            .run(&format!("gcloud run deploy wrong $REGION --quiet {flags}"))
            .expect("ends");
        assert!(output.status != 0, "{flags} is taken:\n{}", output.text);
        for word in named {
            assert!(output.text.contains(word), "{flags}: no {word} in\n{}", output.text);
        }
        user.refused("gcloud run services describe wrong $REGION");
    }
    user.get(&url);
    user.leaves();
}

#[test]
fn wrong_containers_are_refused_by_googles_gcloud() {
    wrong_containers(Client::Google);
}

#[test]
fn wrong_containers_are_refused_by_our_own_words() {
    wrong_containers(Client::Homerun);
}
