//! Lists of any resource: which items, and in which pages.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    document::short,
    error::Error,
    page::page,
    query::Query,
    run::v1::{SERVING, opaque},
    selector::Selector,
};

/// What a list call asks for.
#[derive(Debug)]
pub(crate) struct Wanted {
    selector: Selector,
    name: Option<String>,
    limit: Option<usize>,
    token: Option<String>,
}

impl Wanted {
    pub(crate) fn read(mut query: Query) -> Result<Self, Error> {
        let selector = query
            .take("labelSelector")?
            .map_or(Ok(Selector::default()), |text| Selector::parse(&text))?;
        let name = query.take("fieldSelector")?.map(|text| by_name(&text)).transpose()?;
        let limit = query.limit("limit")?;
        let token = query.take("continue")?;
        // Lists are always of the newest version, which is at least as new as any that was read before.
        query.take("resourceVersion")?;
        query.flag("includeUninitialized")?;
        if query.flag("watch")? {
            return Err(Error::unimplemented(
                "watch is not served by this Homerun: list again instead",
            ));
        }
        query.finish()?;
        Ok(Self {
            selector,
            name,
            limit,
            token,
        })
    }

    pub(crate) fn admits(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.name.as_deref().is_none_or(|wanted| wanted == name) && self.selector.admits(labels)
    }

    /// The list document of `kind` (such as `ServiceList`). Each item comes with its region and name, by which lists
    /// are sorted; only those of this page are encoded.
    pub(crate) fn encode<T>(
        &self,
        kind: &str,
        version: u64,
        items: Vec<(String, T)>,
        encode: impl Fn(T) -> Value,
    ) -> Result<Value, Error> {
        let page = page(items, self.limit, self.token.as_deref(), "continue")?;
        let mut meta = json!({ "resourceVersion": opaque(version) });
        if let Some(next) = page.next {
            meta["continue"] = next.into();
        }
        let items: Vec<Value> = page.items.into_iter().map(encode).collect();
        Ok(json!({ "apiVersion": SERVING, "kind": kind, "metadata": meta, "items": items }))
    }
}

fn by_name(text: &str) -> Result<String, Error> {
    let wanted = text.split_once("==").or_else(|| text.split_once('='));
    match wanted {
        Some((field, name)) if field.trim() == "metadata.name" && !name.contains(',') => Ok(name.trim().to_owned()),
        _ => Err(Error::field(
            "fieldSelector",
            format!("only metadata.name=NAME is served, not \"{}\"", short(text)),
        )),
    }
}
