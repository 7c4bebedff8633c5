//! Content filters: conditions over an event in CEL, the Common Expression Language.
//!
//! `event` has the event's attributes (`event.type`, `event.subject`, extensions), `data` its JSON; `data` is null where there is none.
//! The control plane compiles a filter to refuse a bad one, the dispatcher to decide with it.
//!
//! A filter is a tenant's program in everybody's process, so it is bounded before it runs: by its length, depth and number of
//! nodes, by the loops within loops, by what may be built inside of a loop, and, for each event, by a product of these and the
//! event's size that is above what the evaluation can cost. Nothing is left that would have to be interrupted.

use crate::event::{Data, Event};
use cel::{
    Context, Env, ExecutionError, Value,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators},
        types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
        value::Val,
    },
    parser::Parser,
};
use serde::{
    Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};
use thiserror::Error;

/// Longest filter, in bytes.
pub const MAX_FILTER_BYTES: usize = 1024;
/// Most nodes of a filter, macros expanded.
const MAX_NODES: u64 = 512;
/// Deepest nesting of brackets, conditions and negations in a filter: parsing recurses, with large frames.
const MAX_DEPTH: u16 = 32;
/// Deepest tree of a filter, macros expanded: evaluation recurses.
const MAX_TREE_DEPTH: u16 = 64;
/// Stack of the thread that parses a filter, in bytes: several times what the deepest one that is let through takes.
const PARSER_STACK_BYTES: usize = 32 * 1024 * 1024;
/// Most loops (`all`, `exists`, `exists_one`, `map`, `filter`) within one another.
const MAX_LOOPS: u32 = 2;
/// Largest JSON of an event that filters look into, in bytes. Reading it takes a few milliseconds.
pub const MAX_DATA_BYTES: usize = 256 * 1024;
/// Most that one evaluation may cost, in visits of a node with at most [`UNIT_BYTES`] of data. Far above what a sensible filter
/// takes, and some tens of milliseconds at worst.
const BUDGET: u64 = 1_000_000;
/// Data that a node may read for the price of one visit, in bytes.
const UNIT_BYTES: u64 = 4096;

/// What a filter may call, besides operators and macros. What is missing either needs a library of its own or has no bound.
const FUNCTIONS: [&str; 10] =
    ["size", "contains", "startsWith", "endsWith", "int", "uint", "double", "string", "bool", "type"];
/// Operators by the names that the parser gives them.
const OPERATORS: [&str; 20] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
    operators::NOT_STRICTLY_FALSE,
    operators::IN,
    "_in_",
];
/// Names of types, which `type(x)` is compared with.
const TYPES: [&str; 9] = ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type"];

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

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
    #[error("filters look into at most {MAX_DATA_BYTES} bytes of data")]
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
    shape: Shape,
}

/// What bounds the cost of a filter.
#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    nodes: u64,
    loops: u32,
    uses_data: bool,
}

impl Filter {
    /// Reads and checks a filter.
    pub fn compile(text: &str) -> Result<Self, InvalidFilter> {
        if !(1..=MAX_FILTER_BYTES).contains(&text.len()) {
            return Err(InvalidFilter::Length(text.len()));
        }
        if nesting(text) > MAX_DEPTH {
            return Err(InvalidFilter::Complex("nested too deeply"));
        }
        let expression = parse(text)?;
        let mut inspection = Inspection::default();
        inspection.visit(&expression, 0)?;
        let shape = inspection.shape;
        if !may_be_condition(&expression.expr) {
            return Err(InvalidFilter::NoCondition);
        }
        Ok(Self { expression, shape })
    }

