//! The Run Admin API: from a [`call::Call`] to its answer.

pub(crate) mod call;
mod revisions;
pub(crate) mod services;
pub(crate) mod v1;

use http::{Response, StatusCode};
use identity::Caller;
use model::{Region, Resource};
use serde_json::{Value, json};

use crate::{
    document,
    error::Error,
    iam::policy,
    query::Query,
    reply::{self, Body},
    run::{call::Call, v1::list::Wanted},
    surface::Surface,
};

/// Answers one call of a checked caller.
pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    region: &Region,
    caller: &Caller,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let call = call::parse(host, &head.method, head.uri.path(), region, &surface.site)?;
    let query = Query::parse(head.uri.query());
    let answer = match call {
        Call::CreateService { region } => {
            services::create(surface, region, caller, query, document::read_json(body).await?).await
        }
        Call::ReplaceService(key) => {
            services::replace(surface, key, caller, query, document::read_json(body).await?).await
        }
        Call::GetService(key) => services::get(surface, &key, query, v1::service::encode),
        Call::ListServices(place) => services::list(
            surface,
            &place,
            &Wanted::read(query)?,
            "ServiceList",
            v1::service::encode,
        ),
        Call::DeleteService(key) => services::delete(surface, key, deletion(query, body).await?).await,
        Call::GetRevision { region, name } => revisions::get(surface, &region, &name, query),
        Call::ListRevisions(place) => revisions::list(surface, &place, &Wanted::read(query)?),
        Call::DeleteRevision { region, name } => {
            revisions::delete(surface, region, name, deletion(query, body).await?).await
        }
        Call::GetConfiguration(key) => services::get(surface, &key, query, v1::configuration::encode),
        Call::ListConfigurations(place) => services::list(
            surface,
            &place,
            &Wanted::read(query)?,
            "ConfigurationList",
            v1::configuration::encode,
        ),
        Call::GetRoute(key) => services::get(surface, &key, query, v1::route::encode),
        Call::ListRoutes(place) => {
            services::list(surface, &place, &Wanted::read(query)?, "RouteList", v1::route::encode)
        }
        Call::Policy(key, verb) => policy::answer(surface, caller, &Resource::Service(key), verb, query, body).await,
        Call::ListLocations => locations(surface, query),
    }?;
    Ok(reply::json(StatusCode::OK, &answer))
}

/// What a delete asks for besides the name: whether it is only tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deletion {
    dry: bool,
}

async fn deletion(mut query: Query, body: Body) -> Result<Deletion, Error> {
    let dry = query.dry_run()?;
    let policy = query.take("propagationPolicy")?;
    query.take("kind")?;
    query.take("apiVersion")?;
    query.finish()?;
    let findings = document::Findings::default();
    let mut options = document::Object::root(document::read_json(body).await?, &findings);
    options.drop_owned(&["kind", "apiVersion"]);
    let policy = options.text("propagationPolicy").or(policy);
    if let Some(other) = policy.filter(|policy| !["Background", "Foreground"].contains(&policy.as_str())) {
        options.say(
            "propagationPolicy",
            format!(
                "\"{}\" is not served: what belongs to the deleted is always deleted",
                document::short(&other)
            ),
        );
    }
    options.finish();
    let violations = findings.into_violations();
    if violations.is_empty() {
        Ok(Deletion { dry })
    } else {
        Err(Error::violations(violations))
    }
}

/// The regions there are: that of the site, and each that holds a service. Others begin to exist with their first.
fn locations(surface: &Surface, mut query: Query) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?;
    let token = query.take("pageToken")?;
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let mut regions: Vec<&Region> = snapshot.services.keys().map(|key| &key.region).collect();
    regions.push(&surface.site.region);
    regions.sort_unstable();
    regions.dedup();
    let items = regions.into_iter().map(|region| (region.to_string(), region)).collect();
    let page = crate::page::page(items, limit, token.as_deref(), "pageToken")?;
    let project = &surface.site.project;
    let locations: Vec<Value> = page
        .items
        .iter()
        .map(|region| {
            json!({
                "name": format!("projects/{project}/locations/{region}"),
                "locationId": region.as_str(),
                "displayName": region.as_str(),
            })
        })
        .collect();
    let mut answer = json!({ "locations": locations });
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

/// The answer to a delete.
fn deleted(kind: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Success",
        "details": { "name": name, "group": "serving.knative.dev", "kind": kind, "uid": uid },
    })
}
