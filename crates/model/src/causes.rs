//! Errors in words.

/// An error and what caused it, in one line: `cannot read x: No such file or directory`.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::fmt::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("cannot read it")
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn causes_follow_in_their_order() {
        assert_eq!(with_causes(&std::fmt::Error), std::fmt::Error.to_string());
        let text = with_causes(&Outer(std::fmt::Error));
        assert_eq!(text, format!("cannot read it: {}", std::fmt::Error));
    }
}