    /// Whether the event passes. One that lacks a member that the filter asks for does not.
    pub fn passes(&self, subject: &mut Subject<'_>) -> Result<bool, FilterError> {
        let size = if self.shape.uses_data { subject.open_data()? } else { Size::default() };
        if self.cost(size) > BUDGET {
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

    /// Above what an evaluation takes: every node is visited once per turn of the loops around it, whose lists are those of the
    /// event or written out in the filter, and reads at most all of the data.
    fn cost(&self, size: Size) -> u64 {
        let turns =
            size.widest.max(if self.shape.loops > 0 { 16 } else { 1 }).saturating_pow(self.shape.loops);
        self.shape.nodes.saturating_mul(turns).saturating_mul(1 + size.bytes / UNIT_BYTES)
    }
}

/// Parses a filter. The parser is generated code that meets what anybody writes: a panic of it ends a thread of its own.
fn parse(text: &str) -> Result<IdedExpr, InvalidFilter> {
    let gave_up = || InvalidFilter::Syntax("the parser gave up".to_owned());
    let parsed = std::thread::scope(|scope| {
        let parser =
            std::thread::Builder::new().name("filter-parser".to_owned()).stack_size(PARSER_STACK_BYTES);
        let parse = || {
            let parsed = Parser::new().max_recursion_depth(MAX_DEPTH * 2).error_recovery_limit(4).parse(text);
            parsed.map_err(|errors| {
                let first = errors.errors.first();
                first.map(|error| error.msg.chars().take(200).collect()).unwrap_or_default()
            })
        };
        parser.spawn_scoped(scope, parse).ok()?.join().ok()
    });
    parsed.ok_or_else(gave_up)?.map_err(InvalidFilter::Syntax)
}

/// How deeply a text may make a parser recurse: open brackets, conditions and negations, outside of strings.
fn nesting(text: &str) -> u16 {
    let (mut depth, mut deepest, mut conditions, mut prefixes) = (0_u16, 0, 0_u16, 0_u16);
    let mut quote = None;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => drop(bytes.next()),
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            (None, b'?') => conditions += 1,
            (None, b'!' | b'-') => prefixes += 1,
            (None, _) if !byte.is_ascii_whitespace() => prefixes = 0,
            (None, _) => {}
        }
        deepest = deepest.max(depth + conditions + prefixes);
    }
    deepest
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

/// Whether an expression can be true or false, by its outermost node.
fn may_be_condition(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(literal) => matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => false,
        Expr::Comprehension(comprehension) => !matches!(comprehension.accu_init.expr, Expr::List(_)),
        Expr::Call(call) => ![
            operators::SUBSTRACT,
            operators::ADD,
            operators::MULTIPLY,
            operators::DIVIDE,
            operators::MODULO,
            operators::NEGATE,
            "size",
            "int",
            "uint",
            "double",
            "string",
            "type",
        ]
        .contains(&call.func_name.as_str()),
        Expr::Ident(_) | Expr::Select(_) => true,
    }
}

/// Walks a filter's tree. The parser's bound on depth bounds this recursion, too.
#[derive(Default)]
struct Inspection<'f> {
    shape: Shape,
    /// Names that the loops around define.
    scope: Vec<&'f str>,
    loops: u32,
}

impl<'f> Inspection<'f> {
    fn visit(&mut self, node: &'f IdedExpr, depth: u16) -> Result<(), InvalidFilter> {
        self.shape.nodes += 1;
        if self.shape.nodes > MAX_NODES {
            return Err(InvalidFilter::Complex("too many parts"));
        }
        if depth > MAX_TREE_DEPTH {
            return Err(InvalidFilter::Complex("nested too deeply"));
        }
        let depth = depth + 1;
        match &node.expr {
            Expr::Ident(name) => self.name(name),
            Expr::Literal(_) => Ok(()),
            Expr::Select(select) => self.visit(&select.operand, depth),
            Expr::Call(call) => self.call(call, depth),
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.visit(element, depth)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key, depth)?;
                    self.visit(&entry.value, depth)
                }
                EntryExpr::StructField(field) => self.visit(&field.value, depth),
            }),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth),
            Expr::Struct(strct) => Err(InvalidFilter::UnknownName(strct.type_name.clone())),
            Expr::Unspecified => Err(InvalidFilter::NoCondition),
        }
    }

    fn name(&mut self, name: &str) -> Result<(), InvalidFilter> {
        match name {
            _ if self.scope.contains(&name) => {}
            "data" => self.shape.uses_data = true,
            "event" => {}
            _ if TYPES.contains(&name) => {}
            _ => return Err(InvalidFilter::UnknownName(name.chars().take(64).collect())),
        }
        Ok(())
    }

    fn call(&mut self, call: &'f CallExpr, depth: u16) -> Result<(), InvalidFilter> {
        let name = call.func_name.as_str();
        if !OPERATORS.contains(&name) && !FUNCTIONS.contains(&name) {
            return Err(InvalidFilter::UnknownFunction(name.chars().take(64).collect()));
        }
        // What grows with every turn of a loop has no bound worth the name. Macros add to their own result.
        let own = matches!(call.args.as_slice(), [first, added] if matches!(&first.expr, Expr::Ident(name) if name.starts_with('@'))
            && matches!(added.expr, Expr::List(_) | Expr::Literal(_)));
        if name == operators::ADD && self.loops > 0 && !own {
            return Err(InvalidFilter::Complex("+ inside of all, exists, exists_one, map or filter"));
        }
        call.target.iter().map(AsRef::as_ref).chain(&call.args).try_for_each(|part| self.visit(part, depth))
    }

    fn comprehension(&mut self, inner: &'f ComprehensionExpr, depth: u16) -> Result<(), InvalidFilter> {
        self.visit(&inner.iter_range, depth)?;
        self.visit(&inner.accu_init, depth)?;
        self.loops += 1;
        self.shape.loops = self.shape.loops.max(self.loops);
        if self.loops > MAX_LOOPS {
            return Err(InvalidFilter::Complex("more than two loops within one another"));
        }
        let names = self.scope.len();
        self.scope.extend([inner.iter_var.as_str(), inner.accu_var.as_str()]);
        self.scope.extend(inner.iter_var2.as_deref());
        for part in [&inner.loop_cond, &inner.loop_step, &inner.result] {
            self.visit(part, depth)?;
        }
        self.scope.truncate(names);
        self.loops -= 1;
        Ok(())
    }
}

