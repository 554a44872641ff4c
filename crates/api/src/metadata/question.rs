//! What is asked for: the path and the parameters of a request. Pure.

use std::{fmt, time::Duration};

/// Longest time that is waited for a change, in seconds.
const LONGEST_WAIT: u64 = 3600;
/// Longest audience, bytes.
const LONGEST_AUDIENCE: usize = 2048;
/// Most scopes of one token.
const MOST_SCOPES: usize = 64;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alt {
    Json,
    Text,
}

/// What only some paths take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Plain,
    /// None: those of the account.
    Token {
        scopes: Option<Vec<String>>,
    },
    Identity {
        audience: String,
    },
}

/// Until something changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) last_etag: Option<String>,
    /// None: for as long as it takes.
    pub(super) patience: Option<Duration>,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// From the root; with an empty last part where it ends with a slash.
    pub(super) path: Vec<String>,
    /// As it was said, if it was.
    pub(super) recursive: Option<bool>,
    pub(super) alt: Option<Alt>,
    pub(super) wait: Option<Wait>,
    pub(super) what: What,
}

/// What makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mistake {
    Path,
    NoAudience,
    LongAudience,
    /// It is not served, or not there.
    Parameter(&'static str),
    Unknown(String),
    Repeated(String),
    Value(&'static str),
    Scope,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => f.write_str("no such path"),
            Self::NoAudience => f.write_str("non-empty audience parameter required"),
            Self::LongAudience => write!(f, "audience is longer than {LONGEST_AUDIENCE} bytes"),
            Self::Parameter(name) => write!(f, "parameter {name} is not served here"),
            Self::Unknown(name) => write!(f, "parameter {name} is not known"),
            Self::Repeated(name) => write!(f, "parameter {name} is given more than once"),
            Self::Value(name) => write!(f, "parameter {name} has a value that is not one of its own"),
            Self::Scope => f.write_str("parameter scopes holds what is no scope"),
        }
    }
}

const KNOWN: [&str; 9] = [
    "recursive",
    "alt",
    "wait_for_change",
    "last_etag",
    "timeout_sec",
    "audience",
    "format",
    "licenses",
    "scopes",
];

impl Question {
    pub(super) fn read(path: &str, query: Option<&str>) -> Result<Self, Mistake> {
        let mut given: Vec<(&'static str, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let short = || name.chars().take(80).collect();
            let known = KNOWN.into_iter().find(|known| *known == name);
            let known = known.ok_or_else(|| Mistake::Unknown(short()))?;
            if given.iter().any(|(name, _)| *name == known) {
                return Err(Mistake::Repeated(short()));
            }
            given.push((known, value.into_owned()));
        }
        let take = |wanted: &str| {
            let found = given.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        let path = parts(path)?;
        let what = what(&path, &take)?;
        Ok(Self {
            path,
            recursive: truth("recursive", take("recursive"))?,
            alt: match take("alt") {
                None => None,
                Some("json") => Some(Alt::Json),
                Some("text") => Some(Alt::Text),
                Some(_) => return Err(Mistake::Value("alt")),
            },
            wait: wait(&take)?,
            what,
        })
    }

    /// No parameter that only the paths of tokens take.
    pub(super) fn only_general(&self) -> Result<(), Mistake> {
        match self.what {
            What::Plain => Ok(()),
            What::Token { .. } => Err(Mistake::Parameter("scopes")),
            What::Identity { .. } => Err(Mistake::Parameter("audience")),
        }
    }
}

fn truth(name: &'static str, value: Option<&str>) -> Result<Option<bool>, Mistake> {
    match value {
        None => Ok(None),
        Some("true" | "True" | "TRUE") => Ok(Some(true)),
        Some("false" | "False" | "FALSE") => Ok(Some(false)),
        Some(_) => Err(Mistake::Value(name)),
    }
}

/// The parts between slashes, each as it is meant.
fn parts(path: &str) -> Result<Vec<String>, Mistake> {
    let path = path.strip_prefix('/').ok_or(Mistake::Path)?;
    let decoded = path.split('/').map(|part| {
        let part = percent_encoding::percent_decode_str(part).decode_utf8();
        part.map(std::borrow::Cow::into_owned).map_err(|_| Mistake::Path)
    });
    decoded.collect()
}

fn wait<'a>(take: &impl Fn(&str) -> Option<&'a str>) -> Result<Option<Wait>, Mistake> {
    let waits = truth("wait_for_change", take("wait_for_change"))?.unwrap_or(false);
    let seconds = match take("timeout_sec") {
        None => None,
        Some(text) => {
            let seconds: u64 = text.parse().map_err(|_| Mistake::Value("timeout_sec"))?;
            Some(Duration::from_secs(seconds.min(LONGEST_WAIT)))
        }
    };
    Ok(waits.then(|| Wait {
        last_etag: take("last_etag").map(str::to_owned),
        patience: seconds,
    }))
}

