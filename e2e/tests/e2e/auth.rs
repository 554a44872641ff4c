//! Accounts that a client holds the keys of, and whose tokens it uses: by Google's gcloud and by our own command line.

use homerun_e2e::{Client, User};

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const BROKER: &str = "broker@my-project.iam.gserviceaccount.com";
const TARGET: &str = "target@my-project.iam.gserviceaccount.com";
const OWNER: &str = "owner@my-project.iam.gserviceaccount.com";
const CODE: &str = "curl -s -o /dev/null -w '%{http_code}'";
/// Prints the claims of TOKEN.
const CLAIMS: &str = "echo \"$TOKEN\" | cut -d. -f2 | tr -- -_ +/ | sed 's/$/==/' | base64 -d 2>/dev/null | jq -c";

#[track_caller]
fn may_act_for(user: &mut User, account: &str, who: &str) {
    user.ok(&format!(
        "gcloud iam service-accounts add-iam-policy-binding {account} --member=serviceAccount:{who} \
         --role=roles/iam.serviceAccountTokenCreator"
    ));
}

/// Activated, it is used until it is revoked.
fn an_account_is_activated(client: Client) {
    let mut user = User::with(&[], client);
    user.ok("gcloud run deploy private --image=$HELLO $REGION --no-allow-unauthenticated --quiet");
    let url = user.describe("private", "value(status.url)").trim().to_owned();
    user.ok("gcloud iam service-accounts create runner");
    user.ok(&format!(
        "gcloud iam service-accounts keys create key.json --iam-account={RUNNER}"
    ));
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding private $REGION --member=serviceAccount:{RUNNER} --role=roles/run.invoker"
    ));
    let said = user.refused(&format!(
        "gcloud auth activate-service-account {OWNER} --key-file=key.json"
    ));
    assert!(said.contains("does not match the account name in the key"), "{said}");
    let said = user.ok("gcloud auth activate-service-account --key-file=key.json");
    assert!(
        said.contains(&format!("Activated service account credentials for: [{RUNNER}]")),
        "{said}"
    );
    let active =
        user.ok("gcloud auth list --format=json 2>/dev/null | jq -r '.[] | select(.status == \"ACTIVE\").account'");
    assert_eq!(active.trim(), RUNNER);
    user.ok(&format!("TOKEN=$(gcloud auth print-identity-token --audiences={url})"));
    let claims = user.ok(&format!("{CLAIMS} '[.aud, .email]'"));
    assert_eq!(claims.trim(), format!("[\"{url}\",\"{RUNNER}\"]"));
    assert_eq!(
        user.ok(&format!("{CODE} -H \"Authorization: Bearer $TOKEN\" {url}")),
        "200"
    );
    assert!(user.ok("gcloud auth print-access-token").trim().starts_with("ya29."));
    let said = user.refused("gcloud run services list $REGION");
    assert!(said.contains("run.services.list"), "not the owner: {said}");

    user.ok(&format!("gcloud auth revoke {RUNNER}"));
    user.ok("gcloud run services list $REGION");
    let said = user.ok("gcloud auth list --format='value(account)' 2>/dev/null");
    assert!(!said.contains(RUNNER), "{said}");
    user.ends(&format!("gcloud auth revoke {RUNNER}"), 1);
    // A key that does not count is not taken.
    user.ok(&format!("gcloud iam service-accounts disable {RUNNER}"));
    user.refused("gcloud auth activate-service-account --key-file=key.json");
    user.ok("gcloud run services list $REGION");
    user.leaves();
}

#[test]
fn an_account_is_activated_in_googles_gcloud() {
    an_account_is_activated(Client::Google);
}

#[test]
fn an_account_is_activated_in_ours() {
    an_account_is_activated(Client::Homerun);
}

/// Of several accounts each acts for the next, and the last is spoken for.
fn a_chain_is_impersonated(client: Client) {
    let mut user = User::with(&[], client);
    user.ok("gcloud run deploy private --image=$HELLO $REGION --no-allow-unauthenticated --quiet");
    let url = user.describe("private", "value(status.url)").trim().to_owned();
    user.ok("gcloud iam service-accounts create broker && gcloud iam service-accounts create target");
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding private $REGION --member=serviceAccount:{TARGET} --role=roles/run.invoker"
    ));
    let list = format!("gcloud run services list $REGION --impersonate-service-account={BROKER},{TARGET}");
    let said = user.refused(&list);
    assert!(said.contains(&format!("Failed to impersonate [{TARGET}]")), "{said}");
    may_act_for(&mut user, TARGET, BROKER);
    user.refused(&list);
    may_act_for(&mut user, BROKER, OWNER);
    let said = user.refused(&list);
    assert!(
        said.contains("run.services.list"),
        "as the target, which may not: {said}"
    );
    user.ok(&format!(
        "gcloud projects add-iam-policy-binding my-project --member=serviceAccount:{TARGET} --role=roles/run.viewer"
    ));
    let said = user.ok(&list);
    assert!(said.contains("private"), "{said}");
    assert!(
        said.contains("WARNING: This command is using service account impersonation."),
        "{said}"
    );
    // Not the broker alone, which nobody made a viewer.
    let said = user.refused(&format!(
        "gcloud run services list $REGION --impersonate-service-account={BROKER}"
    ));
    assert!(said.contains("run.services.list"), "{said}");

    let identity = format!(
        "gcloud auth print-identity-token --impersonate-service-account={BROKER},{TARGET} --audiences={url} 2>/dev/null"
    );
    user.ok(&format!("TOKEN=$({identity} --include-email)"));
    let claims = user.ok(&format!("{CLAIMS} '[.aud, .email]'"));
    assert_eq!(claims.trim(), format!("[\"{url}\",\"{TARGET}\"]"));
    assert_eq!(
        user.ok(&format!("{CODE} -H \"Authorization: Bearer $TOKEN\" {url}")),
        "200"
    );
    user.ok(&format!("TOKEN=$({identity})"));
    let claims = user.ok(&format!("{CLAIMS} '[.aud, .email]'"));
    assert_eq!(claims.trim(), format!("[\"{url}\",null]"));
    let said = user.refused("gcloud auth print-identity-token --include-email");
    assert!(said.contains("Requires an impersonate service account"), "{said}");
    user.leaves();
}

#[test]
fn a_chain_is_impersonated_by_googles_gcloud() {
    a_chain_is_impersonated(Client::Google);
}

#[test]
fn a_chain_is_impersonated_by_ours() {
    a_chain_is_impersonated(Client::Homerun);
}
