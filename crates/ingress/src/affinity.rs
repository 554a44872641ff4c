//! Session affinity: a cookie by which a client comes back to the instance that served it, for revisions that ask for it.
//!
//! The cookie is Cloud Run's (`GAESA`, 30 days). Its value is sealed: it names the instance and the draw by which the
//! client fell on its revision, and nobody but this Homerun can read it, or make one that names an instance of their
//! choice. It is good for one service. A cookie that does not open is as none.
//!
//! As on Cloud Run, affinity goes before the traffic split: whoever has a cookie keeps the draw, and with it the
//! revision, for as long as the split says the same; when the split is moved, only those move whose draw fell into the
//! part that moved. And it is best effort: an instance that is gone, full or ending is not waited for, another takes the
//! request and the cookie is replaced.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};
use model::{InstanceId, Route, RouteTarget, ServiceKey};

const COOKIE: &str = "GAESA";
const SECONDS: u32 = 30 * 24 * 60 * 60;
/// Cookies of the name that are tried to be opened, of all that a request may carry.
const MOST_TRIED: usize = 4;

/// The key to the cookies.
pub(crate) struct Affinity(LessSafeKey);

/// What a cookie says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bond {
    pub(crate) draw: u8,
    pub(crate) instance: InstanceId,
}

/// Where a request goes.
pub(crate) struct Choice<'a> {
    pub(crate) target: &'a std::sync::Arc<RouteTarget>,
    draw: u8,
    /// Asked for first. None: the client has no cookie that counts.
    pub(crate) instance: Option<InstanceId>,
}

/// The revision and the instance for a request that came with `bond`; `draw`, below 100, is of this request alone and
/// counts for those without. None: the route has no revision.
pub(crate) fn choose(route: &Route, bond: Option<Bond>, draw: u8) -> Option<Choice<'_>> {
    if let Some(bond) = bond
        && let Some(target) = route.pick(bond.draw)
        && target.session_affinity
    {
        return Some(Choice {
            target,
            draw: bond.draw,
            instance: Some(bond.instance),
        });
    }
    route.pick(draw).map(|target| Choice {
        target,
        draw,
        instance: None,
    })
}

impl Choice<'_> {
    /// The cookie that the client is to have after `instance` served it. None: nothing new.
    pub(crate) fn bond(&self, instance: &InstanceId) -> Option<Bond> {
        let is_new = self.target.session_affinity && self.instance.as_ref() != Some(instance);
        is_new.then(|| Bond {
            draw: self.draw,
            instance: instance.clone(),
        })
    }
}

impl Affinity {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length");
        Self(LessSafeKey::new(key))
    }

    /// The bond in the request's cookies, if a revision of the route asks for one.
    pub(crate) fn read(&self, route: &Route, headers: &HeaderMap) -> Option<Bond> {
        if !route.targets.iter().any(|weighted| weighted.target.session_affinity) {
            return None;
        }
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
            .take(MOST_TRIED)
            .find_map(|value| self.open(&route.service, value))
    }

    /// The `Set-Cookie` field; `is_secure` when the client came by TLS.
    pub(crate) fn cookie(&self, service: &ServiceKey, bond: &Bond, is_secure: bool) -> HeaderValue {
        let value = self.seal(service, bond);
        let secure = if is_secure { "; Secure" } else { "" };
        let text = format!("{COOKIE}={value}; Max-Age={SECONDS}; Path=/; HttpOnly{secure}");
        HeaderValue::from_str(&text).expect("base64 and words")
    }

    fn seal(&self, service: &ServiceKey, bond: &Bond) -> String {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).expect("the system has random numbers");
        let mut inside = vec![bond.draw];
        inside.extend_from_slice(bond.instance.as_str().as_bytes());
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), about(service), &mut inside)
            .expect("a few bytes can be sealed");
        URL_SAFE_NO_PAD.encode([&nonce[..], &inside].concat())
    }

    fn open(&self, service: &ServiceKey, value: &str) -> Option<Bond> {
        let mut sealed = URL_SAFE_NO_PAD.decode(value).ok()?;
        let (nonce, inside) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let inside = self.0.open_in_place(nonce, about(service), inside).ok()?;
        let (draw, instance) = inside.split_first()?;
        Some(Bond {
            draw: (*draw < 100).then_some(*draw)?,
            instance: InstanceId::parse(std::str::from_utf8(instance).ok()?)?,
        })
    }
}

