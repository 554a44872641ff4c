//! Whom an identity token may be for, to be good at a service.

use crate::{ServiceKey, Site, Tag};

/// Longest list of a service's own audiences, in characters of its JSON.
pub const MAX_CUSTOM_AUDIENCES: usize = 32_768;

/// The audiences that one host of a service takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audiences {
    urls: Vec<String>,
    custom: Vec<String>,
}

impl Audiences {
    /// Those of the service's hosts: its URLs, as they are shown and by both schemes without a port, and `custom`, which the
    /// service names itself. A tag's hosts take the tag's URLs besides.
    pub fn of(site: &Site, service: &ServiceKey, tag: Option<&Tag>, custom: &[String]) -> Self {
        let mut urls = Vec::new();
        for host in site.hosts(service) {
            if let Some(tag) = tag {
                urls.extend(site.url_forms(&format!("{tag}---{host}")));
            }
            urls.extend(site.url_forms(&host));
        }
        Self {
            urls,
            custom: custom.to_vec(),
        }
    }

    /// Whether a token for `audience` is for this host. Of a URL a slash at its end does not count; the service's own
    /// audiences are taken word for word.
    pub fn take(&self, audience: &str) -> bool {
        let url = audience.strip_suffix('/').unwrap_or(audience);
        self.urls.iter().any(|known| known == url) || self.custom.iter().any(|known| known == audience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ServiceName, site};

    #[test]
    fn what_a_host_takes() {
        let mut site = site::example();
        let service = ServiceKey {
            region: site.region.clone(),
            name: ServiceName::parse("my-api").expect("a name"),
        };
        let custom = ["my-audience".to_owned(), "https://api.example.com/".to_owned()];
        let [stable, number] = site.hosts(&service);
        let tag = Tag::parse("blue").expect("a tag");
        let plain = Audiences::of(&site, &service, None, &custom);
        let tagged = Audiences::of(&site, &service, Some(&tag), &custom);
        for (audience, at_plain, at_tagged) in [
            (format!("https://{stable}:8443"), true, true),
            (format!("https://{stable}:8443/"), true, true),
            (format!("https://{number}:8443/"), true, true),
            (format!("https://{stable}"), true, true),
            (format!("https://{number}/"), true, true),
            (format!("http://{stable}"), true, true),
            (format!("https://blue---{stable}:8443"), false, true),
            (format!("https://blue---{number}"), false, true),
            (format!("https://green---{stable}:8443"), false, false),
            (format!("https://{stable}:8443//"), false, false),
            (format!("https://{stable}:9443"), false, false),
            (format!("http://{stable}:8443"), false, false),
            (format!("https://{stable}/path"), false, false),
            (format!("https://x@{stable}"), false, false),
            (format!("https://{stable}.evil.example"), false, false),
            (format!("https://other-{stable}"), false, false),
            (stable.clone(), false, false),
            (format!("ftp://{stable}"), false, false),
            ("my-audience".to_owned(), true, true),
            ("my-audience/".to_owned(), false, false),
            ("My-audience".to_owned(), false, false),
            ("https://api.example.com/".to_owned(), true, true),
            ("https://api.example.com".to_owned(), false, false),
            (String::new(), false, false),
            ("/".to_owned(), false, false),
            ("*".to_owned(), false, false),
        ] {
            assert_eq!(plain.take(&audience), at_plain, "{audience}");
            assert_eq!(tagged.take(&audience), at_tagged, "{audience} at the tag");
        }
        site.scheme = crate::Scheme::Http;
        site.port = 8081;
        let plain = Audiences::of(&site, &service, None, &[]);
        assert!(plain.take(&format!("http://{stable}:8081")) && plain.take(&format!("https://{stable}")));
        assert!(!plain.take(&format!("https://{stable}:8081")));
        assert!(!Audiences::default().take(""));
    }
}
