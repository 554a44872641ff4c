//! Service Usage: which of Google's services this Homerun serves. All of those are enabled, always; no other can be.

use http::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    page::page,
    query::Query,
    reply::{self, Body},
    run::call::{check_project, unimplemented},
    surface::Surface,
};

/// What is served here, with Google's titles.
const SERVED: [(&str, &str); 9] = [
    ("artifactregistry.googleapis.com", "Artifact Registry API"),
    ("cloudbuild.googleapis.com", "Cloud Build API"),
    ("cloudresourcemanager.googleapis.com", "Cloud Resource Manager API"),
    ("iam.googleapis.com", "Identity and Access Management (IAM) API"),
    ("iamcredentials.googleapis.com", "IAM Service Account Credentials API"),
    ("run.googleapis.com", "Cloud Run Admin API"),
    ("secretmanager.googleapis.com", "Secret Manager API"),
    ("serviceusage.googleapis.com", "Service Usage API"),
    ("storage.googleapis.com", "Cloud Storage API"),
];

const ENABLE: &str = "type.googleapis.com/google.api.serviceusage.v1.EnableServiceResponse";
const BATCH_ENABLE: &str = "type.googleapis.com/google.api.serviceusage.v1.BatchEnableServicesResponse";

pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let path = percent_decode_str(head.uri.path())
        .decode_utf8()
        .map_err(|_| Error::invalid("the path is not UTF-8"))?;
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let query = Query::parse(head.uri.query());
    let unknown = || unimplemented(host, &head.method, &path);
    let ["v1", "projects", project, rest @ ..] = parts.as_slice() else {
        return Err(unknown());
    };
    let answer = match (&head.method, rest) {
        (&Method::GET, ["services"]) => {
            check_project(project, &surface.site)?;
            list(surface, query)?
        }
        (&Method::POST, ["services:batchEnable"]) => {
            check_project(project, &surface.site)?;
            query.finish()?;
            batch_enable(surface, document::read_json(body).await?)?
        }
        (&Method::GET, ["services", name]) if !name.contains(':') => {
            check_project(project, &surface.site)?;
            query.finish()?;
            get(surface, name)?
        }
        (&Method::POST, ["services", call]) if call.ends_with(":enable") => {
            check_project(project, &surface.site)?;
            query.finish()?;
            let findings = Findings::default();
            Object::root(document::read_json(body).await?, &findings).finish();
            let violations = findings.into_violations();
            if !violations.is_empty() {
                return Err(Error::violations(violations));
            }
            let name = call.trim_end_matches(":enable");
            let service = enabled(surface, name).ok_or_else(|| not_served(&[name]))?;
            done(&json!({ "@type": ENABLE, "service": service }))
        }
        _ => return Err(unknown()),
    };
    Ok(reply::json(StatusCode::OK, &answer))
}

fn shown(surface: &Surface, name: &str, title: &str, state: &str) -> Value {
    let parent = format!("projects/{}", surface.site.number());
    json!({
        "name": format!("{parent}/services/{name}"),
        "parent": parent,
        "config": { "name": name, "title": title },
        "state": state,
    })
}

fn enabled(surface: &Surface, name: &str) -> Option<Value> {
    let (name, title) = SERVED.iter().find(|(served, _)| *served == name)?;
    Some(shown(surface, name, title, "ENABLED"))
}

fn get(surface: &Surface, name: &str) -> Result<Value, Error> {
    if let Some(service) = enabled(surface, name) {
        return Ok(service);
    }
    if name.ends_with(".googleapis.com") {
        return Ok(shown(surface, name, name, "DISABLED"));
    }
    Err(Error::new(
        Code::NotFound,
        format!("service \"{}\" does not exist", short(name)),
    ))
}

/// An operation that has ended: what was asked for was so already.
fn done(response: &Value) -> Value {
    json!({ "name": "operations/noop.DONE_OPERATION", "done": true, "response": response })
}

fn not_served(names: &[&str]) -> Error {
    let names: Vec<String> = names.iter().map(|name| short(name)).collect();
    let served: Vec<&str> = SERVED.iter().map(|(name, _)| *name).collect();
    Error::invalid(format!(
        "{} cannot be enabled: not served by this Homerun, which serves {}",
        names.join(", "),
        served.join(", ")
    ))
}

fn batch_enable(surface: &Surface, document: Value) -> Result<Value, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let names = root.texts("serviceIds");
    if !(1..=20).contains(&names.len()) {
        root.say("serviceIds", format!("{} services: 1 to 20 are expected", names.len()));
    }
    root.finish();
    let violations = findings.into_violations();
    if !violations.is_empty() {
        return Err(Error::violations(violations));
    }
    let unserved: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| enabled(surface, name).is_none())
        .collect();
    if !unserved.is_empty() {
        return Err(not_served(&unserved));
    }
    let services: Vec<Value> = names.iter().filter_map(|name| enabled(surface, name)).collect();
    Ok(done(&json!({ "@type": BATCH_ENABLE, "services": services })))
}

fn list(surface: &Surface, mut query: Query) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?;
    let token = query.take("pageToken")?;
    let filter = query.take("filter")?;
    query.finish()?;
    let names: &[(&str, &str)] = match filter.as_deref() {
        None | Some("state:ENABLED") => &SERVED,
        Some("state:DISABLED") => &[],
        Some(other) => {
            return Err(Error::field(
                "filter",
                format!("expected state:ENABLED or state:DISABLED, not \"{}\"", short(other)),
            ));
        }
    };
    let items = names
        .iter()
        .map(|(name, title)| ((*name).to_owned(), shown(surface, name, title, "ENABLED")))
        .collect();
    let page = page(items, limit, token.as_deref(), "pageToken")?;
    let mut answer = json!({ "services": page.items });
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}
