//! Bad input of every kind: a clear error that names the thing and the limit, the exit status that goes with it,
//! nothing lost, and the service that ran before still serves. Half-open clients have `half_open.rs`.

mod container;
mod document;
mod google;
mod image;
mod setting;
mod traffic;

use homerun_e2e::{Answer, Client, Layout, User, exchange};
use serde_json::{Value, json};

const REPOSITORY: &str = "us-central1-docker.pkg.dev/my-project/e2e";
const HELLO: &str = "us-docker.pkg.dev/cloudrun/container/hello";
const NOT_READY: &str = "is not ready and cannot serve traffic. The user-provided container";
const NO_PORT: &str = "failed to start and listen on the port defined provided by the PORT=8080 environment variable";

/// A user with one service, `kept`, that must not suffer from what the others get wrong.
struct Stand {
    user: User,
    url: String,
    revision: String,
    token: String,
}

impl Stand {
    fn new(client: Client) -> Self {
        let mut user = User::with(&[], client);
        let url = user.deploy("kept", "--image=$HELLO --tag=first");
        let revision = user
            .describe("kept", "value(status.latestReadyRevisionName)")
            .trim()
            .to_owned();
        let token = user.ok("gcloud auth print-access-token").trim().to_owned();
        let mut stand = Self {
            user,
            url,
            revision,
            token,
        };
        stand.kept();
        stand
    }

    /// It answers, from the revision that it had.
    #[track_caller]
    fn kept(&mut self) {
        let answer = self.user.get(&self.url);
        let wanted = format!("\"revision\":\"{}\"", self.revision);
        assert!(answer.contains(&wanted), "no {wanted} in {answer}");
    }

    /// The service as the API has it.
    fn stored(&self) -> Value {
        let answer = self.call("GET", "/kept", "");
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).expect("a service")
    }

    /// A new revision of it cannot start. All of `named` is in the error, and no traffic moves.
    #[track_caller]
    fn fails(&mut self, command: &str, named: &[&str]) {
        let text = self.user.refused(command);
        for named in named {
            assert!(text.contains(named), "no {named:?} after $ {command}\n{text}");
        }
        self.kept();
        let status = &self.stored()["status"];
        assert_eq!(status["latestReadyRevisionName"], self.revision.as_str(), "{status}");
        let ready = status["conditions"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|c| c["type"] == "Ready");
        let ready = ready.expect("there is one");
        assert_eq!(ready["status"], "False", "{ready}");
        let message = ready["message"].as_str().expect("a text");
        assert!(
            named.iter().all(|named| message.contains(named)),
            "{named:?} in {message}"
        );
        let traffic = &status["traffic"][0];
        assert_eq!(
            (&traffic["revisionName"], &traffic["percent"]),
            (&json!(self.revision), &json!(100)),
            "{status}"
        );
    }

    #[track_caller]
    fn deploy_fails(&mut self, flags: &str, named: &[&str]) {
        self.fails(&format!("gcloud run deploy kept $REGION --quiet {flags}"), named);
    }

    /// Refused as a whole: nothing of it is stored. The error is the last that is printed.
    #[track_caller]
    fn refused(&mut self, command: &str, status: i32, error: &str) {
        let before = self.stored();
        let text = self.user.ends(command, status);
        assert!(
            text.trim_end().ends_with(&format!("ERROR: {error}")),
            "$ {command}\n{text}\nwanted: {error}"
        );
        assert_eq!(self.stored(), before, "$ {command}");
        self.kept();
    }

    fn call(&self, method: &str, path: &str, body: impl AsRef<[u8]>) -> Answer {
        let host = "us-central1-run.googleapis.com";
        let path = format!("/apis/serving.knative.dev/v1/namespaces/my-project/services{path}");
        self.ask(
            &format!("{method} {path}"),
            host,
            &format!("Bearer {}", self.token),
            body,
        )
    }

    fn ask(&self, what: &str, host: &str, authorization: &str, body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let mut request = format!(
            "{what} HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\n\
             content-type: application/vnd.oci.image.manifest.v1+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        exchange(self.user.homerun.api(), &request).expect("answered")
    }

    /// An image of both programs in the registry of this Homerun, given the layout.
    fn import(&mut self, name: &str, layout: &Layout) -> String {
        let image = format!("{REPOSITORY}/{name}:latest");
        self.user
            .ok(&format!("homerun images import {} {image}", layout.dir.display()));
        image
    }

    fn layout(&self, name: &str, architecture: &str) -> Layout {
        let dir = self.user.homerun.root().join("layouts").join(name);
        Layout::image_for(&dir, name, architecture).expect("a layout")
    }
}
