//! Uploads that break off, and go on: with the server that they began with, and with the next one.

use std::{thread, time::Duration};

use homerun_e2e::User;

/// How many bytes of an upload are there, as its `Range` says: at least so many, once no more come.
#[track_caller]
fn there(user: &mut User, least: usize) -> usize {
    let mut before = 0;
    for _ in 0..100 {
        let range = user.ok("api -o /dev/null -w '%header{range}' $PLACE");
        let last = range.strip_prefix("0-").and_then(|last| last.parse::<usize>().ok());
        let now = last.unwrap_or_else(|| panic!("no Range: {range:?}")) + 1;
        if now >= least && now == before {
            return now;
        }
        before = now;
        thread::sleep(Duration::from_millis(200));
    }
    panic!("never at {least}, but at {before}");
}

#[test]
fn an_image_upload_outlives_the_server() {
    let mut user = User::of_homerun();
    user.ok("head -c 3000000 /dev/urandom > blob; DIGEST=sha256:$(sha256sum blob | cut -d' ' -f1)");
    user.ok("TOKEN=$(gcloud auth print-access-token); APP=http://$HOMERUN_API/v2/my-project/e2e/app");
    user.ok("api() { curl -H \"Authorization: Bearer $TOKEN\" \"$@\"; }");
    user.ok("PLACE=http://$HOMERUN_API$(api -X POST -o /dev/null -w '%header{location}' $APP/blobs/uploads/)");
    // A client whose line is slow, and a server that is killed meanwhile. What came is written by the half mebibyte.
    user.ok("mkfifo line; (head -c 1100000 blob; exec sleep 60) > line & LINE=$!");
    user.ok("api -X PATCH -T - $PLACE < line > patched 2>&1 & CLIENT=$!");
    let length = there(&mut user, 512 << 10);
    user.homerun.kill().expect("killed");
    user.ok("kill $LINE; wait $CLIENT; test $? != 0");
    user.homerun.start_again().expect("starts after a kill");
    assert_eq!(there(&mut user, 1), length);
    // A client that has not asked is told so.
    let wrong = user.ok("head -c 10 blob | api -X PATCH -T - -H 'Content-Range: 1200000-1200009' $PLACE");
    assert!(wrong.contains(&format!("continues at byte {length}")), "{wrong}");
    let status = "-o /dev/null -w '%{http_code}'";
    let patched = user.ok(&format!(
        "tail -c +{} blob | head -c 1000000 | api -X PATCH -T - -H 'Content-Range: {length}-{}' {status} $PLACE",
        length + 1,
        length + 999_999
    ));
    assert_eq!(patched, "202");
    // And once more, of one that has just gone on.
    user.homerun.kill().expect("killed");
    user.homerun.start_again().expect("starts after a kill");
    assert_eq!(there(&mut user, 1), length + 1_000_000);
    let put = user.ok(&format!(
        "tail -c +{} blob | api -X PUT -T - {status} \"$PLACE?digest=$DIGEST\"",
        length + 1_000_001
    ));
    assert_eq!(put, "201");
    user.ok("test $(api --fail $APP/blobs/$DIGEST | sha256sum | cut -d' ' -f1) = ${DIGEST#sha256:}");
    let gone = user.ok(&format!("api {status} $PLACE"));
    assert_eq!(
        (gone.as_str(), user.ok("ls $DATA_DIR/images/uploads").as_str()),
        ("404", "")
    );

    // What was broken off by its client alone is nobody's image, and is resumed as well.
    user.ok("PLACE=http://$HOMERUN_API$(api -X POST -o /dev/null -w '%header{location}' $APP/blobs/uploads/)");
    user.ok("(head -c 600000 blob; exec sleep 3) | timeout 2 curl -sS -H \"Authorization: Bearer $TOKEN\" -X PATCH -T - $PLACE; test $? = 124");
    let length = there(&mut user, 512 << 10);
    assert_eq!(user.ok("homerun images list --format='value(package)'"), "");
    let put = user.ok(&format!(
        "tail -c +{} blob | api -X PUT -T - -H 'Content-Range: {length}-2999999' {status} \"$PLACE?digest=$DIGEST\"",
        length + 1
    ));
    assert_eq!(put, "201");
    user.leaves();
}
