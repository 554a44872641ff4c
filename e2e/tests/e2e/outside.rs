//! Google's sign-in libraries, unmodified, in programs on this machine outside of any instance: by a service account's key
//! file, and by application default credentials.

use homerun_e2e::{Client, User, auth_clients};

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const BROKER: &str = "broker@my-project.iam.gserviceaccount.com";
const TARGET: &str = "target@my-project.iam.gserviceaccount.com";

const PYTHON: &str = r#"
import json, os, sys
import google.auth
import google.auth.jwt
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import id_token, service_account

CLOUD = "https://www.googleapis.com/auth/cloud-platform"
RUN = "https://run.googleapis.com/v1/projects/my-project/locations/us-central1/services"
PROJECT = "https://cloudresourcemanager.googleapis.com/v1/projects/my-project"
url, email = os.environ["URL"], os.environ["EMAIL"]

def names(session, at=RUN):
    answer = session.get(at)
    if answer.status_code != 200:
        return answer.status_code
    return [item["metadata"]["name"] for item in answer.json()["items"]]

def default():
    credentials, project = google.auth.default(scopes=[CLOUD])
    session = AuthorizedSession(credentials)
    print("services", names(session))
    print("project", session.get(PROJECT).json().get("projectId"))
    token = id_token.fetch_id_token(Request(), url)
    claims = id_token.verify_oauth2_token(token, Request(), url)
    assert claims["email"] == email and claims["iss"] == "https://accounts.google.com", claims
    import requests
    print("private", requests.get(url).status_code,
          requests.get(url, headers={"Authorization": "Bearer " + token}).status_code)

def key_file():
    credentials = service_account.Credentials.from_service_account_file("key.json", scopes=[CLOUD])
    print("services", names(AuthorizedSession(credentials)))
    signed = service_account.IDTokenCredentials.from_service_account_file("key.json", target_audience=url)
    print("private", AuthorizedSession(signed).get(url).status_code)

def self_signed():
    by_audience = google.auth.jwt.Credentials.from_service_account_file("key.json", audience="https://run.googleapis.com/")
    print("services", names(AuthorizedSession(by_audience)))
    print("another API", AuthorizedSession(by_audience).get(PROJECT).status_code)
    print("edge", AuthorizedSession(by_audience).get(url).status_code)
    by_scope = service_account.Credentials.from_service_account_file("key.json", scopes=[CLOUD])
    by_scope = by_scope.with_always_use_jwt_access(True)
    session = AuthorizedSession(by_scope)
    print("services", names(session))
    assert by_scope.token.count(".") == 2, "it asked the token endpoint"
    print("another API", session.get(PROJECT).json().get("projectId"))
    wrong = google.auth.jwt.Credentials.from_service_account_file("key.json", audience="https://iam.googleapis.com/")
    print("wrong", names(AuthorizedSession(wrong)))

globals()[sys.argv[1]]()
"#;

const NODE: &str = r"
const { GoogleAuth, OAuth2Client, gaxios: { Gaxios } } = require('google-auth-library');
const CLOUD = 'https://www.googleapis.com/auth/cloud-platform';
const RUN = 'https://run.googleapis.com/v1/projects/my-project/locations/us-central1/services';
const PROJECT = 'https://cloudresourcemanager.googleapis.com/v1/projects/my-project';
const { URL: url, EMAIL: email } = process.env;
const names = (answer) => answer.data.items.map((item) => item.metadata.name).join(',');
const status = (call) => call.then((answer) => answer.status, (error) => error.response?.status ?? error);

const ways = {
  async default() {
    const auth = new GoogleAuth({ scopes: [CLOUD] });
    const client = await auth.getClient();
    console.log('services', names(await client.request({ url: RUN })));
    console.log('project', (await client.request({ url: PROJECT })).data.projectId);
    const caller = await auth.getIdTokenClient(url);
    const token = (await caller.getRequestHeaders(url)).get('authorization').split(' ')[1];
    const ticket = await new OAuth2Client().verifyIdToken({ idToken: token, audience: url });
    if (ticket.getPayload().email !== email) throw new Error(JSON.stringify(ticket.getPayload()));
    console.log('private', await status(new Gaxios().request({ url })), await status(caller.request({ url })));
  },
  async self_signed() {
    const key = JSON.parse(require('fs').readFileSync('key.json'));
    const call = async (client, url) => new Gaxios().request({ url, headers: await client.getRequestHeaders(url) });
    const by_url = new GoogleAuth().fromJSON(key);
    console.log('services', names(await call(by_url, RUN)));
    const by_scope = new GoogleAuth().fromJSON(key);
    Object.assign(by_scope, { scopes: [CLOUD], useJWTAccessWithScope: true });
    console.log('services', names(await call(by_scope, RUN)));
    console.log('another API', await status(call(by_scope, PROJECT)));
    for (const client of [by_url, by_scope]) {
      const token = (await client.getRequestHeaders(RUN)).get('authorization');
      if (token.split('.').length !== 3) throw new Error('it asked the token endpoint');
    }
  },
};
ways[process.argv[2]]().catch((error) => { console.error(error); process.exit(1); });
";

