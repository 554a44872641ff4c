use bytes::Bytes;
use image::{Digest, Error, Images, MAX_UPLOADS, Tag, UploadId, Version, media_type};
use std::io::Read;

use crate::fixture::{Image, archive, chain, file, repository};

fn store() -> (tempfile::TempDir, Images) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let images = Images::open_with_docker_config(dir.path(), None).expect("opened");
    (dir, images)
}

fn read(images: &Images, digest: &Digest) -> Vec<u8> {
    let mut blob = images.blob(digest).expect("stored");
    let mut content = Vec::new();
    blob.file.read_to_end(&mut content).expect("readable");
    assert_eq!(content.len() as u64, blob.length);
    content
}

#[tokio::test]
async fn an_upload_is_resumed_where_it_ended() {
    let (_dir, images) = store();
    let digest = Digest::of(b"hello world");
    let upload = images.begin_upload().await.expect("begun");
    assert_eq!(
        images
            .append(&upload, Some(0), vec![Bytes::from_static(b"hello")])
            .await
            .expect("appended"),
        5
    );
    // The client did not hear the answer and sends the chunk again.
    let refused = images
        .append(&upload, Some(0), vec![Bytes::from_static(b"hello")])
        .await
        .expect_err("out of place");
    assert!(
        matches!(
            refused,
            Error::UploadOffset {
                expected: 5,
                got: 0,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(images.upload_length(&upload).await.expect("open"), 5);
    let again: UploadId = upload.to_string().parse().expect("an id");
    assert_eq!(
        images
            .append(&again, None, vec![Bytes::from_static(b" world")])
            .await
            .expect("appended"),
        11
    );
    assert!(
        images.blob_length(&digest).expect("asked").is_none(),
        "visible before it was finished"
    );
    images.finish_upload(&upload, digest).await.expect("finished");
    assert_eq!(read(&images, &digest), b"hello world");
    let gone = images.finish_upload(&upload, digest).await.expect_err("ended");
    assert!(matches!(gone, Error::UploadUnknown { .. }));
}

#[tokio::test]
async fn content_of_another_digest_is_refused_and_thrown_away() {
    let (dir, images) = store();
    let expected = Digest::of(b"right");
    let actual = Digest::of(b"wrong");
    for refused in [
        images
            .put_blob(expected, Bytes::from_static(b"wrong"))
            .await
            .expect_err("put"),
        {
            let upload = images.begin_upload().await.expect("begun");
            images
                .append(&upload, None, vec![Bytes::from_static(b"wrong")])
                .await
                .expect("appended");
            let refused = images.finish_upload(&upload, expected).await.expect_err("finished");
            assert!(images.upload_length(&upload).await.is_err());
            refused
        },
    ] {
        assert_eq!(
            refused.to_string(),
            format!("content was to be {expected} but is {actual}")
        );
    }
    assert!(images.blob(&expected).is_err() && images.blob(&actual).is_err());
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0);
}

#[tokio::test]
async fn too_many_uploads_give_up_the_one_touched_longest_ago() {
    let (_dir, images) = store();
    let mut uploads = Vec::new();
    for _ in 0..MAX_UPLOADS {
        uploads.push(images.begin_upload().await.expect("begun"));
    }
    images
        .append(&uploads[0], None, vec![Bytes::from_static(b"x")])
        .await
        .expect("touched");
    images.begin_upload().await.expect("one more");
    assert!(images.upload_length(&uploads[0]).await.is_ok());
    assert!(images.upload_length(&uploads[1]).await.is_err());
    images.cancel_upload(&uploads[0]).await.expect("cancelled");
    assert!(images.upload_length(&uploads[0]).await.is_err());
}

#[test]
fn no_upload_has_an_id_of_another_form() {
    for text in [
        "",
        "../../etc/passwd",
        "0123456789abcdef0123456789abcdeF",
        &"0".repeat(33),
    ] {
        assert!(
            matches!(text.parse::<UploadId>(), Err(Error::UploadUnknown { .. })),
            "{text}"
        );
    }
}

#[tokio::test]
async fn an_upload_goes_on_after_a_crash() {
    let (dir, images) = store();
    let (one, two) = (images.begin_upload().await, images.begin_upload().await);
    let (one, two) = (one.expect("begun"), two.expect("begun"));
    for upload in [&one, &two] {
        let appended = images.append(upload, None, vec![Bytes::from_static(b"half")]).await;
        assert_eq!(appended.expect("appended"), 4);
    }
    std::mem::forget(images);

    let images = Images::open_with_docker_config(dir.path(), None).expect("opened again");
    assert_eq!(images.stored_bytes(), 8, "they count as before");
    assert_eq!(images.upload_length(&one).await.expect("open"), 4);
    let early = images.append(&one, Some(2), vec![Bytes::from_static(b"x")]).await;
    assert!(
        matches!(
            early,
            Err(Error::UploadOffset {
                expected: 4,
                got: 2,
                ..
            })
        ),
        "{early:?}"
    );
    let appended = images.append(&one, Some(4), vec![Bytes::from_static(b"whole")]).await;
    assert_eq!(appended.expect("appended"), 9);
    let digest = Digest::of(b"halfwhole");
    images.finish_upload(&one, digest).await.expect("finished");
    assert_eq!(images.blob_length(&digest).expect("asked"), Some(9));
    // Finished as it was left, with a digest that it has not.
    let wrong = images.finish_upload(&two, digest).await;
    assert!(matches!(wrong, Err(Error::DigestMismatch { .. })), "{wrong:?}");
    assert!(images.upload_length(&two).await.is_err());
    assert_eq!(std::fs::read_dir(dir.path().join("uploads")).expect("there").count(), 0);
    assert_eq!(images.stored_bytes(), 9);
}

#[tokio::test]
async fn uploads_that_were_left_are_bounded_and_end() {
    use std::time::{Duration, SystemTime};
    let (dir, images) = store();
    let uploads = dir.path().join("uploads");
    let day = Duration::from_hours(24);
    let name = |n: usize| format!("{n:032x}");
    let old = SystemTime::now() - day - Duration::from_hours(1) - Duration::from_secs(30);
    for n in 0..MAX_UPLOADS + 3 {
        std::fs::write(uploads.join(name(n)), "half").expect("written");
        let file = std::fs::File::options().append(true).open(uploads.join(name(n)));
        let at = old + Duration::from_mins(n as u64);
        file.expect("there").set_modified(at).expect("marked");
    }
    drop(images);
    let images = Images::open_with_docker_config(dir.path(), None).expect("opened");
    let id = |n: usize| name(n).parse::<UploadId>().expect("an id");
    assert_eq!(std::fs::read_dir(&uploads).expect("there").count(), MAX_UPLOADS);
    assert!(images.upload_length(&id(2)).await.is_err(), "one of the oldest");
    assert_eq!(images.upload_length(&id(3)).await.expect("open"), 4);
    // Looked at, but nothing was added to it for a day.
    images
        .append(&id(4), Some(4), vec![Bytes::from_static(b"x")])
        .await
        .expect("appended");
    let forgotten = images.forget_uploads(SystemTime::now() - day).await.expect("forgotten");
    assert_eq!(forgotten, 57, "those of 3 to 60, but for the one that went on");
    assert!(images.upload_length(&id(3)).await.is_err() && !uploads.join(name(3)).exists());
    assert_eq!(images.upload_length(&id(4)).await.expect("open"), 5);
    assert_eq!(images.stored_bytes(), 4 * (MAX_UPLOADS as u64 - 57) + 1);
}

#[tokio::test]
async fn a_crash_leaves_nothing_and_tags_survive() {
    let (dir, images) = store();
    let image = Image::of(&[archive(&[file("a", "1")])]);
    image.push(&images, &repository(), "v1").await;
    // What a killed unpacking looks like.
    let half = dir.path().join("tmp/.tmpHALF/root/usr/lib");
    std::fs::create_dir_all(&half).expect("made");
    std::fs::write(half.join("libx.so"), "half").expect("written");
    std::mem::forget(images);

    let images = Images::open_with_docker_config(dir.path(), None).expect("opened again");
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0);
    assert_eq!(
        images.tag(&repository(), &"v1".parse().expect("tag")).expect("read"),
        Some(image.digest())
    );
    assert_eq!(images.repositories().expect("listed"), [repository()]);
}

#[tokio::test]
async fn a_manifest_is_taken_only_with_all_it_names() {
    let (_dir, images) = store();
    let image = Image::of(&[archive(&[file("a", "1")]), archive(&[file("b", "2")])]);
    let version: Version = "v1".parse().expect("tag");
    for (digest, content) in &image.blobs {
        let put = images
            .put_manifest(&repository(), &version, image.media_type, &image.manifest)
            .await;
        assert!(matches!(put, Err(Error::ReferenceMissing { .. })), "{put:?}");
        images
            .put_blob(*digest, Bytes::from(content.clone()))
            .await
            .expect("put");
    }
    assert!(
        images.tags(&repository()).is_err(),
        "the repository exists before its first manifest"
    );
    let digest = images
        .put_manifest(&repository(), &version, image.media_type, &image.manifest)
        .await
        .expect("whole");
    assert_eq!(digest, image.digest());

    let other = Image::of(&[archive(&[file("c", "3")])]);
    let index = Image::index(&[("amd64", &image), ("arm64", &other)]);
    let put = images
        .put_manifest(&repository(), &version, index.media_type, &index.manifest)
        .await;
    let Err(Error::ReferenceMissing { digest: missing }) = put else {
        panic!("{put:?}")
    };
    assert_eq!(missing, other.digest());
}

#[tokio::test]
async fn manifests_are_found_by_tag_and_digest_and_removed() {
    let (_dir, images) = store();
    let image = Image::of(&[archive(&[file("a", "1")])]);
    let repository = repository();
    image.push(&images, &repository, "v1").await;
    image.push(&images, &repository, "latest").await;
    let by_digest = Version::Digest(image.digest());
    for version in ["v1".parse().expect("tag"), by_digest.clone()] {
        let stored = images.manifest(&repository, &version).expect("stored");
        assert_eq!(stored.content, image.manifest);
        assert_eq!(stored.media_type, media_type::OCI_MANIFEST);
    }
    assert_eq!(
        images.tags(&repository).expect("listed"),
        ["latest".parse::<Tag>().expect("tag"), "v1".parse().expect("tag")]
    );

    // The digest in the path must be the content's.
    let wrong = Version::Digest(Digest::of(b"other"));
    let put = images
        .put_manifest(&repository, &wrong, image.media_type, &image.manifest)
        .await;
    assert!(matches!(put, Err(Error::DigestMismatch { .. })), "{put:?}");
    let put = images
        .put_manifest(&repository, &by_digest, media_type::OCI_INDEX, &image.manifest)
        .await;
    assert!(chain(&put.expect_err("another type")).contains("but says it is"));

    // Another repository does not see it.
    let other = "us-central1-docker.pkg.dev/my-project/repo/other"
        .parse()
        .expect("a repository");
    assert!(matches!(
        images.manifest(&other, &by_digest),
        Err(Error::ManifestUnknown { .. })
    ));

    images
        .delete_manifest(&repository, &"v1".parse().expect("tag"))
        .await
        .expect("deleted");
    assert!(images.manifest(&repository, &"v1".parse().expect("tag")).is_err());
    assert!(images.manifest(&repository, &by_digest).is_ok());
    images.delete_manifest(&repository, &by_digest).await.expect("deleted");
    assert!(images.tags(&repository).expect("listed").is_empty());
    let again = images.delete_manifest(&repository, &by_digest).await;
    assert!(matches!(again, Err(Error::ManifestUnknown { .. })), "{again:?}");
    assert!(images.repositories().expect("listed").is_empty());
}

#[tokio::test]
async fn a_rotten_blob_is_noticed() {
    let (dir, images) = store();
    let image = Image::of(&[archive(&[file("a", "1")])]);
    image.push(&images, &repository(), "v1").await;
    let path = dir.path().join("blobs/sha256").join(image.digest().hex());
    std::fs::write(&path, b"{}").expect("written");
    let reference = format!("{}:v1", repository()).parse().expect("a reference");
    let refused = images.resolve(&reference).await.expect_err("rotten");
    assert!(
        chain(&refused).contains(&format!("was to be {}", image.digest())),
        "{}",
        chain(&refused)
    );
}
