//! `artifacts docker images ...`, `artifacts docker tags ...`, and `images list`.

use serde_json::{Value, json};
use ureq::http::Method;

use super::{HOST, Images, Tags, all, date, last, locations, repositories, text};
use crate::call::{Content, Server, escape};
use crate::format::{Column, yaml_text};
use crate::words::Listing;
use crate::{Error, Order, Outside};

const IMAGE: Column = Column {
    heading: "IMAGE",
    cell: |image| text(&image["package"]),
};
const DIGEST: Column = Column {
    heading: "DIGEST",
    cell: |image| text(&image["version"]),
};
const TAGS: Column = Column {
    heading: "TAGS",
    cell: |image| {
        let tags = image["tags"].as_array();
        let tags: Vec<String> = tags.into_iter().flatten().map(text).collect();
        tags.join(",")
    },
};
const CREATED: Column = Column {
    heading: "CREATE_TIME",
    cell: |image| date(&image["createTime"]),
};
const UPDATED: Column = Column {
    heading: "UPDATE_TIME",
    cell: |image| date(&image["updateTime"]),
};
const SIZE: Column = Column {
    heading: "SIZE",
    cell: |image| text(&image["metadata"]["imageSizeBytes"]),
};
const TAG_COLUMNS: &[Column] = &[
    Column {
        heading: "TAG",
        cell: |tag| last(&tag["tag"]),
    },
    Column {
        heading: "IMAGE",
        cell: |tag| text(&tag["image"]),
    },
    Column {
        heading: "DIGEST",
        cell: |tag| last(&tag["version"]),
    },
];

/// `LOCATION-docker.pkg.dev/PROJECT/REPOSITORY[/IMAGE[:TAG|@DIGEST]]`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Path {
    location: String,
    project: String,
    repository: String,
    package: Option<String>,
    version: Option<Which>,
}

#[derive(Debug, PartialEq, Eq)]
enum Which {
    Tag(String),
    Digest(String),
}

impl Path {
    fn parse(given: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::Usage(format!(
                "[{given}] is not of the form LOCATION-docker.pkg.dev/PROJECT/REPOSITORY/IMAGE"
            ))
        };
        let (whole, version) = match given.split_once('@') {
            Some((whole, digest)) => (whole, Some(Which::Digest(digest.to_owned()))),
            None => match given.rsplit_once(':') {
                Some((whole, tag)) if !tag.contains('/') => (whole, Some(Which::Tag(tag.to_owned()))),
                Some(_) | None => (given, None),
            },
        };
        let parts: Vec<&str> = whole.trim_end_matches('/').splitn(4, '/').collect();
        let [host, project, repository, package @ ..] = parts.as_slice() else {
            return Err(wrong());
        };
        let location = host.strip_suffix("-docker.pkg.dev").ok_or_else(wrong)?;
        if version.is_some() && package.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            location: location.to_owned(),
            project: (*project).to_owned(),
            repository: (*repository).to_owned(),
            package: package.first().map(|package| (*package).to_owned()),
            version,
        })
    }

    /// With an image in it.
    fn image(given: &str) -> Result<(Self, String), Error> {
        let path = Self::parse(given)?;
        match path.package.clone() {
            Some(package) => Ok((path, package)),
            None => Err(Error::Usage(format!("[{given}] names no image"))),
        }
    }

    /// `LOCATION-docker.pkg.dev/PROJECT/REPOSITORY`.
    fn place(&self) -> String {
        format!("{}-docker.pkg.dev/{}/{}", self.location, self.project, self.repository)
    }

    fn url(&self) -> String {
        format!(
            "/v1/projects/{}/locations/{}/repositories/{}",
            escape(&self.project),
            escape(&self.location),
            escape(&self.repository)
        )
    }

    fn package_url(&self, package: &str) -> String {
        format!("{}/packages/{}", self.url(), escape(package))
    }

    fn told(&self) -> String {
        format!(
            "Listing items under project {}, location {}, repository {}.\n",
            self.project, self.location, self.repository
        )
    }
}

/// An image as gcloud shows it.
fn legacy(image: &Value) -> Value {
    let uri = text(&image["uri"]);
    let (package, version) = uri.split_once('@').unwrap_or((&uri, ""));
    json!({
        "package": package,
        "version": version,
        "tags": image["tags"],
        "createTime": image["uploadTime"],
        "updateTime": image["updateTime"],
        "metadata": {
            "imageSizeBytes": image["imageSizeBytes"],
            "mediaType": image["mediaType"],
            "name": image["name"],
        },
    })
}

