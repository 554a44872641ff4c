//! The authority on disk, and the leaves it signs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use door::{Authority, AuthorityError};

use crate::setting::{RUN, SERVICE, Setting, now};

const DAY: u64 = 24 * 60 * 60;

fn mode(path: &Path) -> u32 {
    let metadata = fs::metadata(path).expect("the file is there");
    metadata.permissions().mode() & 0o7777
}

#[tokio::test]
async fn it_is_made_once_and_its_leaves_stay_good_after_a_restart() {
    let setting = Setting::new().await;
    let dir = setting.dir.path().join("tls");
    assert_eq!(mode(&dir.join("ca-key.pem")), 0o600);
    assert_eq!(mode(&dir.join("ca.pem")), 0o644);
    assert_eq!(mode(&dir), 0o755);
    let before = fs::read(dir.join("ca.pem")).expect("reads");
    let again = Authority::open(&dir, now()).expect("opens again");
    assert_eq!(fs::read(again.certificate_file()).expect("reads"), before);
    // openssl is a second opinion on the chain and on what is in it
    let leaf = again.leaf(SERVICE, now()).expect("a leaf");
    let path = dir.join("leaf.der");
    fs::write(&path, &leaf.cert[0]).expect("writes");
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl")
            .args(arguments)
            .current_dir(&dir)
            .output()
            .expect("openssl is installed");
        let both = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(both).expect("utf-8");
        assert!(output.status.success(), "{text}");
        text
    };
    openssl(&["x509", "-inform", "der", "-in", "leaf.der", "-out", "leaf.pem"]);
    openssl(&[
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-verify_hostname",
        SERVICE,
        "-CAfile",
        "ca.pem",
        "leaf.pem",
    ]);
    let text = openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"]);
    assert!(text.contains("TLS Web Server Authentication"), "{text}");
    assert!(text.contains(&format!("DNS:{SERVICE}")), "{text}");
    let text = openssl(&["x509", "-in", "ca.pem", "-noout", "-text"]);
    assert!(text.contains("CA:TRUE, pathlen:0"), "{text}");
    assert!(text.contains("Certificate Sign"), "{text}");
    assert!(text.contains("CN = Homerun local authority"), "{text}");
}

#[test]
fn two_first_starts_agree() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let leaves: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| Authority::open(dir.path(), now()).expect("opens")))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().expect("no panic"))
            .collect()
    });
    // `open` has proved each against the one certificate on disk
    assert_eq!(leaves.len(), 4);
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2);
}

#[test]
fn a_leaf_is_kept_and_renewed_before_it_expires() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let start = now();
    let authority = Authority::open(dir.path(), start).expect("opens");
    let leaf = authority.leaf(SERVICE, start).expect("a leaf");
    let at = |time| authority.leaf(SERVICE, time).expect("a leaf");
    assert!(Arc::ptr_eq(&leaf, &at(start + 60 * DAY - 1)));
    let renewed = at(start + 60 * DAY);
    assert!(!Arc::ptr_eq(&leaf, &renewed));
    assert!(Arc::ptr_eq(&renewed, &at(start + 61 * DAY)));
    // the clock was set back: the renewed one is not valid yet
    assert!(!Arc::ptr_eq(&renewed, &at(start)));
}

#[test]
fn googles_hosts_share_a_leaf_and_ours_do_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let time = now();
    let authority = Authority::open(dir.path(), time).expect("opens");
    let leaf = |host: &str| authority.leaf(host, time).expect("a leaf");
    assert!(Arc::ptr_eq(&leaf(RUN), &leaf("oauth2.googleapis.com")));
    assert!(!Arc::ptr_eq(&leaf(RUN), &leaf("accounts.google.com")));
    assert!(!Arc::ptr_eq(&leaf("a.run.app"), &leaf("x.a.run.app")));
    assert!(!Arc::ptr_eq(&leaf(SERVICE), &leaf(&format!("x{SERVICE}"))));
}

fn pem_of(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

#[test]
fn an_authority_that_cannot_vouch_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let open = |time| Authority::open(dir.path(), time).expect_err("refused");
    let (key, certificate) = (dir.path().join("ca-key.pem"), dir.path().join("ca.pem"));
    Authority::open(dir.path(), now()).expect("opens");
    let good = fs::read(&key).expect("reads");

    let expired = open(now() + 11 * 365 * DAY);
    assert!(matches!(expired, AuthorityError::Expired { .. }), "{expired}");
    assert!(expired.to_string().contains("ca.pem"), "{expired}");

    let leaf = Authority::open(dir.path(), now())
        .and_then(|authority| authority.leaf(SERVICE, now()))
        .expect("a leaf");
    let certificate_text = fs::read(&certificate).expect("reads");
    fs::write(&certificate, pem_of(&leaf.cert[0])).expect("writes");
    let leaf = open(now());
    assert!(matches!(leaf, AuthorityError::NotAnAuthority { .. }), "{leaf}");
    fs::write(&certificate, certificate_text).expect("writes");

    fs::remove_file(&key).expect("removes");
    let missing = open(now());
    assert!(matches!(missing, AuthorityError::KeyMissing { .. }), "{missing}");
    assert!(!key.exists(), "no key was made in its place");

    let other = tempfile::tempdir().expect("a temporary directory");
    Authority::open(other.path(), now()).expect("opens");
    fs::copy(other.path().join("ca-key.pem"), &key).expect("copies");
    let foreign = open(now());
    assert!(matches!(foreign, AuthorityError::Unfit { .. }), "{foreign}");

    fs::write(&key, &good).expect("writes");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    let exposed = open(now());
    assert!(matches!(exposed, AuthorityError::File(_)), "{exposed}");

    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    Authority::open(dir.path(), now()).expect("good again");
    fs::write(&certificate, "nonsense").expect("writes");
    let nonsense = open(now());
    assert!(matches!(nonsense, AuthorityError::Certificate { .. }), "{nonsense}");
}

#[test]
fn no_debug_text_holds_the_key() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let authority = Authority::open(dir.path(), now()).expect("opens");
    let shown = format!("{authority:?} {authority:#?}");
    let pem = fs::read_to_string(dir.path().join("ca-key.pem")).expect("reads");
    for line in pem.lines().filter(|line| line.len() > 20) {
        assert!(!shown.contains(line.trim_matches('-')), "{shown}");
    }
    assert!(shown.contains("ca.pem"), "{shown}");
}
