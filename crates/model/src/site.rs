//! The names under which one Homerun's services are found.

use crate::{ProjectId, ProjectNumber, Region, Sandbox, ServiceKey, Tag, url_hash};

/// What all URLs of one Homerun have in common, and what its services get that do not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub project: ProjectId,
    /// The region of calls whose host names none.
    pub region: Region,
    /// Below which every service has its host, such as `a.run.localhost`.
    pub domain: String,
    /// Of `status.url`.
    pub scheme: Scheme,
    /// The ingress port that goes into URLs, when it is not the scheme's own.
    pub port: u16,
    /// What revisions run in that name no execution environment.
    pub default_sandbox: Sandbox,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Site {
    pub fn number(&self) -> ProjectNumber {
        ProjectNumber::of(&self.project)
    }

    /// E-mail of the account that builds, and instances whose template names none, run as.
    pub fn default_account(&self) -> String {
        format!("{}-compute@developer.gserviceaccount.com", self.number())
    }

    /// `SERVICE-HASH-RR`: the first label of the stable host.
    pub fn label(&self, service: &ServiceKey) -> String {
        format!("{}-{}-{}", service.name, url_hash(&self.project), service.region.code())
    }

    /// `SERVICE-HASH-RR.DOMAIN`, the host of `status.url`.
    pub fn host(&self, service: &ServiceKey) -> String {
        format!("{}.{}", self.label(service), self.domain)
    }

    /// Both hosts a service answers at: the stable one and `SERVICE-NUMBER.REGION.DOMAIN`.
    pub fn hosts(&self, service: &ServiceKey) -> [String; 2] {
        [
            self.host(service),
            format!("{}-{}.{}.{}", service.name, self.number(), service.region, self.domain),
        ]
    }

    /// The service's URL, with the port unless it is the scheme's own.
    pub fn url(&self, service: &ServiceKey) -> String {
        self.url_of(&self.host(service))
    }

    /// `https://TAG---SERVICE-HASH-RR.DOMAIN`.
    pub fn tag_url(&self, service: &ServiceKey, tag: &Tag) -> String {
        self.url_of(&format!("{tag}---{}", self.host(service)))
    }

    pub fn urls(&self, service: &ServiceKey) -> [String; 2] {
        self.hosts(service).map(|host| self.url_of(&host))
    }

    fn url_of(&self, host: &str) -> String {
        match (self.scheme, self.port) {
            (Scheme::Http, 80) => format!("http://{host}"),
            (Scheme::Https, 443) => format!("https://{host}"),
            (Scheme::Http, port) => format!("http://{host}:{port}"),
            (Scheme::Https, port) => format!("https://{host}:{port}"),
        }
    }

    /// Every form of a host's URL: as it is shown, and by both schemes without a port, as clients see it that come through
    /// the proxy.
    pub(crate) fn url_forms(&self, host: &str) -> Vec<String> {
        let mut forms = vec![format!("https://{host}"), format!("http://{host}")];
        let shown = self.url_of(host);
        if !forms.contains(&shown) {
            forms.push(shown);
        }
        forms
    }

    /// Longest tag that still fits the host label of 63 characters with this service.
    pub fn longest_tag(&self, service: &ServiceKey) -> usize {
        63_usize.saturating_sub(self.label(service).len() + "---".len())
    }

    /// Whether `host` (no port, lower case) lies below our domain.
    pub fn covers(&self, host: &str) -> bool {
        host.strip_suffix(self.domain.as_str())
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

#[cfg(test)]
pub(crate) fn example() -> Site {
    Site {
        project: ProjectId::parse("my-project").expect("an id"),
        region: Region::parse("us-central1").expect("a region"),
        domain: "a.run.localhost".to_owned(),
        scheme: Scheme::Https,
        port: 8443,
        default_sandbox: Sandbox::Gen2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServiceName;

    #[test]
    fn urls() {
        let mut site = example();
        let key = ServiceKey {
            region: site.region.clone(),
            name: ServiceName::parse("my-api").expect("a name"),
        };
        let host = site.host(&key);
        assert!(
            host.starts_with("my-api-") && host.ends_with("-uc.a.run.localhost"),
            "{host}"
        );
        assert_eq!(site.url(&key), format!("https://{host}:8443"));
        let tag = Tag::parse("canary").expect("a tag");
        assert_eq!(site.tag_url(&key, &tag), format!("https://canary---{host}:8443"));
        site.port = 443;
        assert_eq!(site.url(&key), format!("https://{host}"));
        assert_eq!(site.longest_tag(&key), 63 - 3 - "my-api-0123456789-uc".len());
        assert!(site.covers(&host) && !site.covers("a.run.localhost") && !site.covers("xa.run.localhost"));
    }
}
