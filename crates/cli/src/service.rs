//! `run deploy`, `run services ...`, `run regions list` and `services ...`.
//!
//! A change is gcloud's: read the service, change the document, write it whole, wait until its conditions say how it
//! went. Waiting polls, quickly at first.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::change::{self, Changed, Occasion};
use crate::format::Column;
use crate::stage::{CONFIGURATIONS, POLICY, ROUTES, Stages};
use crate::traffic::To;
use crate::words::{Binding, DeleteService, Deploy, Listing, Replace, Settings, Update, UpdateTraffic};
use crate::{Error, Order, Outside, flag, human, iam, traffic};

const GLOBAL: &str = "run.googleapis.com";
const SERVICE_USAGE: &str = "serviceusage.googleapis.com";
/// As long as gcloud waits for conditions.
const PATIENCE: Duration = Duration::from_mins(30);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Between two turns of the spinner.
const TURN: Duration = Duration::from_millis(100);

const COLUMNS: &[Column] = &[
    Column {
        heading: "",
        cell: |service| human::symbol(service).to_owned(),
    },
    Column {
        heading: "SERVICE",
        cell: |service| name(service).to_owned(),
    },
    Column {
        heading: "REGION",
        cell: |service| human::region(service).to_owned(),
    },
    Column {
        heading: "URL",
        cell: |service| human::url(service).to_owned(),
    },
    Column {
        heading: "LAST DEPLOYED BY",
        cell: |service| {
            service["metadata"]["annotations"]["serving.knative.dev/lastModifier"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        },
    },
    Column {
        heading: "LAST DEPLOYED AT",
        cell: |service| {
            human::condition(service, "Ready")
                .and_then(|ready| ready["lastTransitionTime"].as_str())
                .unwrap_or_default()
                .to_owned()
        },
    },
];

fn name(resource: &Value) -> &str {
    resource["metadata"]["name"].as_str().unwrap_or_default()
}

fn latest_ready(service: &Value) -> &str {
    service["status"]["latestReadyRevisionName"]
        .as_str()
        .unwrap_or_default()
}

pub(crate) fn list(outside: &mut Outside<'_>, order: &Order<'_>, listing: &Listing) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let mut items = if order.global.region.is_some() {
        server.list(outside, &server.regional(), &server.knative("services"), None)?
    } else {
        let path = format!("/v1/projects/{}/locations/-/services", escape(&server.project));
        server.list(outside, GLOBAL, &path, None)?
    };
    items.sort_by(|one, other| name(one).cmp(name(other)));
    order.print_list(outside, items, listing.limit, COLUMNS)
}

pub(crate) fn describe(outside: &mut Outside<'_>, order: &Order<'_>, service: &str) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let found = server
        .find_one(outside, "services", service)?
        .ok_or_else(|| Error::Failed(format!("Cannot find service [{service}]")))?;
    order.print_one(outside, &found, |outside| human::service(&found, outside.out_ink()))
}

pub(crate) fn regions(outside: &mut Outside<'_>, order: &Order<'_>, listing: &Listing) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let path = format!("/v1/projects/{}/locations?pageSize=100", escape(&server.project));
    let mut answer = server.get(outside, GLOBAL, &path)?;
    let mut items = answer["locations"]
        .as_array_mut()
        .map(std::mem::take)
        .unwrap_or_default();
    let id = |location: &Value| location["locationId"].as_str().unwrap_or_default().to_owned();
    items.sort_by_key(id);
    let columns = [Column {
        heading: "NAME",
        cell: |location| location["locationId"].as_str().unwrap_or_default().to_owned(),
    }];
    order.print_list(outside, items, listing.limit, &columns)
}