fn found(outside: &Outside<'_>, server: &Server, path: &Path) -> Result<Vec<Value>, Error> {
    let url = format!("{}/dockerImages", path.url());
    let images = all(outside, server, &url, "dockerImages")?;
    let whole = path
        .package
        .as_ref()
        .map(|package| format!("{}/{package}", path.place()));
    let below = |of: &str, whole: &str| of == whole || of.strip_prefix(whole).is_some_and(|rest| rest.starts_with('/'));
    Ok(images
        .iter()
        .map(legacy)
        .filter(|image| {
            whole
                .as_ref()
                .is_none_or(|whole| below(&text(&image["package"]), whole))
        })
        .collect())
}

/// `images list`: of all repositories.
pub(crate) fn everywhere(outside: &mut Outside<'_>, order: &Order<'_>, listing: &Listing) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let mut items = Vec::new();
    for location in locations(outside, &server)? {
        for repository in all(outside, &server, &repositories(&server, &location), "repositories")? {
            let place = text(&repository["registryUri"]);
            items.extend(found(outside, &server, &Path::parse(&place)?)?);
        }
    }
    order.print_list(outside, items, listing.limit, &[IMAGE, DIGEST, TAGS, UPDATED, SIZE])
}

pub(super) fn images(outside: &mut Outside<'_>, order: &Order<'_>, words: &Images) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    match words {
        Images::List {
            path,
            include_tags,
            listing,
        } => {
            let path = Path::parse(path)?;
            server.get(outside, HOST, &path.url())?;
            outside.say(&path.told());
            let items = found(outside, &server, &path)?;
            let columns: &[Column] = if *include_tags {
                &[IMAGE, DIGEST, TAGS, CREATED, UPDATED, SIZE]
            } else {
                &[IMAGE, DIGEST, CREATED, UPDATED, SIZE]
            };
            order.print_list(outside, items, listing.limit, columns)
        }
        Images::Describe { image } => {
            let (path, package) = Path::image(image)?;
            let digest = resolve(outside, &server, &path, &package)?;
            let url = format!("{}/versions/{}", path.package_url(&package), escape(&digest));
            server.get(outside, HOST, &url)?;
            let shown = json!({
                "image_summary": {
                    "digest": digest,
                    "fully_qualified_digest": format!("{}/{package}@{digest}", path.place()),
                    "registry": format!("{}-docker.pkg.dev", path.location),
                    "repository": path.repository,
                    "slsa_build_level": "unknown",
                },
            });
            order.print_one(outside, &shown, |_| yaml_text(&shown))
        }
        Images::Delete { image, delete_tags } => delete(outside, order, &server, image, *delete_tags),
    }
}

/// The digest that a path means; a tag is asked for, `latest` where there is none.
fn resolve(outside: &Outside<'_>, server: &Server, path: &Path, package: &str) -> Result<String, Error> {
    let tag = match &path.version {
        Some(Which::Digest(digest)) => return Ok(digest.clone()),
        Some(Which::Tag(tag)) => tag,
        None => "latest",
    };
    let url = format!("{}/tags/{}", path.package_url(package), escape(tag));
    let found = server.get(outside, HOST, &url)?;
    Ok(last(&found["version"]))
}

fn tags_of(outside: &Outside<'_>, server: &Server, path: &Path, package: &str) -> Result<Vec<Value>, Error> {
    all(outside, server, &format!("{}/tags", path.package_url(package)), "tags")
}

fn delete(
    outside: &mut Outside<'_>,
    order: &Order<'_>,
    server: &Server,
    image: &str,
    delete_tags: bool,
) -> Result<(), Error> {
    let (path, package) = Path::image(image)?;
    let whole = format!("{}/{package}", path.place());
    let url = if path.version.is_none() {
        order.confirm(
            outside,
            &format!("\nThis operation will delete all tags and images for {whole}."),
        )?;
        path.package_url(&package)
    } else {
        let digest = resolve(outside, server, &path, &package)?;
        let tags: Vec<String> = tags_of(outside, server, &path, &package)?
            .iter()
            .filter(|tag| last(&tag["version"]) == digest)
            .map(|tag| last(&tag["name"]))
            .collect();
        let given = match &path.version {
            Some(Which::Tag(tag)) => vec![tag.clone()],
            Some(Which::Digest(_)) | None => Vec::new(),
        };
        let named: Vec<String> = tags.iter().map(|tag| format!("- {whole}:{tag}")).collect();
        if !delete_tags && tags != given {
            return Err(Error::Failed(format!(
                "Cannot delete image {image} because it is tagged. Existing tags are:\n{}",
                named.join("\n")
            )));
        }
        outside.say(&format!("Digests:\n- {whole}@{digest}"));
        if !named.is_empty() {
            outside.say(&format!("\nTags:\n{}", named.join("\n")));
        }
        order.confirm(outside, "\nThis operation will delete the above resources.")?;
        for tag in &tags {
            let url = format!("{}/tags/{}", path.package_url(&package), escape(tag));
            server.json(outside, &Method::DELETE, HOST, &url, Content::None)?;
        }
        format!("{}/versions/{}", path.package_url(&package), escape(&digest))
    };
    let operation = server.json(outside, &Method::DELETE, HOST, &url, Content::None)?;
    outside.say("Delete request issued.");
    let name = text(&operation["name"]);
    outside.say(&format!("Waiting for operation [{name}] to complete...\ndone."));
    Ok(())
}

