//! The containers of one instance: what each is called to the runtime, and in which order they are started.
//!
//! The ingress container comes first and makes the namespaces that all share; the others join it. All are created
//! before any is started, so that a parked instance is parked with all of them.

use model::{ContainerSpec, InstanceId, InstanceSpec};

/// What the runtime calls a container: the first by the instance's id, the others with their number behind a dot.
pub(crate) fn runtime_name(id: &InstanceId, index: usize) -> String {
    match index {
        0 => id.to_string(),
        _ => format!("{id}.{index}"),
    }
}

/// The instance's id and the container's number of a [`runtime_name`].
pub(crate) fn whose(name: &str) -> (&str, usize) {
    match name.split_once('.') {
        None => (name, 0),
        Some((id, number)) => (id, number.parse().unwrap_or(usize::MAX)),
    }
}

/// What a container is called in the log of its service. None: it is alone.
pub(crate) fn log_name(spec: &InstanceSpec, index: usize) -> Option<&str> {
    if spec.sidecars.is_empty() {
        return None;
    }
    spec.containers().nth(index).map(|container| container.name.as_str())
}

/// The containers that may be started now: not begun, and everything they depend on has started. A name that no
/// container has holds nobody up.
pub(crate) fn due(containers: &[&ContainerSpec], begun: &[bool], started: &[bool]) -> Vec<usize> {
    let waits = |name: &String| {
        let of_name = containers.iter().position(|other| other.name == *name);
        of_name.is_some_and(|other| !started[other])
    };
    (0..containers.len())
        .filter(|index| !begun[*index] && !containers[*index].depends_on.iter().any(waits))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, depends_on: &[&str]) -> ContainerSpec {
        ContainerSpec {
            name: name.to_owned(),
            image: String::new(),
            command: Vec::new(),
            args: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            cpu_millis: 1000,
            memory_bytes: 1 << 20,
            startup_probe: None,
            liveness_probe: None,
            readiness_probe: None,
            mounts: Vec::new(),
            depends_on: depends_on.iter().map(|on| (*on).to_owned()).collect(),
        }
    }

    #[test]
    fn dependencies_come_first() {
        let containers = [
            container("proxy", &["app", "agent"]),
            container("app", &["agent"]),
            container("agent", &[]),
            container("other", &["ghost"]),
        ];
        let containers: Vec<&ContainerSpec> = containers.iter().collect();
        let mut begun = [false; 4];
        let mut started = [false; 4];
        assert_eq!(due(&containers, &begun, &started), [2, 3]);
        begun[2] = true;
        begun[3] = true;
        assert!(
            due(&containers, &begun, &started).is_empty(),
            "not before it has started"
        );
        started[2] = true;
        assert_eq!(due(&containers, &begun, &started), [1]);
        begun[1] = true;
        started[1] = true;
        assert_eq!(due(&containers, &begun, &started), [0]);
    }

    #[test]
    fn names() {
        let id = InstanceId::new([7; 12]);
        for index in [0, 1, 9] {
            assert_eq!(whose(&runtime_name(&id, index)), (id.as_str(), index));
        }
        assert_eq!(whose("i.x").1, usize::MAX);
    }
}
