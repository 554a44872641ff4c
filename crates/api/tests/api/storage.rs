//! Cloud Storage by the requests that gcloud sends: buckets, uploads of each kind, a resumed one, downloads.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use crate::setting::{Setting, read};

const HOST: &str = "storage.googleapis.com";
const BUCKET: &str = "/storage/v1/b/my-bucket";

async fn send(
    setting: &Setting,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response<homerun_api::Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {}", setting.token));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::copy_from_slice(body));
    setting.send(HOST, request.body(body).expect("a request")).await
}

async fn json_of(setting: &Setting, method: &str, path: &str, body: &Value) -> (u16, Value) {
    read(send(setting, method, path, &[], body.to_string().as_bytes()).await).await
}

async fn with_bucket() -> Setting {
    let setting = Setting::new().await;
    let body = json!({ "name": "my-bucket", "location": "us-central1", "cors": [], "iamConfiguration": {} });
    let made = json_of(
        &setting,
        "POST",
        "/storage/v1/b?project=my-project&enableObjectRetention=False",
        &body,
    )
    .await;
    assert_eq!((made.0, &made.1["location"]), (200, &json!("US-CENTRAL1")));
    setting
}

#[tokio::test]
async fn buckets_come_and_go() {
    let setting = with_bucket().await;
    let again = json_of(
        &setting,
        "POST",
        "/storage/v1/b?project=my-project",
        &json!({ "name": "my-bucket" }),
    )
    .await;
    assert_eq!(again.0, 409);
    for name in ["UP", "a/../b", "..", "x"] {
        let refused = json_of(
            &setting,
            "POST",
            "/storage/v1/b?project=my-project",
            &json!({ "name": name }),
        )
        .await;
        assert_eq!(
            (
                refused.0,
                &refused.1["error"]["details"][0]["fieldViolations"][0]["field"]
            ),
            (400, &json!("name"))
        );
    }
    let listed = json_of(
        &setting,
        "GET",
        "/storage/v1/b?project=my-project&prefix=my-&maxResults=1000",
        &json!({}),
    )
    .await;
    assert_eq!(listed.1["items"][0]["name"], "my-bucket");
    assert_eq!(
        send(&setting, "GET", "/storage/v1/b/nothing", &[], b"").await.status(),
        404
    );
    let upload = "/upload/storage/v1/b/my-bucket/o?uploadType=media&name=a";
    assert_eq!(send(&setting, "POST", upload, &[], b"x").await.status(), 200);
    assert_eq!(
        send(&setting, "DELETE", BUCKET, &[], b"").await.status(),
        409,
        "not empty"
    );
    assert_eq!(
        send(&setting, "DELETE", &format!("{BUCKET}/o/a"), &[], b"")
            .await
            .status(),
        204
    );
    assert_eq!(send(&setting, "DELETE", BUCKET, &[], b"").await.status(), 204);
    assert_eq!(send(&setting, "GET", BUCKET, &[], b"").await.status(), 404);
}

