//! Small worlds for the tables of the plans.

use std::collections::BTreeMap;

use model::{
    Concurrency, Container, Policy, Port, ProjectId, Region, RequestTimeout, Resources, RevisionName, RevisionTemplate,
    RoutedTarget, Scheme, Service, ServiceName, Traffic,
};

use super::*;

pub(crate) fn site() -> Site {
    Site {
        project: ProjectId::parse("my-project").expect("an id"),
        region: Region::parse("us-central1").expect("a region"),
        domain: "a.run.localhost".to_owned(),
        scheme: Scheme::Http,
        port: 8081,
        default_sandbox: model::Sandbox::Gen2,
    }
}

/// A service whose template was changed `template_generation` times.
pub(crate) fn service(name: &str, template_generation: u64) -> Service {
    Service {
        key: ServiceKey {
            region: site().region,
            name: ServiceName::parse(name).expect("a name"),
        },
        uid: format!("uid-of-{name}"),
        generation: template_generation,
        template_generation,
        resource_version: 1,
        created: Timestamp::from_micros(1),
        updated: Timestamp::from_micros(1),
        creator: "owner@example.com".to_owned(),
        modifier: "owner@example.com".to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        template: RevisionTemplate {
            name: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            container: Container {
                name: String::new(),
                image: "us-docker.pkg.dev/cloudrun/container/hello".to_owned(),
                command: vec![],
                args: vec![],
                working_dir: None,
                env: vec![],
                resources: Resources::default(),
                startup_probe: None,
                liveness_probe: None,
                readiness_probe: None,
                mounts: Vec::new(),
                depends_on: Vec::new(),
            },
            port: Port::default(),
            sidecars: Vec::new(),
            ingress_position: 0,
            volumes: Vec::new(),
            concurrency: Concurrency::default_for(1000),
            timeout: RequestTimeout::default(),
            service_account: None,
            scaling: model::Scaling::default(),
            cpu_allocation: None,
            sandbox: None,
            startup_cpu_boost: None,
            session_affinity: None,
            kpa: None,
        },
        scaling: model::ServiceScaling::default(),
        custom_audiences: Vec::new(),
        traffic: Traffic::latest(),
        policy: Policy::default(),
        routed: Routed::default(),
    }
}

pub(crate) fn revision(service: &Service, template_generation: u64) -> Revision {
    Revision {
        key: RevisionKey {
            service: service.key.clone(),
            name: RevisionName::numbered(&service.key.name, template_generation, ['a', 'b', 'c']),
        },
        uid: String::new(),
        service_uid: service.uid.clone(),
        template_generation,
        created: Timestamp::from_micros(2),
        creator: service.creator.clone(),
        template: service.template.clone(),
        sidecar_digests: Vec::new(),
        state: RevisionState::Resolving,
        since: Timestamp::from_micros(2),
    }
}

pub(crate) fn ready(revision: Revision) -> Revision {
    Revision {
        state: RevisionState::Ready { digest: "d".to_owned() },
        ..revision
    }
}

pub(crate) fn routed(service: Service, revision: &Revision) -> Service {
    let target = RoutedTarget {
        revision: revision.key.name.clone(),
        latest: true,
        percent: Some(model::Percent::ALL),
        tag: None,
    };
    let routed = Routed {
        generation: service.generation,
        since: Timestamp::from_micros(3),
        targets: vec![target],
    };
    Service { routed, ..service }
}

pub(crate) fn snapshot(services: &[Service], revisions: &[Revision]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for service in services {
        snapshot.services.insert(service.key.clone(), Arc::new(service.clone()));
    }
    for revision in revisions {
        snapshot
            .revisions
            .insert(revision.key.clone(), Arc::new(revision.clone()));
    }
    snapshot
}
