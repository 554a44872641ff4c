//! Which container of an instance is started after which others.

use std::collections::BTreeMap;

use crate::{RevisionTemplate, ServiceName, Violation};

/// Names that are not unique, dependencies on containers that are not there, and dependencies in a circle.
pub(crate) fn dependency_violations(template: &RevisionTemplate, service: &ServiceName, path: &str) -> Vec<Violation> {
    let names = template.container_names(service);
    let mut found = Vec::new();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            found.push(Violation::new(
                format!("{path}.spec.containers[{index}].name"),
                format!("{name} is the name of another container too"),
            ));
        }
    }
    let mut say = |description: String| {
        let field = format!("{path}.metadata.annotations[run.googleapis.com/container-dependencies]");
        found.push(Violation::new(field, description));
    };
    for (container, name) in template.containers().zip(&names) {
        for absent in container.depends_on.iter().filter(|other| !names.contains(other)) {
            let absent: String = absent.chars().take(80).collect();
            say(format!("{name} depends on \"{absent}\", which is no container"));
        }
    }
    let edges: BTreeMap<&str, Vec<&str>> = template
        .containers()
        .zip(&names)
        .map(|(container, name)| {
            let of = container.depends_on.iter().map(String::as_str).collect();
            (name.as_str(), of)
        })
        .collect();
    if let Some(circle) = circle(&edges) {
        say(format!(
            "the containers depend on each other in a circle: {}",
            circle.join(" -> ")
        ));
    }
    found
}

/// The first circle, its first name again at its end.
fn circle<'a>(edges: &BTreeMap<&'a str, Vec<&'a str>>) -> Option<Vec<&'a str>> {
    let mut done: Vec<&str> = Vec::new();
    edges.keys().find_map(|start| {
        let mut way = Vec::new();
        walk(start, edges, &mut way, &mut done)
    })
}

/// At most ten containers: recursion is no deeper.
fn walk<'a>(
    at: &'a str,
    edges: &BTreeMap<&'a str, Vec<&'a str>>,
    way: &mut Vec<&'a str>,
    done: &mut Vec<&'a str>,
) -> Option<Vec<&'a str>> {
    if let Some(from) = way.iter().position(|name| *name == at) {
        let mut circle = way[from..].to_vec();
        circle.push(at);
        return Some(circle);
    }
    if done.contains(&at) {
        return None;
    }
    way.push(at);
    let found = edges
        .get(at)
        .into_iter()
        .flatten()
        .find_map(|next| walk(next, edges, way, done));
    way.pop();
    done.push(at);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{container, revision};

    /// Containers `a`, `b`, ... with these dependencies; the first takes requests.
    fn broken(edges: &[(&str, &[&str])]) -> Vec<String> {
        let mut containers = edges.iter().map(|(name, on)| {
            let mut container = container::example();
            container.name = (*name).to_owned();
            container.depends_on = on.iter().map(|on| (*on).to_owned()).collect();
            container
        });
        let mut template = revision::example();
        template.container = containers.next().expect("one at least");
        template.sidecars = containers.collect();
        let service = ServiceName::parse("my-api").expect("a name");
        dependency_violations(&template, &service, "t")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn orders_without_a_circle() {
        for edges in [
            &[("a", &[][..])][..],
            &[("a", &["b"]), ("b", &[])],
            &[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])],
            &[("", &["my-api-2"]), ("", &[])],
        ] {
            assert!(broken(edges).is_empty(), "{edges:?}: {:?}", broken(edges));
        }
    }

    #[test]
    fn circles_and_strangers_are_named() {
        for (edges, says) in [
            (&[("a", &["a"][..])][..], "a -> a"),
            (&[("a", &["b"]), ("b", &["a"])], "a -> b -> a"),
            (
                &[("a", &[]), ("b", &["c"]), ("c", &["d"]), ("d", &["b"])],
                "b -> c -> d -> b",
            ),
            (&[("a", &["z"])], "a depends on \"z\""),
            (&[("a", &[]), ("a", &[])], "another container"),
            (&[("my-api-2", &[]), ("", &[])], "my-api-2 is the name of another"),
        ] {
            let found = broken(edges);
            assert_eq!(found.len(), 1, "{edges:?}: {found:?}");
            assert!(found[0].contains(says), "{edges:?}: {found:?}");
        }
    }
}