pub(crate) fn enable(outside: &mut Outside<'_>, order: &Order<'_>, services: &[String]) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let project = escape(&server.project);
    let (path, body) = match services {
        [one] => (
            format!("/v1/projects/{project}/services/{}:enable", escape(one)),
            json!({}),
        ),
        several => (
            format!("/v1/projects/{project}/services:batchEnable"),
            json!({"serviceIds": several}),
        ),
    };
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut operation = server.json(outside, &Method::POST, SERVICE_USAGE, &path, Content::Json(&body))?;
    while operation["done"].as_bool() != Some(true) {
        let name = operation["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() || started.elapsed() > PATIENCE {
            return Err(Error::Failed(format!("operation \"{name}\" did not finish")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
        operation = server.get(outside, SERVICE_USAGE, &format!("/v1/{name}"))?;
    }
    match operation["error"]["message"].as_str() {
        Some(message) => Err(Error::Failed(message.to_owned())),
        None => Ok(()),
    }
}

pub(crate) fn apis(outside: &mut Outside<'_>, order: &Order<'_>, listing: &Listing) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let path = format!(
        "/v1/projects/{}/services?filter=state:ENABLED&pageSize=200",
        escape(&server.project)
    );
    let mut answer = server.get(outside, SERVICE_USAGE, &path)?;
    let items = answer["services"]
        .as_array_mut()
        .map(std::mem::take)
        .unwrap_or_default();
    let columns = [
        Column {
            heading: "NAME",
            cell: |api| api["config"]["name"].as_str().unwrap_or_default().to_owned(),
        },
        Column {
            heading: "TITLE",
            cell: |api| api["config"]["title"].as_str().unwrap_or_default().to_owned(),
        },
    ];
    order.print_list(outside, items, listing.limit, &columns)
}

/// Writes the whole document: a new service or the next generation of one.
fn write(outside: &Outside<'_>, server: &Server, service: &Value, new: bool, dry_run: bool) -> Result<Value, Error> {
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

/// Follows the conditions of a written service to their end, stage by stage.
fn wait(outside: &mut Outside<'_>, server: &Server, mut service: Value, stages: &mut Stages) -> Result<Value, Error> {
    let service_name = name(&service).to_owned();
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
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
                before_done &= condition.is_none_or(|c| c["status"] == "True");
            }
            match human::ready(&service) {
                Some(true) => return Ok(service),
                Some(false) => {
                    let message = human::condition(&service, "Ready")
                        .and_then(|ready| ready["message"].as_str())
                        .filter(|message| !message.is_empty());
                    return Err(Error::Failed(match message {
                        Some(message) => message.to_owned(),
                        None => format!("service [{service_name}] is not ready"),
                    }));
                }
                None => {}
            }
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::Failed(format!(
                "service [{service_name}] was not ready after {} minutes",
                PATIENCE.as_secs() / 60
            )));
        }
        rest(outside, stages, pause);
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
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
struct Release<'a> {
    service: Value,
    new: bool,
    header: String,
    failure: &'static str,
    keys: Vec<&'static str>,
    public: Option<bool>,
    settings: &'a Settings,
}

fn release(outside: &mut Outside<'_>, server: &Server, release: Release<'_>) -> Result<Value, Error> {
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
    match wait(outside, server, written, &mut stages) {
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
    let binding = Binding {
        service: service.to_owned(),
        member: "allUsers".to_owned(),
        role: iam::INVOKER.to_owned(),
    };
    if public {
        iam::give(outside, server, &binding).map(drop)
    } else if new {
        // nobody was let in yet
        Ok(())
    } else {
        iam::take(outside, server, &binding).map(drop)
    }
}

pub(crate) fn deploy(outside: &mut Outside<'_>, order: &Order<'_>, deploy: &Deploy) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let found = server.find_one(outside, "services", &deploy.service)?;
    let new = found.is_none();
    let mut service = match found {
        Some(service) => service,
        None if deploy.settings.image.is_none() => {
            return Err(Error::Failed(format!(
                "service [{}] does not exist yet: give its image with --image",
                deploy.service
            )));
        }
        None => change::new_service(&deploy.service, &server.project),
    };
    let mut public =
        (deploy.allow_unauthenticated || deploy.no_allow_unauthenticated).then_some(deploy.allow_unauthenticated);
    if new && public.is_none() && !order.is_quiet(outside)? {
        let question = format!("Allow unauthenticated invocations to [{}] (y/N)?", deploy.service);
        public = outside
            .ask(&question)
            .map(|answer| ["y", "yes"].contains(&answer.as_str()));
    }
    let occasion = Occasion {
        new,
        deploy: true,
        chance: outside.chance,
    };
    change::apply(&mut service, &deploy.settings, occasion)?;
    if !new && deploy.settings.image.is_none() {
        pin_image(outside, &server, &mut service)?;
    }
    outside.say(&format!(
        "Deploying container to Cloud Run service [{}] in project [{}] region [{}]",
        outside.err_ink().bold(&deploy.service),
        outside.err_ink().bold(&server.project),
        outside.err_ink().bold(server.region()),
    ));
    let mut keys = vec![CONFIGURATIONS];
    if traffic::follows_latest(&traffic::read(&service["spec"]["traffic"])) {
        keys.push(ROUTES);
    }
    if public.is_some() {
        keys.push(POLICY);
    }
    let header = if new {
        "Deploying new service..."
    } else {
        "Deploying..."
    };
    let service = release(
        outside,
        &server,
        Release {
            service,
            new,
            header: header.to_owned(),
            failure: "Deployment failed",
            keys,
            public,
            settings: &deploy.settings,
        },
    )?;
    let bold = outside.err_ink().bold(&deploy.service);
    if deploy.settings.wait.asynchronous {
        outside.say(&format!("Service [{bold}] is deploying asynchronously."));
    } else {
        say_deployed(outside, &service, deploy.settings.no_traffic);
    }
    order.print_one(outside, &service, |_| String::new())
}

