//! Writing a changed service and waiting for what becomes of it.
//!
//! A document goes out whole, as gcloud sends it; then the service is read again and again, quickly at first, until its
//! conditions say how it went. The stages are shown meanwhile; the closing sentences of a deploy are here too.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http::Method;

use crate::call::{Content, Server};
use crate::service::name;
use crate::settings::Settings;
use crate::stage::{CONFIGURATIONS, POLICY, ROUTES, Stages};
use crate::{Error, Outside, human, iam, template};

/// As long as gcloud waits for conditions.
pub(crate) const PATIENCE: Duration = Duration::from_mins(30);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long to wait before the next look at what was waited for that long: a thirtieth, so that what is soon done is not
/// waited for long, and what takes long is not looked at all the time.
pub(crate) fn pause(waited: Duration) -> Duration {
    (waited / 30).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Between two turns of the spinner.
const TURN: Duration = Duration::from_millis(100);

fn latest_ready(service: &Value) -> &str {
    service["status"]["latestReadyRevisionName"]
        .as_str()
        .unwrap_or_default()
}

/// Writes the whole document: a new service or the next generation of one.
pub(crate) fn write(
    outside: &Outside<'_>,
    server: &Server,
    service: &Value,
    new: bool,
    dry_run: bool,
) -> Result<Value, Error> {
    let (method, mut path) = if new {
        (Method::POST, server.knative("services"))
    } else {
        (Method::PUT, server.knative_named("services", name(service)))
    };
    if dry_run {
        path.push_str("?dryRun=all");
    }
    server.json(outside, &method, &server.regional(), &path, Content::Json(service))
}

/// Which condition ends the waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// All of the service is ready.
    Ready,
    /// The traffic is where it should be. The latest revision may have failed, which is what a rollback is for.
    Routed,
}

/// Follows the conditions of a written service to their end, stage by stage.
pub(crate) fn wait(
    outside: &mut Outside<'_>,
    server: &Server,
    mut service: Value,
    stages: &mut Stages,
    until: Until,
) -> Result<Value, Error> {
    let service_name = name(&service).to_owned();
    let started = Instant::now();
    loop {
        if human::is_current(&service) {
            let mut before_done = true;
            for key in [CONFIGURATIONS, ROUTES] {
                let condition = human::condition(&service, key);
                let message = condition.and_then(|c| c["message"].as_str()).unwrap_or_default();
                match condition.and_then(|c| c["status"].as_str()) {
                    Some("True") if before_done => stages.done(outside, key),
                    Some("False") => stages.failed(outside, key),
                    Some(_) | None if before_done => stages.run(outside, key, message),
                    Some(_) | None => {}
                }
                before_done &= until == Until::Routed || condition.is_none_or(|c| c["status"] == "True");
            }
            let last = match until {
                Until::Ready => human::condition(&service, "Ready"),
                Until::Routed => human::condition(&service, ROUTES),
            };
            match last.and_then(|last| last["status"].as_str()) {
                Some("True") => return Ok(service),
                Some("False") => {
                    let message = last.and_then(|last| last["message"].as_str()).unwrap_or_default();
                    return Err(Error::Failed(if message.is_empty() {
                        format!("service [{service_name}] is not ready")
                    } else {
                        message.to_owned()
                    }));
                }
                Some(_) | None => {}
            }
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::Failed(format!(
                "service [{service_name}] was not ready after {} minutes",
                PATIENCE.as_secs() / 60
            )));
        }
        rest(outside, stages, pause(started.elapsed()));
        service = server
            .find_one(outside, "services", &service_name)?
            .ok_or_else(|| Error::Failed(format!("service [{service_name}] was deleted meanwhile")))?;
    }
}

/// Sleeps, with the spinner turning.
fn rest(outside: &mut Outside<'_>, stages: &mut Stages, pause: Duration) {
    let mut left = pause;
    while !left.is_zero() {
        let part = left.min(TURN);
        thread::sleep(part);
        left -= part;
        stages.tick(outside);
    }
}

/// What `deploy` and `update` have in common once the document is changed.
pub(crate) struct Release<'a> {
    pub(crate) service: Value,
    pub(crate) new: bool,
    pub(crate) header: String,
    pub(crate) failure: &'static str,
    pub(crate) keys: Vec<&'static str>,
    pub(crate) public: Option<bool>,
    pub(crate) settings: &'a Settings,
}

