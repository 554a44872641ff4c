//! Pages of a list: items in the order of their keys, and a token that says after which key the next page begins.
//!
//! A token holds the key itself, so that items made or deleted between two pages neither repeat nor hide others.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::error::Error;

const PREFIX: &str = "after:";

pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    /// Token of the next page, if there is one.
    pub(crate) next: Option<String>,
}

/// The page of `items` (each with its key; in any order) that `token` begins.
///
/// # Errors
/// A token that no page gave out, named by `parameter`.
pub(crate) fn page<T>(
    mut items: Vec<(String, T)>,
    limit: Option<usize>,
    token: Option<&str>,
    parameter: &str,
) -> Result<Page<T>, Error> {
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    if let Some(token) = token {
        let after =
            read(token).ok_or_else(|| Error::field(parameter, "is not a token that a page of this list gave"))?;
        items.retain(|(key, _)| *key > after);
    }
    let mut next = None;
    if let Some(limit) = limit
        && items.len() > limit
    {
        items.truncate(limit);
        next = items
            .last()
            .map(|(key, _)| URL_SAFE_NO_PAD.encode(format!("{PREFIX}{key}")));
    }
    Ok(Page {
        items: items.into_iter().map(|(_, item)| item).collect(),
        next,
    })
}

fn read(token: &str) -> Option<String> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    text.strip_prefix(PREFIX).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|n| ((*n).to_owned(), (*n).to_owned())).collect()
    }

    #[test]
    fn pages_follow_one_another_while_the_list_changes() {
        let first = page(list(&["c", "a", "b"]), Some(2), None, "continue").expect("a page");
        assert_eq!(first.items, ["a", "b"]);
        let token = first.next.expect("more");
        // "b" is deleted, "aa" made: neither repeats nor hides "c".
        let second = page(list(&["c", "a", "aa"]), Some(2), Some(&token), "continue").expect("a page");
        assert_eq!((second.items, second.next), (vec!["c".to_owned()], None));
    }

    #[test]
    fn garbage_is_no_token() {
        for token in ["x", "!!", "YWZ0ZXI", "AAAA"] {
            assert!(page(list(&["a"]), None, Some(token), "continue").is_err(), "{token}");
        }
    }
}
