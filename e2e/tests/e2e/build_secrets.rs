//! Secrets of builds: a step that mounts one reads it, and nothing else does, neither the image nor the disk.

use std::fs;

use homerun_e2e::{Client, User};

use crate::{
    builds::{PLACE, log_of, says, source},
    secrets::holding,
};

/// What must be seen nowhere.
const VALUE: &str = "npm_7c1e0f52b9";
const NEXT: &str = "npm_d40a91be37";

/// With the secret `npm` as `NPM_TOKEN`, which the step asks for by these words.
fn configuration(words: &str) -> String {
    format!(
        "steps:\n- name: gcr.io/cloud-builders/docker\n  env: [DOCKER_BUILDKIT=1]\n  args: [build, {words} -t, \
         {PLACE}/app:v1, .]\n  secretEnv: [NPM_TOKEN]\nimages: ['{PLACE}/app:v1']\navailableSecrets:\n  \
         secretManager:\n  - versionName: projects/$PROJECT_ID/secrets/npm/versions/latest\n    env: NPM_TOKEN\n"
    )
}

fn secrets_reach_the_steps_that_mount_them(client: Client) {
    let mut user = User::with(&[], client);
    let base = user.import_base();
    let dir = source(
        &user,
        "app",
        &format!(
            "FROM {base}\n\
             RUN set -- /run/secrets/*; test ! -e \"$1\"\n\
             RUN if cat /proc/1/root/run/homerun/secrets/npm; then exit 1; fi\n\
             RUN --mount=type=secret,id=npm,required=true read -r V < /run/secrets/npm; echo ${{#V}} ${{V:4:4}} > /etc/name; echo it is held; sleep 4\n\
             RUN --mount=type=secret,id=npm,target=/root/.npmrc test -s /root/.npmrc\n\
             RUN set -- /run/secrets/* /root/.npmrc; test ! -s \"$1\"; test ! -s \"$2\"\n\
             ENTRYPOINT [\"/probe\"]\n"
        ),
    );
    fs::write(
        dir.join("cloudbuild.yaml"),
        configuration("--secret, 'id=npm,env=NPM_TOKEN',"),
    )
    .expect("written");
    let submit = "gcloud builds submit app --config=app/cloudbuild.yaml";
    let said = user.refused(submit);
    assert!(said.contains("failed to access secret version for NPM_TOKEN"), "{said}");
    assert!(said.contains("/secrets/npm/versions/latest was not found"), "{said}");
    user.ok(&format!("printf {VALUE} | gcloud secrets create npm --data-file=-"));
    let said = user.refused(submit);
    for told in [
        "Permission denied on secret",
        "Cloud Build service account",
        "roles/secretmanager.secretAccessor",
    ] {
        assert!(said.contains(told), "no {told:?} in {said}");
    }

    user.ok("COMPUTE=$(gcloud iam service-accounts list --format='value(email)' | grep -- -compute@)");
    user.ok(
        "gcloud secrets add-iam-policy-binding npm --member=serviceAccount:$COMPUTE \
         --role=roles/secretmanager.secretAccessor",
    );
    user.ok(&format!("{submit} --async"));
    says(&user, "it is held");
    let data = user.homerun.root().join("data");
    assert_eq!(holding(&data, VALUE), Vec::<String>::new(), "while a step has it");
    user.ok("until test \"$(gcloud builds list --ongoing --format='value(id)')\" = ''; do sleep 0.2; done");
    assert_eq!(holding(&data, VALUE), Vec::<String>::new(), "after the build");
    let log = log_of(&mut user, "");
    assert!(log.contains("\nDONE"), "{log}");
    let url = user.deploy("app", &format!("--image={PLACE}/app:v1"));
    assert_eq!(user.get(&format!("{url}/name")).trim(), "14 7c1e");
    let shown = user.ok("gcloud builds describe $(gcloud builds list --limit=1 --format='value(id)') --format=yaml");
    for told in [
        "secretEnv:",
        "NPM_TOKEN",
        "projects/my-project/secrets/npm/versions/latest",
        "DOCKER_BUILDKIT=1",
    ] {
        assert!(shown.contains(told), "no {told:?} in {shown}");
    }

    // The key of a build that is not repeated has the number of the version.
    let said = user.ok(submit);
    assert!(said.contains("unchanged since build"), "{said}");
    user.ok(&format!(
        "printf {NEXT} | gcloud secrets versions add npm --data-file=-"
    ));
    fs::write(
        dir.join("cloudbuild.yaml"),
        configuration("--no-cache, --secret, 'id=npm,env=NPM_TOKEN',"),
    )
    .expect("written");
    let said = user.ok(submit);
    assert!(said.contains("secret npm: version 2 of npm"), "{said}");
    user.deploy("app", &format!("--image={PLACE}/app:v1"));
    assert_eq!(user.get(&format!("{url}/name")).trim(), "14 d40a");
    let known = format!("{said}{}", user.homerun.log());
    assert!(!known.contains(VALUE) && !known.contains(NEXT), "{known}");
    user.leaves();
}

#[test]
fn secrets_reach_the_steps_that_mount_them_by_googles_client() {
    secrets_reach_the_steps_that_mount_them(Client::Google);
}

#[test]
fn secrets_reach_the_steps_that_mount_them_by_our_client() {
    secrets_reach_the_steps_that_mount_them(Client::Homerun);
}

#[test]
fn wrong_words_about_secrets_of_builds() {
    let mut user = User::of_homerun();
    let base = user.import_base();
    let dir = source(&user, "app", &format!("FROM {base}\n"));
    let good = configuration("--secret, 'id=npm,env=NPM_TOKEN',");
    for (config, told) in [
        (configuration(""), "nothing in args reads \"NPM_TOKEN\""),
        (
            configuration("--secret, 'id=npm,env=OTHER', --secret, 'id=a,env=NPM_TOKEN',"),
            "\"OTHER\" is not in the step's secretEnv",
        ),
        (
            good.replace("    env: NPM_TOKEN", "    env: OTHER"),
            "\"NPM_TOKEN\" is not among availableSecrets",
        ),
        (
            good.replace("    env: NPM_TOKEN", "    env: 1A"),
            "\"1A\" is no name of a variable",
        ),
        (
            format!("{good}  - versionName: projects/my-project/secrets/b/versions/1\n    env: B\n"),
            "\"B\" is in no step's secretEnv",
        ),
        (
            format!("{good}  - versionName: projects/my-project/secrets/b/versions/1\n    env: NPM_TOKEN\n"),
            "\"NPM_TOKEN\" is there twice",
        ),
        (
            good.replace("projects/$PROJECT_ID", "projects/another"),
            "project \"another\" is not this Homerun's",
        ),
        (
            good.replace("/versions/latest", ""),
            "expected projects/PROJECT/secrets/SECRET/versions/VERSION",
        ),
        (good.replace("secretManager", "inline"), "availableSecrets.inline"),
        (good.replace("=1", "=0"), "only DOCKER_BUILDKIT=1 of docker is"),
        (good.replace("env=NPM_TOKEN", "src=app.key"), "files are not served"),
    ] {
        assert_ne!(config, good);
        fs::write(dir.join("cloudbuild.yaml"), &config).expect("written");
        let said = user.refused("gcloud builds submit app --config=app/cloudbuild.yaml");
        assert!(said.contains(told), "no {told:?} in {said}\n{config}");
    }
    assert_eq!(user.ok("gcloud builds list --format='value(status)'"), "");
    user.leaves();
}
