//! From a changed template to its revision.

use model::{Revision, RevisionKey, RevisionName, RevisionState, Service, Timestamp};
use store::Snapshot;

/// The services whose template has no revision yet. Pure: the same snapshot gives the same list.
pub(crate) fn plan(snapshot: &Snapshot) -> Vec<&Service> {
    snapshot
        .services
        .values()
        .map(AsRef::as_ref)
        .filter(|service| {
            !snapshot
                .revisions_of(service)
                .any(|revision| revision.template_generation == service.template_generation)
        })
        .collect()
}

/// The revision that `service`'s template makes. `chance` becomes the suffix of a made name and the uid.
pub(crate) fn revision_of(service: &Service, chance: u128, now: Timestamp) -> Revision {
    let low = u64::try_from(chance & u128::from(u64::MAX)).expect("masked to 64 bits");
    let name = service.template.name.clone().unwrap_or_else(|| {
        RevisionName::numbered(
            &service.key.name,
            service.template_generation,
            RevisionName::suffix(low),
        )
    });
    Revision {
        key: RevisionKey {
            service: service.key.clone(),
            name,
        },
        uid: uid(chance),
        service_uid: service.uid.clone(),
        template_generation: service.template_generation,
        created: now,
        creator: service.modifier.clone(),
        template: service.template.clone(),
        sidecar_digests: Vec::new(),
        state: RevisionState::Resolving,
        since: now,
    }
}

/// A version 4 UUID of 128 bits of chance.
fn uid(chance: u128) -> String {
    let bits = (chance & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::cases::{revision, service, snapshot};

    #[test]
    fn a_template_without_a_revision_makes_one() {
        let service = service("my-api", 2);
        let none = snapshot(std::slice::from_ref(&service), &[]);
        assert_eq!(plan(&none).len(), 1);
        let old = snapshot(std::slice::from_ref(&service), &[revision(&service, 1)]);
        assert_eq!(
            plan(&old).len(),
            1,
            "the revision of the template before does not count"
        );
        let both = snapshot(
            std::slice::from_ref(&service),
            &[revision(&service, 1), revision(&service, 2)],
        );
        assert!(plan(&both).is_empty());
    }

    #[test]
    fn the_revision_is_named_by_template_generation_or_by_the_caller() {
        let mut service = service("my-api", 7);
        let made = revision_of(&service, 0x1234, Timestamp::from_micros(5));
        assert!(made.key.name.as_str().starts_with("my-api-00007-"), "{}", made.key.name);
        assert_eq!(made.uid.len(), 36);
        assert_eq!(&made.uid[14..15], "4");
        service.template.name = Some(RevisionName::parse("my-api-blue").expect("a name"));
        assert_eq!(
            revision_of(&service, 0, Timestamp::default()).key.name.as_str(),
            "my-api-blue"
        );
    }
}
