//! Resource Manager, as far as gcloud asks it: what the one project is, and who may do what in all of it.

use http::{Method, Response, StatusCode};
use identity::Caller;
use model::Resource;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::{
    document,
    error::Error,
    iam::policy,
    query::Query,
    reply::{self, Body},
    run::call::{check_project, unimplemented},
    surface::Surface,
};

/// `/v1/projects/PROJECT` and `/v3/projects/PROJECT`, by id or number, and the three verbs of its policy.
pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let unknown = || unimplemented(host, &head.method, path);
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| Error::invalid("the path is not UTF-8"))?;
    let parts: Vec<&str> = decoded.split('/').collect();
    let ["", version @ ("v1" | "v3"), "projects", name] = parts.as_slice() else {
        return Err(unknown());
    };
    let (project, verb) = match name.rsplit_once(':') {
        Some((project, verb)) => (project, Some(verb)),
        None => (*name, None),
    };
    check_project(project, &surface.site)?;
    let query = Query::parse(head.uri.query());
    let answer = match (&head.method, verb) {
        (&Method::GET, None) => {
            query.finish()?;
            describe(surface, version)
        }
        (&Method::POST, Some("getIamPolicy")) => {
            query.finish()?;
            policy::asked_by_document(document::read_json(body).await?)?;
            policy::get(surface, &Resource::Project)?
        }
        (method, verb) => {
            let verb = policy::Verb::of(method, verb).ok_or_else(unknown)?;
            policy::answer(surface, caller, &Resource::Project, verb, query, body).await?
        }
    };
    Ok(reply::json(StatusCode::OK, &answer))
}

fn describe(surface: &Surface, version: &str) -> Value {
    let site = &surface.site;
    let (id, number) = (site.project.as_str(), site.number().to_string());
    if version == "v3" {
        return json!({
            "name": format!("projects/{number}"),
            "projectId": id,
            "displayName": id,
            "state": "ACTIVE",
        });
    }
    json!({
        "projectId": id,
        "projectNumber": number,
        "name": id,
        "lifecycleState": "ACTIVE",
    })
}