pub(crate) fn release(outside: &mut Outside<'_>, server: &Server, release: Release<'_>) -> Result<Value, Error> {
    let asynchronous = release.settings.wait.asynchronous;
    let mut stages = Stages::begin(outside, &release.header, &release.keys, asynchronous);
    let written = match write(outside, server, &release.service, release.new, false) {
        Ok(written) => written,
        Err(error) => {
            stages.fail(outside, release.failure);
            return Err(error);
        }
    };
    if let Some(public) = release.public {
        stages.run(outside, POLICY, "");
        match open_to_all(outside, server, name(&release.service), public, release.new) {
            Ok(()) => stages.done(outside, POLICY),
            Err(error) => {
                stages.failed(outside, POLICY);
                let verb = if public { "add" } else { "remove" };
                outside.say(&format!(
                    "WARNING: setting the IAM policy failed ({}); try `homerun run services \
                     {verb}-iam-policy-binding {} --region={} --member=allUsers --role={}`",
                    error.text(),
                    name(&release.service),
                    server.region(),
                    iam::INVOKER,
                ));
            }
        }
    }
    if asynchronous {
        return Ok(written);
    }
    match wait(outside, server, written, &mut stages, Until::Ready) {
        Ok(service) => {
            stages.end(outside);
            Ok(service)
        }
        Err(error) => {
            stages.fail(outside, release.failure);
            Err(error)
        }
    }
}

/// Lets everyone call the service, or only who was given the role.
fn open_to_all(outside: &Outside<'_>, server: &Server, service: &str, public: bool, new: bool) -> Result<(), Error> {
    let (on, grant) = (iam::On::Service(service), iam::Grant::new("allUsers", iam::INVOKER));
    if public {
        iam::give(outside, server, on, &grant).map(drop)
    } else if new {
        // nobody was let in yet
        Ok(())
    } else {
        iam::take(outside, server, on, &grant).map(drop)
    }
}

/// The closing sentences of a deploy.
pub(crate) fn say_deployed(outside: &mut Outside<'_>, service: &Value, no_traffic: bool) {
    let ink = outside.err_ink();
    let latest = latest_ready(service);
    let is_latest = |entry: &Value| entry["latestRevision"] == true || entry["revisionName"] == latest;
    let entries = service["status"]["traffic"].as_array();
    let latest_entries = || entries.into_iter().flatten().filter(|entry| is_latest(entry));
    let percent: u64 = if no_traffic {
        0
    } else {
        latest_entries().filter_map(|entry| entry["percent"].as_u64()).sum()
    };
    let revision = if no_traffic {
        service["status"]["latestCreatedRevisionName"]
            .as_str()
            .unwrap_or_default()
    } else {
        latest
    };
    outside.say(&format!(
        "Service [{}] revision [{}] has been deployed and is serving {} percent of traffic.",
        ink.bold(name(service)),
        ink.bold(revision),
        ink.bold(&percent.to_string()),
    ));
    if percent > 0 {
        outside.say(&format!("Service URL: {}", ink.bold(human::url(service))));
    }
    if let Some(url) = latest_entries().find_map(|entry| entry["url"].as_str()) {
        outside.say(&format!("The revision can be reached directly at {url}"));
    }
}

/// Keeps the bytes that run: a change of settings does not follow a tag that has moved.
pub(crate) fn pin_image(outside: &Outside<'_>, server: &Server, service: &mut Value) -> Result<(), Error> {
    if template::image(service).is_none_or(|image| image.contains("@sha256:")) {
        return Ok(());
    }
    let latest = service["status"]["latestCreatedRevisionName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if latest.is_empty() {
        return Ok(());
    }
    let Some(revision) = server.find_one(outside, "revisions", &latest)? else {
        return Ok(());
    };
    match revision["status"]["imageDigest"].as_str() {
        Some(digest) if digest.contains("@sha256:") => template::pin(service, digest),
        Some(_) | None => Ok(()),
    }
}

/// Deletes a resource and waits until it is gone.
pub(crate) fn remove(
    outside: &mut Outside<'_>,
    server: &Server,
    kind: &str,
    name: &str,
    asynchronous: bool,
) -> Result<(), Error> {
    let path = server.knative_named(kind, name);
    server.json(outside, &Method::DELETE, &server.regional(), &path, Content::None)?;
    if asynchronous {
        return Ok(());
    }
    let mut stages = Stages::begin(outside, &format!("Deleting [{name}]..."), &[], false);
    let started = Instant::now();
    while let Some(left) = server.find_one(outside, kind, name)? {
        let refused = human::ready(&left) == Some(false)
            && !left["metadata"]["deletionTimestamp"].is_null()
            && human::is_current(&left);
        if refused || started.elapsed() > PATIENCE {
            stages.fail(outside, "failed");
            return Err(Error::Failed(format!("Failed to delete [{name}].")));
        }
        rest(outside, &mut stages, pause(started.elapsed()));
    }
    stages.end(outside);
    Ok(())
}
