//! Cloud Storage by Google's own gcloud.

use homerun_e2e::{Client, User};

#[test]
fn gcloud_copies_lists_and_removes() {
    let mut user = User::with(&[], Client::Google);
    user.ok("echo hello > small.txt; head -c 12000000 /dev/urandom > big.bin");
    user.ok("gcloud storage buckets create gs://my-bucket --location=us-central1");
    user.ok("gcloud storage cp small.txt gs://my-bucket/dir/small.txt");
    // Beyond 8 MiB gcloud uploads it resumably.
    user.ok("gcloud storage cp big.bin gs://my-bucket/big.bin");
    let listed = user.ok("gcloud storage ls gs://my-bucket");
    assert_eq!(listed, "gs://my-bucket/big.bin\ngs://my-bucket/dir/");
    assert_eq!(user.ok("gcloud storage cat gs://my-bucket/dir/small.txt"), "hello");
    // gcloud checks the sums of what it reads.
    user.ok("gcloud storage cp gs://my-bucket/big.bin back.bin && cmp big.bin back.bin");
    user.homerun.kill_and_restart().expect("starts after a kill");
    user.ok("test $(find $DATA_DIR/storage/tmp -type f | wc -l) = 0");
    user.leaves();
}
