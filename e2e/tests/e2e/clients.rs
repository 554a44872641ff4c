//! The registry by the clients that people have: podman, buildah and docker, each by its own words. What is pushed is
//! deployed; what is refused is seen nowhere.

use homerun_e2e::{Client, Docker, User};

const REPOSITORY: &str = "us-central1-docker.pkg.dev/my-project/e2e";

/// Podman and buildah with directories of their own.
const TOOLS: &str = r#"
pod() { podman --root $HOME/pod/root --runroot $HOME/pod/run --tmpdir $HOME/pod/tmp --storage-driver vfs --events-backend=file --cgroup-manager=cgroupfs "$@"; }
bud() { buildah --root $HOME/bud/root --runroot $HOME/bud/run --storage-driver vfs "$@"; }
# Either makes a name of the directory's, which has no capitals.
layout() { cp -r $1 layout; }
PORT=$HOMERUN_API/my-project/e2e"#;

/// No image and no repository came of what was refused.
#[track_caller]
fn nothing_is_there(user: &mut User) {
    assert_eq!(user.ok("homerun images list --format='value(package)'"), "");
    let repositories = user.ok("homerun artifacts repositories list --location=us-central1 --format='value(name)'");
    assert!(!repositories.contains("repositories/"), "{repositories}");
}

