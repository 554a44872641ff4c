//! Who may call a private service: whom a token is for, what is no token, in which field it comes, until when it is good.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, User, exchange};

use crate::faults::{faketime, variables_of};

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";

/// For what is in effect a moment after it was said.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tokens by hand: `idtoken KEY_FILE AUDIENCE` asks for one as any OAuth client does, `jwt HEADER CLAIMS KEY` makes one up.
const TOOLS: &str = r#"
b64() { base64 -w0 | tr '+/' '-_' | tr -d '='; }
of() { sed -n "s/.*\"$2\": *\"\([^\"]*\)\".*/\1/p" "$1"; }
jwt() {
  local said=$(printf %s "$1" | b64).$(printf %s "$2" | b64)
  echo $said.$(printf %s $said | openssl dgst -sha256 -sign "$3" -binary | b64)
}
idtoken() {
  local now=$(date +%s) pem=$HOME/$(basename "$1").pem
  printf %b "$(of "$1" private_key)" > $pem
  local assertion=$(jwt "{\"alg\":\"RS256\",\"typ\":\"JWT\",\"kid\":\"$(of "$1" private_key_id)\"}" \
    "{\"iss\":\"$(of "$1" client_email)\",\"aud\":\"https://oauth2.googleapis.com/token\",\"iat\":$now,\"exp\":$((now + 600)),\"target_audience\":\"$2\"}" $pem)
  curl -H 'Host: oauth2.googleapis.com' --data-urlencode grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer \
    --data-urlencode assertion=$assertion http://$HOMERUN_API/token | sed -n 's/.*"id_token": *"\([^"]*\)".*/\1/p'
}
OWNER=$DATA_DIR/identity/owner-key.json
code() { curl -o /dev/null -w '%{http_code}' "$@"; }
call() { code -H "Authorization: Bearer $(idtoken $OWNER "$1")" "$2"; }"#;

/// A private service, and its URL.
#[track_caller]
fn private(user: &mut User, service: &str) -> String {
    user.ok(TOOLS);
    user.ok(&format!(
        "gcloud run deploy {service} --image=$HELLO $REGION --no-allow-unauthenticated --quiet --tag=blue"
    ));
    user.describe(service, "value(status.url)").trim().to_owned()
}

