//! CPU and memory limits, and how they bind each other.
//!
//! The rules are those of Cloud Run's "Configure CPU limits" and "Configure memory limits". Of several containers the
//! limits are added up, and the sums are judged; one container's own CPU above 1 is a whole number of a few.

use crate::{Cpu, RevisionTemplate, Sandbox, Violation};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Amounts of CPU above one that a container may have, thousandths.
const LARGE: [u32; 4] = [2000, 4000, 6000, 8000];

/// The sums of a template's limits, as they are told.
struct Sums {
    millis: u32,
    bytes: u64,
    cpu: String,
    memory: String,
    gen2: bool,
}

pub(crate) fn resource_violations(template: &RevisionTemplate, path: &str) -> Vec<Violation> {
    let limits = |index: usize| format!("{path}.spec.containers[{index}].resources.limits");
    let mut found = Vec::new();
    for (index, container) in template.containers().enumerate() {
        let cpu = &container.resources.cpu;
        if cpu.millis() > 1000 && !LARGE.contains(&cpu.millis()) {
            found.push(Violation::new(
                format!("{}.cpu", limits(index)),
                format!("{cpu} is not allowed: 0.08 to 1, 2, 4, 6 or 8"),
            ));
        }
    }
    if !found.is_empty() {
        return found;
    }
    let sums = sums(template);
    let ingress = limits(template.ingress_position());
    if let Some(why) = cpu_rule(&sums) {
        found.push(Violation::new(format!("{ingress}.cpu"), why));
    } else if let Some(why) = memory_rule(&sums) {
        found.push(Violation::new(format!("{ingress}.memory"), why));
    }
    found
}

fn sums(template: &RevisionTemplate) -> Sums {
    let millis = template.cpu_millis();
    let bytes = template.memory_bytes();
    let resources = &template.container.resources;
    let (cpu, memory) = if template.sidecars.is_empty() {
        (resources.cpu.to_string(), resources.memory.to_string())
    } else {
        let count = template.sidecars.len() + 1;
        (
            format!("{} of {count} containers together", Cpu::from_millis(millis)),
            format!("{}Mi of {count} containers together", bytes.div_ceil(MIB)),
        )
    };
    Sums {
        millis,
        bytes,
        cpu,
        memory,
        gen2: template.sandbox == Some(Sandbox::Gen2),
    }
}

/// What an execution environment that asks for more is called behind its floor.
fn whose(gen2: bool) -> &'static str {
    if gen2 {
        " in the second generation execution environment"
    } else {
        ""
    }
}

fn cpu_rule(sums: &Sums) -> Option<String> {
    let Sums { millis, cpu, gen2, .. } = sums;
    let (smallest, told) = if *gen2 { (1000, "1") } else { (80, "0.08") };
    if *millis < smallest {
        Some(format!("{cpu} is too little: at least {told}{}", whose(*gen2)))
    } else if *millis > 8000 {
        Some(format!("{cpu} is too much: at most 8"))
    } else {
        None
    }
}

fn memory_rule(sums: &Sums) -> Option<String> {
    let Sums {
        millis,
        bytes,
        cpu,
        memory,
        gen2,
    } = sums;
    let floor = if *gen2 { 512 * MIB } else { 128 * MIB };
    if *bytes < floor {
        return Some(format!(
            "{memory} is too little: at least {}Mi{}",
            floor / MIB,
            whose(*gen2)
        ));
    }
    if *bytes > 32 * GIB {
        return Some(format!("{memory} is too much: at most 32Gi"));
    }
    let most = match millis {
        0..500 => 512 * MIB,
        500..1000 => GIB,
        1000 => 4 * GIB,
        1001..=2000 => 8 * GIB,
        2001..=4000 => 16 * GIB,
        4001..=6000 => 24 * GIB,
        _ => 32 * GIB,
    };
    let least = match millis {
        0..4000 => 0,
        4000..6000 => 2 * GIB,
        _ => 4 * GIB,
    };
    if *bytes > most {
        Some(format!("{memory} is too much for {cpu} CPU: at most {}Mi", most / MIB))
    } else if *bytes < least {
        Some(format!(
            "{memory} is too little for {cpu} CPU: at least {}Gi",
            least / GIB
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, container, revision};

    /// What is wrong with containers of these limits, the first of which takes requests.
    fn sized(limits: &[(&str, &str)], sandbox: Option<Sandbox>) -> Vec<String> {
        let mut containers = limits.iter().map(|(cpu, memory)| {
            let mut container = container::example();
            container.resources.cpu = Cpu::parse(cpu).expect(cpu);
            container.resources.memory = Memory::parse(memory).expect(memory);
            container
        });
        let mut template = revision::example();
        template.sandbox = sandbox;
        template.container = containers.next().expect("one at least");
        template.sidecars = containers.collect();
        resource_violations(&template, "t")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn cpu_and_memory_bind_each_other() {
        let gen2 = Some(Sandbox::Gen2);
        for (cpu, memory, sandbox, wrong) in [
            ("1", "256Mi", None, None),
            ("1", "128Mi", None, None),
            ("0.08", "512Mi", None, None),
            ("1", "512Mi", gen2, None),
            ("2", "8Gi", None, None),
            ("8", "32Gi", None, None),
            ("1", "64Mi", None, Some("at least 128Mi")),
            ("1", "256Mi", gen2, Some("at least 512Mi in the second generation")),
            ("0.5", "512Mi", gen2, Some("at least 1 in the second generation")),
            ("0.07", "128Mi", None, Some("at least 0.08")),
            ("3", "1Gi", None, Some("2, 4, 6 or 8")),
            ("100", "1Gi", None, Some("2, 4, 6 or 8")),
            ("1", "5Gi", None, Some("at most 4096Mi")),
            ("0.1", "1Gi", None, Some("at most 512Mi")),
            ("4", "1Gi", None, Some("at least 2Gi")),
            ("8", "64Gi", None, Some("at most 32Gi")),
        ] {
            check(&[(cpu, memory)], sandbox, wrong);
        }
    }

    #[test]
    fn several_containers_are_judged_by_their_sums() {
        for (limits, wrong) in [
            (&[("1", "512Mi"), ("0.5", "256Mi")][..], None),
            (&[("0.5", "128Mi"), ("0.5", "384Mi")], None),
            (&[("1", "4Gi"), ("1", "4Gi")], None),
            (&[("0.5", "256Mi"), ("0.4", "256Mi")], Some("900m of 2 containers")),
            (
                &[("1", "128Mi"), ("0.5", "128Mi")],
                Some("256Mi of 2 containers together is too little"),
            ),
            (&[("0.5", "4Gi"), ("0.5", "1Gi")], Some("at most 4096Mi")),
            (&[("8", "4Gi"), ("0.5", "1Gi")], Some("at most 8")),
            (
                &[("1", "1Gi"), ("1.5", "1Gi")],
                Some("containers[1].resources.limits.cpu: 1.5"),
            ),
        ] {
            check(limits, Some(Sandbox::Gen2), wrong);
        }
    }

    fn check(limits: &[(&str, &str)], sandbox: Option<Sandbox>, wrong: Option<&str>) {
        let found = sized(limits, sandbox);
        match wrong {
            None => assert!(found.is_empty(), "{limits:?}: {found:?}"),
            Some(text) => {
                assert_eq!(found.len(), 1, "{limits:?}: {found:?}");
                assert!(found[0].contains(text), "{limits:?}: {found:?}");
            }
        }
    }
}