/// The closing sentences of a deploy.
fn say_deployed(outside: &mut Outside<'_>, service: &Value, no_traffic: bool) {
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
fn pin_image(outside: &Outside<'_>, server: &Server, service: &mut Value) -> Result<(), Error> {
    if change::image(service).is_none_or(|image| image.contains("@sha256:")) {
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
        Some(digest) if digest.contains("@sha256:") => change::pin(service, digest),
        Some(_) | None => Ok(()),
    }
}

pub(crate) fn update(outside: &mut Outside<'_>, order: &Order<'_>, update: &Update) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let mut service = server
        .find_one(outside, "services", &update.service)?
        .ok_or_else(|| not_found(&update.service))?;
    let occasion = Occasion {
        new: false,
        deploy: false,
        chance: outside.chance,
    };
    let Changed { template } = change::apply(&mut service, &update.settings, occasion)?.ok_or_else(|| {
        Error::Failed(
            "No configuration change requested. Did you mean to include the flags \
                 `--update-env-vars`, `--memory`, `--concurrency`, `--timeout`, `--image`?"
                .to_owned(),
        )
    })?;
    if template && update.settings.image.is_none() {
        pin_image(outside, &server, &mut service)?;
    }
    let mut keys = Vec::new();
    if template {
        keys.push(CONFIGURATIONS);
        if traffic::follows_latest(&traffic::read(&service["spec"]["traffic"])) {
            keys.push(ROUTES);
        }
    }
    let (header, failure) = if template {
        ("Deploying...", "Deployment failed")
    } else {
        ("Updating...", "Update failed")
    };
    let service = release(
        outside,
        &server,
        Release {
            service,
            new: false,
            header: header.to_owned(),
            failure,
            keys,
            public: None,
            settings: &update.settings,
        },
    )?;
    let bold = outside.err_ink().bold(&update.service);
    if update.settings.wait.asynchronous {
        let doing = if template { "deploying" } else { "updating" };
        outside.say(&format!("Service [{bold}] is {doing} asynchronously."));
    } else if template {
        say_deployed(outside, &service, update.settings.no_traffic);
    } else {
        outside.say(&format!("Service [{bold}] has been updated."));
    }
    order.print_one(outside, &service, |_| String::new())
}

fn not_found(service: &str) -> Error {
    Error::Failed(format!("Service [{service}] could not be found."))
}

pub(crate) fn update_traffic(
    outside: &mut Outside<'_>,
    order: &Order<'_>,
    update: &UpdateTraffic,
) -> Result<(), Error> {
    let to_revisions = flag::by_target(&update.to_revisions);
    let to_tags = flag::by_name(&update.to_tags);
    let tags: BTreeMap<String, To> = flag::joined(&update.set_tags)
        .into_iter()
        .chain(flag::joined(&update.update_tags))
        .map(|(tag, revision)| (tag, To::parse(&revision)))
        .collect();
    let remove = flag::listed(&update.remove_tags).into_iter().collect();
    let clear = update.clear_tags || !update.set_tags.is_empty();
    let change_tags = clear || !tags.is_empty() || !update.remove_tags.is_empty();
    if !change_tags && to_revisions.is_empty() && to_tags.is_empty() && !update.to_latest {
        return Err(Error::Failed("No traffic configuration change requested.".to_owned()));
    }
    let server = Server::find(outside, order.global)?;
    let mut service = server
        .find_one(outside, "services", &update.service)?
        .ok_or_else(|| not_found(&update.service))?;
    let mut entries = traffic::read(&service["spec"]["traffic"]);
    if change_tags {
        entries = traffic::set_tags(&entries, &tags, &remove, clear);
    }
    let percents = if update.to_latest {
        BTreeMap::from([(To::Latest, 100)])
    } else if to_tags.is_empty() {
        to_revisions
    } else {
        traffic::by_tag(&entries, &to_tags)?
    };
    if !percents.is_empty() {
        entries = traffic::set_percents(&entries, &percents)?;
    }
    change::object(&mut service, &["spec"])?.insert("traffic".to_owned(), traffic::write(&entries));
    change::sign(&mut service, false)?;
    let asynchronous = update.wait.asynchronous;
    let mut stages = Stages::begin(outside, "Updating traffic...", &[ROUTES], asynchronous);
    let waited = write(outside, &server, &service, false, false).and_then(|written| {
        if asynchronous {
            Ok(written)
        } else {
            wait(outside, &server, written, &mut stages)
        }
    });
    let service = match waited {
        Ok(service) => {
            stages.end(outside);
            service
        }
        Err(error) => {
            stages.fail(outside, "Updating traffic failed");
            return Err(error);
        }
    };
    if asynchronous {
        outside.say("Updating traffic asynchronously.");
        return Ok(());
    }
    let text = if let Some(format) = order.format {
        format.list(&human::pair_documents(&human::pairs(&service)), &[])
    } else {
        human::traffic(&service, outside.out_ink())
    };
    crate::print_text(outside, &text)
}

