//! Every figure, in the order in which `--all` measures them.

use crate::{
    answer, burst, cold,
    figure::{Figure, Goal::AtLeast, Goal::AtMost},
    invoker, many, memory, proxy, registry, source, spike, thaw,
};

pub(crate) const FIGURES: &[Figure] = &[
    Figure {
        name: "requests-per-second",
        about: "HTTP/1.1, 64 connections, as a ratio to nginx before the same container",
        goal: AtLeast(1.0),
        measure: proxy::requests_per_second,
    },
    Figure {
        name: "cpu-per-request",
        about: "CPU of the proxy for a request, of the same rounds, as a ratio to nginx",
        goal: AtMost(1.0),
        measure: proxy::cpu_per_request,
    },
    Figure {
        name: "authenticated-request",
        about: "CPU of a request with an identity token to a private service, as a ratio to one to an open service",
        goal: AtMost(1.15),
        measure: invoker::authenticated_request,
    },
    Figure {
        name: "added-latency",
        about: "us that the ingress adds to a request on one connection (p50), over the container asked directly",
        goal: AtMost(35.0),
        measure: proxy::added_latency,
    },
    Figure {
        name: "p99-512",
        about: "p99 at 512 connections, as a ratio to nginx before the same container",
        goal: AtMost(1.0),
        measure: proxy::p99_with_512,
    },
    Figure {
        name: "tls-requests",
        about: "HTTP/1.1 over TLS, 64 connections, requests/s as a ratio to nginx",
        goal: AtLeast(1.1),
        measure: proxy::tls,
    },
    Figure {
        name: "h2-requests",
        about: "HTTP/2 over TLS, 16 connections with 8 streams, requests/s as a ratio to nginx",
        goal: AtLeast(1.3),
        measure: proxy::http2,
    },
    Figure {
        name: "services-10000",
        about: "requests/s of one service among 10,000, as a ratio to the same service alone",
        goal: AtLeast(0.97),
        measure: many::ten_thousand,
    },
    Figure {
        name: "cold-start",
        about: "ms from zero to the first byte through the ingress, beyond a bare start of the program (p50)",
        goal: AtMost(1.5),
        measure: cold::parked_p50,
    },
    Figure {
        name: "cold-start-p99",
        about: "the same, p99 beyond the p99 of a bare start",
        goal: AtMost(5.0),
        measure: cold::parked_p99,
    },
    Figure {
        name: "cold-start-on-demand",
        about: "from zero with nothing parked (p50), as a ratio to crun by hand",
        goal: AtMost(0.8),
        measure: cold::on_demand,
    },
    Figure {
        name: "cold-start-flask",
        about: "from zero to the first byte of Flask under gunicorn (p50), as a ratio to a bare start",
        goal: AtMost(1.05),
        measure: cold::flask,
    },
    Figure {
        name: "cold-start-gen1",
        about: "from zero to the first byte of a gen1 instance (p50), as a ratio to runsc by hand",
        goal: AtMost(1.1),
        measure: cold::gen1,
    },
    Figure {
        name: "burst-1000",
        about: "s from 1,000 requests at once to their 1,000 first bytes, each by an instance of its own",
        goal: AtMost(5.0),
        measure: burst::up,
    },
    Figure {
        name: "burst-to-crun",
        about: "the same, as a ratio to 1,000 of them by crun by hand, six at a time",
        goal: AtMost(0.6),
        measure: burst::to_crun,
    },
    Figure {
        name: "burst-teardown",
        about: "s from the end of those requests until the 1,000 instances are gone",
        goal: AtMost(3.0),
        measure: burst::down,
    },
    Figure {
        name: "instance-overhead",
        about: "MiB of the machine's memory that each of 1,000 instances takes, over the program itself",
        goal: AtMost(0.7),
        measure: burst::overhead,
    },
    Figure {
        name: "thaw",
        about: "ms that a request to a throttled instance takes longer than to one with its CPU (p50)",
        goal: AtMost(0.2),
        measure: thaw::p50,
    },
    Figure {
        name: "thaw-most",
        about: "ms of the slowest request to a throttled instance",
        goal: AtMost(5.0),
        measure: thaw::most,
    },
    Figure {
        name: "spike",
        about: "p99 after a step from 20 to 500 requests/s as a ratio to the steady p99; 20 ms handler, concurrency 10",
        goal: AtMost(10.0),
        measure: spike::measure,
    },
    Figure {
        name: "deploy-cached",
        about: "ms from a changed service to Ready, its image on the machine",
        goal: AtMost(150.0),
        measure: crate::deploy::measure,
    },
    Figure {
        name: "rebuild",
        about: "from the save of a changed line of the tutorial's app to its answer, as a ratio to buildah and push by hand",
        goal: AtMost(1.0),
        measure: source::rebuild,
    },
    Figure {
        name: "deploy-unchanged",
        about: "ms of a deploy of a source that was built before",
        goal: AtMost(500.0),
        measure: source::unchanged,
    },
    Figure {
        name: "traffic-change",
        about: "ms from sending a changed traffic block to the first request that follows it",
        goal: AtMost(20.0),
        measure: answer::traffic_change,
    },
    Figure {
        name: "registry-push",
        about: "MiB/s of a push of 1 GiB in 8 layers, three at a time, as a ratio to the CNCF's registry",
        goal: AtLeast(1.5),
        measure: registry::push,
    },
    Figure {
        name: "registry-pull",
        about: "the same of a pull",
        goal: AtLeast(1.5),
        measure: registry::pull,
    },
    Figure {
        name: "cli-describe",
        about: "ms of our client describing a service, from start to end",
        goal: AtMost(20.0),
        measure: answer::describe,
    },
    Figure {
        name: "idle-memory",
        about: "MiB resident in an idle Homerun, its launcher included",
        goal: AtMost(40.0),
        measure: memory::measure,
    },
    Figure {
        name: "memory-1000-services",
        about: "MiB resident in Homerun with 1,000 services, its launcher included",
        goal: AtMost(120.0),
        measure: many::memory,
    },
    Figure {
        name: "idle-cpu",
        about: "percent of one CPU that Homerun takes with 200 idle services, each with a throttled instance",
        goal: AtMost(0.5),
        measure: many::idle_cpu,
    },
];

pub(crate) fn named(name: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_differ() {
        for figure in FIGURES {
            let found: Vec<_> = FIGURES.iter().filter(|other| other.name == figure.name).collect();
            assert_eq!(found.len(), 1, "{}", figure.name);
            assert!(named(figure.name).is_some());
        }
        assert!(named("pace").is_none());
    }
}
