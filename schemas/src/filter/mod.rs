//! Content filters: conditions over an event in CEL, the Common Expression Language.
//!
//! `event` has the event's attributes (`event.type`, `event.subject`, extensions), `data` its JSON; `data` is null where there is none.
//! The control plane compiles a filter to refuse a bad one, the dispatcher to decide with it.
//!
//! A filter is a tenant's program in everybody's process, so it is bounded before it runs: by its length, depth and number of
//! nodes, by the loops within loops, by what may be built inside of a loop (`inspect.rs`), and, for each event, by what the evaluation
//! costs at most about an event of that size (`cost.rs`). Nothing is left that would have to be interrupted.

mod cost;
mod inspect;
mod subject;

pub use subject::{MAX_DATA_BYTES, MAX_DATA_VALUES, Subject};

use cel::{
    ExecutionError, Value,
    common::{ast::IdedExpr, types::CelBool},
};
use cost::Extent;
use inspect::{Inspected, inspect};
use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
};
use subject::Size;
use thiserror::Error;

/// Longest filter, in bytes.
pub const MAX_FILTER_BYTES: usize = 1024;

/// Why a filter was refused. Meant for the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidFilter {
    /// Too long, or nothing.
    #[error("a filter has 1 to {MAX_FILTER_BYTES} bytes, this one has {0}")]
    Length(usize),
    /// Not CEL.
    #[error("not a CEL expression: {0}")]
    Syntax(String),
    /// It could cost too much.
    #[error("too complex: {0}")]
    Complex(&'static str),
    /// A name that means nothing.
    #[error("{0:?} is unknown here: there are `event` and `data`")]
    UnknownName(String),
    /// A function that filters do not have.
    #[error("the function {0:?} is not available in filters")]
    UnknownFunction(String),
    /// It never is true or false.
    #[error("a filter must be a condition: true or false")]
    NoCondition,
}

/// Why a filter could not decide about an event. Holds nothing of the event.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// The data is too large to look into.
    #[error("filters look into at most {MAX_DATA_BYTES} bytes and {MAX_DATA_VALUES} values of data")]
    DataTooLarge,
    /// The data cannot be read: nested too deeply, or with the same name twice.
    #[error("the event's data cannot be read by a filter")]
    UnreadableData,
    /// The filter's loops are too much for the event's lists.
    #[error("this filter takes too long for an event of this size")]
    TooExpensive,
    /// Values of the wrong kind, or the like.
    #[error("the filter failed: {0}")]
    Failed(String),
}

/// A filter, ready to decide.
#[derive(Debug)]
pub struct Filter {
    expression: IdedExpr,
    uses_data: bool,
    /// See [`cost::is_cheap`].
    is_cheap: bool,
}

impl Filter {
    /// Reads and checks a filter.
    pub fn compile(text: &str) -> Result<Self, InvalidFilter> {
        if !(1..=MAX_FILTER_BYTES).contains(&text.len()) {
            return Err(InvalidFilter::Length(text.len()));
        }
        let Inspected { expression, uses_data } = inspect(text)?;
        let is_cheap = cost::is_cheap(&expression);
        Ok(Self { expression, uses_data, is_cheap })
    }

    /// Whether the event passes. One that lacks a member that the filter asks for does not.
    pub fn passes(&self, subject: &mut Subject<'_>) -> Result<bool, FilterError> {
        let data = if self.uses_data { subject.open_data()? } else { Size::default() };
        let extent = Extent { data, event: subject.attributes };
        if !cost::is_affordable(&self.expression, self.is_cheap, &extent) {
            return Err(FilterError::TooExpensive);
        }
        let evaluate = || match Value::resolve_val(&self.expression, &subject.context) {
            Ok(value) => match value.downcast_ref::<CelBool>() {
                Some(passes) => Ok(*passes.inner()),
                None => Err(FilterError::Failed(format!("it is a {}, not a bool", value.get_type().name()))),
            },
            Err(ExecutionError::NoSuchKey(_)) => Ok(false),
            Err(error) => Err(FilterError::Failed(describe(&error))),
        };
        catch_unwind(AssertUnwindSafe(evaluate))
            .unwrap_or_else(|_| Err(FilterError::Failed("the evaluation gave up".to_owned())))
    }
}