/// Asks until the answer has this status: a changed policy is in the routes a moment after it is stored.
#[track_caller]
fn becomes(user: &mut User, command: &str, status: &str, why: &str) {
    let began = Instant::now();
    while user.ok(command) != status {
        assert!(began.elapsed() < PATIENCE, "not {status}: {why}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn tokens_are_for_whom_they_name(client: Client) {
    let mut user = User::with(&[], client);
    let (one, other) = (private(&mut user, "one"), private(&mut user, "other"));
    let urls = user.ok("gcloud run services describe one $REGION --format=json | grep googleapis.com/urls");
    let number = urls
        .split(['"', '\\'])
        .find_map(|part| {
            part.strip_prefix("http://")
                .filter(|host| host.contains(".us-central1."))
        })
        .unwrap_or_else(|| panic!("no host with region in {urls}"))
        .to_owned();
    let stable = one.strip_prefix("http://").expect("plain http").to_owned();
    let bare = stable.split(':').next().expect("a host").to_owned();
    let call = |user: &mut User, audience: &str, url: &str| user.ok(&format!("call '{audience}' {url}"));
    let (tag, tag_by_number) = (format!("http://blue---{stable}"), format!("http://blue---{number}"));
    for (audience, accepted) in [
        (one.clone(), true),
        (format!("{one}/"), true),
        (format!("http://{number}"), true),
        (format!("https://{bare}"), true),
        (format!("http://{bare}/"), true),
        (other.clone(), false),
        (format!("{one}/path"), false),
        (format!("{one}.evil.example"), false),
        (bare.clone(), false),
        ("https://evil.example".to_owned(), false),
        ("my-audience".to_owned(), false),
    ] {
        let expected = if accepted { "200" } else { "401" };
        for url in [&one, &format!("http://{number}"), &tag, &tag_by_number] {
            assert_eq!(call(&mut user, &audience, url), expected, "for {audience} at {url}");
        }
    }
    for audience in [&tag, &tag_by_number] {
        assert_eq!(call(&mut user, audience, &tag), "200", "for {audience} at the tag");
        assert_eq!(call(&mut user, audience, &one), "401", "for {audience} beside the tag");
    }
    // gcloud's own audience is good everywhere, as at Google.
    let token = "Authorization: Bearer $(gcloud auth print-identity-token)";
    assert_eq!(user.ok(&format!("code -H \"{token}\" {one}")), "200");
    let token = format!("Authorization: Bearer $(gcloud auth print-identity-token --audiences={one})");
    assert_eq!(user.ok(&format!("code -H \"{token}\" {one}")), "200");
    assert_eq!(user.ok(&format!("code -H \"{token}\" {other}")), "401");
    // An access token is for the API alone.
    let token = "Authorization: Bearer $(gcloud auth print-access-token)";
    assert_eq!(user.ok(&format!("code -H \"{token}\" {one}")), "401");
    let token = "$(gcloud auth print-identity-token)";
    let api = "http://$HOMERUN_API/v1/projects/my-project/locations/-/services";
    let said = user.ok(&format!(
        "code -H 'Host: run.googleapis.com' -H \"Authorization: Bearer {token}\" {api}"
    ));
    assert_eq!(said, "401", "an ID token at the API");
    user.leaves();
}

#[test]
fn tokens_are_for_whom_they_name_with_googles_gcloud() {
    tokens_are_for_whom_they_name(Client::Google);
}

#[test]
fn tokens_are_for_whom_they_name_with_ours() {
    tokens_are_for_whom_they_name(Client::Homerun);
}

fn a_service_names_audiences_of_its_own(client: Client) {
    let mut user = User::with(&[], client);
    let (one, other) = (private(&mut user, "one"), private(&mut user, "other"));
    let call = |user: &mut User, audience: &str, url: &str| user.ok(&format!("call '{audience}' {url}"));
    let listed = |user: &mut User| {
        user.ok("gcloud run services describe one $REGION --format=json | sed -n 's/.*custom-audiences\": *//p'")
            .replace(['\\', ' '], "")
    };
    let update = |user: &mut User, flags: &str| {
        user.ok(&format!("gcloud run services update one $REGION --quiet {flags}"));
    };
    update(&mut user, "--add-custom-audiences=my-audience,https://api.example.com");
    assert!(listed(&mut user).contains(r#"["my-audience","https://api.example.com"]"#));
    for (audience, accepted) in [
        ("my-audience", "200"),
        ("https://api.example.com", "200"),
        ("https://api.example.com/", "401"),
        ("my-audience2", "401"),
        (one.as_str(), "200"),
    ] {
        assert_eq!(call(&mut user, audience, &one), accepted, "{audience}");
    }
    assert_eq!(call(&mut user, "my-audience", &other), "401");
    // One that is known already is refused as soon as the service does not name its audience.
    user.ok("TOKEN=$(idtoken $OWNER my-audience)");
    let known = format!("code -H \"Authorization: Bearer $TOKEN\" {one}");
    assert_eq!(user.ok(&known), "200");
    update(&mut user, "--remove-custom-audiences=my-audience");
    assert_eq!(user.ok(&known), "401");
    assert_eq!(call(&mut user, "https://api.example.com", &one), "200");
    update(&mut user, "--set-custom-audiences=my-audience");
    assert_eq!(user.ok(&known), "200");
    assert_eq!(call(&mut user, "https://api.example.com", &one), "401");
    // Neither a deploy nor other settings take it away.
    user.ok("gcloud run deploy one --image=$HELLO $REGION --quiet --update-env-vars=A=1");
    assert_eq!(user.ok(&known), "200");
    update(&mut user, "--clear-custom-audiences");
    assert_eq!(user.ok(&known), "401");
    assert_eq!(listed(&mut user), "");
    user.leaves();
}

#[test]
fn a_service_names_audiences_of_its_own_with_googles_gcloud() {
    a_service_names_audiences_of_its_own(Client::Google);
}

#[test]
fn a_service_names_audiences_of_its_own_with_ours() {
    a_service_names_audiences_of_its_own(Client::Homerun);
}

#[test]
fn made_up_tokens_are_refused() {
    let mut user = User::of_homerun();
    let url = private(&mut user, "private");
    user.ok("openssl genrsa -out forger.pem 2048 2>/dev/null; GOOD=$(gcloud auth print-identity-token)");
    user.ok("HEADER=$(cut -d. -f1 <<< $GOOD); CLAIMS=$(cut -d. -f2 <<< $GOOD); SIGNATURE=$(cut -d. -f3 <<< $GOOD)");
    // Base64 wants its padding back.
    user.ok(
        "plain() { local t=$(tr '_-' '/+' <<< $1); while [ $((${#t} % 4)) != 0 ]; do t=$t=; done; base64 -d <<< $t; }",
    );
    user.ok("KID=$(plain $HEADER | sed -n 's/.*\"kid\":\"\\([^\"]*\\)\".*/\\1/p'); SAID=$(plain $CLAIMS)");
    assert_eq!(user.ok("echo ${#KID}").trim(), "40");
    assert!(user.ok("echo $SAID").contains("owner@my-project"));
    let code = |user: &mut User, token: &str| user.ok(&format!("code -H \"Authorization: Bearer {token}\" {url}"));
    assert_eq!(code(&mut user, "$GOOD"), "200");
    let header = |fields: &str| format!("$(printf %s '{{{fields}}}' | sed s/KID/$KID/ | b64)");
    for (what, token) in [
        (
            "no algorithm",
            format!("{}.$CLAIMS.", header(r#""alg":"none","kid":"KID","typ":"JWT""#)),
        ),
        (
            "no algorithm, with the signature",
            format!(
                "{}.$CLAIMS.$SIGNATURE",
                header(r#""alg":"None","kid":"KID","typ":"JWT""#)
            ),
        ),
        (
            "the public key as a shared secret",
            format!(
                "$(S={}.$CLAIMS; curl http://$HOMERUN_API/oauth2/v3/certs -H 'Host: www.googleapis.com' > certs; \
                 echo $S.$(printf %s $S | openssl dgst -sha256 -mac HMAC -macopt hexkey:$(od -An -tx1 certs | tr -d ' \\n') -binary | b64))",
                header(r#""alg":"HS256","kid":"KID","typ":"JWT""#)
            ),
        ),
        (
            "another key under the id of ours",
            r#"$(jwt '{"alg":"RS256","kid":"'$KID'","typ":"JWT"}' "$SAID" forger.pem)"#.to_owned(),
        ),
        (
            "another key",
            r#"$(jwt '{"alg":"RS256","kid":"forger","typ":"JWT"}' "$SAID" forger.pem)"#.to_owned(),
        ),
        (
            "no key",
            r#"$(jwt '{"alg":"RS256","typ":"JWT"}' "$SAID" forger.pem)"#.to_owned(),
        ),
        (
            "a key id that is a path",
            r#"$(jwt '{"alg":"RS256","kid":"../../../../dev/null","typ":"JWT"}' "$SAID" forger.pem)"#.to_owned(),
        ),
        (
            "a key that comes with it",
            r#"$(jwt '{"alg":"RS256","kid":"'$KID'","jku":"http://127.0.0.1/","typ":"JWT"}' "$SAID" forger.pem)"#
                .to_owned(),
        ),
        (
            "somebody else's claims",
            "$HEADER.$(printf %s \"$SAID\" | sed s/owner@/root@/ | b64).$SIGNATURE".to_owned(),
        ),
        ("no signature", "$HEADER.$CLAIMS.".to_owned()),
        ("two parts", "$HEADER.$CLAIMS".to_owned()),
        (
            "what a container sees of it",
            "$HEADER.$CLAIMS.SIGNATURE_REMOVED_BY_GOOGLE".to_owned(),
        ),
        ("something else", "garbage".to_owned()),
    ] {
        assert_eq!(code(&mut user, &token), "401", "{what}: {token}");
    }
    // An account's own key signs no ID token, though the account may call.
    user.ok("gcloud iam service-accounts create runner");
    user.ok(&format!(
        "gcloud iam service-accounts keys create key.json --iam-account={RUNNER} && idtoken key.json x >/dev/null"
    ));
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding private $REGION --member=serviceAccount:{RUNNER} --role=roles/run.invoker"
    ));
    let own = r#"$(jwt '{"alg":"RS256","kid":"'$(of key.json private_key_id)'","typ":"JWT"}' "$(sed s/owner@/runner@/g <<< "$SAID")" key.json.pem)"#;
    assert_eq!(code(&mut user, own), "401");
    assert_eq!(code(&mut user, &format!("$(idtoken key.json {url})")), "200");
    user.leaves();
}

#[test]
fn a_token_comes_in_one_field() {
    let mut user = User::of_homerun();
    let url = private(&mut user, "private");
    user.ok("T=$(gcloud auth print-identity-token); UNSIGNED=${T%.*}.SIGNATURE_REMOVED_BY_GOOGLE");
    user.ok(&format!("OTHER=$(gcloud auth print-identity-token --audiences={url})"));
    let code = |user: &mut User, flags: &str| user.ok(&format!("code {flags} {url}"));
    for (flags, expected) in [
        ("-H \"Authorization: Bearer $T\"", "200"),
        ("-H \"authorization: bearer $T\"", "200"),
        ("-H \"AUTHORIZATION: BEARER $T\"", "200"),
        ("-H \"X-Serverless-Authorization: Bearer $T\"", "200"),
        ("-H \"x-serverless-authorization: bearer $T\"", "200"),
        ("-H \"Authorization: $T\"", "403"),
        ("-H \"Authorization: Token $T\"", "403"),
        ("-H \"Authorization: Basic $T\"", "403"),
        ("-H \"Authorization: Bearer\"", "403"),
        ("-H \"Cookie: Authorization=Bearer $T\"", "403"),
        // Where it stands in the URL it is written down, as any URL is: so not the one that is looked for below.
        ("--url-query \"access_token=$OTHER\"", "403"),
        ("-H \"Authorization: Bearer $OTHER\"", "200"),
        ("-H \"Authorization: Bearer $T\" -H \"Authorization: Bearer $T\"", "401"),
        (
            "-H \"Authorization: Bearer $T\" -H \"Authorization: Basic eDp5\"",
            "401",
        ),
        ("-H \"Authorization: Bearer $T, Bearer $T\"", "401"),
        (
            "-H \"Authorization: Basic eDp5\" -H \"X-Serverless-Authorization: Bearer $T\"",
            "200",
        ),
        (
            "-H \"Authorization: Bearer $T\" -H \"X-Serverless-Authorization: Bearer x\"",
            "401",
        ),
        (
            "-H \"Authorization: Bearer $T\" -H \"X-Serverless-Authorization: Basic eDp5\"",
            "403",
        ),
        (
            "-H \"X-Serverless-Authorization: Bearer $T\" -H \"X-Serverless-Authorization: Bearer $T\"",
            "401",
        ),
    ] {
        assert_eq!(code(&mut user, flags), expected, "{flags}");
        let flags = format!("--http2-prior-knowledge {flags}");
        assert_eq!(code(&mut user, &flags), expected, "{flags}");
    }
    let host = url.strip_prefix("http://").expect("plain http");
    let long = format!(
        "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nauthorization: Bearer {}\r\n\r\n",
        "a".repeat(500_000)
    );
    assert_eq!(exchange(user.homerun.http(), long).expect("an answer").status, 431);
    user.ok("(printf 'Authorization: Bearer '; head -c 20000 /dev/zero | tr '\\0' a) > long");
    assert_eq!(code(&mut user, "--http2-prior-knowledge -H @long"), "431");

    // Google's pages.
    let said = user.ok(&format!("curl -i '{url}/a/b?q=1'"));
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    assert!(
        said.contains("<h2>Your client does not have permission to get URL <code>/a/b</code> from this server.</h2>"),
        "{said}"
    );
    let said = user.ok(&format!("curl -i -H 'Authorization: Bearer x' {url}"));
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    assert!(
        said.contains(
            "www-authenticate: Bearer error=\"invalid_token\" error_description=\"The access token could not be verified\""
        ) && said.contains("<h2>Your client does not have permission to the requested URL <code>/</code>.</h2>"),
        "{said}"
    );

    // What the container sees: who called, and nothing that it could call with.
    let seen = |user: &mut User, flags: &str| user.ok(&format!("curl --fail {flags} {url}/echo"));
    let said = seen(&mut user, "-H \"Authorization: Bearer $T\"");
    assert!(said.contains(&user.ok("echo -n \"Bearer $UNSIGNED\"")), "{said}");
    let said = seen(
        &mut user,
        "-H 'Authorization: Basic eDp5' -H \"X-Serverless-Authorization: Bearer $T\"",
    );
    assert!(said.contains("Basic eDp5"), "the application's own: {said}");
    assert!(said.contains(&user.ok("echo -n \"Bearer $UNSIGNED\"")), "{said}");
    let signature = user.ok("echo -n ${T##*.}");
    assert!(signature.len() > 300 && !said.contains(&signature), "{said}");
    user.ok("gcloud run services add-iam-policy-binding private $REGION --member=allUsers --role=roles/run.invoker");
    let said = seen(&mut user, "-H \"Authorization: Bearer $T\"");
    assert!(
        said.contains(&signature),
        "to an open service it is the application's: {said}"
    );

    user.ok("sleep 0.6");
    let journal = user.ok("cat $DATA_DIR/log/*");
    assert!(
        journal.contains("there is more than one authorization field"),
        "why is written down"
    );
    assert!(!journal.contains(&signature[..40]) && !user.homerun.log().contains(&signature[..40]));
    user.leaves();
}

fn an_account_calls_while_it_may(client: Client) {
    let mut user = User::with(&[], client);
    let url = private(&mut user, "private");
    let make = |user: &mut User| {
        user.ok("gcloud iam service-accounts create runner");
        user.ok(&format!(
            "rm -f key.json; gcloud iam service-accounts keys create key.json --iam-account={RUNNER}"
        ));
        user.ok(&format!("TOKEN=$(idtoken key.json {url})"));
    };
    let call = format!("code -H \"Authorization: Bearer $TOKEN\" {url}");
    let policy = |user: &mut User, verb: &str, member: &str| {
        user.ok(&format!(
            "gcloud run services {verb}-iam-policy-binding private $REGION --member={member} --role=roles/run.invoker"
        ));
    };
    let account = format!("serviceAccount:{RUNNER}");
    make(&mut user);
    assert_eq!(user.ok(&call), "403");
    policy(&mut user, "add", &account);
    becomes(&mut user, &call, "200", "it was given the role");
    policy(&mut user, "remove", &account);
    becomes(&mut user, &call, "403", "the role was taken");
    policy(&mut user, "add", "group:api-consumers@example.com");
    assert_eq!(user.ok(&call), "403", "a group that nobody is in");
    user.ok(&format!(
        "homerun iam groups set api-consumers@example.com --members={account}"
    ));
    becomes(&mut user, &call, "200", "it is in the group");
    user.ok("homerun iam groups delete api-consumers@example.com --quiet");
    becomes(&mut user, &call, "403", "the group is gone");
    policy(&mut user, "add", "allAuthenticatedUsers");
    becomes(&mut user, &call, "200", "whoever it is");

    // What the account is, is asked at each use.
    user.ok(&format!("gcloud iam service-accounts disable {RUNNER}"));
    assert_eq!(user.ok(&call), "401", "disabled");
    user.ok(&format!("gcloud iam service-accounts enable {RUNNER}"));
    assert_eq!(user.ok(&call), "200");
    policy(&mut user, "add", &account);
    user.ok(&format!("gcloud iam service-accounts delete {RUNNER} --quiet"));
    assert_eq!(user.ok(&call), "401", "deleted");
    user.ok("FORMER=$TOKEN");
    make(&mut user);
    let former = user.ok(&format!("code -H \"Authorization: Bearer $FORMER\" {url}"));
    assert_eq!(former, "401", "of the former account of that name");
    assert_eq!(user.ok(&call), "200", "of the new one");
    policy(&mut user, "remove", "allAuthenticatedUsers");
    becomes(
        &mut user,
        &call,
        "403",
        "what the former was given is not the new one's",
    );
    user.leaves();
}

#[test]
fn an_account_calls_while_it_may_with_googles_gcloud() {
    an_account_calls_while_it_may(Client::Google);
}

#[test]
fn an_account_calls_while_it_may_with_ours() {
    an_account_calls_while_it_may(Client::Homerun);
}

/// The clock is the server's alone; the clients' stands.
#[test]
fn a_token_is_good_for_its_hour() {
    let library = faketime();
    let clock = tempfile::NamedTempFile::new().expect("a file");
    let set = |offset: &str| {
        let next = clock.path().with_extension("next");
        fs::write(&next, format!("{offset}\n")).expect("written");
        fs::rename(&next, clock.path()).expect("set");
    };
    fs::write(clock.path(), "+0\n").expect("written");
    let mut user = User::in_surroundings(&[], &variables_of(&library, clock.path()), Client::Homerun);
    let url = private(&mut user, "private");
    user.ok("TOKEN=$(gcloud auth print-identity-token)");
    let call = format!("code -H \"Authorization: Bearer $TOKEN\" {url}");
    // The server sees its new time after a second or some. First a token that it does not know yet.
    for (offset, expected) in [
        ("-60", "401"),
        ("-15", "200"),
        ("-300", "401"),
        ("+0", "200"),
        ("+3610", "401"),
        ("+3000", "200"),
        ("+3d", "401"),
        ("+0", "200"),
    ] {
        set(offset);
        becomes(&mut user, &call, expected, offset);
    }
    user.leaves();
}