pub(crate) fn delete(outside: &mut Outside<'_>, order: &Order<'_>, delete: &DeleteService) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let service = &delete.service;
    order.confirm(outside, &format!("Service [{service}] will be deleted."))?;
    remove(outside, &server, "services", service, delete.wait.asynchronous).map_err(|error| {
        if error.is_not_found() {
            not_found(service)
        } else {
            error
        }
    })?;
    outside.say(&if delete.wait.asynchronous {
        format!("Service [{service}] is being deleted.")
    } else {
        format!("Deleted service [{service}].")
    });
    Ok(())
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
    let mut pause = FIRST_PAUSE;
    while let Some(left) = server.find_one(outside, kind, name)? {
        let refused = human::ready(&left) == Some(false)
            && !left["metadata"]["deletionTimestamp"].is_null()
            && human::is_current(&left);
        if refused || started.elapsed() > PATIENCE {
            stages.fail(outside, "failed");
            return Err(Error::Failed(format!("Failed to delete [{name}].")));
        }
        rest(outside, &mut stages, pause);
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
    stages.end(outside);
    Ok(())
}

/// A YAML or JSON file, `-` for stdin.
pub(crate) fn read_document(outside: &mut Outside<'_>, path: &Path) -> Result<Value, Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let text = if path == Path::new("-") {
        let mut text = String::new();
        outside.input.read_to_string(&mut text).map_err(failed)?;
        text
    } else {
        std::fs::read_to_string(path).map_err(failed)?
    };
    serde_norway::from_str(&text).map_err(|why| Error::Failed(format!("{} is no YAML: {why}", path.display())))
}

pub(crate) fn replace(outside: &mut Outside<'_>, order: &Order<'_>, replace: &Replace) -> Result<(), Error> {
    let mut wanted = read_document(outside, &replace.file)?;
    let kind = wanted["kind"].as_str().unwrap_or_default();
    if kind != "Service" {
        return Err(Error::Failed(format!(
            "{}: kind is [{kind}], expected Service",
            replace.file.display()
        )));
    }
    let service = name(&wanted).to_owned();
    if service.is_empty() {
        return Err(Error::Failed(format!(
            "{}: metadata.name is missing",
            replace.file.display()
        )));
    }
    let server = Server::find(outside, order.global)?;
    if let Some(fields) = wanted.as_object_mut() {
        fields.remove("status");
    }
    let found = server.find_one(outside, "services", &service)?;
    let metadata = change::object(&mut wanted, &["metadata"])?;
    let namespace = match metadata.get("namespace") {
        // a project number without quotes
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(namespace)) => namespace.clone(),
        Some(_) | None => server.project.clone(),
    };
    metadata.insert("namespace".to_owned(), json!(namespace));
    match &found {
        // the file is the whole wish: what changed meanwhile is replaced
        Some(found) => metadata.insert(
            "resourceVersion".to_owned(),
            found["metadata"]["resourceVersion"].clone(),
        ),
        None => metadata.remove("resourceVersion"),
    };
    let new = found.is_none();
    let asynchronous = replace.wait.asynchronous;
    let (header, failure) = if replace.dry_run {
        ("Validating...", "Validation failed")
    } else if new {
        ("Deploying new service...", "Deployment failed")
    } else {
        ("Deploying...", "Deployment failed")
    };
    let keys: &[&str] = if replace.dry_run {
        &[]
    } else {
        &[CONFIGURATIONS, ROUTES]
    };
    let mut stages = Stages::begin(outside, header, keys, asynchronous);
    let waited = write(outside, &server, &wanted, new, replace.dry_run).and_then(|written| {
        if asynchronous || replace.dry_run {
            Ok(written)
        } else {
            wait(outside, &server, written, &mut stages)
        }
    });
    let written = match waited {
        Ok(written) => {
            stages.end(outside);
            written
        }
        Err(error) => {
            stages.fail(outside, failure);
            return Err(error);
        }
    };
    let bold = outside.err_ink().bold(&service);
    outside.say(&if replace.dry_run {
        format!("New configuration has been validated for service [{bold}].")
    } else if asynchronous {
        format!("New configuration for [{bold}] is being applied asynchronously.")
    } else {
        let url = outside.err_ink().bold(human::url(&written));
        format!("New configuration has been applied to service [{bold}].\nURL: {url}")
    });
    order.print_one(outside, &written, |_| String::new())
}
