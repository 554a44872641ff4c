//! Uploads that break off, and go on: with the server that they began with, and with the next one.

use std::{thread, time::Duration};

use homerun_e2e::User;

/// Waits until so many bytes of an upload are there, as its `Range` says.
#[track_caller]
fn until(user: &mut User, range: &str) {
    for _ in 0..100 {
        let answer = user.ok("api -D - $PLACE | tr -d '\\r'");
        if answer.to_lowercase().contains(&format!("range: {range}\n")) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("never at {range}");
}

#[test]
fn an_image_upload_outlives_the_server() {
    let mut user = User::of_homerun();
    user.ok("head -c 3000000 /dev/urandom > blob; DIGEST=sha256:$(sha256sum blob | cut -d' ' -f1)");
    user.ok("TOKEN=$(gcloud auth print-access-token); APP=http://$HOMERUN_API/v2/my-project/e2e/app");
    user.ok("api() { curl -H \"Authorization: Bearer $TOKEN\" \"$@\"; }");
    user.ok("PLACE=http://$HOMERUN_API$(api -X POST -o /dev/null -w '%header{location}' $APP/blobs/uploads/)");
    // A client whose line is slow, and a server that is killed meanwhile. Half a mebibyte is written at a time.
    user.ok("(head -c 1100000 blob; exec sleep 60) | api -X PATCH -T - $PLACE > patched 2>&1 & CLIENT=$!");
    until(&mut user, "0-1048575");
    user.homerun.kill().expect("killed");
    user.ok("wait $CLIENT; test $? != 0");
    user.homerun.start_again().expect("starts after a kill");
    until(&mut user, "0-1048575");
    // A client that has not asked is told so.
    let wrong = user.ok("tail -c +1100001 blob | api -X PATCH -T - -H 'Content-Range: 1100000-2999999' $PLACE");
    assert!(wrong.contains("continues at byte 1048576"), "{wrong}");
    let status = "-o /dev/null -w '%{http_code}'";
    let patched = user.ok(&format!(
        "tail -c +1048577 blob | head -c 1000000 | api -X PATCH -T - -H 'Content-Range: 1048576-2048575' {status} $PLACE"
    ));
    assert_eq!(patched, "202");
    // And once more, of one that has just gone on.
    user.homerun.kill().expect("killed");
    user.homerun.start_again().expect("starts after a kill");
    until(&mut user, "0-2048575");
    let put = user.ok(&format!(
        "tail -c +2048577 blob | api -X PUT -T - {status} \"$PLACE?digest=$DIGEST\""
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
    until(&mut user, "0-524287");
    assert_eq!(user.ok("homerun images list --format='value(package)'"), "");
    let put = user.ok(&format!(
        "tail -c +524289 blob | api -X PUT -T - -H 'Content-Range: 524288-2999999' {status} \"$PLACE?digest=$DIGEST\""
    ));
    assert_eq!(put, "201");
    user.leaves();
}