/// An error without the values that met: they are the tenant's payload, and this text ends up in logs and history.
fn describe(error: &ExecutionError) -> String {
    let text: Cow<'_, str> = match error {
        ExecutionError::NoSuchOverload(overload) => overload.to_string().into(),
        ExecutionError::UnexpectedType { got, want } => format!("a {got} where a {want} belongs").into(),
        ExecutionError::UndeclaredReference(name) => format!("{name:?} is unknown").into(),
        ExecutionError::IndexOutOfBounds(_) => "an index beyond its list".into(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "a division by zero".into(),
        ExecutionError::Overflow(..) => "a number out of range".into(),
        ExecutionError::ValuesNotComparable(..) => "values that cannot be compared".into(),
        _ => "values of the wrong kind".into(),
    };
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn envelope(data: &str) -> String {
        format!(
            r#"{{"specversion":"1.0","id":"1","source":"/shop","type":"order.created","subject":"café","priority":7,"vip":true,"region":"eu","tenantid":"01938f2e-0000-7000-8000-000000000001","receivedat":"2026-11-21T15:34:00.123Z","data":{data}}}"#
        )
    }

    fn passes(filter: &str, data: &str) -> Result<bool, FilterError> {
        let envelope = envelope(data);
        let event = Event::decode(envelope.as_bytes()).unwrap();
        let filter = Filter::compile(filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
        filter.passes(&mut Subject::new(&event))
    }

    #[test]
    fn a_filter_decides_by_attributes_and_data() {
        let order = r#"{"total": 12.5, "count": 3, "big": 18446744073709551615, "paid": true, "note": null, "customer": {"tier": "gold", "e-mail": "a@example.com"},
            "lines": [{"sku": "a1", "n": 2}, {"sku": "b\u0032", "n": 1}], "tags": ["x", "y"]}"#;
        let table = [
            ("data.total > 10", true),
            ("data.total > 10.0 && data.total < 13", true),
            ("data.count == 3 && data.count != 4", true),
            ("data.count >= 3.0", true),
            ("data.big > 5", true),
            ("data.paid", true),
            ("!data.paid", false),
            ("data.note == null", true),
            ("data.customer.tier == 'gold'", true),
            ("data.customer['e-mail'].endsWith('@example.com')", true),
            ("data.customer.tier in ['gold', 'silver']", true),
            ("'x' in data.tags", true),
            ("'sku' in data.lines[0]", true),
            ("data.lines[1].sku == 'b2'", true),
            ("data.lines.exists(l, l.sku.startsWith('b') && l.n == 1)", true),
            ("data.lines.all(l, l.n > 1)", false),
            ("data.lines.exists_one(l, l.n > 1)", true),
            ("data.lines.filter(l, l.n > 1).size() == 1", true),
            ("data.lines.map(l, l.n) == [2, 1]", true),
            ("size(data.lines) + 1 == 3", true),
            ("data.lines.exists(l, data.tags.exists(t, t == l.sku))", false),
            ("has(data.customer.tier) && !has(data.customer.name)", true),
            ("data.count % 2 == 1 ? event.region == 'eu' : false", true),
            ("type(data.count) == int", true),
            ("event.type == 'order.created' && event.source == '/shop'", true),
            ("event.subject.contains('fé')", true),
            ("event.priority >= 5 && event.vip", true),
            ("int(event.priority) == 7", true),
            // What is not there does not pass, and is no error.
            ("data.missing == 1", false),
            ("data.customer.missing.deeper == 1", false),
            ("event.unknownattribute == 'x'", false),
            ("data.missing == 1 || data.paid", true),
            ("true", true),
        ];
        for (filter, expected) in table {
            assert_eq!(passes(filter, order), Ok(expected), "{filter}");
        }
        assert_eq!(passes("data == null", "null"), Ok(true));
        assert_eq!(passes("data[0] == 1", "[1]"), Ok(true));
    }

    #[test]
    fn an_evaluation_that_fails_says_why_and_nothing_of_the_event() {
        let table = [
            ("data.secret > 5", r#"{"secret":"s3cr3t"}"#, "no matching overload"),
            ("data.secret", r#"{"secret":"s3cr3t"}"#, "not a bool"),
            ("data.list[5] == 1", r#"{"list":[]}"#, "an index beyond its list"),
            ("data.n / 0 == 1", r#"{"n":1}"#, "a division by zero"),
            ("int(data.n) == 1", r#"{"n":"s3cr3t"}"#, "wrong kind"),
            ("data.n.exists(x, x)", r#"{"n":"s3cr3t"}"#, ""),
        ];
        for (filter, data, expected) in table {
            let error = passes(filter, data).expect_err(filter).to_string();
            assert!(error.contains(expected) && !error.contains("s3cr3t"), "{filter}: {error}");
        }
        assert_eq!(passes("data.a == 1", r#"{"a":1,"a":2}"#), Err(FilterError::UnreadableData));
        let large = format!("\"{}\"", "x".repeat(MAX_DATA_BYTES));
        assert_eq!(passes("data == 'x'", &large), Err(FilterError::DataTooLarge));
        assert_eq!(passes("event.type == 'order.created'", &large), Ok(true));
    }

    #[test]
    fn bad_filters_are_refused_with_the_reason() {
        let deep = format!("{}true{}", "(".repeat(200), ")".repeat(200));
        let negated = format!("{}true", "!".repeat(1_000));
        let sum = format!("1{} == 1", "+1".repeat(500));
        let path = format!("data{}", ".a".repeat(500));
        let conditions = format!("{}true", "data ? true : ".repeat(70));
        let long = "x".repeat(MAX_FILTER_BYTES + 1);
        let table = [
            ("", "has 0"),
            (long.as_str(), "1 to 1024 bytes"),
            ("data.total >", "not a CEL expression"),
            ("data.total = 1", "not a CEL expression"),
            (deep.as_str(), "nested too deeply"),
            (negated.as_str(), "nested too deeply"),
            (sum.as_str(), "nested too deeply"),
            (path.as_str(), "nested too deeply"),
            (conditions.as_str(), "nested too deeply"),
            ("order.total > 1", "\"order\" is unknown"),
            ("data.note.matches('a+')", "\"matches\" is not available"),
            ("timestamp(event.time) > timestamp('2026-01-01T00:00:00Z')", "\"timestamp\" is not available"),
            ("size(data)", "must be a condition"),
            ("'text'", "must be a condition"),
            ("[true]", "must be a condition"),
            ("data.a + 1", "must be a condition"),
            ("data.a.map(x, x)", "must be a condition"),
            ("data.a.map(x, x + x).size() > 1", "too complex: +"),
            ("data.a.all(x, data.a.all(y, data.a.all(z, x == y)))", "too complex: more than two"),
            ("Message{a: 1} == 1", "unknown"),
        ];
        for (filter, expected) in table {
            let error = Filter::compile(filter).expect_err(filter).to_string();
            assert!(error.contains(expected), "{filter:.40}: {error}");
        }
    }

    #[test]
    fn what_could_take_long_is_not_begun() {
        let numbers: Vec<u32> = (0..5_000).collect();
        let list = serde_json::to_string(&numbers).unwrap();
        let begun = Instant::now();
        assert_eq!(
            passes("data.exists(x, data.exists(y, x * y == 7.5))", &list),
            Err(FilterError::TooExpensive)
        );
        assert_eq!(passes("data.exists(x, x == 4999)", &list), Ok(true));
        // Generous: what is not bounded would take hours.
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_worst_that_is_allowed_ends_soon() {
        let compares = vec!["data == data"; 40].join(" && ");
        let table = [
            ("data.exists(x, data.exists(y, x == y && x.contains('q')))".to_owned(), "x".repeat(8_000), 28),
            (format!("data.exists(x, data.exists(y, {compares} && false))"), "y".to_owned(), 2_000),
        ];
        for (filter, text, count) in table {
            let items: Vec<String> = (0..count).map(|n| format!("{n}{text}")).collect();
            let data = serde_json::to_string(&items).unwrap();
            let begun = Instant::now();
            let result = passes(&filter, &data);
            assert!(matches!(result, Ok(false) | Err(FilterError::TooExpensive)), "{result:?}");
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
    }

    #[test]
    fn data_of_too_many_values_is_not_looked_into() {
        let list = |count: usize| format!("[{}]", vec!["1"; count].join(","));
        let most = usize::try_from(MAX_DATA_VALUES).unwrap();
        assert_eq!(passes("size(data) > 1", &list(most)), Ok(true));
        assert_eq!(passes("size(data) > 1", &list(most + 1)), Err(FilterError::DataTooLarge));
        let object = format!("{{\"a\":{}}}", list(most));
        assert_eq!(passes("has(data.a)", &object), Err(FilterError::DataTooLarge));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,60}") {
            let _ = Filter::compile(&text);
        }

        #[test]
        fn arbitrary_filters_never_panic(
            text in "((data|event|x|1|2\\.5|'a'|null|true)(\\.(a|b|size\\(\\)|all|exists)|\\[0\\]|\\(x, )?( (==|<|&&|\\|\\||in|\\+|\\?|:|-) )?[()!\\[\\]{}]{0,2}){1,8}",
            data in "(\\{\"a\":\\[1,\"b\",null\\]\\}|\\[0\\]|\"s\"|-1e300|true)",
        ) {
            let envelope = envelope(&data);
            let event = Event::decode(envelope.as_bytes()).unwrap();
            if let Ok(filter) = Filter::compile(&text) {
                let _ = filter.passes(&mut Subject::new(&event));
            }
        }
    }
}
