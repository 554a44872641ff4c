//! The ID token in use, and when the next one is got.
//!
//! Looked at by the clock of the day and not by a timer: a machine that slept for hours must not go on with a token that
//! ended meanwhile.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde::Deserialize;
use tokio::sync::watch;

/// Gets an ID token at a time in Unix seconds, or says why there is none.
pub type Renew<'r> = dyn FnMut(u64) -> Result<String, String> + 'r;

/// How often the clock is looked at.
pub(crate) const TICK: Duration = Duration::from_secs(5);
/// The next token is got so many seconds before the one in use ends.
const AHEAD: u64 = 300;

/// What requests are sent with: a header's value, or why there is none any more.
pub(crate) type InUse = Result<HeaderValue, String>;

/// A token as the value of a header that no `Debug` text shows.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// When a token ends, by its own claim and unchecked: it is only asked how soon the next one is needed.
fn end(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(claims.exp)
}

/// How far the token in use reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Renewal {
    /// Unix seconds. None: it is not renewed, or does not say.
    end: Option<u64>,
}

impl Renewal {
    pub(crate) fn of(token: &str, renewed: bool) -> Self {
        Self {
            end: renewed.then(|| end(token)).flatten(),
        }
    }

    /// Gets the next token when it is time. One that was not got is asked for again at the next turn; the one in use stays
    /// until it ends.
    pub(crate) fn turn(&mut self, renew: &mut Renew<'_>, now: u64, tell: &watch::Sender<InUse>) {
        let Some(end_now) = self.end else { return };
        if now.saturating_add(AHEAD) < end_now {
            return;
        }
        let got = renew(now).and_then(|token| {
            let value = bearer(&token).ok_or_else(|| "the token is no value of a header".to_owned())?;
            Ok((value, end(&token)))
        });
        match got {
            Ok((value, end)) => {
                self.end = end;
                drop(tell.send_replace(Ok(value)));
            }
            Err(why) if now >= end_now => {
                drop(tell.send_replace(Err(why)));
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(exp: u64) -> String {
        let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{exp}}}"));
        format!("h.{claims}.s")
    }

    #[test]
    fn it_is_renewed_before_it_ends_and_kept_while_it_cannot_be() {
        let (tell, told) = watch::channel(Ok(HeaderValue::from_static("Bearer first")));
        let mut renewal = Renewal::of(&token(4_600), true);
        let shown = |told: &watch::Receiver<InUse>| match &*told.borrow() {
            Ok(value) => value.to_str().expect("text").to_owned(),
            Err(why) => why.clone(),
        };
        let mut never = |_| panic!("too early");
        renewal.turn(&mut never, 4_299, &tell);
        let mut down = |_| Err("nobody answers".to_owned());
        renewal.turn(&mut down, 4_300, &tell);
        renewal.turn(&mut down, 4_599, &tell);
        assert_eq!(shown(&told), "Bearer first");
        renewal.turn(&mut down, 4_600, &tell);
        assert_eq!(shown(&told), "nobody answers");
        // as after a machine that slept
        let mut up = |now| Ok(token(now + 3_600));
        renewal.turn(&mut up, 90_000, &tell);
        assert_eq!(shown(&told), format!("Bearer {}", token(93_600)));
        renewal.turn(&mut never, 90_001, &tell);
    }

    #[test]
    fn a_given_token_is_not_renewed() {
        let (tell, _told) = watch::channel(Ok(HeaderValue::from_static("Bearer first")));
        let mut never = |_| panic!("it was given");
        Renewal::of(&token(1), false).turn(&mut never, 1_000, &tell);
        Renewal::of("no-jwt", true).turn(&mut never, 1_000, &tell);
    }

    #[test]
    fn no_debug_text_shows_it() {
        let value = bearer("secret").expect("a value");
        assert!(!format!("{value:?}").contains("secret"));
        assert!(bearer("a\nb").is_none());
    }
}
