//! What an instance is told, as a tree of directories and values, and how each is written. Pure.

use model::Site;
use serde_json::{Map, Value};

use super::{Asker, question::Alt};

/// A directory or a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// In the order of their names.
    Directory(Vec<(String, Node)>),
    Text(String),
    Number(u64),
    List(Vec<String>),
    Made(Made),
}

/// What is made when it is asked for, and is left out where everything is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    Token,
    Identity,
}

impl Made {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Token => "access token",
            Self::Identity => "identity token",
        }
    }
}

/// All that one instance is told.
#[derive(Debug)]
pub(super) struct Tree(Node);

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A directory, whose slash is missing.
    Below,
    Value(Node),
    Made(Made),
}

fn directory<const N: usize>(of: [(&str, Node); N]) -> Node {
    Node::Directory(of.map(|(name, node)| (name.to_owned(), node)).into())
}

impl Tree {
    pub(super) fn of(site: &Site, asker: &Asker, email: &str) -> Self {
        let number = site.number().to_string();
        let region = &asker.of.service.region;
        let account = directory([
            ("aliases", Node::List(vec!["default".to_owned()])),
            ("email", Node::Text(email.to_owned())),
            ("identity", Node::Made(Made::Identity)),
            ("scopes", Node::List(vec![identity::CLOUD_PLATFORM_SCOPE.to_owned()])),
            ("token", Node::Made(Made::Token)),
        ]);
        let mut accounts = vec![("default".to_owned(), account.clone()), (email.to_owned(), account)];
        accounts.sort_by(|one, other| one.0.cmp(&other.0));
        let instance = directory([
            ("id", Node::Text(asker.instance.as_str().to_owned())),
            ("region", Node::Text(format!("projects/{number}/regions/{region}"))),
            ("service-accounts", Node::Directory(accounts)),
            // Cloud Run has no zones, and calls every one of them the first.
            ("zone", Node::Text(format!("projects/{number}/zones/{region}-1"))),
        ]);
        let numeric = number.parse().map_or_else(|_| Node::Text(number.clone()), Node::Number);
        let project = directory([
            ("numeric-project-id", numeric),
            ("project-id", Node::Text(site.project.to_string())),
        ]);
        let version = directory([("instance", instance), ("project", project)]);
        Self(directory([("computeMetadata", directory([("v1", version)]))]))
    }

    /// The parts of a path, the last one empty where a directory is meant.
    pub(super) fn find(&self, path: &[String]) -> Found {
        let mut node = &self.0;
        for (index, part) in path.iter().enumerate() {
            let Node::Directory(of) = node else {
                return Found::Nothing;
            };
            if part.is_empty() {
                // Only at the end, and only there.
                return if index + 1 == path.len() {
                    Found::Value(node.clone())
                } else {
                    Found::Nothing
                };
            }
            match of.iter().find(|(name, _)| name == part) {
                Some((_, below)) => node = below,
                None => return Found::Nothing,
            }
        }
        match node {
            Node::Directory(_) => Found::Below,
            Node::Made(made) => Found::Made(*made),
            Node::Text(_) | Node::Number(_) | Node::List(_) => Found::Value(node.clone()),
        }
    }

    /// The directory at a path without its slash, which was found before.
    pub(super) fn find_directory(&self, path: &[String]) -> Node {
        let with_slash: Vec<String> = path.iter().cloned().chain([String::new()]).collect();
        match self.find(&with_slash) {
            Found::Value(node) => node,
            Found::Nothing | Found::Below | Found::Made(_) => Node::Directory(Vec::new()),
        }
    }
}

/// An answer as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) kind: &'static str,
    pub(super) content: String,
}

impl Written {
    pub(super) fn json(value: &Value) -> Self {
        Self {
            kind: "application/json",
            content: value.to_string(),
        }
    }

    fn text(content: String) -> Self {
        Self {
            kind: "application/text",
            content,
        }
    }

    fn lines(all: impl Iterator<Item = String>) -> Self {
        Self::text(all.map(|one| one + "\n").collect())
    }

    /// As Google's servers call an ID token.
    pub(super) fn html(content: String) -> Self {
        Self {
            kind: "text/html",
            content,
        }
    }

    /// 16 hexadecimal digits that change with the content (FNV-1a).
    pub(super) fn etag(&self) -> String {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let bytes = self.content.bytes();
        let sum = bytes.fold(BASIS, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME));
        format!("{sum:016x}")
    }
}

