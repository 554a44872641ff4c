//! Why a service has so many instances: the last decisions, told to our own CLI. No API of Google's has this.

use http::{Method, Response, StatusCode};
use model::{Region, ScalingDecision, ServiceKey, ServiceName};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::{
    document::short,
    error::Error,
    query::Query,
    reply::{self, Body},
    run::{
        call::{check_project, unimplemented},
        services::absent,
        v1::rfc3339,
    },
    surface::Surface,
};

/// `GET /homerun/v1/projects/PROJECT/locations/REGION/services/SERVICE/decisions`.
pub(crate) fn answer(surface: &Surface, host: &str, request: &http::Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path();
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| Error::invalid("the path is not UTF-8"))?;
    let parts: Vec<&str> = decoded.split('/').collect();
    let [
        "",
        "homerun",
        "v1",
        "projects",
        project,
        "locations",
        region,
        "services",
        service,
        "decisions",
    ] = parts[..]
    else {
        return Err(unimplemented(host, request.method(), path));
    };
    if request.method() != Method::GET {
        return Err(unimplemented(host, request.method(), path));
    }
    check_project(project, &surface.site)?;
    Query::parse(request.uri().query()).finish()?;
    let unknown = || Error::not_found(format!("service \"{}\" does not exist", short(service)));
    let key = ServiceKey {
        region: Region::parse(region).map_err(|_| unknown())?,
        name: ServiceName::parse(service).map_err(|_| unknown())?,
    };
    if surface.store.snapshot().service(&key).is_none() {
        return Err(absent(&key, &surface.site));
    }
    let told: Vec<Value> = (surface.decisions)(&key).iter().map(encode).collect();
    Ok(reply::json(StatusCode::OK, &json!({ "decisions": told })))
}

fn encode(decision: &ScalingDecision) -> Value {
    let inputs: Map<String, Value> = decision
        .inputs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    json!({
        "time": rfc3339(decision.at),
        "revision": decision.revision.as_str(),
        "stands": decision.stands,
        "kind": decision.kind.word(),
        "instances": decision.instances,
        "alive": decision.alive,
        "rule": decision.rule,
        "text": decision.text,
        "inputs": inputs,
    })
}