fn about(service: &ServiceKey) -> Aad<String> {
    Aad::from(format!("{}/{}", service.region, service.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::{
        Concurrency, Invoker, Protocol, Region, RequestTimeout, RevisionKey, RevisionName, ServiceName, Weighted,
    };

    use super::*;

    fn service(name: &str) -> ServiceKey {
        ServiceKey {
            region: Region::parse("us-central1").expect("a region"),
            name: ServiceName::parse(name).expect("a name"),
        }
    }

    fn route(targets: &[(&str, u8, bool)]) -> Route {
        let targets = targets.iter().map(|(name, percent, session_affinity)| Weighted {
            percent: *percent,
            target: Arc::new(RouteTarget {
                revision: RevisionKey {
                    service: service("s"),
                    name: RevisionName::parse(name).expect("a name"),
                },
                concurrency: Concurrency::new(80).expect("in range"),
                timeout: RequestTimeout::new(300).expect("in range"),
                protocol: Protocol::Http1,
                max_instances: std::num::NonZeroU32::MIN,
                session_affinity: *session_affinity,
            }),
        });
        Route {
            service: service("s"),
            targets: targets.collect(),
            invoker: Invoker::Anyone,
            audiences: Arc::default(),
        }
    }

    fn bond(draw: u8) -> Bond {
        Bond {
            draw,
            instance: InstanceId::new([draw; 12]),
        }
    }

    fn cookies(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_str(text).expect("a value"));
        headers
    }

    #[test]
    fn only_what_was_sealed_here_for_this_service_opens() {
        let affinity = Affinity::new(&[7; 32]);
        let route = route(&[("s-1", 100, true)]);
        let set = affinity.cookie(&service("s"), &bond(41), false);
        let set = set.to_str().expect("text");
        assert!(set.ends_with("; Max-Age=2592000; Path=/; HttpOnly"), "{set}");
        assert!(!set.contains(bond(41).instance.as_str()));
        let value = set.split_once(';').expect("attributes").0;
        assert_eq!(affinity.read(&route, &cookies(value)), Some(bond(41)));
        let among = format!("a=b; GAESA=bad;{value} ; c=d");
        assert_eq!(affinity.read(&route, &cookies(&among)), Some(bond(41)));

        let other = affinity.seal(&service("other"), &bond(1));
        let stranger = Affinity::new(&[8; 32]).seal(&service("s"), &bond(1));
        let mut bent = value.to_owned().into_bytes();
        let last = bent.len() - 3;
        bent[last] = if bent[last] == b'A' { b'B' } else { b'A' };
        for bad in [
            format!("GAESA={other}"),
            format!("GAESA={stranger}"),
            String::from_utf8(bent).expect("text"),
            "GAESA=".to_owned(),
            "GAESA=AAAA".to_owned(),
            format!("X{value}"),
            "GAESA=x; ".repeat(4) + value,
        ] {
            assert_eq!(affinity.read(&route, &cookies(&bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_moved_split_moves_only_its_share() {
        let before = route(&[("s-1", 90, true), ("s-2", 10, true)]);
        let after = route(&[("s-1", 80, true), ("s-2", 20, true)]);
        let moved: Vec<u8> = (0..100)
            .filter(|draw| {
                let at = |route| {
                    choose(route, Some(bond(*draw)), 0)
                        .expect("a revision")
                        .target
                        .revision
                        .clone()
                };
                at(&before) != at(&after)
            })
            .collect();
        assert_eq!(moved, (80..90).collect::<Vec<_>>());
    }

    #[test]
    fn a_revision_without_affinity_is_drawn_anew() {
        let split = route(&[("s-1", 50, true), ("s-2", 50, false)]);
        // Bound to the first: kept, whatever this request draws.
        let kept = choose(&split, Some(bond(10)), 99).expect("a revision");
        assert_eq!(
            (kept.target.revision.name.as_str(), kept.instance.clone()),
            ("s-1", Some(bond(10).instance))
        );
        assert_eq!(kept.bond(&bond(10).instance), None, "it has its cookie");
        let elsewhere = kept.bond(&bond(11).instance).expect("a new one");
        assert_eq!((elsewhere.draw, elsewhere.instance), (10, bond(11).instance));
        // Its draw has come to the second: the request's own draw counts.
        let drawn = choose(&split, Some(bond(60)), 20).expect("a revision");
        assert_eq!((drawn.target.revision.name.as_str(), &drawn.instance), ("s-1", &None));
        assert_eq!(drawn.bond(&bond(1).instance).expect("a cookie").draw, 20);
        let drawn = choose(&split, Some(bond(60)), 70).expect("a revision");
        assert_eq!(
            (drawn.target.revision.name.as_str(), drawn.bond(&bond(1).instance)),
            ("s-2", None)
        );
    }
}