pub(super) fn tags(outside: &mut Outside<'_>, order: &Order<'_>, words: &Tags) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    match words {
        Tags::List { path, listing } => {
            let path = Path::parse(path)?;
            server.get(outside, HOST, &path.url())?;
            outside.say(&path.told());
            let packages = if let Some(package) = &path.package {
                vec![package.clone()]
            } else {
                let url = format!("{}/packages", path.url());
                let packages = all(outside, &server, &url, "packages")?;
                packages
                    .iter()
                    .map(|package| last(&package["name"]).replace("%2F", "/"))
                    .collect()
            };
            let mut items = Vec::new();
            for package in packages {
                for tag in tags_of(outside, &server, &path, &package)? {
                    let image = format!("{}/{package}", path.place());
                    items.push(json!({ "tag": tag["name"], "image": image, "version": tag["version"] }));
                }
            }
            order.print_list(outside, items, listing.limit, TAG_COLUMNS)
        }
        Tags::Add { image, tag } => {
            let (path, package) = Path::image(image)?;
            let (wanted, of) = Path::image(tag)?;
            let Some(Which::Tag(name)) = &wanted.version else {
                return Err(Error::Usage(format!("[{tag}] names no tag")));
            };
            if (path.place(), &package) != (wanted.place(), &of) {
                return Err(Error::Failed(format!(
                    "Image {}/{package}\ndoes not match image {}/{of}",
                    path.place(),
                    wanted.place()
                )));
            }
            if path.version.is_none() {
                return Err(Error::Usage(format!("[{image}] has neither a tag nor a digest")));
            }
            let digest = resolve(outside, &server, &path, &package)?;
            let tags = format!("{}/tags", path.package_url(&package));
            let body = json!({ "version": format!("{}/versions/{digest}", path.package_url(&package)) });
            let one = format!("{tags}/{}", escape(name));
            let (method, url) = match server.get(outside, HOST, &one) {
                Ok(_) => (Method::PATCH, one),
                Err(error) if error.is_not_found() => (Method::POST, format!("{tags}?tagId={}", escape(name))),
                Err(error) => return Err(error),
            };
            server.json(outside, &method, HOST, &url, Content::Json(&body))?;
            outside.say(&format!("Added tag [{tag}] to image [{image}]."));
            Ok(())
        }
        Tags::Delete { tag } => {
            let (path, package) = Path::image(tag)?;
            let Some(Which::Tag(name)) = &path.version else {
                return Err(Error::Usage(format!("[{tag}] names no tag")));
            };
            order.confirm(outside, &format!("You are about to delete tag [{tag}]"))?;
            let url = format!("{}/tags/{}", path.package_url(&package), escape(name));
            server.json(outside, &Method::DELETE, HOST, &url, Content::None)?;
            outside.say(&format!("Deleted tag [{tag}]."));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let parse = |text: &str| {
            Path::parse(text)
                .ok()
                .map(|path| (path.place(), path.package, path.version))
        };
        let place = || "us-central1-docker.pkg.dev/p/r".to_owned();
        assert_eq!(parse("us-central1-docker.pkg.dev/p/r"), Some((place(), None, None)));
        assert_eq!(
            parse("us-central1-docker.pkg.dev/p/r/a/b:v1"),
            Some((place(), Some("a/b".to_owned()), Some(Which::Tag("v1".to_owned()))))
        );
        assert_eq!(
            parse("us-central1-docker.pkg.dev/p/r/a@sha256:1"),
            Some((
                place(),
                Some("a".to_owned()),
                Some(Which::Digest("sha256:1".to_owned()))
            ))
        );
        for wrong in [
            "a",
            "docker.io/p/r/a",
            "us-docker.pkg.dev/p",
            "us-docker.pkg.dev/p/r:v1",
        ] {
            assert!(Path::parse(wrong).is_err(), "{wrong}");
        }
    }
}
