//! Secrets, by Google's client and by ours: kept, given out, given to instances, and nowhere to be read.

use std::{fs, path::Path, thread, time::Duration};

use homerun_e2e::{Client, Homerun, User};

use crate::start::{ANY, ends};

/// Every file below a directory that holds the text.
pub(crate) fn holding(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(holding(&path, text));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

fn words(client: Client) {
    let mut user = User::with(&[], client);
    let said = user.ok("printf hunter2 | gcloud secrets create db-password --data-file=- --labels=team=a 2>&1");
    assert!(
        said.contains("Created version [1] of the secret [db-password]."),
        "{said}"
    );
    assert_eq!(user.ok("gcloud secrets create empty 2>&1"), "Created secret [empty].");
    let list = user.ok("gcloud secrets list --format='value(name)'");
    let names: Vec<&str> = list.lines().filter_map(|name| name.rsplit('/').next()).collect();
    assert_eq!(names, ["db-password", "empty"], "{list}");
    assert_eq!(
        user.ok("gcloud secrets describe db-password --format='value(labels.team)'"),
        "a"
    );
    assert_eq!(
        user.ok("gcloud secrets versions access latest --secret=db-password"),
        "hunter2"
    );
    user.ok("printf hunter3 > value; gcloud secrets versions add db-password --data-file=value");
    assert_eq!(
        user.ok("gcloud secrets versions access latest --secret=db-password"),
        "hunter3"
    );
    assert_eq!(
        user.ok("gcloud secrets versions access 1 --secret=db-password"),
        "hunter2"
    );
    user.ok("gcloud secrets update db-password --update-version-aliases=good=1 --update-annotations=note=x");
    assert_eq!(
        user.ok("gcloud secrets versions access good --secret=db-password"),
        "hunter2"
    );
    user.ok("gcloud secrets versions access 2 --secret=db-password --out-file=out");
    assert_eq!(user.ok("cat out; stat -c %a out"), "hunter3600");
    let said = user.ok("gcloud secrets versions disable 2 --secret=db-password 2>&1");
    assert!(
        said.contains("Disabled version [2] of the secret [db-password]."),
        "{said}"
    );
    let said = user.refused("gcloud secrets versions access latest --secret=db-password 2>&1");
    assert!(said.contains("versions/2] is in DISABLED state."), "{said}");
    user.ok("gcloud secrets versions enable 2 --secret=db-password");
    let said = user.ok("gcloud secrets versions destroy 1 --secret=db-password --quiet 2>&1");
    assert!(
        said.contains("Destroyed version [1] of the secret [db-password]."),
        "{said}"
    );
    let table = user.ok("gcloud secrets versions list db-password");
    let states: Vec<(&str, &str)> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    assert_eq!(states, [("2", "enabled"), ("1", "destroyed")], "{table}");
    let said = user.refused("gcloud secrets versions access 7 --secret=db-password 2>&1");
    assert!(said.contains("versions/7] not found."), "{said}");
    let said = user.refused("gcloud secrets update none --update-labels=a=b 2>&1");
    assert!(said.contains("cannot be updated because it does not exist"), "{said}");
    user.ok("head -c 65537 /dev/zero > large");
    let said = user.refused("gcloud secrets versions add db-password --data-file=large 2>&1");
    assert!(said.contains("larger than the maximum size of 65536 bytes"), "{said}");
    let said = user.ok("gcloud secrets delete db-password --quiet 2>&1");
    assert!(said.contains("Deleted secret [db-password]."), "{said}");
    user.refused("gcloud secrets versions access latest --secret=db-password");
    user.leaves();
}

#[test]
fn words_of_googles_client() {
    words(Client::Google);
}

#[test]
fn words_of_our_client() {
    words(Client::Homerun);
}

/// Lets instances without an account of their own read the secret.
fn grant(user: &mut User, secret: &str, words: &str) {
    user.ok("COMPUTE=$(gcloud iam service-accounts list --format='value(email)' | grep -- -compute@)");
    user.ok(&format!(
        "gcloud secrets {words}-iam-policy-binding {secret} --member=serviceAccount:$COMPUTE \
         --role=roles/secretmanager.secretAccessor"
    ));
}

fn in_services(client: Client) {
    let mut user = User::with(&[], client);
    let image = user.import_probe("inside");
    user.ok("printf hunter2 | gcloud secrets create db-password --data-file=-");
    // The tutorial's own line, on a service that is there already.
    let url = user.deploy("my-api", "--image=$HELLO");
    let said = user.refused(
        "gcloud run services update my-api --region=us-central1 --set-secrets=\"DB_PASSWORD=db-password:latest\" 2>&1",
    );
    assert!(
        said.contains("Permission denied on secret: projects/") && said.contains("roles/secretmanager.secretAccessor"),
        "{said}"
    );
    grant(&mut user, "db-password", "add");
    user.ok("gcloud run services update my-api --region=us-central1 --set-secrets=\"DB_PASSWORD=db-password:latest\"");
    assert!(user.get(&format!("{url}/env")).contains(r#""DB_PASSWORD":"hunter2""#));

    let url = user.deploy(
        "files",
        &format!("--image={image} --set-secrets=/keys/pass=db-password:latest,/keys/first=db-password:1,DB=db-password:latest"),
    );
    let read = |user: &mut User, path: &str| user.get(&format!("{url}/read{path}"));
    assert_eq!(read(&mut user, "/keys/pass"), "hunter2");
    let start = user.get(&url);
    // A new version is read by the next open; variables stay what they were.
    user.ok("printf hunter3 | gcloud secrets versions add db-password --data-file=-");
    let mut newest = String::new();
    for _ in 0..50 {
        newest = read(&mut user, "/keys/pass");
        if newest == "hunter3" {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(newest, "hunter3");
    assert_eq!(read(&mut user, "/keys/first"), "hunter2");
    assert!(read(&mut user, "/proc/self/environ").contains("DB=hunter2"));
    assert_eq!(user.get(&url), start, "the same instance");
    // Nobody writes them inside.
    let written = user.ok(&format!("curl --silent '{url}/write/keys/pass?x'"));
    assert_eq!(read(&mut user, "/keys/pass"), "hunter3", "{written}");

    // A version that is gone has no file, and an instance that needs it does not start.
    user.ok("gcloud secrets versions destroy 1 --secret=db-password --quiet");
    let gone = user.ok(&format!(
        "for i in $(seq 50); do curl --silent '{url}/read/keys/first' | grep -q hunter2 || break; sleep 0.1; done; \
         curl --silent '{url}/read/keys/first'"
    ));
    assert!(!gone.contains("hunter2"), "{gone}");
    for (secret, told) in [
        ("none:latest", "secrets/none/versions/latest was not found"),
        ("db-password:1", "DESTROYED"),
    ] {
        let said = user.refused(&format!(
            "gcloud run deploy files $REGION --image={image} --quiet --update-secrets=X={secret} 2>&1"
        ));
        assert!(said.contains(told), "{said}");
    }
    let said = user.refused(
        "gcloud run deploy old $REGION --image=$HELLO --quiet --execution-environment=gen1 \
         --set-secrets=/keys/pass=db-password:latest 2>&1",
    );
    assert!(said.contains("not served in the first generation"), "{said}");
    let removed = "--remove-secrets=/keys/first,DB";
    user.ok(&format!("gcloud run services update files $REGION {removed}"));
    let shown = user.describe("files", "yaml");
    assert!(
        shown.contains("secretName: db-password") && !shown.contains("secretKeyRef"),
        "{shown}"
    );
    // Without the role the files of running instances go, and with it they are back.
    for (words, kept) in [("remove", false), ("add", true)] {
        grant(&mut user, "db-password", words);
        let mut there = !kept;
        for _ in 0..50 {
            there = read(&mut user, "/keys/pass") == "hunter3";
            if there == kept {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(there, kept, "after {words}");
    }
    user.ok("gcloud run services update files $REGION --clear-secrets");
    assert!(!user.describe("files", "yaml").contains("secretName"));
    user.leaves();
}

#[test]
fn services_have_secrets_by_googles_client() {
    in_services(Client::Google);
}

#[test]
fn services_have_secrets_by_our_client() {
    in_services(Client::Homerun);
}

#[test]
fn values_are_nowhere_to_be_read() {
    let passphrase = tempfile::NamedTempFile::new().expect("a file");
    fs::write(passphrase.path(), "correct horse\n").expect("written");
    let flag = format!("--secrets-passphrase-file={}", passphrase.path().display());
    let mut user = User::with(&[&flag, "--runtime=crun"], Client::Homerun);
    let image = user.import_probe("inside");
    // Told apart from everything else, in its own bytes and in base64.
    let value = "a-value-that-is-nowhere-else";
    user.ok(&format!("printf {value} | homerun secrets create s --data-file=-"));
    user.ok("gcloud() { homerun \"$@\"; }");
    grant(&mut user, "s", "add");
    let url = user.deploy(
        "app",
        &format!("--image={image} --set-secrets=S=s:latest,/keys/s=s:latest"),
    );
    assert_eq!(user.get(&format!("{url}/read/keys/s")), value);
    user.ok("homerun secrets rotate-key");
    assert_eq!(user.ok("homerun secrets versions access latest --secret=s"), value);
    let encoded = "YS12YWx1ZS10aGF0LWlzLW5vd2hlcmUtZWxzZQ";
    let data = user.homerun.root().to_owned();
    for text in [value, encoded] {
        assert_eq!(holding(&data, text), Vec::<String>::new());
        assert!(!user.homerun.log().contains(text));
    }
    // The bundles are in memory, whatever /run is; only root reads them.
    let kind = user.ok("stat --file-system --format=%T /run/homerun/*/bundles | sort --unique");
    assert_eq!(kind, "tmpfs");
    // Instances go on with their values when the server is another one, and follow from there.
    user.homerun.kill_and_restart().expect("starts after a kill");
    user.session = homerun_e2e::Session::new(&user.homerun, Client::Homerun).expect("a shell");
    user.ok("REGION=--region=us-central1");
    let url = user.describe("app", "value(status.url)").trim().to_owned();
    assert_eq!(user.get(&format!("{url}/read/keys/s")), value);
    user.ok("printf changed | homerun secrets versions add s --data-file=-");
    let read = user.ok(&format!(
        "for i in $(seq 50); do curl --silent '{url}/read/keys/s' | grep -q changed && break; sleep 0.1; done; \
         curl --silent '{url}/read/keys/s'"
    ));
    assert_eq!(read, "changed");
    user.leaves();
}

#[test]
fn without_its_passphrase_nothing_starts() {
    let passphrase = tempfile::NamedTempFile::new().expect("a file");
    let dir = tempfile::tempdir().expect("a directory");
    let flag = format!("--secrets-passphrase-file={}", passphrase.path().display());
    let refused = |data: &Path, flags: &[&str]| {
        let data = data.to_str().expect("text");
        let words = [&["up", "--data-dir", data], &ANY[..], flags].concat();
        ends(&words, &[], 1)
    };
    let said = refused(&dir.path().join("data"), &[&flag]);
    assert!(said.contains("is empty"), "{said}");
    fs::write(passphrase.path(), "correct horse\n").expect("written");
    let mut homerun = Homerun::up_with(&[&flag]).expect("starts");
    homerun.order_to_stop().expect("signalled");
    homerun.first_ends(Duration::from_secs(20)).expect("ends well");
    let data = homerun.root().join("data");
    let said = refused(&data, &[]);
    assert!(said.contains("under a passphrase, and none was given"), "{said}");
    fs::write(passphrase.path(), "another\n").expect("written");
    let said = refused(&data, &[&flag]);
    assert!(said.contains("under another passphrase"), "{said}");
    assert!(!said.contains("another\n") && !said.contains("correct horse"), "{said}");
}
