//! A person at a terminal of a Homerun of their own, who expects each command to end well, or to be refused.

use std::fs;

use crate::{Client, Homerun, Layout, Session, language_base};

/// Panics with the command, what it printed and what Homerun said, where something ends otherwise than expected.
#[derive(Debug)]
pub struct User {
    pub homerun: Homerun,
    pub session: Session,
}

impl User {
    /// Starts a Homerun, to be spoken to by our own command line.
    pub fn of_homerun() -> Self {
        Self::with(&[], Client::Homerun)
    }

    /// The same with flags for `homerun up`, and a choice of client.
    pub fn with(flags: &[&str], client: Client) -> Self {
        Self::in_surroundings(flags, &[], client)
    }

    /// The same with variables for `homerun up`.
    pub fn in_surroundings(flags: &[&str], variables: &[(&str, &str)], client: Client) -> Self {
        let homerun = Homerun::up_in(flags, variables).expect("starts");
        let session = Session::new(&homerun, client).expect("a shell");
        let mut user = Self { homerun, session };
        user.ok("REGION=--region=us-central1; HELLO=us-docker.pkg.dev/cloudrun/container/hello");
        user
    }

    /// Runs what must succeed, and gives what it printed, without the last line end.
    #[track_caller]
    pub fn ok(&mut self, command: &str) -> String {
        self.ends(command, 0)
    }

    /// Runs what must be refused with exit status 1, and gives what it printed.
    #[track_caller]
    pub fn refused(&mut self, command: &str) -> String {
        self.ends(command, 1)
    }

    #[track_caller]
    pub fn ends(&mut self, command: &str, status: i32) -> String {
        let output = match self.session.run(command) {
            Ok(output) => output,
            Err(error) => panic!("{error:#}\nhomerun up:\n{}", self.homerun.log()),
        };
        assert_eq!(
            output.status,
            status,
            "$ {command}\n{}\nhomerun up:\n{}",
            output.text,
            self.homerun.log()
        );
        let text = output.text;
        text.strip_suffix('\n').map_or(text.clone(), str::to_owned)
    }

    /// Deploys for everyone, and gives the URL.
    #[track_caller]
    pub fn deploy(&mut self, service: &str, flags: &str) -> String {
        self.ok(&format!(
            "gcloud run deploy {service} $REGION --allow-unauthenticated --quiet {flags}"
        ));
        self.describe(service, "value(status.url)").trim().to_owned()
    }

    #[track_caller]
    pub fn describe(&mut self, service: &str, format: &str) -> String {
        self.ok(&format!(
            "gcloud run services describe {service} $REGION --format='{format}'"
        ))
    }

    /// What curl prints of a request that must be answered with 200.
    #[track_caller]
    pub fn get(&mut self, url: &str) -> String {
        self.ok(&format!("curl --fail '{url}'"))
    }

    /// Brings an image of the probe into the registry under `us-central1-docker.pkg.dev/my-project/e2e/NAME:latest`,
    /// and gives that reference. The image answers NAME at `/name`.
    #[track_caller]
    pub fn import_probe(&mut self, name: &str) -> String {
        let layout = self.layout(name);
        let image = format!("us-central1-docker.pkg.dev/my-project/e2e/{name}:latest");
        self.ok(&format!("homerun images import {} {image}", layout.dir.display()));
        image
    }

    /// Brings an image of the speaker (`e2e/speaker/main.rs`) into the registry, and gives its reference.
    #[track_caller]
    pub fn import_speaker(&mut self, program: &str) -> String {
        let dir = self.homerun.root().join("layouts/speaker");
        let layout = Layout::of_program(&dir, program.as_ref()).expect("a layout");
        let image = "us-central1-docker.pkg.dev/my-project/e2e/speaker:latest".to_owned();
        self.ok(&format!("homerun images import {} {image}", layout.dir.display()));
        image
    }

    /// Brings the base of built images into the registry, and gives its reference.
    #[track_caller]
    pub fn import_base(&mut self) -> String {
        let dir = self.homerun.root().join("layouts/base");
        let layout = Layout::base(&dir).expect("a layout");
        let image = "us-central1-docker.pkg.dev/my-project/e2e/base:latest".to_owned();
        self.ok(&format!("homerun images import {} {image}", layout.dir.display()));
        image
    }

    /// Brings Debian's `python` or `node` into the registry, to build apps from, and gives its reference.
    #[track_caller]
    pub fn import_language(&mut self, language: &str) -> String {
        let dir = self.homerun.root().join("layouts").join(language);
        fs::create_dir_all(&dir).expect("made");
        language_base(&dir, language).expect("a base");
        let image = format!("us-central1-docker.pkg.dev/my-project/base/{language}:debian");
        self.ok(&format!("homerun images import {} {image}", dir.display()));
        image
    }

    /// A user who builds apps of a language: with its base image, and the index of its packages, such as `pip=URL`.
    #[track_caller]
    pub fn who_builds(language: &str, index: &str, flags: &[&str], client: Client) -> Self {
        let base = format!("{language}=us-central1-docker.pkg.dev/my-project/base/{language}:debian");
        let of_builds = ["--build-index", index, "--build-base", &base];
        let mut user = Self::with(&[flags, &of_builds].concat(), client);
        user.import_language(language);
        user
    }

    /// A layout on disk with an image of the probe.
    #[track_caller]
    pub fn layout(&mut self, name: &str) -> Layout {
        let dir = self.homerun.root().join("layouts").join(name);
        Layout::image(&dir, name).expect("a layout")
    }

    /// Ends the Homerun, which must leave nothing behind.
    #[track_caller]
    pub fn leaves(self) {
        drop(self.session);
        if let Err(error) = self.homerun.stop() {
            panic!("{error:#}");
        }
    }
}
