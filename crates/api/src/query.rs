//! The query of a request: parameters are taken by name, one that nobody knows is refused.

use crate::{document::short, error::Error};

#[derive(Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// The value of a parameter; an empty one counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Result<Option<String>, Error> {
        let mut value = None;
        let mut twice = false;
        self.0.retain(|(key, text)| {
            let taken = key == name;
            if taken {
                twice |= value.is_some();
                value = Some(text.clone());
            }
            !taken
        });
        if twice {
            return Err(Error::field(name, "is given more than once"));
        }
        Ok(value.filter(|text| !text.is_empty()))
    }

    /// Every value of a parameter that may be repeated.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        let mut values = Vec::new();
        self.0.retain(|(key, text)| {
            let taken = key == name;
            if taken && !text.is_empty() {
                values.push(text.clone());
            }
            !taken
        });
        values
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Error> {
        match self.take(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Error::field(
                name,
                format!("expected true or false, not \"{}\"", short(other)),
            )),
        }
    }

    /// A number of items; 0 means no limit.
    pub(crate) fn limit(&mut self, name: &str) -> Result<Option<usize>, Error> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        let limit: usize = text.parse().map_err(|_| {
            Error::field(
                name,
                format!("expected a whole number of at least 0, not \"{}\"", short(&text)),
            )
        })?;
        Ok((limit > 0).then_some(limit))
    }

    /// `dryRun=all`.
    pub(crate) fn dry_run(&mut self) -> Result<bool, Error> {
        match self.take("dryRun")?.as_deref() {
            None => Ok(false),
            Some("all" | "All") => Ok(true),
            Some(other) => Err(Error::field(
                "dryRun",
                format!("expected \"all\", not \"{}\"", short(other)),
            )),
        }
    }

    /// Ends the reading: takes what every Google API takes, refuses the rest.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        if let Some(other) = self.take("alt")?
            && other != "json"
        {
            return Err(Error::field(
                "alt",
                format!("only json is served, not \"{}\"", short(&other)),
            ));
        }
        // Answers are compact either way, which no reader of JSON can tell.
        self.take("prettyPrint")?;
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Error::field(short(name), "is not a parameter of this method")),
        }
    }
}