/// The parameters of tokens go with their paths alone.
fn what<'a>(path: &[String], take: &impl Fn(&str) -> Option<&'a str>) -> Result<What, Mistake> {
    let last = path.last().map_or("", String::as_str);
    let is_account = path.len() == 6 && path[3] == "service-accounts";
    let given = |name| take(name).is_some();
    match last {
        "identity" if is_account => {
            if given("scopes") {
                return Err(Mistake::Parameter("scopes"));
            }
            // Both forms say the same of an account that runs no virtual machine.
            if !matches!(take("format"), None | Some("standard" | "full")) {
                return Err(Mistake::Value("format"));
            }
            if truth("licenses", take("licenses"))? == Some(true) {
                return Err(Mistake::Parameter("licenses"));
            }
            let audience = take("audience").unwrap_or_default();
            match audience.len() {
                0 => Err(Mistake::NoAudience),
                1..=LONGEST_AUDIENCE => Ok(What::Identity {
                    audience: audience.to_owned(),
                }),
                _ => Err(Mistake::LongAudience),
            }
        }
        _ if given("audience") => Err(Mistake::Parameter("audience")),
        _ if given("format") => Err(Mistake::Parameter("format")),
        _ if given("licenses") => Err(Mistake::Parameter("licenses")),
        "token" if is_account => Ok(What::Token {
            scopes: take("scopes").map(scopes).transpose()?,
        }),
        _ if given("scopes") => Err(Mistake::Parameter("scopes")),
        _ => Ok(What::Plain),
    }
}

/// Separated by commas.
fn scopes(text: &str) -> Result<Vec<String>, Mistake> {
    let is_scope =
        |scope: &&str| !scope.is_empty() && scope.len() <= 256 && scope.chars().all(|c| c.is_ascii_graphic());
    let all: Vec<&str> = text.split(',').collect();
    if all.len() > MOST_SCOPES || !all.iter().all(is_scope) {
        return Err(Mistake::Scope);
    }
    Ok(all.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "/computeMetadata/v1/instance/service-accounts/default";

    fn read(path: &str, query: &str) -> Result<Question, Mistake> {
        Question::read(path, (!query.is_empty()).then_some(query))
    }

    #[test]
    fn parameters() {
        let plain = read("/computeMetadata/v1/", "").expect("a question");
        assert_eq!(plain.path, ["computeMetadata", "v1", ""]);
        assert_eq!((plain.recursive, plain.alt, plain.wait), (None, None, None));
        let all = read(
            "/computeMetadata/v1/instance/",
            "recursive=True&alt=text&wait_for_change=true&last_etag=0f&timeout_sec=7",
        );
        let all = all.expect("a question");
        assert_eq!((all.recursive, all.alt), (Some(true), Some(Alt::Text)));
        let wait = Wait {
            last_etag: Some("0f".to_owned()),
            patience: Some(Duration::from_secs(7)),
        };
        assert_eq!(all.wait, Some(wait));
        // No waiting without the word for it.
        assert_eq!(read("/", "last_etag=0f").expect("a question").wait, None);
        // A client may write the @ of an account in either way.
        let email = read("/computeMetadata/v1/instance/service-accounts/a%40b/email", "").expect("a question");
        assert_eq!(email.path[4], "a@b");
    }

    #[test]
    fn tokens() {
        let token = |query| read(&format!("{ACCOUNT}/token"), query).map(|question| question.what);
        assert_eq!(token(""), Ok(What::Token { scopes: None }));
        let scopes = ["https://x/a", "b"].map(str::to_owned).to_vec();
        assert_eq!(token("scopes=https://x/a,b"), Ok(What::Token { scopes: Some(scopes) }));
        let identity = |query| read(&format!("{ACCOUNT}/identity"), query).map(|question| question.what);
        let audience = "https://b.run:8443/x".to_owned();
        for query in [
            "audience=https://b.run:8443/x",
            "audience=https%3A%2F%2Fb.run%3A8443%2Fx&format=full",
            "audience=https://b.run:8443/x&format=standard&licenses=FALSE",
        ] {
            let audience = audience.clone();
            assert_eq!(identity(query), Ok(What::Identity { audience }), "{query}");
        }
    }

    #[test]
    fn mistakes() {
        let token = format!("{ACCOUNT}/token");
        let identity = format!("{ACCOUNT}/identity");
        let long = format!("audience={}", "a".repeat(LONGEST_AUDIENCE + 1));
        for (path, query, mistake) in [
            (identity.as_str(), "", Mistake::NoAudience),
            (&identity, "audience=", Mistake::NoAudience),
            (&identity, &long, Mistake::LongAudience),
            (
                &identity,
                "audience=a&audience=b",
                Mistake::Repeated("audience".to_owned()),
            ),
            (&identity, "audience=a&format=jwt", Mistake::Value("format")),
            (&identity, "audience=a&licenses=TRUE", Mistake::Parameter("licenses")),
            (&identity, "audience=a&scopes=b", Mistake::Parameter("scopes")),
            (&token, "audience=a", Mistake::Parameter("audience")),
            (&token, "scopes=", Mistake::Scope),
            (&token, "scopes=a,,b", Mistake::Scope),
            (&token, "scopes=a%20b", Mistake::Scope),
            ("/", "scopes=a", Mistake::Parameter("scopes")),
            ("/", "alt=xml", Mistake::Value("alt")),
            ("/", "recursive=1", Mistake::Value("recursive")),
            ("/", "timeout_sec=-1", Mistake::Value("timeout_sec")),
            ("/", "colour=red", Mistake::Unknown("colour".to_owned())),
            ("/%ff", "", Mistake::Path),
            ("*", "", Mistake::Path),
        ] {
            assert_eq!(read(path, query), Err(mistake), "{path}?{query}");
        }
    }
}
