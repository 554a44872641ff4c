//! `/homerun/v1/groups`: local groups, which policies name as `group:EMAIL`. At Google this is Cloud Identity's.

use http::{Method, Response, StatusCode};
use model::{Group, Member};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    query::Query,
    reply::{self, Body},
    run::call::unimplemented,
    surface::Surface,
};

const MAX_GROUPS: usize = 100;
const MAX_MEMBERS: usize = 1000;

pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let unknown = || unimplemented(host, &head.method, head.uri.path());
    let path = percent_decode_str(head.uri.path())
        .decode_utf8()
        .map_err(|_| unknown())?;
    let name = path.strip_prefix("/homerun/v1/groups").ok_or_else(unknown)?;
    Query::parse(head.uri.query()).finish()?;
    let answer = match (&head.method, name.strip_prefix('/')) {
        (&Method::GET, None) => {
            let groups: Vec<Value> = surface
                .store
                .snapshot()
                .groups
                .values()
                .map(|group| encode(group))
                .collect();
            json!({ "groups": groups })
        }
        (&Method::PUT, Some(name)) => put(surface, name, document::read_json(body).await?).await?,
        (&Method::DELETE, Some(name)) => delete(surface, name).await?,
        _ => return Err(unknown()),
    };
    Ok(reply::json(StatusCode::OK, &answer))
}

fn encode(group: &Group) -> Value {
    let members: Vec<String> = group.members.iter().map(ToString::to_string).collect();
    json!({ "email": group.email, "members": members })
}

fn decode(name: &str, document: Value) -> Result<Group, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let email = name.to_ascii_lowercase();
    if !matches!(Member::parse(&format!("group:{email}")), Some(Member::Group(_))) {
        root.say("email", format!("\"{}\" is no e-mail of a group", short(name)));
    }
    root.drop_owned(&["email"]);
    let given = root.texts("members");
    if given.len() > MAX_MEMBERS {
        root.say(
            "members",
            format!("{} members are too many: at most {MAX_MEMBERS}", given.len()),
        );
    }
    let mut members = Vec::new();
    for (index, text) in given.iter().enumerate() {
        match Member::parse(text) {
            Some(member @ (Member::User(_) | Member::ServiceAccount(_) | Member::Group(_))) => members.push(member),
            Some(_) | None => root.say(
                &format!("members[{index}]"),
                format!(
                    "\"{}\" is not user:EMAIL, serviceAccount:EMAIL or group:EMAIL",
                    short(text)
                ),
            ),
        }
    }
    root.finish();
    findings.done()?;
    Ok(Group { email, members })
}

async fn put(surface: &Surface, name: &str, document: Value) -> Result<Value, Error> {
    let group = decode(name, document)?;
    let shown = encode(&group);
    let done = surface.store.transact(move |tx| {
        let groups = &tx.snapshot().groups;
        if groups.len() >= MAX_GROUPS && !groups.contains_key(&group.email) {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!("there are {MAX_GROUPS} groups, the limit"),
            ));
        }
        tx.put_group(group);
        Ok::<_, Error>(())
    });
    done.await?;
    Ok(shown)
}

async fn delete(surface: &Surface, name: &str) -> Result<Value, Error> {
    let email = name.to_ascii_lowercase();
    let done = surface.store.transact(move |tx| {
        if !tx.snapshot().groups.contains_key(&email) {
            return Err(Error::new(
                Code::NotFound,
                format!("group \"{}\" does not exist", short(&email)),
            ));
        }
        tx.delete_group(&email);
        Ok::<_, Error>(())
    });
    done.await?;
    Ok(json!({}))
}
