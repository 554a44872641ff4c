//! Roles, as they are listed and described. Custom roles are not served.

use model::Predefined;
use serde_json::{Value, json};

use crate::{
    document::short,
    error::{Code, Error},
    page::page,
    query::Query,
};

/// Most roles of a page.
const MAX_PAGE: usize = 1000;

/// Below `/v1/roles`; None: no method.
pub(super) fn answer(rest: &[&str], query: Query) -> Option<Result<Value, Error>> {
    match rest {
        [] => Some(list(query)),
        [name] => Some(get(name, query)),
        _ => None,
    }
}

/// The project's own roles: there are none.
pub(super) fn custom(mut query: Query) -> Result<Value, Error> {
    view(&mut query)?;
    paging(&mut query)?;
    query.finish()?;
    Ok(json!({}))
}

fn encode(role: &Predefined, full: bool) -> Value {
    let mut shown = json!({
        "name": role.name,
        "title": role.title,
        "description": role.description,
        "stage": "GA",
        "etag": "AA==",
    });
    if full {
        let permissions: Vec<&str> = role.permissions().map(model::Permission::as_str).collect();
        shown["includedPermissions"] = permissions.into();
    }
    shown
}

/// Whether permissions are asked for.
fn view(query: &mut Query) -> Result<bool, Error> {
    match query.take("view")?.as_deref() {
        None | Some("BASIC") => Ok(false),
        Some("FULL") => Ok(true),
        Some(other) => Err(Error::field(
            "view",
            format!("expected BASIC or FULL, not \"{}\"", short(other)),
        )),
    }
}

fn paging(query: &mut Query) -> Result<(usize, Option<String>), Error> {
    let limit = query.limit("pageSize")?.unwrap_or(MAX_PAGE).min(MAX_PAGE);
    let token = query.take("pageToken")?;
    query.flag("showDeleted")?;
    query.take("parent")?;
    Ok((limit, token))
}

fn list(mut query: Query) -> Result<Value, Error> {
    let full = view(&mut query)?;
    let (limit, token) = paging(&mut query)?;
    query.finish()?;
    let items = Predefined::all()
        .iter()
        .map(|role| (role.name.to_owned(), role))
        .collect();
    let page = page(items, Some(limit), token.as_deref(), "pageToken")?;
    let roles: Vec<Value> = page.items.iter().map(|role| encode(role, full)).collect();
    let mut shown = json!({ "roles": roles });
    if let Some(next) = page.next {
        shown["nextPageToken"] = next.into();
    }
    Ok(shown)
}

fn get(name: &str, query: Query) -> Result<Value, Error> {
    query.finish()?;
    let name = format!("roles/{name}");
    let role = Predefined::find(&name);
    let role = role.ok_or_else(|| {
        Error::new(
            Code::NotFound,
            format!("The role named {} was not found.", short(&name)),
        )
    })?;
    Ok(encode(role, true))
}
