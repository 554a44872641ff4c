//! From a traffic block to where requests go.

use std::{collections::BTreeMap, sync::Arc};

use model::{RouteTable, Routed, Service, ServiceKey, Site, Timestamp, assign};
use store::Snapshot;

/// The routings that are due: every service whose traffic can be bound to ready revisions in another way than it is
/// now, or whose routing does not name its generation yet. A service whose targets are not all ready keeps what it has.
pub(crate) fn plan(snapshot: &Snapshot, now: Timestamp) -> BTreeMap<ServiceKey, Routed> {
    snapshot
        .services
        .values()
        .filter_map(|service| {
            let targets = assign(&service.traffic, snapshot.revisions_of(service))?;
            let routed = &service.routed;
            let due = routed.generation != service.generation || routed.targets != targets;
            due.then(|| {
                let since = if routed.targets == targets && routed.generation != 0 {
                    routed.since
                } else {
                    now
                };
                let routed = Routed {
                    generation: service.generation,
                    since,
                    targets,
                };
                (service.key.clone(), routed)
            })
        })
        .collect()
}

/// The whole table, with the routings that are due already in place.
pub(crate) fn table(snapshot: &Snapshot, due: &BTreeMap<ServiceKey, Routed>, site: &Site) -> RouteTable {
    let services: Vec<Arc<Service>> = snapshot
        .services
        .values()
        .map(|service| match due.get(&service.key) {
            None => service.clone(),
            Some(routed) => Arc::new(Service {
                routed: routed.clone(),
                ..(**service).clone()
            }),
        })
        .collect();
    RouteTable::build(
        snapshot.version,
        site,
        services.iter().map(AsRef::as_ref),
        |service, name| {
            snapshot.revision(&model::RevisionKey {
                service: service.clone(),
                name: name.clone(),
            })
        },
        |service| snapshot.access(&model::Resource::Service(service.key.clone())),
    )
}

#[cfg(test)]
mod tests {
    use model::{Percent, RevisionState, Target, Traffic, TrafficTarget};

    use super::*;
    use crate::turn::cases::{ready, revision, service, site, snapshot};

    fn now() -> Timestamp {
        Timestamp::from_micros(9)
    }

    #[test]
    fn traffic_waits_for_its_revision_and_follows_it() {
        let mut service = service("my-api", 2);
        let waiting = snapshot(
            std::slice::from_ref(&service),
            &[ready(revision(&service, 1)), revision(&service, 2)],
        );
        let first = plan(&waiting, now()).remove(&service.key).expect("due");
        assert!(first.targets[0].revision.as_str().contains("-00001-"));
        service.routed = first;
        let after = snapshot(
            std::slice::from_ref(&service),
            &[ready(revision(&service, 1)), ready(revision(&service, 2))],
        );
        let second = plan(&after, now()).remove(&service.key).expect("due");
        assert!(second.targets[0].revision.as_str().contains("-00002-"));
        service.routed = second;
        let settled = snapshot(
            std::slice::from_ref(&service),
            &[ready(revision(&service, 1)), ready(revision(&service, 2))],
        );
        assert!(plan(&settled, now()).is_empty());
    }

    #[test]
    fn traffic_stays_where_it_was_when_a_target_fails() {
        let mut service = service("my-api", 2);
        let one = ready(revision(&service, 1));
        service.routed = plan(
            &snapshot(std::slice::from_ref(&service), std::slice::from_ref(&one)),
            now(),
        )
        .remove(&service.key)
        .expect("due");
        let mut two = revision(&service, 2);
        two.state = RevisionState::Failed {
            reason: model::Reason::HealthCheckContainerError,
            message: "boom".to_owned(),
            digest: None,
        };
        service.generation = 3;
        service.traffic = Traffic::new(vec![TrafficTarget {
            to: Target::Revision(two.key.name.clone()),
            percent: Percent::new(100),
            tag: None,
        }])
        .expect("sums");
        let state = snapshot(std::slice::from_ref(&service), &[one.clone(), two]);
        let due = plan(&state, now());
        assert!(due.is_empty(), "{due:?}");
        let table = table(&state, &due, &site());
        let route = table.find(&site().host(&service.key)).expect("a route");
        assert_eq!(route.pick(0).expect("a target").revision, one.key);
    }

    #[test]
    fn the_table_already_holds_what_is_due() {
        let service = service("my-api", 1);
        let state = snapshot(std::slice::from_ref(&service), &[ready(revision(&service, 1))]);
        let due = plan(&state, now());
        let table = table(&state, &due, &site());
        let route = table.find(&site().host(&service.key)).expect("a route");
        assert_eq!(route.targets.len(), 1);
        assert_eq!(route.targets[0].percent, 100);
    }
}
