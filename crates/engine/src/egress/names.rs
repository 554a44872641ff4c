//! The names of Homerun itself, as a resolver answers for them (RFC 1035): the metadata server's, and every one below the
//! domain of its services. Pure: a question in, an answer out.

use std::net::Ipv4Addr;

use super::{
    dns::{HEADER, end_of_question},
    router::{INGRESS, RESOLVER},
};

/// As Google's documentation and `/etc/hosts` call the metadata server.
pub(crate) const METADATA: [&str; 2] = ["metadata.google.internal", "metadata"];

/// How long an answer may be kept, in seconds. The addresses never change.
const LIFE: u32 = 300;
const A: u16 = 1;
const ANY: u16 = 255;
const INTERNET: u16 = 1;

/// The answer, if the question's name is one of ours: its address, or that it has nothing of the kind that was asked
/// for. None: somebody else has to be asked, or it is no question of one name.
pub(crate) fn answer(question: &[u8], domain: &str) -> Option<Vec<u8>> {
    if question.get(4..6)? != [0, 1] {
        return None;
    }
    let end = end_of_question(question)?;
    let address = address(&name(&question[HEADER..end - 4])?, domain)?;
    let number = |at: usize| u16::from_be_bytes([question[at], question[at + 1]]);
    let (kind, class) = (number(end - 4), number(end - 2));
    if class != INTERNET {
        return None;
    }
    let has = matches!(kind, A | ANY);
    let mut answer = question[..end].to_vec();
    // An answer, from whom it is asked of; recursion is to be had.
    answer[2] = 0x84 | (question[2] & 0x01);
    answer[3] = 0x80;
    answer[6..HEADER].copy_from_slice(&[0, u8::from(has), 0, 0, 0, 0]);
    if has {
        // The question's name, of which this is a repetition.
        answer.extend([0xc0, 12]);
        answer.extend(A.to_be_bytes());
        answer.extend(INTERNET.to_be_bytes());
        answer.extend(LIFE.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// Where a name in small letters leads, if it is one of ours.
fn address(name: &str, domain: &str) -> Option<Ipv4Addr> {
    if METADATA.contains(&name) {
        return Some(RESOLVER);
    }
    let below = name.strip_suffix(domain)?;
    (below.len() > 1 && below.ends_with('.')).then_some(INGRESS)
}

/// The labels before the zero byte as a text in small letters. None: they are no text.
fn name(mut labels: &[u8]) -> Option<String> {
    let mut name = String::new();
    loop {
        let (length, rest) = labels.split_first()?;
        if *length == 0 {
            return Some(name);
        }
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&std::str::from_utf8(label).ok()?.to_ascii_lowercase());
        labels = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut all = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\x01".to_vec();
        for label in name.split('.') {
            all.push(u8::try_from(label.len()).expect("a label"));
            all.extend(label.as_bytes());
        }
        all.push(0);
        all.extend(kind.to_be_bytes());
        all.extend([0, 1]);
        // What a client adds about itself (RFC 6891).
        all.extend(b"\0\0\x29\x10\0\0\0\0\0\0\0");
        all
    }

    fn asked(name: &str) -> Option<Ipv4Addr> {
        let answer = answer(&question(name, A), "a.run.localhost")?;
        let octets: [u8; 4] = answer[answer.len() - 4..].try_into().expect("an address");
        Some(octets.into())
    }

    #[test]
    fn whose_names_are_ours() {
        for (name, right) in [
            ("metadata.google.internal", Some(RESOLVER)),
            ("Metadata.Google.Internal", Some(RESOLVER)),
            ("metadata", Some(RESOLVER)),
            ("x.metadata.google.internal", None),
            ("google.internal", None),
            ("b-0123456789-uc.a.run.localhost", Some(INGRESS)),
            ("B-0123456789-UC.A.run.localhost", Some(INGRESS)),
            ("b-12.us-central1.a.run.localhost", Some(INGRESS)),
            ("a.run.localhost", None),
            ("xa.run.localhost", None),
            ("a.run.localhost.example.com", None),
            ("localhost", None),
            ("example.com", None),
        ] {
            assert_eq!(asked(name), right, "{name}");
        }
    }

    #[test]
    fn the_answer() {
        let given = answer(&question("metadata", A), "x").expect("ours");
        let right = b"\x12\x34\x85\x80\0\x01\0\x01\0\0\0\0\x08metadata\0\0\x01\0\x01\
            \xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xa9\xfe\xa9\xfe";
        assert_eq!(given, right);
        // No address of IPv6, which is not the same as no such name.
        let given = answer(&question("metadata", 28), "x").expect("ours");
        assert_eq!(given, b"\x12\x34\x85\x80\0\x01\0\0\0\0\0\0\x08metadata\0\0\x1c\0\x01");
    }

    #[test]
    fn what_is_no_question_of_one_name() {
        let whole = question("metadata", A);
        for length in 0..whole.len() - 11 {
            assert_eq!(answer(&whole[..length], "x"), None, "{length}");
        }
        let mut two = whole.clone();
        two[5] = 2;
        assert_eq!(answer(&two, "x"), None);
        let mut chaos = whole;
        let class = chaos.len() - 12;
        chaos[class] = 3;
        assert_eq!(answer(&chaos, "x"), None);
    }
}