#[tokio::test]
async fn an_upload_as_gcloud_sends_it() {
    let setting = with_bucket().await;
    let kind = [("content-type", "multipart/related; boundary='===7=='")];
    let body = b"--===7==\nContent-Type: application/json\n\n{\"size\": \"5\"}\n--===7==\nContent-Type: application/zip\n\nPK\n\r\n\n--===7==--";
    let path = "/upload/storage/v1/b/my-bucket/o?uploadType=multipart&name=services%2FS%2F1-a.zip&alt=json";
    let (status, object) = read(send(&setting, "POST", path, &kind, body).await).await;
    assert_eq!(
        (status, &object["name"], &object["size"]),
        (200, &json!("services/S/1-a.zip"), &json!("5"))
    );
    assert!(object["generation"].is_string() && object["crc32c"].is_string() && object["md5Hash"].is_string());
    let one = format!("{BUCKET}/o/services%2FS%2F1-a.zip");
    let (_, shown) = json_of(&setting, "GET", &one, &json!({})).await;
    assert_eq!(shown, object);
    let media = send(&setting, "GET", &format!("{one}?alt=media"), &[], b"").await;
    assert_eq!(media.headers()["content-type"], "application/zip");
    let content = media.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(&*content, b"PK\n\r\n");
    let (_, listed) = json_of(&setting, "GET", &format!("{BUCKET}/o?delimiter=/"), &json!({})).await;
    assert_eq!(listed["prefixes"], json!(["services/"]));
    let (_, listed) = json_of(
        &setting,
        "GET",
        &format!("{BUCKET}/o?prefix=services/S/&delimiter=/"),
        &json!({}),
    )
    .await;
    assert_eq!(listed["items"][0]["name"], "services/S/1-a.zip");
    let once = "/upload/storage/v1/b/my-bucket/o?uploadType=media&name=services/S/1-a.zip&ifGenerationMatch=0";
    assert_eq!(send(&setting, "POST", once, &[], b"x").await.status(), 412);
    let escape = "/upload/storage/v1/b/my-bucket/o?uploadType=media&name=../../../etc/passwd";
    assert_eq!(
        send(&setting, "POST", escape, &[], b"x").await.status(),
        200,
        "a name, not a path"
    );
}

#[tokio::test]
async fn a_resumable_upload_goes_on_after_a_break() {
    let setting = with_bucket().await;
    for path in [
        "/resumable/upload/storage/v1/b/my-bucket/o",
        "/upload/storage/v1/b/my-bucket/o",
    ] {
        let content: Vec<u8> = (0..1_500_000_u32)
            .map(|n| u8::try_from(n % 251).expect("small"))
            .collect();
        let begun = send(
            &setting,
            "POST",
            &format!("{path}?uploadType=resumable&name=big"),
            &[],
            b"{}",
        )
        .await;
        assert_eq!(begun.status(), 200);
        let location = begun.headers()["location"].to_str().expect("text").to_owned();
        let at = location
            .strip_prefix("https://storage.googleapis.com")
            .expect("our host");
        let range = |text: &str| vec![("content-range", text.to_owned())];
        let put = async |headers: Vec<(&str, String)>, body: &[u8]| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            send(&setting, "PUT", at, &headers, body).await
        };
        let nothing = put(range("bytes */1500000"), b"").await;
        assert_eq!((nothing.status().as_u16(), nothing.headers().get("range")), (308, None));
        let part = put(range("bytes 0-999999/1500000"), &content[..1_000_000]).await;
        assert_eq!(
            (part.status().as_u16(), part.headers()["range"].to_str().expect("text")),
            (308, "bytes=0-999999")
        );
        // A client that lost the answer asks, and one that repeats some bytes is understood.
        let asked = put(range("bytes */1500000"), b"").await;
        assert_eq!(
            (
                asked.status().as_u16(),
                asked.headers()["range"].to_str().expect("text")
            ),
            (308, "bytes=0-999999")
        );
        let gap = put(range("bytes 1200000-1499999/1500000"), &content[1_200_000..]).await;
        assert_eq!(
            (gap.status().as_u16(), gap.headers()["range"].to_str().expect("text")),
            (308, "bytes=0-999999")
        );
        let (status, object) = read(put(range("bytes 900000-1499999/1500000"), &content[900_000..]).await).await;
        assert_eq!((status, &object["size"]), (200, &json!("1500000")));
        let gone = put(range("bytes */1500000"), b"").await;
        assert_eq!(gone.status(), 404);
        let media = send(
            &setting,
            "GET",
            &format!("{BUCKET}/o/big?alt=media"),
            &[("range", "bytes=1499990-")],
            b"",
        )
        .await;
        assert_eq!(media.status(), 206);
        let end = media.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(&*end, &content[1_499_990..]);
        let media = send(&setting, "GET", &format!("{BUCKET}/o/big?alt=media"), &[], b"").await;
        assert_eq!(
            &*media.into_body().collect().await.expect("a body").to_bytes(),
            &*content
        );
    }
}
