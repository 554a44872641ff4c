//! Pip's index: pages that name files, as HTML (PEP 503) or JSON (PEP 691).

use serde_json::Value;

use super::reader::Refused;

/// Largest page that is read for its links.
pub(super) const MAX_PAGE: usize = 32 << 20;

/// A document that has links to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// PEP 503.
    Html,
    /// PEP 691.
    Json,
}

impl Page {
    pub(super) fn of(kind: &str) -> Option<Self> {
        match kind {
            "text/html" | "application/vnd.pypi.simple.v1+html" => Some(Self::Html),
            "application/vnd.pypi.simple.v1+json" => Some(Self::Json),
            _ => None,
        }
    }

    pub(super) fn with_links(self, content: &[u8], link: impl Fn(&str) -> Option<String>) -> Result<Vec<u8>, Refused> {
        match self {
            Self::Html => html(&String::from_utf8_lossy(content), link).map(String::into_bytes),
            Self::Json => {
                let wrong = |error: serde_json::Error| Refused::index(&error);
                let mut document: Value = serde_json::from_slice(content).map_err(wrong)?;
                for file in document
                    .get_mut("files")
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                {
                    if let Some(other) = file["url"].as_str().and_then(&link) {
                        file["url"] = other.into();
                    }
                }
                serde_json::to_vec(&document).map_err(wrong)
            }
        }
    }
}

/// A page with each `href="..."` as `link` says.
fn html(page: &str, link: impl Fn(&str) -> Option<String>) -> Result<String, Refused> {
    // Of the same length in bytes: only ASCII letters differ.
    let lower = page.to_ascii_lowercase();
    if lower.contains("<base") {
        return Err(Refused::forbidden(
            "a page of the package index has a <base>, which is not served",
        ));
    }
    let mut made = String::with_capacity(page.len() * 2);
    let mut at = 0;
    while let Some(found) = lower[at..].find("href") {
        let after = at + found + "href".len();
        let rest = page[after..].trim_start();
        let value = rest.strip_prefix('=').map(str::trim_start);
        let quoted = value.and_then(|value| {
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (inside, _) = value[1..].split_once(quote)?;
            // It is the end of the page, and so tells where it begins.
            Some((page.len() - value.len() + 1, inside))
        });
        let Some((begins, inside)) = quoted else {
            made.push_str(&page[at..after]);
            at = after;
            continue;
        };
        made.push_str(&page[at..begins]);
        match link(&inside.replace("&amp;", "&")) {
            Some(other) => made.push_str(&other.replace('&', "&amp;").replace('"', "%22").replace('\'', "%27")),
            None => made.push_str(inside),
        }
        at = begins + inside.len();
    }
    made.push_str(&page[at..]);
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_with_other_links() {
        let link = |to: &str| to.strip_prefix("x").map(|rest| format!("y{rest}"));
        let page = "<A HREF = 'x?a=1&amp;b'>é</a><a href=x>1</a><a data-x href=\"z\">href</a>";
        let made = html(page, link).expect("a page");
        assert_eq!(
            made,
            "<A HREF = 'y?a=1&amp;b'>é</a><a href=x>1</a><a data-x href=\"z\">href</a>"
        );
        assert!(html("<base href='x'>", link).is_err());
        let document = br#"{"files":[{"url":"x1","hashes":{}},{"url":"z"}],"name":"x"}"#;
        let made = Page::Json.with_links(document, link).expect("a document");
        assert_eq!(
            String::from_utf8(made).expect("text"),
            r#"{"files":[{"url":"y1","hashes":{}},{"url":"z"}],"name":"x"}"#
        );
    }
}
