//! Resource Manager, as far as gcloud asks it in passing: what the one project is.

use http::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::{
    error::Error,
    query::Query,
    reply::{self, Body},
    run::call::{check_project, unimplemented},
    surface::Surface,
};

/// `GET /v1/projects/PROJECT`, by id or number.
pub(crate) fn answer(surface: &Surface, host: &str, request: &http::Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path();
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| Error::invalid("the path is not UTF-8"))?;
    let project = decoded
        .strip_prefix("/v1/projects/")
        .filter(|name| !name.contains(['/', ':']));
    match project {
        Some(project) if request.method() == Method::GET => {
            check_project(project, &surface.site)?;
            Query::parse(request.uri().query()).finish()?;
            let site = &surface.site;
            let shown = json!({
                "projectId": site.project.as_str(),
                "projectNumber": site.number().to_string(),
                "name": site.project.as_str(),
                "lifecycleState": "ACTIVE",
            });
            Ok(reply::json(StatusCode::OK, &shown))
        }
        _ => Err(unimplemented(host, request.method(), path)),
    }
}