/// A directory is listed, or written with all that is below it; a value is written as it is.
pub(super) fn write(node: &Node, recursive: Option<bool>, alt: Option<Alt>) -> Written {
    let recursive = recursive == Some(true);
    // What is asked for with everything below it comes as JSON, and anything else as text, unless it is said otherwise.
    let alt = alt.unwrap_or(if recursive { Alt::Json } else { Alt::Text });
    match (node, recursive, alt) {
        (Node::Directory(of), false, _) => {
            let names = of.iter().map(|(name, below)| match below {
                Node::Directory(_) => format!("{name}/"),
                Node::Text(_) | Node::Number(_) | Node::List(_) | Node::Made(_) => name.clone(),
            });
            match alt {
                Alt::Json => Written::json(&names.collect::<Vec<_>>().into()),
                Alt::Text => Written::lines(names),
            }
        }
        (Node::Directory(_), true, Alt::Text) => {
            let mut lines = String::new();
            list(node, "", &mut lines);
            Written::text(lines)
        }
        (Node::List(all), _, Alt::Text) => Written::lines(all.iter().cloned()),
        (Node::Text(text), _, Alt::Text) => Written::text(text.clone()),
        (Node::Number(number), _, Alt::Text) => Written::text(number.to_string()),
        (_, _, Alt::Json) => Written::json(&value(node)),
        (Node::Made(_), _, Alt::Text) => Written::text(String::new()),
    }
}

/// Every value below, a line each: its path, and what it is.
fn list(node: &Node, path: &str, lines: &mut String) {
    let mut say = |value: &str| lines.extend([path, " ", value, "\n"]);
    match node {
        Node::Directory(of) => {
            for (name, below) in of {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}/{name}")
                };
                list(below, &path, lines);
            }
        }
        Node::Text(text) => say(text),
        Node::Number(number) => say(&number.to_string()),
        Node::List(all) => all.iter().for_each(|one| say(one)),
        Node::Made(_) => {}
    }
}

