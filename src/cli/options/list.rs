//! How a list of mount options is written: commas, quotes, escapes. Must never know what an option means.
//!
//! The rules are those of libmount and of libfuse together. mount(8) hands a list on as it is; only octal escapes in
//! fstab are gone by then, so a comma written as `\054` there separates.

use std::ffi::OsStr;
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt;

use super::OptionError;
use crate::plain::{SHOWN, short};

/// An option as it stands in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub name: String,
    pub value: Option<String>,
}

/// The options of a list. Empty ones are left out.
pub(super) fn read(list: &OsStr) -> Result<Vec<Written>, OptionError> {
    let texts = split(list.as_bytes())?.into_iter().filter(|text| !text.is_empty());
    texts.map(|text| Written::new(String::from_utf8(text).map_err(|_| OptionError::NotText)?)).collect()
}

impl Written {
    fn new(text: String) -> Result<Self, OptionError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text, None),
        };
        let is_name = |c: char| !c.is_whitespace() && !c.is_control();
        if name.is_empty() || name.starts_with('-') || !name.chars().all(is_name) {
            return Err(OptionError::Malformed(short(&name, SHOWN)));
        }
        // No name, path or address has them, and a NUL would end the text for the kernel.
        if value.as_ref().is_some_and(|value| value.chars().any(char::is_control)) {
            return Err(OptionError::Control(short(&name, SHOWN)));
        }
        Ok(Self { name, value })
    }

    /// As a flag of the command line.
    pub fn as_flag(&self) -> String {
        let name = self.name.replace('_', "-");
        self.value.as_ref().map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}"))
    }
}

/// Splits at commas, but not inside quotes. A backslash takes the next character as it is; three octal digits after it
/// are one byte.
fn split(list: &[u8]) -> Result<Vec<Vec<u8>>, OptionError> {
    let (mut options, mut option, mut quoted) = (Vec::new(), Vec::new(), false);
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' if !quoted => options.push(std::mem::take(&mut option)),
            b'"' => quoted = !quoted,
            b'\\' => option.push(escaped(&mut bytes)?),
            byte => option.push(byte),
        }
    }
    options.push(option);
    if quoted { Err(OptionError::OpenQuote) } else { Ok(options) }
}

/// What follows a backslash; the backslash itself at the end of the list.
fn escaped(bytes: &mut Peekable<impl Iterator<Item = u8> + Clone>) -> Result<u8, OptionError> {
    let mut ahead = bytes.clone();
    let mut digit = |range: std::ops::RangeInclusive<u8>| ahead.next().filter(|byte| range.contains(byte));
    if let (Some(first), Some(second), Some(third)) = (digit(b'0'..=b'7'), digit(b'0'..=b'7'), digit(b'0'..=b'7')) {
        bytes.by_ref().take(3).for_each(drop);
        let number = [first, second, third].iter().fold(0, |number, digit| number * 8 + u16::from(digit - b'0'));
        return u8::try_from(number).map_err(|_| OptionError::NotAByte);
    }
    Ok(bytes.next().unwrap_or(b'\\'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(list: &str) -> Result<Vec<(String, Option<String>)>, OptionError> {
        Ok(read(list.as_ref())?.into_iter().map(|option| (option.name, option.value)).collect())
    }

    #[test]
    fn a_comma_in_a_value_is_escaped_or_quoted() {
        for (list, expected) in [
            (r"a=1,b", &[("a", Some("1")), ("b", None)][..]),
            (r",a,,b,", &[("a", None), ("b", None)]),
            (r"a=x:1\,y:2,b", &[("a", Some("x:1,y:2")), ("b", None)]),
            (r#"a="x:1,y:2",b"#, &[("a", Some("x:1,y:2")), ("b", None)]),
            (r#""a=x,y",b"#, &[("a", Some("x,y")), ("b", None)]),
            (r#"a=\"x\\y,b"#, &[("a", Some(r#""x\y"#)), ("b", None)]),
            (r#"a="x\"y,z""#, &[("a", Some(r#"x"y,z"#))]),
            (r"a=x\040y\054z\303\244", &[("a", Some("x y,z\u{e4}"))]),
            (r"a=\\040", &[("a", Some(r"\040"))]),
            (r"a=\48\40x", &[("a", Some("4840x"))]),
            (r"a=b=c,d=", &[("a", Some("b=c")), ("d", Some(""))]),
            (r"a=\", &[("a", Some(r"\"))]),
        ] {
            let expected: Vec<_> =
                expected.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
            assert_eq!(options(list), Ok(expected), "{list}");
        }
    }

    #[test]
    fn what_is_no_list_of_options_is_refused_without_its_values() {
        assert_eq!(options("=secret"), Err(OptionError::Malformed(String::new())));
        assert_eq!(options("a b=secret"), Err(OptionError::Malformed("a b".to_owned())));
        assert_eq!(options("--help"), Err(OptionError::Malformed("--help".to_owned())));
        assert_eq!(options("a\u{1b}[2J"), Err(OptionError::Malformed("a\u{1b}[2J".to_owned())));
        assert_eq!(options(r#"ro,a="b,c"#), Err(OptionError::OpenQuote));
        assert_eq!(options(r"a=\377"), Err(OptionError::NotText));
        assert_eq!(options(r"a=\777"), Err(OptionError::NotAByte));
        for control in [r"a=x\000", r"a=\012", r"a=\302\233", "a=\u{7f}"] {
            assert_eq!(options(control), Err(OptionError::Control("a".to_owned())), "{control}");
        }
        let long = format!("--{}", "x".repeat(100_000));
        let Err(OptionError::Malformed(name)) = options(&long) else { panic!("{long}") };
        assert_eq!(name.chars().count(), 65);
    }

    proptest! {
        #[test]
        fn any_value_can_be_escaped(values in prop::collection::vec("[ -~\u{e4}]{0,8}", 1..4)) {
            let escaped = |value: &String| value.chars().map(|c| match c {
                ',' | '"' | '\\' => format!("\\{c}"),
                c => c.to_string(),
            }).collect::<String>();
            let list: Vec<String> = values.iter().map(|value| format!("n={}", escaped(value))).collect();
            let read: Vec<_> = options(&list.join(",")).unwrap().into_iter().map(|(_, value)| value.unwrap()).collect();
            prop_assert_eq!(read, values);
        }
    }
}
