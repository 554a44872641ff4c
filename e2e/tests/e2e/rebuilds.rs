//! The same source again: the same digest, and nothing to build where nothing changed.

use std::fs;

use homerun_e2e::{Client, User};

use crate::builds::{PLACE, log_of, source, user};

fn digest_of(user: &mut User, tag: &str) -> String {
    user.ok(&format!(
        "gcloud artifacts docker tags list {PLACE}/app --filter=tag:{tag} --format='value(version.basename())' 2>/dev/null"
    ))
}

#[test]
fn the_same_source_gives_the_same_image() {
    let build = |user: &mut User, base: &str| {
        let dir = source(
            user,
            "app",
            &format!(
                "FROM {base} AS first\nWORKDIR /made\nRUN id > who; cat who > again; ls /bin > list\n\
                 FROM {base}\nCOPY . /srv\nCOPY --from=first /made /made\nRUN cat /srv/page > /srv/copy\nCMD [\"/probe\"]\n"
            ),
        );
        fs::write(dir.join("page"), "a page").expect("written");
        // By the clock on the wall in a ZIP, in seconds since 1970 in a tar.
        user.ok("TZ=UTC touch -d 2024-05-06T07:08:10Z app/page app/Dockerfile");
    };
    let (mut one, base) = user(&[]);
    build(&mut one, &base);
    // Both by --no-cache, as gcloud says.
    for tag in ["v1", "v2"] {
        one.ok(&format!("gcloud builds submit app --tag={PLACE}/app:{tag}"));
    }
    let digest = digest_of(&mut one, "v1");
    assert!(digest.starts_with("sha256:"), "{digest}");
    assert_eq!(digest_of(&mut one, "v2"), digest);
    // Its files tell when the source was changed, and not when it was built.
    source(
        &one,
        "look",
        &format!("FROM {PLACE}/app:v1\nRUN ls -l --time-style=+%FT%T /srv /made > /told; cat /told\nRUN echo told\n"),
    );
    let said = one.ok(&format!("gcloud builds submit look --tag={PLACE}/look"));
    for (name, time) in [
        ("page", "2024-05-06T07:08:10"),
        ("copy", "1980-01-02T00:00:00"),
        ("again", "1980-01-02T00:00:00"),
    ] {
        let line = said.lines().find(|line| line.ends_with(&format!(" {name}")));
        assert!(line.is_some_and(|line| line.contains(time)), "{name}: {said}");
    }
    one.leaves();

    let (mut other, base) = user(&[]);
    build(&mut other, &base);
    other.ok(&format!("gcloud builds submit app --tag={PLACE}/app:v1"));
    assert_eq!(digest_of(&mut other, "v1"), digest, "another data directory");
    other.leaves();
}

/// The log of the build that ended last says so, of this image.
#[track_caller]
fn was_unchanged(user: &mut User) -> bool {
    let log = log_of(user, "$REGION");
    let unchanged = log.lines().any(|line| line.starts_with("unchanged since build "));
    let built = log.lines().any(|line| line == "BUILD");
    assert_ne!(unchanged, built, "{log}");
    unchanged
}

const DEPLOY: &str = "gcloud run deploy app --source=app $REGION --allow-unauthenticated --quiet 2>&1";

fn image_of(user: &mut User) -> String {
    user.describe("app", "value(spec.template.spec.containers[0].image)")
}

