//! What differs from run to run, replaced by what it is.

/// Names for texts known beforehand (ports, directories), then for what has a known form: escape sequences dropped,
/// progress of a stage dropped, times, digests, uids, instance ids, the project's hash in host names, the three random
/// characters of a revision's name, the width of a table's columns.
pub fn filter(text: &str, known: &[(String, &str)]) -> String {
    let mut text = without_escapes(text);
    for (found, name) in known {
        text = text.replace(found, name);
    }
    let mut filtered = String::new();
    while text.contains("....") {
        text = text.replace("....", "...");
    }
    for line in text.lines() {
        if is_progress(line) {
            continue;
        }
        let line = words(without_dots(line));
        filtered.push_str(narrow(&line).trim_end());
        filtered.push('\n');
    }
    let end = filtered.trim_end().len();
    filtered.truncate(end);
    filtered
}

/// Colours and the like: ESC [ ... letter.
fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after
            .strip_prefix('[')
            .and_then(|sequence| {
                let end = sequence.find(|c: char| c.is_ascii_alphabetic())?;
                Some(&sequence[end + 1..])
            })
            .unwrap_or(after);
    }
    plain + rest
}

/// `...done.` -> `done.`: a dot for every look.
fn without_dots(line: &str) -> &str {
    let rest = line.trim_start_matches('.');
    if rest == "done." { rest } else { line }
}

/// `Creating Revision.......done`: how many dots, and whether at all, depends on when gcloud looked.
fn is_progress(line: &str) -> bool {
    line.strip_suffix("done")
        .map(str::trim_end)
        .is_some_and(|rest| rest.ends_with("...") && !rest.trim_matches('.').is_empty())
}

/// Replaces words of a known form; a word is a run of letters, digits and `-:.+_`.
fn words(line: &str) -> String {
    let is_part = |c: char| c.is_alphanumeric() || "-:.+_".contains(c);
    let mut out = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let end = if is_part(first) {
            rest.find(|c| !is_part(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        if is_date(word) {
            // `2026-11-24 22:14:17 UTC`, as tables have it.
            if let Some(time) = after.strip_prefix(' ')
                && let Some(clock) = time.get(..8)
                && is_shaped(clock, "dd:dd:dd")
            {
                rest = time[8..].strip_prefix(" UTC").unwrap_or(&time[8..]);
            }
            out.push_str("TIME");
        } else if let Some(hex) = word.strip_prefix("sha256:")
            && hex.len() == 64
            && is_hex(hex)
        {
            out.push_str("sha256:DIGEST");
        } else if is_shaped(word, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") {
            out.push_str("UID");
        } else if word.len() == 25 && word.starts_with('i') && is_hex(&word[1..]) {
            out.push_str("INSTANCE");
        } else {
            out.push_str(&suffix(&host(word)));
        }
    }
    out
}

/// `2026-11-24T22:14:17.493067Z` or the date alone.
fn is_date(word: &str) -> bool {
    word.get(..10).is_some_and(|d| is_shaped(d, "dddd-dd-dd")) && (word.len() == 10 || word[10..].starts_with('T'))
}

/// d: a digit, x: a hex digit, anything else: itself.
fn is_shaped(text: &str, shape: &str) -> bool {
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(c, form)| match form {
            b'd' => c.is_ascii_digit(),
            b'x' => c.is_ascii_hexdigit(),
            literal => c == literal,
        })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// `my-api-0123456789-uc.a.run.localhost` -> `my-api-HASH-uc.a.run.localhost`.
fn host(word: &str) -> String {
    let hashed = || {
        let (label, domain) = word.split_once('.')?;
        if !domain.starts_with("a.run.") {
            return None;
        }
        let (rest, region) = label.rsplit_once('-')?;
        let (service, hash) = rest.rsplit_once('-')?;
        let is_hash = hash.len() == 10 && hash.bytes().all(|c| c.is_ascii_alphanumeric());
        is_hash.then(|| format!("{service}-HASH-{region}.{domain}"))
    };
    hashed().unwrap_or_else(|| word.to_owned())
}

/// `my-api-00001-abc` -> `my-api-00001-xyz`.
fn suffix(word: &str) -> String {
    let named = || {
        let (rest, end) = word.rsplit_once('-')?;
        let (service, number) = rest.rsplit_once('-')?;
        let is_revision = end.len() == 3
            && end.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            && is_shaped(number, "ddddd");
        is_revision.then(|| format!("{service}-{number}-xyz"))
    };
    named().unwrap_or_else(|| word.to_owned())
}

/// Columns two spaces apart. Indentation stays.
fn narrow(line: &str) -> String {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let (indent, rest) = line.split_at(indent);
    let mut out = indent.to_owned();
    let mut spaces = 0;
    for c in rest.chars() {
        spaces = if c == ' ' { spaces + 1 } else { 0 };
        if spaces <= 2 {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(text: &str) -> String {
        filter(text, &[(":4002".to_owned(), ":HTTP")])
    }

    #[test]
    fn what_differs_is_named() {
        for (text, expected) in [
            ("[\u{1b}[1mmy-api\u{1b}[m] \u{1b}[32m✔\u{1b}[39;0m", "[my-api] ✔"),
            (
                "http://canary---my-api-ab12cd34ef-uc.a.run.localhost:4002/",
                "http://canary---my-api-HASH-uc.a.run.localhost:HTTP/",
            ),
            (
                "LATEST (currently my-api-00012-k2x)",
                "LATEST (currently my-api-00012-xyz)",
            ),
            ("my-api-00001=90,my-api-00002=10", "my-api-00001=90,my-api-00002=10"),
            ("my-api-green", "my-api-green"),
            ("at 2026-11-24T22:14:17.493067Z by", "at TIME by"),
            ("my-api   2026-11-25 00:16:48 UTC     me", "my-api  TIME  me"),
            ("    percent: 10", "    percent: 10"),
            ("uid: 0b1f2e3d-0000-4000-8000-00000000000a", "uid: UID"),
            ("i0123456789abcdef01234567", "INSTANCE"),
            ("Setting IAM Policy......done\nDone.", "Done."),
            ("Deleting [s].......\ndone.\n\n", "Deleting [s]...\ndone."),
            ("one\n \nthree", "one\n\nthree"),
        ] {
            assert_eq!(filtered(text), expected);
        }
        let digest = format!("api@sha256:{}", "ab".repeat(32));
        assert_eq!(filtered(&digest), "api@sha256:DIGEST");
        assert_eq!(filtered(&digest[..40]), digest[..40]);
    }
}
