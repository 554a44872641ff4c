//! Names of other registries that mean an image of this Homerun, or are had from another registry.

use std::fs;

use homerun_e2e::{Client, Homerun, Session, User};

#[test]
fn a_public_name_means_a_local_image() {
    let mut user = User::with(&[], Client::Google);
    let base = user.import_base();
    let (one, two) = (user.import_probe("one"), user.import_probe("two"));
    assert_eq!(user.ok("homerun images mirrors --format='value(name)'"), "");
    user.ok(&format!("homerun images mirror debian:stable {base}"));
    // In a `FROM`, whose name is docker's.
    let dir = user.homerun.root().join("home/app");
    fs::create_dir_all(&dir).expect("made");
    fs::write(
        dir.join("Dockerfile"),
        "FROM debian:stable\nRUN echo built > /etc/name\nENTRYPOINT [\"/probe\"]\n",
    )
    .expect("written");
    let url = user.deploy("app", "--source=app");
    assert_eq!(user.get(&format!("{url}/name")).trim(), "built");

    // In a deploy, of a registry that is not asked; also after a restart, and under the image that came last.
    user.ok(&format!("homerun images mirror 127.0.0.1:9/team/app:v1 {one}"));
    let url = user.deploy("named", "--image=127.0.0.1:9/team/app:v1");
    assert_eq!(user.get(&format!("{url}/name")), "one");
    user.homerun.kill_and_restart().expect("starts after a kill");
    user.session = homerun_e2e::Session::new(&user.homerun, Client::Google).expect("a shell");
    user.ok("REGION=--region=us-central1");
    assert_eq!(
        user.ok("homerun images mirrors --format='value(name)'"),
        "127.0.0.1:9/team/app:v1\ndocker.io/library/debian:stable"
    );
    user.ok(&format!("homerun images mirror 127.0.0.1:9/team/app:v1 {two}"));
    let url = user.deploy("named", "--image=127.0.0.1:9/team/app:v1");
    assert_eq!(user.get(&format!("{url}/name")), "two");

    // Taken away, the name is its registry's again; what runs goes on.
    user.ok("homerun images unmirror debian:stable");
    user.ok("homerun images unmirror 127.0.0.1:9/team/app:v1");
    assert_eq!(user.ok("homerun images mirrors --format='value(name)'"), "");
    user.refused("gcloud run deploy other --image=127.0.0.1:9/team/app:v1 $REGION --quiet");
    assert_eq!(user.get(&format!("{url}/name")), "two");
    user.leaves();
}

