//! `run deploy`, `run services ...` but for its policies, and `run regions list`.
//!
//! A change is gcloud's: read the service, change the document, write it whole, wait until its conditions say how it
//! went (`release`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::call::{Server, escape};
use crate::change::{self, Changed, Occasion};
use crate::format::Column;
use crate::release::{self, Release, Until};
use crate::stage::{CONFIGURATIONS, POLICY, ROUTES, Stages};
use crate::traffic::To;
use crate::words::{DeleteService, Deploy, Listing, Replace, Update, UpdateTraffic};
use crate::{Error, Order, Outside, build, flag, human, template, traffic};

const GLOBAL: &str = "run.googleapis.com";
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

pub(crate) fn name(resource: &Value) -> &str {
    resource["metadata"]["name"].as_str().unwrap_or_default()
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

pub(crate) fn deploy(outside: &mut Outside<'_>, order: &Order<'_>, deploy: &Deploy) -> Result<(), Error> {
    if deploy.source.is_some() && !deploy.settings.containers.is_empty() {
        return Err(Error::Usage(
            "--source with --container is not served by Homerun: build the images with `builds submit`".to_owned(),
        ));
    }
    // The grammar does not say it where --image rules --source out.
    if deploy.source.is_none() && (deploy.dockerfile.is_some() || deploy.make.needs_buildpacks()) {
        return Err(Error::Usage(
            "--dockerfile, --builder, --base-image and --set-build-env-vars are for a build: give its --source"
                .to_owned(),
        ));
    }
    let server = Server::find(outside, order.global)?;
    let found = server.find_one(outside, "services", &deploy.service)?;
    let mut new = found.is_none();
    let mut service = match found {
        Some(service) => service,
        None if !deploy.settings.has_image() && deploy.source.is_none() => {
            return Err(Error::Failed(format!(
                "service [{}] does not exist yet: give its image with --image, or its source with --source",
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
    if let Some(source) = &deploy.source {
        let made = build::of_service(
            outside,
            &server,
            &deploy.service,
            source,
            deploy.dockerfile.as_deref(),
            &deploy.make,
        )?;
        // That took its time, in which somebody else may have changed the service or made it.
        if let Some(found) = server.find_one(outside, "services", &deploy.service)? {
            service = found;
            new = false;
        }
        template::pin(&mut service, &made.image)?;
        let annotations = change::object(&mut service, &["metadata", "annotations"])?;
        for (name, value) in made.annotations {
            annotations.insert(name.to_owned(), value.into());
        }
    }
    let occasion = Occasion {
        new,
        deploy: true,
        chance: outside.chance,
    };
    change::apply(&mut service, &deploy.settings, occasion)?;
    let has_image = deploy.source.is_some() || deploy.settings.has_image_for(template::name(&service));
    if !new && !has_image {
        release::pin_image(outside, &server, &mut service)?;
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
    let service = release::release(
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
        release::say_deployed(outside, &service, deploy.settings.no_traffic);
    }
    order.print_one(outside, &service, |_| String::new())
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
    if template && !update.settings.has_image_for(template::name(&service)) {
        release::pin_image(outside, &server, &mut service)?;
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
    let service = release::release(
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
        release::say_deployed(outside, &service, update.settings.no_traffic);
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
    let waited = release::write(outside, &server, &service, false, false).and_then(|written| {
        if asynchronous {
            Ok(written)
        } else {
            release::wait(outside, &server, written, &mut stages, Until::Routed)
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
    release::remove(outside, &server, "services", service, delete.wait.asynchronous).map_err(|error| {
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
    let waited = release::write(outside, &server, &wanted, new, replace.dry_run).and_then(|written| {
        if asynchronous || replace.dry_run {
            Ok(written)
        } else {
            release::wait(outside, &server, written, &mut stages, Until::Ready)
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
