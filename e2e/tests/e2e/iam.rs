//! Who may do what, by the tutorial's and Google's own words: accounts, keys, roles, impersonation, and what is refused.

use homerun_e2e::{Client, User};

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const CODE: &str = "curl -s -o /dev/null -w '%{http_code}'";

/// An account is made, shown, changed, switched off and on, and deleted.
fn accounts_come_and_go(client: Client) {
    let mut user = User::with(&[], client);
    let said = user.ok("gcloud iam service-accounts create runner --display-name='The runner'");
    assert!(said.contains("Created service account [runner]."), "{said}");
    let said = user.refused("gcloud iam service-accounts create runner");
    assert!(said.contains("already exists"), "{said}");
    let listed = user.ok("gcloud iam service-accounts list --format='value(email)'");
    assert!(
        listed.contains(RUNNER) && listed.contains("owner@my-project"),
        "{listed}"
    );
    let shown = user.ok(&format!(
        "gcloud iam service-accounts describe {RUNNER} --format='value(displayName)'"
    ));
    assert_eq!(shown.trim(), "The runner");
    user.ok(&format!(
        "gcloud iam service-accounts update {RUNNER} --description='runs things'"
    ));
    let shown = user.ok(&format!(
        "gcloud iam service-accounts describe {RUNNER} --format='value(description)'"
    ));
    assert_eq!(shown.trim(), "runs things");
    user.ok(&format!("gcloud iam service-accounts disable {RUNNER}"));
    let shown = user.ok(&format!(
        "gcloud iam service-accounts describe {RUNNER} --format='value(disabled)'"
    ));
    assert_eq!(shown.trim(), "True");
    user.ok(&format!("gcloud iam service-accounts enable {RUNNER}"));

    user.ok(&format!(
        "gcloud iam service-accounts keys create key.json --iam-account={RUNNER}"
    ));
    assert_eq!(user.ok("stat -c %a key.json").trim(), "600");
    let keys = format!(
        "gcloud iam service-accounts keys list --iam-account={RUNNER} --managed-by=user --format='value(name.basename())'"
    );
    let keys = if matches!(client, Client::Google) {
        keys
    } else {
        keys.replace("name.basename()", "name")
    };
    let id = user.ok(&keys);
    let id = id.trim().rsplit('/').next().unwrap_or_default().to_owned();
    assert_eq!(id.len(), 40, "{id}");
    user.ok(&format!(
        "gcloud iam service-accounts keys delete {id} --iam-account={RUNNER} --quiet"
    ));
    assert_eq!(user.ok(&keys).trim(), "");
    user.ok(&format!("gcloud iam service-accounts delete {RUNNER} --quiet"));
    let said = user.refused(&format!("gcloud iam service-accounts describe {RUNNER}"));
    assert!(said.contains("NOT_FOUND") || said.contains("not exist"), "{said}");
    let role = user.ok("gcloud iam roles describe roles/run.invoker --format='value(includedPermissions)'");
    assert!(role.contains("run.routes.invoke"), "{role}");
    user.leaves();
}

#[test]
fn accounts_with_googles_gcloud() {
    accounts_come_and_go(Client::Google);
}

#[test]
fn accounts_with_ours() {
    accounts_come_and_go(Client::Homerun);
}

/// The tutorial's words on the whole project's policy.
fn roles_on_the_project(client: Client) {
    let mut user = User::with(&[], client);
    user.ok("gcloud iam service-accounts create runner");
    let binding = format!("my-project --member=serviceAccount:{RUNNER} --role=roles/run.invoker");
    let said = user.ok(&format!("gcloud projects add-iam-policy-binding {binding}"));
    assert!(said.contains("Updated IAM policy for project [my-project]."), "{said}");
    let policy = user.ok("gcloud projects get-iam-policy my-project --format=json");
    assert!(policy.contains(RUNNER) && policy.contains("roles/owner"), "{policy}");
    let conditional =
        format!("{binding} --condition=\"expression=request.time < timestamp('2030-01-01T00:00:00Z'),title=until\"");
    user.ok(&format!("gcloud projects add-iam-policy-binding {conditional}"));
    let policy = user.ok("gcloud projects get-iam-policy my-project --format=json");
    assert!(policy.contains("2030-01-01"), "{policy}");
    user.ok(&format!("gcloud projects remove-iam-policy-binding {conditional}"));
    user.ok(&format!(
        "gcloud projects remove-iam-policy-binding {binding} --condition=None"
    ));
    let policy = user.ok("gcloud projects get-iam-policy my-project --format=json");
    assert!(!policy.contains(RUNNER), "{policy}");
    for (flags, word) in [
        (
            "--member=user:a@example.com --role=roles/run.invokr",
            "roles/run.invokr",
        ),
        ("--member=allUsers --role=roles/viewer", "allUsers"),
        (
            "--member=serviceAccount:nobody@my-project.iam.gserviceaccount.com --role=roles/viewer",
            "does not exist",
        ),
    ] {
        let said = user.refused(&format!("gcloud projects add-iam-policy-binding my-project {flags}"));
        assert!(said.contains(word), "{flags}: {said}");
    }
    user.leaves();
}