/// A private service, an account with a key that may look at services and call it, and a shell as `homerun env --all`
/// makes it.
fn setting() -> User {
    let clients = auth_clients().expect("Google's libraries");
    let clients = clients.display();
    let mut user = User::with(&["--url-scheme", "https"], Client::Homerun);
    user.ok("gcloud run deploy private --image=$HELLO $REGION --no-allow-unauthenticated --quiet");
    let url = user.describe("private", "value(status.url)").trim().to_owned();
    user.ok("gcloud iam service-accounts create runner");
    user.ok(&format!(
        "gcloud iam service-accounts keys create key.json --iam-account={RUNNER}"
    ));
    for role in ["run.viewer", "run.invoker"] {
        user.ok(&format!(
            "gcloud projects add-iam-policy-binding my-project --member=serviceAccount:{RUNNER} --role=roles/{role}"
        ));
    }
    std::fs::write(user.homerun.root().join("home/client.py"), PYTHON).expect("a file");
    std::fs::write(user.homerun.root().join("home/client.js"), NODE).expect("a file");
    // Python's shim of some version managers wants the real home.
    user.ok(&format!(
        "export URL={url} EMAIL={RUNNER} PYTHONPATH={clients}/python NODE_PATH={clients}/node_modules; \
         eval \"$(homerun env --all)\""
    ));
    user
}

/// Lines of what is printed, as `word answer`.
#[track_caller]
fn says(user: &mut User, command: &str, lines: &[&str]) {
    let said = user.ok(command);
    let said: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(said, lines, "{command}");
}

#[test]
fn python_by_a_key_file_and_by_default() {
    let mut user = setting();
    says(
        &mut user,
        "python3 client.py key_file",
        &["services ['private']", "private 200"],
    );
    says(
        &mut user,
        "GOOGLE_APPLICATION_CREDENTIALS=key.json python3 client.py default",
        &["services ['private']", "project my-project", "private 403 200"],
    );
    user.ok(&format!("gcloud iam service-accounts disable {RUNNER}"));
    let said = user.refused("GOOGLE_APPLICATION_CREDENTIALS=key.json python3 client.py default 2>&1");
    assert!(said.contains("is disabled"), "{said}");
    user.leaves();
}

#[test]
fn python_by_tokens_that_it_signs_itself() {
    let mut user = setting();
    says(
        &mut user,
        "python3 client.py self_signed",
        &[
            "services ['private']",
            "another API 401",
            "edge 401",
            "services ['private']",
            "another API my-project",
            "wrong 401",
        ],
    );
    user.leaves();
}

/// A file of the type `impersonated_service_account`, also through a delegate.
#[test]
fn python_in_another_account_s_name() {
    let mut user = setting();
    user.ok("gcloud iam service-accounts create broker; gcloud iam service-accounts create target");
    user.ok(&format!(
        r#"adc() {{ jq --arg d "$1" '{{type: "impersonated_service_account", source_credentials: .,
            service_account_impersonation_url:
                "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken",
            delegates: ($d | split(",") | map("projects/-/serviceAccounts/" + .))}}' key.json >adc.json; }}
        export EMAIL={TARGET} GOOGLE_APPLICATION_CREDENTIALS=$PWD/adc.json"#
    ));
    for role in ["run.viewer", "run.invoker"] {
        user.ok(&format!(
            "gcloud projects add-iam-policy-binding my-project --member=serviceAccount:{TARGET} --role=roles/{role}"
        ));
    }
    let lets = |user: &mut User, account: &str, who: &str| {
        user.ok(&format!(
            "gcloud iam service-accounts add-iam-policy-binding {account} --member=serviceAccount:{who} \
             --role=roles/iam.serviceAccountTokenCreator"
        ));
    };
    user.ok("adc ''");
    let said = user.refused("python3 client.py default 2>&1");
    assert!(said.contains("iam.serviceAccounts.getAccessToken"), "{said}");
    lets(&mut user, TARGET, BROKER);
    user.ok(&format!("adc {BROKER}"));
    let said = user.refused("python3 client.py default 2>&1");
    assert!(said.contains("iam.serviceAccounts.implicitDelegation"), "{said}");
    lets(&mut user, BROKER, RUNNER);
    let lines = ["services ['private']", "project my-project", "private 403 200"];
    says(&mut user, "python3 client.py default", &lines);
    lets(&mut user, TARGET, RUNNER);
    user.ok("adc ''");
    says(&mut user, "python3 client.py default", &lines);
    // Google's gcloud reads the same file.
    let token = user.ok("env -u PYTHONPATH homerun gcloud auth application-default print-access-token");
    assert!(token.trim().starts_with("ya29."), "{token}");
    user.leaves();
}

#[test]
fn node_by_default_and_by_tokens_that_it_signs_itself() {
    let mut user = setting();
    says(
        &mut user,
        "GOOGLE_APPLICATION_CREDENTIALS=key.json node client.js default",
        &["services private", "project my-project", "private 403 200"],
    );
    says(
        &mut user,
        "node client.js self_signed",
        &["services private", "services private", "another API 200"],
    );
    user.leaves();
}
