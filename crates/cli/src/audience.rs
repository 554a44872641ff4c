//! The flags for a service's own audiences of identity tokens.

use clap::Args;
use serde_json::{Value, json};

use crate::Error;
use crate::change::object;
use crate::flag::{self, List};

const AUDIENCES: &str = "run.googleapis.com/custom-audiences";

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Audiences {
    /// Audiences of identity tokens to take besides the service's URLs
    #[arg(
        id = "add_custom_audiences",
        long = "add-custom-audiences",
        value_name = "AUDIENCE,..."
    )]
    add: Vec<List>,
    /// Audiences to take no more
    #[arg(
        id = "remove_custom_audiences",
        long = "remove-custom-audiences",
        value_name = "AUDIENCE,..."
    )]
    remove: Vec<List>,
    /// Audiences, in place of all there were
    #[arg(
        id = "set_custom_audiences",
        long = "set-custom-audiences",
        value_name = "AUDIENCE,..."
    )]
    set: Vec<List>,
    /// Take the service's URLs alone
    #[arg(id = "clear_custom_audiences", long = "clear-custom-audiences")]
    clear: bool,
}

/// Carries the flags into the document; says whether there were any. As with gcloud a new revision comes of them, though it
/// would take none.
pub(crate) fn apply(service: &mut Value, flags: &Audiences) -> Result<bool, Error> {
    let Audiences {
        add,
        remove,
        set,
        clear,
    } = flags;
    if add.is_empty() && remove.is_empty() && set.is_empty() && !clear {
        return Ok(false);
    }
    let annotations = object(service, &["metadata", "annotations"])?;
    let before = annotations.get(AUDIENCES).and_then(Value::as_str).unwrap_or("[]");
    let mut audiences: Vec<String> = serde_json::from_str(before)
        .map_err(|_| Error::Failed(format!("the service's annotation {AUDIENCES} is no list: {before}")))?;
    if *clear || !set.is_empty() {
        audiences.clear();
    }
    let remove = flag::listed(remove);
    audiences.retain(|audience| !remove.contains(audience));
    for audience in flag::listed(set).into_iter().chain(flag::listed(add)) {
        if !audiences.contains(&audience) {
            audiences.push(audience);
        }
    }
    if audiences.is_empty() {
        annotations.remove(AUDIENCES);
    } else {
        annotations.insert(AUDIENCES.to_owned(), json!(json!(audiences).to_string()));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(flatten)]
        flags: Audiences,
    }

    fn after(before: Option<&str>, line: &str) -> Option<String> {
        let mut service = json!({"metadata": {"annotations": {"kept": "1"}}});
        if let Some(before) = before {
            service["metadata"]["annotations"][AUDIENCES] = before.into();
        }
        let line = Line::try_parse_from(line.split_whitespace()).unwrap_or_else(|why| panic!("{line}: {why}"));
        assert!(apply(&mut service, &line.flags).expect("a list"), "a flag was given");
        let annotations = &service["metadata"]["annotations"];
        assert_eq!(annotations["kept"], "1");
        annotations[AUDIENCES].as_str().map(str::to_owned)
    }

    #[test]
    fn the_list_is_changed_as_gcloud_does() {
        for (before, line, want) in [
            (None, "--add-custom-audiences=a,https://b", Some(r#"["a","https://b"]"#)),
            (
                Some(r#"["a", "b"]"#),
                "--add-custom-audiences=c,a",
                Some(r#"["a","b","c"]"#),
            ),
            (Some(r#"["a", "b"]"#), "--remove-custom-audiences=a,x", Some(r#"["b"]"#)),
            (Some(r#"["a"]"#), "--remove-custom-audiences=a", None),
            (Some(r#"["a"]"#), "--set-custom-audiences=c,b", Some(r#"["c","b"]"#)),
            (Some(r#"["a"]"#), "--set-custom-audiences=", None),
            (Some(r#"["a"]"#), "--clear-custom-audiences", None),
            (None, "--clear-custom-audiences", None),
        ] {
            assert_eq!(after(before, line).as_deref(), want, "{before:?} {line}");
        }
        let none = Line::try_parse_from(std::iter::empty::<&str>()).expect("no flags");
        assert!(!apply(&mut json!({}), &none.flags).expect("nothing to do"));
        let both = ["--clear-custom-audiences", "--add-custom-audiences=a"];
        assert!(Line::try_parse_from(both).is_err(), "one of them");
    }
}