#[test]
fn podman_pushes_and_pulls() {
    let mut user = User::of_homerun();
    let dir = user.layout("podded").dir;
    user.ok(TOOLS);
    user.ok(&format!(
        "layout {} && pod tag $(pod pull --quiet oci:layout:latest) $PORT/podded:v1",
        dir.display()
    ));
    user.ok("TOKEN=$(gcloud auth print-access-token)");
    for credentials in ["", "--creds=oauth2accesstoken:wrong", "--creds=somebody:$TOKEN"] {
        let refused = user.ends(
            &format!("pod push --tls-verify=false {credentials} $PORT/podded:v1"),
            125,
        );
        assert!(refused.contains("unauthorized"), "{refused}");
    }
    nothing_is_there(&mut user);

    user.ok("pod login --tls-verify=false --authfile auth.json -u oauth2accesstoken -p $TOKEN $HOMERUN_API");
    user.ok("pod push --tls-verify=false --authfile auth.json $PORT/podded:v1");
    let before = user.ok("pod image inspect --format='{{.Id}}' $PORT/podded:v1");
    user.ok("pod rmi --all --force");
    let refused = user.ends("pod pull --tls-verify=false $PORT/podded:v1", 125);
    assert!(refused.contains("unauthorized"), "{refused}");
    let after = user.ok("pod pull --quiet --tls-verify=false --authfile auth.json $PORT/podded:v1");
    assert_eq!(before, after);
    let url = user.deploy("podded", &format!("--image={REPOSITORY}/podded:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "podded");
    user.leaves();
}

#[test]
fn buildah_pushes_and_pulls() {
    let mut user = User::of_homerun();
    let dir = user.layout("built").dir;
    user.ok(TOOLS);
    user.ok(&format!(
        "layout {} && BASE=$(bud pull --quiet oci:layout:latest)",
        dir.display()
    ));
    user.ok("C=$(bud from $BASE) && echo -n changed > name && bud copy --quiet $C name /etc/name");
    // The image's configuration has no history, which buildah 1.28 wants to go on from.
    user.ok("bud commit --quiet --rm --omit-history $C $PORT/built:v1");
    for credentials in ["", "--creds=oauth2accesstoken:wrong"] {
        let refused = user.ends(
            &format!("bud push --quiet --tls-verify=false {credentials} $PORT/built:v1"),
            125,
        );
        assert!(refused.contains("unauthorized"), "{refused}");
    }
    nothing_is_there(&mut user);
    let creds = "--creds=oauth2accesstoken:$(gcloud auth print-access-token)";
    user.ok(&format!("bud push --quiet --tls-verify=false {creds} $PORT/built:v1"));
    user.ok("bud rmi --all --force");
    user.ok(&format!("bud pull --quiet --tls-verify=false {creds} $PORT/built:v1"));
    let url = user.deploy("built", &format!("--image={REPOSITORY}/built:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "changed");
    user.leaves();
}

/// By docker's own engine: push, pull, and an archive of `docker save`.
#[test]
fn docker_pushes_pulls_and_saves() {
    let mut user = User::of_homerun();
    let dir = user.layout("docked").dir;
    let docker = Docker::start(&user.homerun).expect("an engine");
    user.ok(&format!(
        "export DOCKER_HOST={}; PORT=$HOMERUN_API/my-project/e2e",
        docker.host
    ));
    user.ok(&format!(
        "skopeo copy oci:{} docker-archive:loaded.tar:$PORT/docked:v1 && docker load --input loaded.tar",
        dir.display()
    ));
    let refused = user.refused("docker push $PORT/docked:v1");
    assert!(refused.contains("unauthorized"), "{refused}");
    let refused = user.refused("echo wrong | docker login -u oauth2accesstoken --password-stdin $HOMERUN_API");
    assert!(refused.contains("unauthorized"), "{refused}");
    nothing_is_there(&mut user);

    user.ok(
        "gcloud auth print-access-token | docker login -u oauth2accesstoken --password-stdin $HOMERUN_API 2>/dev/null",
    );
    user.ok("docker push $PORT/docked:v1");
    let before = user.ok("docker image inspect --format='{{.Id}}' $PORT/docked:v1");
    user.ok("docker rmi $PORT/docked:v1 && docker pull $PORT/docked:v1");
    assert_eq!(
        user.ok("docker image inspect --format='{{.Id}}' $PORT/docked:v1"),
        before
    );
    let url = user.deploy("docked", &format!("--image={REPOSITORY}/docked:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "docked");

    user.ok(&format!(
        "docker save --output saved.tar $PORT/docked:v1 && homerun images import saved.tar {REPOSITORY}/saved:v1"
    ));
    let url = user.deploy("saved", &format!("--image={REPOSITORY}/saved:v1"));
    assert_eq!(user.get(&format!("{url}/name")), "docked");
    drop(docker);
    user.leaves();
}

/// `gcloud auth configure-docker` and its credential helper, for every client under the name that the world knows.
#[test]
fn gclouds_helper_logs_every_client_in() {
    let mut user = User::with(&[], Client::Google);
    let dir = user.layout("helped").dir.display().to_string();
    let docker = Docker::start(&user.homerun).expect("an engine");
    user.ok(TOOLS);
    // The helper is started by the clients, so gcloud's surroundings are the shell's.
    user.ok("eval \"$(homerun env)\"");
    user.ok(&format!(
        "export DOCKER_HOST={}; IMAGE={REPOSITORY}/helped; CONFIG=$HOME/.docker/config.json",
        docker.host
    ));
    user.ok("door() { HTTPS_PROXY=http://$HOMERUN_API NO_PROXY= SSL_CERT_FILE=$DATA_DIR/ca/ca.pem \"$@\"; }");
    user.ok(&format!(
        "layout {dir} && pod tag $(pod pull --quiet oci:layout:latest) $IMAGE:podman && \
         bud tag $(bud pull --quiet oci:layout:latest) $IMAGE:buildah && \
         skopeo copy oci:{dir} docker-archive:loaded.tar:$IMAGE:docker && docker load --input loaded.tar"
    ));
    // Before there is a helper.
    user.ends("door pod push $IMAGE:podman", 125);
    user.refused("docker push $IMAGE:docker");
    user.ok("gcloud auth configure-docker us-central1-docker.pkg.dev --quiet");
    let given = user.ok("echo us-central1-docker.pkg.dev | docker-credential-gcloud get");
    assert!(given.contains("\"Username\": \"_dcgcloud_token\""), "{given}");

    user.ok("door pod push --authfile $CONFIG $IMAGE:podman");
    user.ok("door bud push --authfile $CONFIG $IMAGE:buildah");
    user.ok("docker push $IMAGE:docker");
    user.ok("docker rmi $IMAGE:docker && docker pull $IMAGE:podman");
    user.ok("door skopeo inspect --authfile $CONFIG docker://$IMAGE:docker");
    let tags = user.ok("gcloud artifacts docker tags list $IMAGE 2>/dev/null");
    for tag in ["buildah", "docker", "podman"] {
        assert!(tags.contains(tag), "{tags}");
    }
    drop(docker);
    user.leaves();
}
