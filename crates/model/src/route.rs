//! The live routes: from a host to the revisions that share its requests.

use std::{collections::HashMap, num::NonZeroU32, sync::Arc};

use crate::{
    Access, Audiences, Concurrency, Permission, Protocol, RequestTimeout, Revision, RevisionKey, RevisionName, Service,
    ServiceKey, Site,
};

/// Every host the ingress answers, at one version of the store. Published whole.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    pub version: u64,
    hosts: HashMap<Box<str>, Arc<Route>>,
}

/// One host's route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub service: ServiceKey,
    /// The revisions and their shares, which sum to 100. Empty while no revision has become ready.
    pub targets: Vec<Weighted>,
    pub invoker: Invoker,
    /// Whom an identity token may be for, to be good at this host.
    pub audiences: Arc<Audiences>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighted {
    pub percent: u8,
    pub target: Arc<RouteTarget>,
}

/// What the ingress needs to know of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTarget {
    pub revision: RevisionKey,
    pub concurrency: Concurrency,
    pub timeout: RequestTimeout,
    pub protocol: Protocol,
    pub max_instances: NonZeroU32,
    /// A client comes back to the instance that served it.
    pub session_affinity: bool,
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invoker {
    /// `allUsers` holds the invoker role, under no condition.
    Anyone,
    /// A caller with an identity token whom the policies admit.
    Checked(Arc<Access>),
}

impl Route {
    /// The revision that `draw`, a number drawn evenly from 0 to 99, falls on.
    pub fn pick(&self, draw: u8) -> Option<&Arc<RouteTarget>> {
        let mut below = 0;
        for weighted in &self.targets {
            below += weighted.percent;
            if draw < below {
                return Some(&weighted.target);
            }
        }
        self.targets.last().map(|weighted| &weighted.target)
    }
}

impl RouteTable {
    /// The routes of `services`; `revision` finds one of a service by name, `access` the policies that hold for it.
    pub fn build<'a>(
        version: u64,
        site: &Site,
        services: impl Iterator<Item = &'a Service>,
        revision: impl Fn(&ServiceKey, &RevisionName) -> Option<&'a Revision>,
        access: impl Fn(&Service) -> Access,
    ) -> Self {
        let mut hosts = HashMap::new();
        for service in services {
            let access = access(service);
            let invoker = if access.allows(None, Permission::RUN_ROUTES_INVOKE, &|_, _| false) {
                Invoker::Anyone
            } else {
                Invoker::Checked(Arc::new(access))
            };
            let mut made: HashMap<&RevisionName, Arc<RouteTarget>> = HashMap::new();
            let mut weighted = Vec::new();
            let mut tagged = Vec::new();
            for target in &service.routed.targets {
                let Some(revision) = revision(&service.key, &target.revision) else {
                    continue;
                };
                let shared = made
                    .entry(&target.revision)
                    .or_insert_with(|| Arc::new(RouteTarget::of(revision)));
                if let Some(percent) = target.percent.map(crate::Percent::get).filter(|p| *p > 0) {
                    weighted.push(Weighted {
                        percent,
                        target: shared.clone(),
                    });
                }
                if let Some(tag) = &target.tag {
                    tagged.push((tag, shared.clone()));
                }
            }
            let audiences = |tag| Arc::new(Audiences::of(site, &service.key, tag, &service.custom_audiences));
            let tagged: Vec<_> = tagged
                .into_iter()
                .map(|(tag, target)| (tag, target, audiences(Some(tag))))
                .collect();
            let audiences = audiences(None);
            for host in site.hosts(&service.key) {
                for (tag, target, audiences) in &tagged {
                    let route = Route {
                        service: service.key.clone(),
                        targets: vec![Weighted {
                            percent: 100,
                            target: target.clone(),
                        }],
                        invoker: invoker.clone(),
                        audiences: audiences.clone(),
                    };
                    hosts.insert(format!("{tag}---{host}").into(), Arc::new(route));
                }
                let route = Route {
                    service: service.key.clone(),
                    targets: weighted.clone(),
                    invoker: invoker.clone(),
                    audiences: audiences.clone(),
                };
                hosts.insert(host.into(), Arc::new(route));
            }
        }
        Self { version, hosts }
    }

    /// The route of a `Host` header's value: the port is dropped, case does not matter.
    pub fn find(&self, host: &str) -> Option<&Arc<Route>> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            self.hosts.get(name.to_ascii_lowercase().as_str())
        } else {
            self.hosts.get(name)
        }
    }

    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.keys().map(AsRef::as_ref)
    }
}

impl RouteTarget {
    pub fn of(revision: &Revision) -> Self {
        let template = &revision.template;
        Self {
            revision: revision.key.clone(),
            concurrency: template.concurrency,
            timeout: template.timeout,
            protocol: template.port.protocol,
            max_instances: template.scaling.max,
            session_affinity: template.session_affinity == Some(true),
        }
    }
}