/// An event as filters see it. Made once for all the filters of an event; its data is read when the first of them asks.
pub struct Subject<'e> {
    event: &'e Event<'e>,
    context: Context<'e, 'e>,
    data: Option<Result<Size, FilterError>>,
}

/// How much there is to look at.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    /// Bytes of the data's JSON.
    bytes: u64,
    /// Entries of the longest list, object or string that loops could go through.
    widest: u64,
}

impl<'e> Subject<'e> {
    /// The attributes of an event; its data is left for later.
    pub fn new(event: &'e Event<'e>) -> Self {
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        context.add_variable_as_val("event", Box::new(CelMap::from(attributes(event))));
        Self { event, context, data: None }
    }

    fn open_data(&mut self) -> Result<Size, FilterError> {
        if let Some(size) = &self.data {
            return size.clone();
        }
        let opened = read(&self.event.data);
        let size = opened.map(|(size, value)| {
            self.context.add_variable_as_val("data", value);
            size
        });
        self.data.insert(size).clone()
    }
}

fn attributes<'e>(event: &'e Event<'e>) -> HashMap<CelMapKey<'e>, Box<dyn Val + 'e>> {
    let mut attributes: HashMap<CelMapKey<'e>, Box<dyn Val + 'e>> = HashMap::new();
    let mut put = |name: &'e str, value: &'e str| {
        attributes.insert(name.into(), Box::new(CelString::from(value)));
    };
    put("id", &event.id);
    put("source", &event.source);
    put("type", &event.event_type);
    let optional = [
        ("time", &event.time),
        ("subject", &event.subject),
        ("datacontenttype", &event.datacontenttype),
        ("dataschema", &event.dataschema),
        ("partitionkey", &event.partitionkey),
        ("traceparent", &event.traceparent),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            put(name, value);
        }
    }
    for (name, value) in &event.extensions {
        // They were checked to be text, booleans and small integers.
        if let Ok(value) =
            serde_json::Deserializer::from_str(value.get()).deserialize_any(JsonVisitor(&mut Size::default()))
        {
            attributes.insert(name.as_ref().into(), value);
        }
    }
    attributes
}

/// The data as a value of CEL, and its size.
fn read<'e>(data: &'e Data<'e>) -> Result<(Size, Box<dyn Val + 'e>), FilterError> {
    let Data::Json(raw) = data else { return Ok((Size::default(), Box::new(CelNull))) };
    let json = raw.get();
    if json.len() > MAX_DATA_BYTES {
        return Err(FilterError::DataTooLarge);
    }
    let mut size = Size { bytes: json.len() as u64, widest: 0 };
    let value = serde_json::Deserializer::from_str(json).deserialize_any(JsonVisitor(&mut size));
    Ok((size, value.map_err(|_| FilterError::UnreadableData)?))
}

/// Reads JSON into values that borrow its text. `serde_json` bounds the depth.
struct JsonVisitor<'s>(&'s mut Size);

impl<'de> DeserializeSeed<'de> for JsonVisitor<'_> {
    type Value = Box<dyn Val + 'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonVisitor<'_> {
    type Value = Box<dyn Val + 'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        // Numbers are written without a `u` in filters: an unsigned one is only what would not fit otherwise.
        Ok(match i64::try_from(value) {
            Ok(value) => Box::new(CelInt::from(value)),
            Err(_) => Box::new(CelUInt::from(value)),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(Cow::<'de, str>::Owned(value.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut values: Vec<Box<dyn Val + 'de>> = Vec::new();
        while let Some(value) = list.next_element_seed(JsonVisitor(&mut *self.0))? {
            values.push(value);
        }
        self.0.widest = self.0.widest.max(values.len() as u64);
        Ok(Box::new(CelList::from(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut values: HashMap<CelMapKey<'de>, Box<dyn Val + 'de>> = HashMap::new();
        while let Some(name) = object.next_key::<String>()? {
            let value = object.next_value_seed(JsonVisitor(&mut *self.0))?;
            if values.insert(name.into(), value).is_some() {
                return Err(de::Error::custom("a name twice"));
            }
        }
        self.0.widest = self.0.widest.max(values.len() as u64);
        Ok(Box::new(CelMap::from(values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let items: Vec<String> = (0..28).map(|n| format!("{n}{}", "x".repeat(8_000))).collect();
        let data = serde_json::to_string(&items).unwrap();
        let begun = Instant::now();
        let result = passes("data.exists(x, data.exists(y, x == y && x.contains('q')))", &data);
        assert!(matches!(result, Ok(false) | Err(FilterError::TooExpensive)), "{result:?}");
        assert!(begun.elapsed() < Duration::from_secs(30));
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