fn value(node: &Node) -> Value {
    match node {
        Node::Directory(of) => {
            let kept = of.iter().filter(|(_, below)| !matches!(below, Node::Made(_)));
            let fields = kept.map(|(name, below)| (field(name), value(below)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Node::Text(text) => text.as_str().into(),
        Node::Number(number) => (*number).into(),
        Node::List(all) => all.clone().into(),
        Node::Made(_) => Value::Null,
    }
}

/// `service-accounts` is `serviceAccounts` in JSON. An e-mail stays what it is.
fn field(name: &str) -> String {
    if name.contains('@') {
        return name.to_owned();
    }
    let mut words = name.split('-');
    let mut all = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        all.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        all.push_str(letters.as_str());
    }
    all
}

#[cfg(test)]
mod tests {
    use model::{InstanceId, ProjectId, Region, RevisionKey, Sandbox, Scheme, ServiceKey};
    use serde_json::json;

    use super::*;

    const EMAIL: &str = "runner@my-project.iam.gserviceaccount.com";

    fn tree() -> (Tree, String) {
        let site = Site {
            project: ProjectId::parse("my-project").expect("an id"),
            region: Region::parse("us-central1").expect("a region"),
            domain: "a.run.localhost".to_owned(),
            scheme: Scheme::Https,
            port: 8443,
            default_sandbox: Sandbox::Gen2,
        };
        let asker = Asker {
            instance: InstanceId::new([0xab; 12]),
            of: RevisionKey {
                service: ServiceKey {
                    region: Region::parse("europe-west1").expect("a region"),
                    name: "b".parse().expect("a name"),
                },
                name: "b-00001-abc".parse().expect("a name"),
            },
        };
        (Tree::of(&site, &asker, EMAIL), site.number().to_string())
    }

    fn at(path: &str) -> Found {
        let parts: Vec<String> = path.trim_start_matches('/').split('/').map(str::to_owned).collect();
        tree().0.find(&parts)
    }

    fn text(path: &str, recursive: bool, alt: Option<Alt>) -> String {
        match at(path) {
            Found::Value(node) => write(&node, Some(recursive), alt).content,
            Found::Nothing | Found::Below | Found::Made(_) => panic!("{path} is no value"),
        }
    }

    #[test]
    fn listings() {
        for (path, names) in [
            ("/", "computeMetadata/\n"),
            ("/computeMetadata/", "v1/\n"),
            ("/computeMetadata/v1/", "instance/\nproject/\n"),
            ("/computeMetadata/v1/instance/", "id\nregion\nservice-accounts/\nzone\n"),
            ("/computeMetadata/v1/project/", "numeric-project-id\nproject-id\n"),
            (
                "/computeMetadata/v1/instance/service-accounts/",
                "default/\nrunner@my-project.iam.gserviceaccount.com/\n",
            ),
            (
                "/computeMetadata/v1/instance/service-accounts/default/",
                "aliases\nemail\nidentity\nscopes\ntoken\n",
            ),
        ] {
            assert_eq!(text(path, false, None), names, "{path}");
        }
        let json = text("/computeMetadata/v1/instance/", false, Some(Alt::Json));
        assert_eq!(json, r#"["id","region","service-accounts/","zone"]"#);
    }

    #[test]
    fn values() {
        let number = tree().1;
        let id = InstanceId::new([0xab; 12]);
        for (path, right) in [
            ("project/project-id", "my-project".to_owned()),
            ("project/numeric-project-id", number.clone()),
            ("instance/region", format!("projects/{number}/regions/europe-west1")),
            ("instance/zone", format!("projects/{number}/zones/europe-west1-1")),
            ("instance/id", id.as_str().to_owned()),
            ("instance/service-accounts/default/email", EMAIL.to_owned()),
            (&format!("instance/service-accounts/{EMAIL}/email"), EMAIL.to_owned()),
            ("instance/service-accounts/default/aliases", "default\n".to_owned()),
            (
                "instance/service-accounts/default/scopes",
                "https://www.googleapis.com/auth/cloud-platform\n".to_owned(),
            ),
        ] {
            assert_eq!(
                text(&format!("/computeMetadata/v1/{path}"), false, None),
                right,
                "{path}"
            );
        }
        let json = |path: &str| text(&format!("/computeMetadata/v1/{path}"), false, Some(Alt::Json));
        assert_eq!(json("project/project-id"), "\"my-project\"");
        assert_eq!(json("project/numeric-project-id"), number);
        assert_eq!(json("instance/service-accounts/default/aliases"), r#"["default"]"#);
    }

    #[test]
    fn everything_below() {
        let (number, scope) = (tree().1, "https://www.googleapis.com/auth/cloud-platform");
        let account = json!({"aliases": ["default"], "email": EMAIL, "scopes": [scope]});
        let numeric: u64 = number.parse().expect("a number");
        let all: Value = serde_json::from_str(&text("/computeMetadata/v1/", true, None)).expect("JSON");
        assert_eq!(
            all,
            json!({
                "instance": {
                    "id": InstanceId::new([0xab; 12]).as_str(),
                    "region": format!("projects/{number}/regions/europe-west1"),
                    "serviceAccounts": {"default": account, EMAIL: account},
                    "zone": format!("projects/{number}/zones/europe-west1-1"),
                },
                "project": {"numericProjectId": numeric, "projectId": "my-project"},
            })
        );
        let lines = text(
            "/computeMetadata/v1/instance/service-accounts/default/",
            true,
            Some(Alt::Text),
        );
        assert_eq!(lines, format!("aliases default\nemail {EMAIL}\nscopes {scope}\n"));
    }

    #[test]
    fn what_is_not_there() {
        for path in [
            "",
            "/computeMetadata/v2/",
            "/computeMetadata/v1beta1/",
            "/computeMetadata/v1/instance/attributes/",
            "/computeMetadata/v1/instance/name",
            "/computeMetadata/v1//instance/",
            "/computeMetadata/v1/instance/id/",
            "/computeMetadata/v1/instance/id/x",
            "/computeMetadata/v1/instance/service-accounts/other@my-project.iam.gserviceaccount.com/token",
            "/computeMetadata/v1/instance/service-accounts/default/token/",
            "/computeMetadata/v1/../v1/",
        ] {
            let found = at(path);
            // The root is what is left of an empty path.
            assert_eq!(found == Found::Nothing, !path.is_empty(), "{path}: {found:?}");
        }
        for path in [
            "/computeMetadata",
            "/computeMetadata/v1",
            "/computeMetadata/v1/instance",
        ] {
            assert_eq!(at(path), Found::Below, "{path}");
        }
        let token = at("/computeMetadata/v1/instance/service-accounts/default/token");
        assert_eq!(token, Found::Made(Made::Token));
    }

    #[test]
    fn an_etag_is_of_the_content() {
        let one = Written::json(&json!("a"));
        assert_eq!(one.etag(), Written::json(&json!("a")).etag());
        assert_ne!(one.etag(), Written::json(&json!("b")).etag());
        assert_eq!(one.etag().len(), 16);
    }
}