#[test]
fn what_cannot_be_mirrored() {
    let mut user = User::of_homerun();
    let image = user.import_probe("one");
    for (words, told) in [
        (format!("mirror {image} {image}"), "is this Homerun itself"),
        (
            format!("mirror python@sha256:{} {image}", "ab".repeat(32)),
            "a digest means one image only",
        ),
        (format!("mirror Python:3 {image}"), "is no image name"),
        (
            "mirror python:3 us-central1-docker.pkg.dev/my-project/e2e/absent:v1".to_owned(),
            "is not stored here",
        ),
        (
            format!("mirror docker.io/library/* {image}"),
            "docker.io/library/* are many images",
        ),
        (
            "mirror python:3 registry.example".to_owned(),
            "docker.io/library/python:3 is one image",
        ),
        (
            "mirror docker.io docker.io/*".to_owned(),
            "docker.io/* is what docker.io/* means by itself",
        ),
        (
            "mirror docker.io/Library/* mirror.example".to_owned(),
            "is no image name",
        ),
        ("mirror docker.io https://mirror.example".to_owned(), "is no image name"),
        (
            "unmirror python:3".to_owned(),
            "docker.io/library/python:3 means nothing else here",
        ),
        ("unmirror docker.io".to_owned(), "docker.io/* means nothing else here"),
    ] {
        let said = user.refused(&format!("homerun images {words}"));
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    let dir = user.layout("two").dir;
    let said = user.refused(&format!(
        "homerun images import {} docker.io/library/python:3",
        dir.display()
    ));
    assert!(said.contains("homerun images mirror"), "{said}");
    user.leaves();
}

/// A second Homerun, which is somebody else's registry to the first.
struct Upstream {
    homerun: Homerun,
    session: Session,
}

impl Upstream {
    fn up() -> Self {
        let homerun = Homerun::up().expect("starts");
        let session = Session::new(&homerun, Client::Homerun).expect("a shell");
        Self { homerun, session }
    }

    #[track_caller]
    fn ok(&mut self, command: &str) -> String {
        let output = self.session.run(command).expect("ends");
        assert_eq!(output.status, 0, "{}\n{}", output.text, self.homerun.log());
        output.text.trim_end().to_owned()
    }

    /// Takes an image in below its project.
    #[track_caller]
    fn import(&mut self, user: &mut User, layout: &str, image: &str) {
        let dir = user.homerun.root().join("layouts").join(layout);
        self.ok(&format!(
            "homerun images import {} us-central1-docker.pkg.dev/my-project/{image}",
            dir.display()
        ));
    }
}

#[test]
fn a_registry_is_had_from_another_one() {
    let mut user = User::of_homerun();
    for name in ["one", "two"] {
        user.layout(name);
    }
    user.import_base();
    let mut upstream = Upstream::up();
    let address = upstream.homerun.api();
    upstream.import(&mut user, "base", "library/debian:stable");
    upstream.import(&mut user, "one", "team/app:v1");
    assert!(
        user.ok(&format!("homerun images mirror docker.io {address}/my-project/* 2>&1"))
            .contains(&format!("docker.io/* is had from {address}/my-project/*"))
    );
    user.ok(&format!(
        "homerun images mirror registry.example/x {address}/my-project/team/app:v1"
    ));
    let mirrors = user.ok("homerun images mirrors --format='value(name,from)'");
    let expected =
        format!("docker.io/*\t{address}/my-project/*\nregistry.example/x:latest\t{address}/my-project/team/app:v1");
    assert_eq!(mirrors, expected);

    // Not without the mirror's credentials, which are docker's as for any other registry.
    let said = user.refused("gcloud run deploy app --image=team/app:v1 $REGION --quiet");
    for told in [
        "docker.io/team/app:v1 is mirrored",
        &format!("{address}/my-project/team/app:v1"),
    ] {
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    let token = upstream.ok("gcloud auth print-access-token");
    user.ok(&format!(
        r#"mkdir -p $HOME/.docker; echo '{{"auths":{{"{address}":{{"auth":"'$(printf %s 'oauth2accesstoken:{token}' | base64 -w0)'"}}}}}}' > $HOME/.docker/config.json"#
    ));
    // In a deploy, under its own name.
    let url = user.deploy("app", "--image=team/app:v1");
    assert_eq!(user.get(&format!("{url}/name")), "one");
    let revision = user.describe("app", "value(status.latestReadyRevisionName)");
    let digest = user.ok(&format!(
        "gcloud run revisions describe {revision} $REGION --format='value(status.imageDigest)'"
    ));
    assert!(digest.starts_with("docker.io/team/app@sha256:"), "{digest}");
    let url = user.deploy("single", "--image=registry.example/x");
    assert_eq!(user.get(&format!("{url}/name")), "one");
    // In a `FROM`.
    let dir = user.homerun.root().join("home/built");
    fs::create_dir_all(&dir).expect("made");
    fs::write(
        dir.join("Dockerfile"),
        "FROM debian:stable\nRUN echo built > /etc/name\nENTRYPOINT [\"/probe\"]\n",
    )
    .expect("written");
    let url = user.deploy("built", "--source=built");
    assert_eq!(user.get(&format!("{url}/name")).trim(), "built");
    // A tag that moved is noticed while the mirror is there.
    upstream.import(&mut user, "two", "team/app:v1");
    let url = user.deploy("app", "--image=team/app:v1");
    assert_eq!(user.get(&format!("{url}/name")), "two");

    // Without it, and after a restart, what it had last is good; what was never asked for is not there.
    let Upstream { homerun, session } = upstream;
    drop(session);
    homerun.stop().expect("ends in order");
    user.homerun.kill().expect("killed");
    user.homerun.start_again().expect("starts after a kill");
    let url = user.deploy("later", "--image=team/app:v1");
    assert_eq!(user.get(&format!("{url}/name")), "two");
    fs::write(
        dir.join("Dockerfile"),
        "FROM debian:stable\nRUN echo again > /etc/name\nENTRYPOINT [\"/probe\"]\n",
    )
    .expect("written");
    let url = user.deploy("built", "--source=built");
    assert_eq!(user.get(&format!("{url}/name")).trim(), "again");
    let said = user.refused("gcloud run deploy app --image=team/other:v1 $REGION --quiet");
    for told in [
        "docker.io/team/other:v1 is mirrored",
        &format!("{address}/my-project/team/other:v1 cannot be pulled"),
        "refused",
    ] {
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    // The image that the tag was before is no longer kept for its sake; the revision that runs it still can.
    user.ok("sleep 1.1; homerun images collect --older-than=1s");
    let url = user.ok("gcloud run services describe single $REGION --format='value(status.url)'");
    assert_eq!(user.get(&format!("{url}/name")), "one");
    user.leaves();
}

/// Of several names the longest holds; repositories of this Homerun are a place too, also for Google's own hosts.
#[test]
fn the_longest_name_holds() {
    let mut user = User::of_homerun();
    let (one, two) = (user.import_probe("one"), user.import_probe("two"));
    let below = one.strip_suffix("/one:latest").expect("as imported");
    user.ok("homerun images mirror docker.io mirror.invalid");
    user.ok(&format!("homerun images mirror docker.io/library/* {below}/*"));
    user.ok(&format!("homerun images mirror docker.io/library/one:fixed {two}"));
    user.ok(&format!("homerun images mirror gcr.io/distroless/* {below}/*"));
    for (image, name) in [
        ("one", "one"),
        ("two", "two"),
        ("one:fixed", "two"),
        ("gcr.io/distroless/two", "two"),
    ] {
        let url = user.deploy("s", &format!("--image={image}"));
        assert_eq!(user.get(&format!("{url}/name")), name, "{image}");
    }
    for (image, told) in [
        ("team/app", "mirror.invalid/team/app:latest cannot be pulled"),
        (
            "python",
            "us-central1-docker.pkg.dev/my-project/e2e/python:latest not found",
        ),
        (
            "gcr.io/distroless/static",
            "us-central1-docker.pkg.dev/my-project/e2e/static:latest not found",
        ),
    ] {
        let said = user.refused(&format!("gcloud run deploy s --image={image} $REGION --quiet"));
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    user.ok("homerun images unmirror docker.io/library/*");
    let said = user.refused("gcloud run deploy s --image=one $REGION --quiet");
    assert!(
        said.contains("mirror.invalid/library/one:latest cannot be pulled"),
        "{said}"
    );
    user.ok("homerun images unmirror docker.io; homerun images unmirror gcr.io/distroless/*");
    assert_eq!(
        user.ok("homerun images mirrors --format='value(name)'"),
        "docker.io/library/one:fixed"
    );
    user.leaves();
}
