//! Names of other registries that mean an image of this Homerun.

use std::fs;

use homerun_e2e::{Client, User};

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
            "mirror python:3 registry.example/library/python:3".to_owned(),
            "other registries are no place to mirror from",
        ),
        (
            "unmirror python:3".to_owned(),
            "docker.io/library/python:3 means no image of this Homerun",
        ),
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
