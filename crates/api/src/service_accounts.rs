//! IAM, as far as gcloud asks it before a build: whether an account is there.

use http::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::{
    cloud_build,
    document::short,
    error::{Code, Error},
    query::Query,
    reply::{self, Body},
    run::call::{check_project, unimplemented},
    surface::Surface,
};

/// `GET /v1/projects/PROJECT/serviceAccounts/EMAIL`; the project may be `-`.
pub(crate) fn answer(surface: &Surface, host: &str, request: &http::Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path();
    let unknown = || unimplemented(host, request.method(), path);
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| unknown())?;
    let parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    let ["v1", "projects", project, "serviceAccounts", email] = parts.as_slice() else {
        return Err(unknown());
    };
    if request.method() != Method::GET || email.contains(':') {
        return Err(unknown());
    }
    if *project != "-" {
        check_project(project, &surface.site)?;
    }
    Query::parse(request.uri().query()).finish()?;
    let owner = surface.keys.owner().caller();
    let default = cloud_build::default_account(surface);
    let (unique_id, title) = if *email == owner.email {
        (owner.subject.clone(), "Owner of this Homerun")
    } else if *email == default {
        (
            surface.site.number().to_string(),
            "Default account of services and builds",
        )
    } else {
        return Err(Error::new(
            Code::NotFound,
            format!("service account \"{}\" does not exist", short(email)),
        ));
    };
    let project = &surface.site.project;
    let shown = json!({
        "name": format!("projects/{project}/serviceAccounts/{email}"),
        "projectId": project.as_str(),
        "uniqueId": unique_id,
        "email": email,
        "displayName": title,
    });
    Ok(reply::json(StatusCode::OK, &shown))
}
