//! Quoting of names and texts that become part of a statement.

/// An identifier, always quoted, so that no name is a keyword, is folded to lower case, or ends early.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal. With a backslash it is an escape string, so that its meaning does not depend on the setting
/// standard_conforming_strings.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_ends_its_quotes() {
        for (name, quoted) in [
            ("products", "\"products\""),
            ("Price (€)", "\"Price (€)\""),
            ("a\"b", "\"a\"\"b\""),
            ("\"; DROP TABLE x; --", "\"\"\"; DROP TABLE x; --\""),
            ("select", "\"select\""),
        ] {
            assert_eq!(ident(name), quoted);
        }
    }

    #[test]
    fn no_text_ends_its_quotes() {
        for (text, quoted) in
            [("a", "'a'"), ("it's", "'it''s'"), ("\\", "E'\\\\'"), ("\\'", "E'\\\\'''")]
        {
            assert_eq!(literal(text), quoted);
        }
    }
}
