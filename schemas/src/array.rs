//! The elements of a JSON array, found by their boundaries alone.
//!
//! Only what decides where an element ends is looked at: strings with their escapes, and the brackets of the
//! element's own kind. For valid JSON that is exact. What is between the boundaries is not checked: each element is
//! read afterwards as one JSON value, so an array whose elements are all read is valid JSON, and a bad element fails
//! alone. Why not a JSON parser: `docs/decisions/008-envelope-parsing.md`.

use memchr::memchr2;
use thiserror::Error;

/// How far a string's end is looked for byte by byte, before the vectorised search, whose start costs more than most
/// strings have bytes.
const SHORT_STRING_BYTES: usize = 16;
/// Least bytes of an event in an array, `{"type":"a"},`: bounds what is reserved for the elements of an array.
const MIN_EVENT_BYTES: usize = 13;

/// Why an array cannot be cut into its elements. Positions are bytes from the start, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ArrayError {
    /// More elements than the limit.
    #[error("more than {0} elements")]
    TooMany(usize),
    /// The text does not begin with `[`.
    #[error("an array must begin with \"[\"")]
    NotAnArray,
    /// The text ends inside the array.
    #[error("the array is not closed")]
    NotClosed,
    /// No value where one must be.
    #[error("a value is missing at byte {0}")]
    NoValue(usize),
    /// Neither a comma nor the end of the array follows a value.
    #[error("a comma or the end of the array is missing at byte {0}")]
    NoComma(usize),
    /// Something follows the array.
    #[error("the array ends before byte {0}, where more follows")]
    Trailing(usize),
}

/// Cuts the array that `json` is into its elements, at most `limit`, each without the whitespace around it.
///
/// # Errors
/// When the text is not an array, or is broken between its elements.
pub fn elements(json: &[u8], limit: usize) -> Result<Vec<&[u8]>, ArrayError> {
    let mut at = skip_whitespace(json, 0);
    if json.get(at) != Some(&b'[') {
        return Err(ArrayError::NotAnArray);
    }
    let mut elements = Vec::with_capacity(limit.min(json.len() / MIN_EVENT_BYTES));
    at = skip_whitespace(json, at + 1);
    if json.get(at) == Some(&b']') {
        return ended(json, at + 1).map(|()| elements);
    }
    loop {
        let end = value_end(json, at)?;
        if elements.len() == limit {
            return Err(ArrayError::TooMany(limit));
        }
        elements.push(&json[at..end]);
        at = skip_whitespace(json, end);
        match json.get(at) {
            Some(b',') => at = skip_whitespace(json, at + 1),
            Some(b']') => return ended(json, at + 1).map(|()| elements),
            Some(_) => return Err(ArrayError::NoComma(at)),
            None => return Err(ArrayError::NotClosed),
        }
    }
}

fn ended(json: &[u8], at: usize) -> Result<(), ArrayError> {
    let at = skip_whitespace(json, at);
    if at == json.len() { Ok(()) } else { Err(ArrayError::Trailing(at)) }
}

fn skip_whitespace(json: &[u8], from: usize) -> usize {
    let rest = &json[from..];
    let blank = rest.iter().position(|byte| !matches!(byte, b' ' | b'\n' | b'\r' | b'\t'));
    from + blank.unwrap_or(rest.len())
}

/// Where the value that begins at `start` ends.
fn value_end(json: &[u8], start: usize) -> Result<usize, ArrayError> {
    match json.get(start) {
        Some(b'{') => container_end::<b'{', b'}'>(json, start),
        Some(b'[') => container_end::<b'[', b']'>(json, start),
        Some(b'"') => string_end(json, start),
        Some(b',' | b']') => Err(ArrayError::NoValue(start)),
        // A number or a word, or what cannot be read at all.
        Some(_) => {
            let ends = |byte: &u8| matches!(byte, b',' | b']' | b' ' | b'\n' | b'\r' | b'\t');
            json[start..].iter().position(ends).map(|length| start + length).ok_or(ArrayError::NotClosed)
        }
        None => Err(ArrayError::NotClosed),
    }
}

