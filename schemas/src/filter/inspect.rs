//! What is a filter and what is not: everything that is known before there is an event.

use super::InvalidFilter;
use cel::{
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators},
    parser::Parser,
};

/// Most nodes of a filter, macros expanded.
const MAX_NODES: u64 = 512;
/// Deepest nesting of brackets, conditions and negations in a filter: parsing recurses, with large frames.
const MAX_DEPTH: u16 = 32;
/// Deepest tree of a filter, macros expanded: evaluation recurses.
const MAX_TREE_DEPTH: u16 = 64;
/// Stack of the thread that parses a filter, in bytes: several times what the deepest one that is let through takes.
const PARSER_STACK_BYTES: usize = 32 * 1024 * 1024;
/// Most loops (`all`, `exists`, `exists_one`, `map`, `filter`) within one another.
pub(super) const MAX_LOOPS: usize = 2;
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

/// Parses and checks a filter's text.
pub(super) fn inspect(text: &str) -> Result<Inspected, InvalidFilter> {
    if nesting(text) > MAX_DEPTH {
        return Err(InvalidFilter::Complex("nested too deeply"));
    }
    let expression = parse(text)?;
    let mut inspection = Inspection::default();
    inspection.visit(&expression, 0)?;
    let uses_data = inspection.uses_data;
    if !may_be_condition(&expression.expr) {
        return Err(InvalidFilter::NoCondition);
    }
    Ok(Inspected { expression, uses_data })
}

/// A filter that may be evaluated.
pub(super) struct Inspected {
    /// Its tree.
    pub(super) expression: IdedExpr,
    /// Whether it looks at the event's data.
    pub(super) uses_data: bool,
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
    nodes: u64,
    uses_data: bool,
    /// Names that the loops around define.
    scope: Vec<&'f str>,
    loops: usize,
}

impl<'f> Inspection<'f> {
    fn visit(&mut self, node: &'f IdedExpr, depth: u16) -> Result<(), InvalidFilter> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
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
            "data" => self.uses_data = true,
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
