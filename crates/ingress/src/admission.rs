//! Whether the caller may invoke the service, as its policy and the project's say.
//!
//! A checked token goes on to the container without its signature, so that whoever runs there cannot use it again.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use model::{Invoker, Permission, Principal, Route};

use crate::{Invokers, Refusal};

/// Looked at before `Authorization`, and meant for us alone: it is never passed on.
const SERVERLESS: HeaderName = HeaderName::from_static("x-serverless-authorization");

const PLACEHOLDER: &str = "SIGNATURE_REMOVED_BY_GOOGLE";

/// Lets the caller pass or says why not; takes what is secret out of `headers`.
pub(crate) fn check(route: &Route, invokers: &Invokers, headers: &mut HeaderMap) -> Result<(), Refusal> {
    let ours = headers.remove(SERVERLESS);
    let Invoker::Checked(access) = &route.invoker else {
        return Ok(());
    };
    let sent = ours.as_ref().or_else(|| headers.get(header::AUTHORIZATION));
    let token = sent.and_then(bearer).ok_or(Refusal::NoToken)?;
    let email = (invokers.check)(token, &route.audiences).map_err(Refusal::BadToken)?;
    let caller = Principal::of(&email);
    if !access.allows(Some(&caller), Permission::RUN_ROUTES_INVOKE, &*invokers.holds) {
        return Err(Refusal::NotInvoker(email));
    }
    if ours.is_none() {
        let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
        let without =
            HeaderValue::from_str(&format!("Bearer {signed}.{PLACEHOLDER}")).expect("it was a header's value");
        headers.insert(header::AUTHORIZATION, without);
    }
    Ok(())
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