fn an_unchanged_source(client: Client) {
    let mut user = User::with(&[], client);
    let base = user.import_base();
    let dir = source(
        &user,
        "app",
        &format!("FROM {base}\nRUN echo a step\nCOPY name /etc/name\nENTRYPOINT [\"/probe\"]\n"),
    );
    fs::write(dir.join("name"), "first").expect("written");
    user.ok(DEPLOY);
    assert!(!was_unchanged(&mut user));
    let first = image_of(&mut user);
    let id = user.ok("gcloud builds list $REGION --limit=1 --format='value(id)'");

    // Other times, and another order of files, are no other source.
    user.ok("touch app/name; cp app/Dockerfile app/new; mv app/new app/Dockerfile");
    let said = user.ok(DEPLOY);
    assert!(was_unchanged(&mut user));
    if client == Client::Homerun {
        assert!(
            said.contains(&format!("Nothing was built: unchanged since build {id}: ")),
            "{said}"
        );
    }
    assert_eq!(image_of(&mut user), first);
    let listed = user.ok("gcloud builds list $REGION --format='value(status,results.images[0].digest)'");
    let digest = first.split_once('@').expect("a digest").1;
    assert_eq!(listed, format!("SUCCESS\t{digest}\nSUCCESS\t{digest}"));

    fs::write(dir.join("name"), "second").expect("written");
    user.ok(DEPLOY);
    assert!(!was_unchanged(&mut user));
    let url = user.describe("app", "value(status.url)");
    assert_eq!(user.get(&format!("{url}/name")), "second");
    // As it was before the last build: the older image is told by its build, and has the tag.
    fs::write(dir.join("name"), "first").expect("written");
    user.ok(DEPLOY);
    assert!(was_unchanged(&mut user));
    assert_eq!(image_of(&mut user), first);
    assert_eq!(user.get(&format!("{url}/name")), "first");
    let place = "us-central1-docker.pkg.dev/my-project/cloud-run-source-deploy/app";
    assert_eq!(
        user.ok(&format!(
            "gcloud artifacts docker images describe {place} --format='value(image_summary.digest)' 2>/dev/null"
        )),
        digest
    );
    assert!(log_of(&mut user, "$REGION").contains(&format!("unchanged since build {id}: {place}@{digest}")));
    user.leaves();
}

#[test]
fn a_source_is_built_again_where_its_base_moved_or_its_image_went() {
    let mut user = User::of_homerun();
    let base = user.import_base();
    let dir = source(&user, "app", "");
    fs::write(dir.join("name"), "first").expect("written");
    // The base image's tag means something else.
    let moved = user.layout("moved");
    user.ok(&format!("homerun images import {} {base}", moved.dir.display()));
    fs::write(dir.join("Dockerfile"), format!("FROM {base}\nCOPY name /etc/name\n")).expect("written");
    user.ok(DEPLOY);
    assert!(!was_unchanged(&mut user));
    let other = user.layout("other");
    user.ok(&format!("homerun images import {} {base}", other.dir.display()));
    user.ok(DEPLOY);
    assert!(!was_unchanged(&mut user));
    user.ok(DEPLOY);
    assert!(was_unchanged(&mut user));

    // The image is not there any more.
    let last = image_of(&mut user);
    user.ok(&format!(
        "gcloud artifacts docker images delete {last} --delete-tags --quiet"
    ));
    user.ok(DEPLOY);
    assert!(!was_unchanged(&mut user));
    assert_eq!(image_of(&mut user), last, "the same source, the same digest");
    // A restart forgets nothing.
    user.homerun.kill_and_restart().expect("starts after a kill");
    user.session = homerun_e2e::Session::new(&user.homerun, Client::Homerun).expect("a shell");
    user.ok("REGION=--region=us-central1");
    user.ok(DEPLOY);
    assert!(was_unchanged(&mut user));
    user.leaves();
}

#[test]
fn an_unchanged_source_is_not_built_again() {
    an_unchanged_source(Client::Google);
}

#[test]
fn an_unchanged_source_is_not_built_again_by_ours() {
    an_unchanged_source(Client::Homerun);
}

#[test]
fn no_cache_builds_whatever_was_built() {
    let (mut user, base) = user(&[]);
    let dir = source(&user, "app", &format!("FROM {base}\nARG A\nRUN echo it says $A\n"));
    let config = |flags: &str| {
        let text = format!(
            "steps:\n- name: gcr.io/cloud-builders/docker\n  args: [build, {flags}-t, '{PLACE}/app:v1', .]\nimages: ['{PLACE}/app:v1']\n"
        );
        fs::write(dir.join("cloudbuild.yaml"), text).expect("written");
        // It is a file of the source too.
        fs::write(dir.join(".gcloudignore"), "cloudbuild.yaml\n").expect("written");
    };
    let submit = "gcloud builds submit app --config=app/cloudbuild.yaml";
    let unchanged = "unchanged since build ";
    config("");
    assert!(!user.ok(submit).contains(unchanged));
    assert!(user.ok(submit).contains(unchanged));
    config("--no-cache, ");
    let said = user.ok(submit);
    assert!(!said.contains(unchanged) && said.contains("it says"), "{said}");
    config("'--build-arg=A=this', ");
    let said = user.ok(submit);
    assert!(!said.contains(unchanged) && said.contains("it says this"), "{said}");
    assert!(user.ok(submit).contains(unchanged));
    user.leaves();
}
