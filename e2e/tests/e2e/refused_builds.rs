//! What a build is not given and what ends it: each a clear error, nothing half made to be seen, and the service that
//! runs stays as it is. More of it is in `builds.rs`: archives that lead out, empty sources, Dockerfiles that do not
//! read, steps that fail or do not end. An upload that breaks off is in the tests of `api`, bombs are in `build`'s.

use std::fs;

use homerun_e2e::{Client, User};

use crate::builds::{PLACE, log_of, says, source, user};

#[test]
fn a_build_that_fills_the_disk_is_ended() {
    let (mut user, base) = user(&["--build-disk", "64MiB"]);
    source(
        &user,
        "app",
        &format!("FROM {base}\nRUN echo it begins; while true; do cat /probe >> /big; sleep 0.02; done\n"),
    );
    let said = user.refused(&format!("gcloud builds submit app --tag={PLACE}/app"));
    for part in [
        "the build wrote more than 67108864 bytes to the disk, the limit (homerun up --build-disk)",
        "STEP 2/2: RUN echo it begins",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let left = user.ok("du --summarize --block-size=1M $DATA_DIR/builds | cut -f1");
    let megabytes: u32 = left.parse().expect("a number");
    assert!(
        megabytes < 300,
        "{left}: {}",
        user.ok("du $DATA_DIR/builds --max-depth=3 --block-size=1M")
    );
    assert_eq!(user.ok("find $DATA_DIR/builds -name big | wc -l"), "0");
    // What it needs less of it is given still.
    source(&user, "app", &format!("FROM {base}\nRUN cat /probe > /small\n"));
    user.ok(&format!("gcloud builds submit app --tag={PLACE}/app"));
    user.leaves();
}

#[test]
fn a_secret_that_nobody_gives_is_not_there() {
    let (mut user, base) = user(&[]);
    for (flags, told) in [
        ("", "no file, and it goes on"),
        (",required=true", "no secret with id token found"),
    ] {
        source(
            &user,
            "app",
            &format!(
                "FROM {base}\nRUN --mount=type=secret,id=token{flags} test -e /run/secrets/token || echo no file, and it goes on\n"
            ),
        );
        let submit = format!("gcloud builds submit app --tag={PLACE}/app");
        let said = if flags.is_empty() {
            user.ok(&submit)
        } else {
            user.refused(&submit)
        };
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    user.leaves();
}

#[test]
fn a_source_beyond_two_gibibytes_is_not_sent() {
    let mut user = User::of_homerun();
    source(&user, "app", "FROM scratch\n");
    user.ok("truncate -s 2G app/large");
    for command in [
        "gcloud run deploy app --source=app $REGION --quiet 2>&1".to_owned(),
        format!("gcloud builds submit app --tag={PLACE}/app 2>&1"),
    ] {
        let said = user.refused(&command);
        let told = "the limit is 2147483648: name what stays behind in .gcloudignore";
        assert!(said.contains(told) && !said.contains("Uploading"), "{said}");
    }
    user.ok("rm app/large; ln -s ../.. app/out");
    let said = user.refused("gcloud run deploy app --source=app $REGION --quiet 2>&1");
    assert!(
        said.contains("app/out links to ../.., which leads out of the source"),
        "{said}"
    );
    assert_eq!(
        user.ok("gcloud builds list $REGION --format='value(id)' 2>/dev/null"),
        ""
    );
    user.leaves();
}

#[test]
fn a_base_image_out_of_reach_is_told() {
    let (mut user, _) = user(&[]);
    // No name server knows it.
    source(&user, "app", "FROM registry.invalid/base:v1\nRUN x\n");
    let said = user.refused("gcloud run deploy app --source=app $REGION --quiet 2>&1");
    assert!(
        said.contains("image registry.invalid/base:v1 cannot be pulled"),
        "{said}"
    );
    user.leaves();
}

#[test]
fn two_builds_of_one_image_take_turns() {
    let mut user = User::of_homerun();
    let base = user.import_base();
    for name in ["one", "two"] {
        let dir = source(
            &user,
            name,
            &format!("FROM {base}\nRUN echo it begins; sleep 3\nCOPY name /etc/name\nENTRYPOINT [\"/probe\"]\n"),
        );
        fs::write(dir.join("name"), name).expect("written");
    }
    let deploy = |name: &str| format!("gcloud run deploy app --source={name} $REGION --allow-unauthenticated --quiet");
    user.ok(&format!(
        "({} >one.log 2>&1; echo $? >one.status) & FIRST=$!",
        deploy("one")
    ));
    says(&user, "it begins");
    user.ok(&deploy("two"));
    user.ok("wait $FIRST; cat one.log; test \"$(cat one.status)\" = 0");
    assert_eq!(
        user.ok("gcloud builds list $REGION --format='value(status)'"),
        "SUCCESS\nSUCCESS"
    );
    let log = log_of(&mut user, "$REGION");
    assert!(log.contains("waiting for another build of this image"), "{log}");
    let url = user.describe("app", "value(status.url)");
    assert_eq!(user.get(&format!("{url}/name")), "two", "the one that was built last");
    assert_eq!(
        user.ok("gcloud run revisions list --service=app $REGION --format='value(name)' | wc -l"),
        "2"
    );
    user.leaves();
}

#[test]
fn a_full_registry_ends_a_build_and_nothing_else() {
    let mut user = User::with(&["--registry-quota", "16MiB"], Client::Homerun);
    let base = user.import_base();
    let dir = source(
        &user,
        "app",
        &format!("FROM {base}\nCOPY . /etc/\nENTRYPOINT [\"/probe\"]\n"),
    );
    fs::write(dir.join("name"), "first").expect("written");
    let url = user.deploy("app", "--source=app");
    fs::write(dir.join("name"), "second").expect("written");
    user.ok("head -c 17000000 /dev/urandom > app/large");
    let said = user.refused("gcloud run deploy app --source=app $REGION --quiet 2>&1");
    assert!(said.contains("its quota of 16777216 bytes has no room for"), "{said}");
    assert_eq!(user.get(&format!("{url}/name")), "first");
    let place = "us-central1-docker.pkg.dev/my-project/cloud-run-source-deploy/app";
    let image = user.describe("app", "value(spec.template.spec.containers[0].image)");
    let listed = user.ok(&format!(
        "gcloud artifacts docker images list {place} --format='value(version)' 2>/dev/null"
    ));
    assert!(image.ends_with(&format!("@{listed}")), "one image: {listed}");
    // What would be too much is not in the way of what is not.
    user.ok("rm app/large");
    user.ok("gcloud run deploy app --source=app $REGION --quiet");
    assert_eq!(user.get(&format!("{url}/name")), "second");
    user.leaves();
}