/// Where the object or array that begins at `start` ends: brackets of the other kind are balanced in valid JSON, so
/// only its own are counted.
fn container_end<const OPEN: u8, const CLOSE: u8>(json: &[u8], start: usize) -> Result<usize, ArrayError> {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = json.get(at) {
        match *byte {
            b'"' => {
                at = string_end(json, at)?;
                continue;
            }
            byte if byte == OPEN => depth += 1,
            byte if byte == CLOSE => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
    Err(ArrayError::NotClosed)
}

/// Where the string whose opening quote is at `start` ends.
fn string_end(json: &[u8], start: usize) -> Result<usize, ArrayError> {
    let mut at = start + 1;
    while let Some(distance) = json.get(at..).and_then(find_quote_or_backslash) {
        at += distance;
        if json[at] == b'"' {
            return Ok(at + 1);
        }
        // The escaped character is no end, whatever it is.
        at += 2;
    }
    Err(ArrayError::NotClosed)
}

fn find_quote_or_backslash(text: &[u8]) -> Option<usize> {
    let (short, long) = text.split_at(text.len().min(SHORT_STRING_BYTES));
    let near = short.iter().position(|byte| matches!(byte, b'"' | b'\\'));
    near.or_else(|| memchr2(b'"', b'\\', long).map(|distance| short.len() + distance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, value::RawValue};

    fn texts(json: &str) -> Result<Vec<&str>, ArrayError> {
        elements(json.as_bytes(), 3).map(|all| all.into_iter().map(|e| str::from_utf8(e).unwrap()).collect())
    }

    #[test]
    fn elements_are_cut_out_with_their_bytes_untouched() {
        assert_eq!(texts("[{\"a\" : 1} ,2, [ ]]").unwrap(), ["{\"a\" : 1}", "2", "[ ]"]);
        assert_eq!(texts(" [ ] ").unwrap(), [""; 0]);
        assert_eq!(texts(r#"["]\"],", -1.5e3, true]"#).unwrap(), [r#""]\"],""#, "-1.5e3", "true"]);
        assert_eq!(
            texts(r#"[{"a":{"}":"\\"}},{"b":"{["}]"#).unwrap(),
            [r#"{"a":{"}":"\\"}}"#, r#"{"b":"{["}"#]
        );
    }

    #[test]
    fn what_is_broken_inside_an_element_is_left_to_its_reader() {
        assert_eq!(texts("[{\"a\":[},nope]").unwrap(), ["{\"a\":[}", "nope"]);
        assert_eq!(texts("[\"\u{1}\",}]").unwrap(), ["\"\u{1}\"", "}"]);
    }

    #[test]
    fn what_is_broken_between_elements_is_refused() {
        let table = [
            ("", ArrayError::NotAnArray),
            ("{}", ArrayError::NotAnArray),
            ("[", ArrayError::NotClosed),
            ("[1", ArrayError::NotClosed),
            ("[1,", ArrayError::NotClosed),
            ("[{\"a\":1}", ArrayError::NotClosed),
            ("[{\"a\":\"}]", ArrayError::NotClosed),
            ("[\"\\", ArrayError::NotClosed),
            ("[\"a\\\"", ArrayError::NotClosed),
            ("[1,]", ArrayError::NoValue(3)),
            ("[,1]", ArrayError::NoValue(1)),
            ("[1 2]", ArrayError::NoComma(3)),
            ("[{}{}]", ArrayError::NoComma(3)),
            ("[1]2", ArrayError::Trailing(3)),
            ("[1] ]", ArrayError::Trailing(4)),
            ("[]]", ArrayError::Trailing(2)),
            ("[1,2,3,4]", ArrayError::TooMany(3)),
        ];
        for (json, expected) in table {
            assert_eq!(texts(json), Err(expected), "{json}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[\\[\\]{}\",: \\\\a\\n\u{e9}]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec(("[{}\\]\"\\\\a]{0,5}", inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_valid_array_is_cut_as_a_json_parser_cuts_it(values in proptest::collection::vec(any_json(), 0..6), pretty in any::<bool>()) {
            let value = Value::from(values);
            let json = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let expected: Vec<&RawValue> = serde_json::from_str(&json).unwrap();
            let found = elements(json.as_bytes(), 100).unwrap();
            prop_assert_eq!(found, expected.into_iter().map(|raw| raw.get().as_bytes()).collect::<Vec<_>>());
        }

        #[test]
        fn an_array_whose_elements_can_be_read_is_valid_json(json in "\\[[\\[\\]{}\",:a1 \\\\]{0,24}\\]?") {
            let whole = serde_json::from_str::<Vec<&RawValue>>(&json).is_ok();
            let parts = elements(json.as_bytes(), 100)
                .is_ok_and(|all| all.iter().all(|part| serde_json::from_slice::<&RawValue>(part).is_ok()));
            prop_assert_eq!(whole, parts, "{}", json);
        }

        #[test]
        fn arbitrary_bytes_never_panic(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = elements(&json, 5);
            let mut array = vec![b'['];
            array.extend_from_slice(&json);
            let _ = elements(&array, 5);
        }
    }
}
