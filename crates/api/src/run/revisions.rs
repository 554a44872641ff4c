//! Revisions: read, listed, deleted. They are made by a service's template alone.

use model::{Region, Revision, RevisionKey, RevisionName, Service, ServiceKey, ServiceName, Site, latest_created};
use serde_json::Value;
use store::Snapshot;

use crate::{
    error::{Code, Error},
    query::Query,
    run::{
        Deletion,
        call::Where,
        deleted,
        v1::{list::Wanted, revision},
    },
    surface::Surface,
};

fn absent(region: &Region, name: &RevisionName, site: &Site) -> Error {
    Error::not_found(format!(
        "revision \"{name}\" does not exist in region {region} of project {}",
        site.project
    ))
}

/// The revision of a region by its name alone. A revision's name begins with its service's, so there are only as many
/// services to look at as the name has hyphens.
pub(crate) fn find<'s>(
    snapshot: &'s Snapshot,
    region: &Region,
    name: &RevisionName,
) -> Option<(&'s Service, &'s Revision)> {
    name.as_str().match_indices('-').find_map(|(at, _)| {
        let key = ServiceKey {
            region: region.clone(),
            name: ServiceName::parse(&name.as_str()[..at]).ok()?,
        };
        let service = snapshot.service(&key)?;
        let revision = snapshot.revision(&RevisionKey {
            service: key,
            name: name.clone(),
        })?;
        (revision.service_uid == service.uid).then_some((service, revision))
    })
}

pub(crate) fn get(surface: &Surface, region: &Region, name: &RevisionName, query: Query) -> Result<Value, Error> {
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let (service, found) = find(&snapshot, region, name).ok_or_else(|| absent(region, name, &surface.site))?;
    Ok(revision::encode(found, service, &surface.site))
}

pub(crate) fn list(surface: &Surface, place: &Where, wanted: &Wanted) -> Result<Value, Error> {
    let snapshot = surface.store.snapshot();
    let items = snapshot
        .services
        .values()
        .filter(|service| place.holds(&service.key.region))
        .flat_map(|service| snapshot.revisions_of(service).map(move |revision| (service, revision)))
        .filter(|(service, found)| wanted.admits(found.key.name.as_str(), &revision::labels(found, service)))
        .map(|(service, found)| {
            // The newest first: `gcloud run revisions list --format="value(REVISION)"` prints them as they come.
            let age = i64::MAX - found.created.as_micros();
            let key = format!("{age:019}/{}/{}", service.key.region, found.key.name);
            (key, (service, found))
        })
        .collect();
    wanted.encode("RevisionList", snapshot.version, items, |(service, found)| {
        revision::encode(found, service, &surface.site)
    })
}

pub(crate) async fn delete(
    surface: &Surface,
    region: Region,
    name: RevisionName,
    deletion: Deletion,
) -> Result<Value, Error> {
    let site = surface.site.clone();
    let wanted = name.clone();
    let deletable = move |snapshot: &Snapshot| {
        let (service, found) = find(snapshot, &region, &wanted).ok_or_else(|| absent(&region, &wanted, &site))?;
        unneeded(snapshot, service, found)?;
        Ok::<_, Error>((found.key.clone(), found.uid.clone()))
    };
    let (_, uid) = if deletion.dry {
        deletable(&surface.store.snapshot())?
    } else {
        surface
            .store
            .transact(move |tx| {
                let gone = deletable(tx.snapshot())?;
                tx.delete_revision(&gone.0);
                Ok::<_, Error>(gone)
            })
            .await?
    };
    Ok(deleted("revisions", name.as_str(), &uid))
}

/// A revision may go when requests cannot reach it and it is not the newest.
fn unneeded(snapshot: &Snapshot, service: &Service, revision: &Revision) -> Result<(), Error> {
    let name = &revision.key.name;
    let why = if latest_created(snapshot.revisions_of(service)).is_some_and(|latest| latest.key.name == *name) {
        format!("it is the latest revision of service \"{}\"", service.key.name)
    } else if service.reaches(name) || service.traffic.names(name) {
        format!("traffic or a tag of service \"{}\" names it", service.key.name)
    } else {
        return Ok(());
    };
    Err(Error::new(
        Code::FailedPrecondition,
        format!("revision \"{name}\" cannot be deleted: {why}"),
    ))
}