#[test]
fn project_roles_with_googles_gcloud() {
    roles_on_the_project(Client::Google);
}

#[test]
fn project_roles_with_ours() {
    roles_on_the_project(Client::Homerun);
}

/// A client with an account's key may do what the account may: see, deploy with `actAs`, and call.
#[test]
fn an_account_does_what_its_roles_say_by_googles_gcloud() {
    let mut user = User::with(&[], Client::Google);
    user.ok("gcloud run deploy private --image=$HELLO $REGION --no-allow-unauthenticated --quiet");
    let url = user.describe("private", "value(status.url)").trim().to_owned();
    user.ok("gcloud iam service-accounts create runner");
    user.ok(&format!(
        "gcloud iam service-accounts keys create key.json --iam-account={RUNNER}"
    ));
    // By the account where `as` stands before the words.
    user.ok("eval \"$(homerun env)\"; as() { CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE=$PWD/key.json command \"$@\"; }");
    let said = user.refused("as gcloud run services list $REGION");
    assert!(said.contains("run.services.list"), "{said}");
    let call = |user: &mut User| {
        user.ok(&format!(
            "{CODE} -H \"Authorization: Bearer $(as gcloud auth print-identity-token --audiences={url})\" {url}"
        ))
    };
    assert_eq!(call(&mut user), "403");
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding private $REGION --member=serviceAccount:{RUNNER} --role=roles/run.invoker"
    ));
    assert_eq!(call(&mut user), "200");

    user.ok(&format!(
        "gcloud projects add-iam-policy-binding my-project --member=serviceAccount:{RUNNER} --role=roles/run.developer"
    ));
    user.ok("as gcloud run services list $REGION");
    let deploy = "as gcloud run deploy other --image=$HELLO $REGION --no-allow-unauthenticated --quiet";
    let said = user.refused(&format!("{deploy} --service-account={RUNNER}"));
    assert!(said.contains("actAs"), "{said}");
    user.ok(&format!(
        "gcloud iam service-accounts add-iam-policy-binding {RUNNER} --member=serviceAccount:{RUNNER} --role=roles/iam.serviceAccountUser"
    ));
    user.ok(&format!("{deploy} --service-account={RUNNER}"));

    user.ok(&format!("gcloud iam service-accounts disable {RUNNER}"));
    user.refused("as gcloud run services list $REGION");
    user.leaves();
}

/// `--impersonate-service-account` needs the token creator's role, of the owner too.
#[test]
fn an_account_is_impersonated_by_googles_gcloud() {
    let mut user = User::with(&[], Client::Google);
    user.ok("gcloud iam service-accounts create runner");
    let token = format!("gcloud auth print-access-token --impersonate-service-account={RUNNER}");
    let said = user.refused(&token);
    assert!(said.contains("impersonate"), "{said}");
    user.ok(&format!(
        "gcloud iam service-accounts add-iam-policy-binding {RUNNER} \
         --member=serviceAccount:owner@my-project.iam.gserviceaccount.com --role=roles/iam.serviceAccountTokenCreator"
    ));
    assert!(user.ok(&format!("{token} 2>/dev/null")).starts_with("ya29."));
    let identity = user.ok(&format!(
        "gcloud auth print-identity-token --impersonate-service-account={RUNNER} --audiences=https://a --include-email 2>/dev/null"
    ));
    assert_eq!(identity.trim().split('.').count(), 3);
    let said = user.refused(&format!(
        "gcloud run services list $REGION --impersonate-service-account={RUNNER}"
    ));
    assert!(said.contains("run.services.list"), "{said}");
    user.ok(&format!(
        "gcloud projects add-iam-policy-binding my-project --member=serviceAccount:{RUNNER} --role=roles/run.viewer"
    ));
    user.ok(&format!(
        "gcloud run services list $REGION --impersonate-service-account={RUNNER}"
    ));
    user.leaves();
}

/// The registry's push and pull go by the roles on the repository.
#[test]
fn images_go_by_the_roles_on_their_repository() {
    let mut user = User::of_homerun();
    user.import_probe("app");
    user.ok("gcloud iam service-accounts create runner");
    user.ok(&format!(
        "gcloud iam service-accounts keys create key.json --iam-account={RUNNER}"
    ));
    let code = |user: &mut User, words: &str| {
        user.ok(&format!(
            "{CODE} -u \"_json_key:$(cat key.json)\" {words} http://$HOMERUN_API/v2/my-project/e2e/app/manifests/latest"
        ))
    };
    assert_eq!(code(&mut user, ""), "403");
    user.ok(&format!(
        "gcloud projects add-iam-policy-binding my-project --member=serviceAccount:{RUNNER} --role=roles/artifactregistry.reader"
    ));
    assert_eq!(
        code(&mut user, "-H 'Accept: application/vnd.oci.image.manifest.v1+json'"),
        "200"
    );
    assert_eq!(code(&mut user, "-X DELETE"), "403", "a reader");
    user.leaves();
}
