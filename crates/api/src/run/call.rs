//! Method and path to one [`Call`]: what the Run Admin API serves here, at one glance.

use http::Method;
use model::{ProjectNumber, Region, RevisionName, ServiceKey, ServiceName, Site};
use percent_encoding::percent_decode_str;

use crate::{
    document::short,
    error::{Code, Error},
    iam::policy,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    CreateService { region: Region },
    ReplaceService(ServiceKey),
    GetService(ServiceKey),
    ListServices(Where),
    DeleteService(ServiceKey),
    GetRevision { region: Region, name: RevisionName },
    ListRevisions(Where),
    DeleteRevision { region: Region, name: RevisionName },
    GetConfiguration(ServiceKey),
    ListConfigurations(Where),
    GetRoute(ServiceKey),
    ListRoutes(Where),
    Policy(ServiceKey, policy::Verb),
    ListLocations,
}

/// Of which regions a list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Where {
    Everywhere,
    In(Region),
}

impl Where {
    pub(crate) fn holds(&self, region: &Region) -> bool {
        match self {
            Self::Everywhere => true,
            Self::In(only) => only == region,
        }
    }
}

/// What no method here answers to.
pub(crate) fn unimplemented(host: &str, method: &Method, path: &str) -> Error {
    let path: String = path.chars().take(300).collect();
    Error::unimplemented(format!("{method} {path} of {host} is not served by this Homerun"))
}

/// Whether the text names this Homerun's project, by id or number.
pub(crate) fn check_project(given: &str, site: &Site) -> Result<(), Error> {
    if given == site.project.as_str() || given == site.number().to_string() {
        return Ok(());
    }
    let number: ProjectNumber = site.number();
    Err(Error::new(
        Code::PermissionDenied,
        format!(
            "project \"{}\" is not this Homerun's, which is {} ({number})",
            short(given),
            site.project
        ),
    ))
}

/// `region` is that of the host, or of the site where the host names none.
pub(crate) fn parse(host: &str, method: &Method, path: &str, region: &Region, site: &Site) -> Result<Call, Error> {
    let unknown = || unimplemented(host, method, path);
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| Error::invalid("the path is not UTF-8"))?;
    let parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    let (project, place, rest) = match parts.as_slice() {
        ["apis", "serving.knative.dev", "v1", "namespaces", project, rest @ ..] => {
            (*project, Where::In(region.clone()), rest)
        }
        ["v1", "projects", project, "locations"] if *method == Method::GET => {
            check_project(project, site)?;
            return Ok(Call::ListLocations);
        }
        ["v1", "projects", project, "locations", "-", rest @ ..] => (*project, Where::Everywhere, rest),
        ["v1", "projects", project, "locations", location, rest @ ..] => {
            let region = Region::parse(location).map_err(|error| Error::field("location", error.to_string()))?;
            (*project, Where::In(region), rest)
        }
        _ => return Err(unknown()),
    };
    let Some(Which { collection, name }) = which(rest) else {
        return Err(unknown());
    };
    check_project(project, site)?;
    let one = |place: Where| match place {
        Where::In(region) => Ok(region),
        Where::Everywhere => Err(Error::field("location", "a region is required, - is for lists only")),
    };
    let Some(name) = name else {
        return match (collection, method.as_str()) {
            ("services", "GET") => Ok(Call::ListServices(place)),
            ("services", "POST") => Ok(Call::CreateService { region: one(place)? }),
            ("revisions", "GET") => Ok(Call::ListRevisions(place)),
            ("configurations", "GET") => Ok(Call::ListConfigurations(place)),
            ("routes", "GET") => Ok(Call::ListRoutes(place)),
            _ => Err(unknown()),
        };
    };
    let (name, verb) = match name.split_once(':') {
        Some((name, verb)) => (name, Some(verb)),
        None => (name, None),
    };
    // What could never have been made is not there.
    let absent = |kind: &str| Error::not_found(format!("{kind} \"{}\" does not exist", short(name)));
    let service = |place: Where| {
        let region = one(place)?;
        let name = ServiceName::parse(name).map_err(|_| absent("service"))?;
        Ok::<_, Error>(ServiceKey { region, name })
    };
    let revision = || RevisionName::parse(name).map_err(|_| absent("revision"));
    match (collection, verb, method.as_str()) {
        ("services", None, "GET") => Ok(Call::GetService(service(place)?)),
        ("services", None, "PUT") => Ok(Call::ReplaceService(service(place)?)),
        ("services", None, "DELETE") => Ok(Call::DeleteService(service(place)?)),
        ("revisions", None, "GET") => Ok(Call::GetRevision {
            region: one(place)?,
            name: revision()?,
        }),
        ("revisions", None, "DELETE") => Ok(Call::DeleteRevision {
            region: one(place)?,
            name: revision()?,
        }),
        ("configurations", None, "GET") => Ok(Call::GetConfiguration(service(place)?)),
        ("routes", None, "GET") => Ok(Call::GetRoute(service(place)?)),
        ("services", verb, _) => {
            let verb = policy::Verb::of(method, verb).ok_or_else(unknown)?;
            Ok(Call::Policy(service(place)?, verb))
        }
        _ => Err(unknown()),
    }
}

struct Which<'p> {
    collection: &'p str,
    name: Option<&'p str>,
}

fn which<'p>(rest: &[&'p str]) -> Option<Which<'p>> {
    let (collection, name) = match rest {
        [collection] => (*collection, None),
        [collection, name] if !name.is_empty() => (*collection, Some(*name)),
        _ => return None,
    };
    ["services", "revisions", "configurations", "routes"]
        .contains(&collection)
        .then_some(Which { collection, name })
}
