//! Writes Dockerfiles. What stands in one is either fixed text of this program, a base image by its checked name, or a
//! word in a JSON list; no text of a source gets in otherwise, so that none is an instruction or part of a shell's line.

use std::fmt::Write as _;

/// The user that programs run as.
const USER: &str = "1000:1000";

/// A Dockerfile that is being written.
#[derive(Debug)]
pub(super) struct Dockerfile {
    text: String,
    bases: Vec<String>,
}

impl Dockerfile {
    pub(super) fn begin() -> Self {
        Self {
            text: "# Written by Homerun: the source has none.\n".to_owned(),
            bases: Vec::new(),
        }
    }

    /// A stage that is left behind.
    pub(super) fn stage(&mut self, base: &str, name: &'static str) -> &mut Self {
        self.bases.push(base.to_owned());
        self.line(format_args!("FROM {base} AS {name}"))
    }

    /// The stage that becomes the image.
    pub(super) fn last(&mut self, base: &str) -> &mut Self {
        self.bases.push(base.to_owned());
        self.line(format_args!("FROM {base}"))
    }

    pub(super) fn work_in(&mut self, dir: &'static str) -> &mut Self {
        self.line(format_args!("WORKDIR {dir}"))
    }

    pub(super) fn env(&mut self, pairs: &'static str) -> &mut Self {
        self.line(format_args!("ENV {pairs}"))
    }

    /// Runs a program.
    pub(super) fn run(&mut self, words: &[&str]) -> &mut Self {
        self.line(format_args!("RUN {}", list(words)))
    }

    /// Runs a line of shell of our own.
    pub(super) fn shell(&mut self, line: &'static str) -> &mut Self {
        self.line(format_args!("RUN {line}"))
    }

    /// Copies files of the source to where it works. The names are fixed or have been checked: a builder would put
    /// variables and patterns in.
    pub(super) fn copy(&mut self, files: &[&str]) -> &mut Self {
        let words: Vec<&str> = files.iter().copied().chain(["./"]).collect();
        self.line(format_args!("COPY {}", list(&words)))
    }

    /// Copies a directory of the source to one of the same name.
    pub(super) fn copy_dir(&mut self, dir: &'static str) -> &mut Self {
        self.line(format_args!("COPY {dir} ./{dir}"))
    }

    /// Copies the source to where it works; what it has to build with.
    pub(super) fn copy_all(&mut self) -> &mut Self {
        self.line(format_args!("COPY . ."))
    }

    /// Copies the source to where it works; what the program may change.
    pub(super) fn copy_all_owned(&mut self) -> &mut Self {
        self.line(format_args!("COPY --chown={USER} . ."))
    }

    /// Copies what an earlier stage made, by names that are fixed or have been checked.
    pub(super) fn copy_from(&mut self, stage: &'static str, from: &str, to: &str) -> &mut Self {
        self.line(format_args!("COPY --from={stage} {}", list(&[from, to])))
    }

    /// The same, for the program to change.
    pub(super) fn copy_from_owned(&mut self, stage: &'static str, from: &'static str, to: &'static str) -> &mut Self {
        self.line(format_args!("COPY --from={stage} --chown={USER} {}", list(&[from, to])))
    }

    /// Ends it with who runs and what. Answers the text, and the base images in it.
    pub(super) fn end(mut self, entrypoint: &[String]) -> (String, Vec<String>) {
        let words: Vec<&str> = entrypoint.iter().map(String::as_str).collect();
        self.line(format_args!("ENV PORT=8080 HOME=/tmp"))
            .line(format_args!("USER {USER}"))
            .line(format_args!("ENTRYPOINT {}", list(&words)));
        (self.text, self.bases)
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) -> &mut Self {
        // A string takes whatever it is given.
        let _ = writeln!(self.text, "{line}");
        self
    }
}

/// A list of words as JSON, in one line.
pub(super) fn list(words: &[&str]) -> String {
    serde_json::Value::from(words.to_vec()).to_string()
}

/// Whether a name out of a source may stand where a builder looks for variables and patterns, or in a path.
pub(super) fn fits(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "My.App-2_x", "_x"] {
            assert!(fits(good), "{good}");
        }
        for bad in ["", "-x", ".x", "a b", "a/b", "a$b", "a*", "a\nRUN x", "ä", "a\"b"] {
            assert!(!fits(bad), "{bad:?}");
        }
        assert!(!fits(&"a".repeat(101)));
    }

    #[test]
    fn words_stay_in_their_line() {
        let text = list(&["a b", "\n", "\"", "\\", "$X"]);
        assert_eq!(text, r#"["a b","\n","\"","\\","$X"]"#);
    }
}
