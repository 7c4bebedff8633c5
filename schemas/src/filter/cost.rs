//! What evaluating a filter about an event costs at most, found by walking the filter with the event's size before it is begun.
//!
//! Counted are *steps*: a visit of a node, a value of the event that is copied or compared, some text that is read. A value that is as
//! large as the elements of a list may not be looked at as if each element were as large as the list: filters that look at every
//! line of an order once would be refused. So costs and sizes are sums of known steps and of multiples of the sizes of the loops'
//! variables, and a loop is summed up exactly: its variable is each element once, and all elements are as large as the list.

use super::{
    inspect::MAX_LOOPS,
    subject::{Size, UNIT_BYTES},
};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// Most steps of one evaluation: far more than a sensible filter takes. A step is 20 to 50 ns, so these are 4 ms at worst.
pub(super) const BUDGET: u64 = 100_000;
/// Steps of a loop's turn besides its nodes: its variables are set.
const TURN: u64 = 3;
/// How much more looking for a text within another one takes than reading it.
const SEARCH: u64 = 8;
/// An event of usual size: what is within the budget for it need not be looked at for smaller ones.
const USUAL: Extent = Extent {
    data: Size { values: 256, bytes: 16 * 1024, widest: 64 },
    event: Size { values: 32, bytes: 4 * 1024, widest: 32 },
};

/// How much there is to look at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extent {
    /// The event's data.
    pub(super) data: Size,
    /// Its attributes.
    pub(super) event: Size,
}

/// Whether a filter is within the budget for every event of usual size.
pub(super) fn is_cheap(filter: &IdedExpr) -> bool {
    of(filter, &USUAL) <= BUDGET
}

/// Whether a filter is within the budget for an event; `is_cheap` is what [`is_cheap`] said.
pub(super) fn is_affordable(filter: &IdedExpr, is_cheap: bool, extent: &Extent) -> bool {
    (is_cheap && extent.data.is_within(&USUAL.data) && extent.event.is_within(&USUAL.event))
        || of(filter, extent) <= BUDGET
}

/// Steps that an evaluation takes at most.
fn of(filter: &IdedExpr, extent: &Extent) -> u64 {
    Walk { extent, names: Vec::new(), loops: 0 }.visit(filter).cost.known
}

/// Known steps, and multiples of the sizes of the variables of the loops around, the outermost first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    known: u64,
    variables: [u64; MAX_LOOPS],
}

impl Sum {
    fn of(known: u64) -> Self {
        Self { known, ..Self::default() }
    }

    fn variable(number: usize) -> Self {
        let mut sum = Self::default();
        sum.variables[number] = 1;
        sum
    }

    fn merged(self, other: Self, merge: impl Fn(u64, u64) -> u64) -> Self {
        let mut sum = Self::of(merge(self.known, other.known));
        for (number, multiple) in sum.variables.iter_mut().enumerate() {
            *multiple = merge(self.variables[number], other.variables[number]);
        }
        sum
    }

    fn plus(self, other: Self) -> Self {
        self.merged(other, u64::saturating_add)
    }

    /// At least as much as both.
    fn or(self, other: Self) -> Self {
        self.merged(other, u64::max)
    }

    fn times(self, times: u64) -> Self {
        self.merged(Self::default(), |multiple, _| multiple.saturating_mul(times))
    }

    /// The sum over all turns of a loop, whose variable is the elements of a value of size `range` one after the other.
    fn over(mut self, number: usize, turns: u64, range: Self) -> Self {
        let of_variable = std::mem::take(&mut self.variables[number]);
        self.times(turns).plus(range.times(of_variable))
    }
}

/// Bounds of an expression.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// Steps that evaluating it takes.
    cost: Sum,
    /// Steps that copying its value, or comparing it with another one, takes.
    size: Sum,
    /// Elements of the longest list or object in its value, itself included.
    widest: u64,
}

impl Bound {
    /// A value of no more than a number's size.
    fn small(cost: Sum) -> Self {
        Self { cost, size: Sum::of(1), widest: 1 }
    }
}

struct Walk<'w> {
    extent: &'w Extent,
    /// What the loops around define, with what it is.
    names: Vec<(&'w str, Bound)>,
    loops: usize,
}

impl<'w> Walk<'w> {
    /// The recursion is bounded: the inspection let the filter through.
    fn visit(&mut self, node: &'w IdedExpr) -> Bound {
        let visit = Sum::of(1);
        match &node.expr {
            Expr::Literal(LiteralValue::String(text)) => {
                let size = Sum::of(1 + text.inner().len() as u64 / UNIT_BYTES);
                Bound { size, ..Bound::small(visit) }
            }
            Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => Bound::small(visit),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => {
                let operand = self.visit(&select.operand);
                Bound { cost: operand.cost.plus(visit), ..operand }
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => self.built(list.elements.iter()),
            Expr::Map(map) => self.built(map.entries.iter().flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            })),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
        }
    }

    fn name(&self, name: &str) -> Bound {
        if let Some((_, bound)) = self.names.iter().rev().find(|(known, _)| *known == name) {
            return *bound;
        }
        let size = match name {
            "data" => self.extent.data,
            "event" => self.extent.event,
            _ => Size::default(),
        };
        Bound { cost: Sum::of(1), size: Sum::of(size.steps()), widest: size.widest.max(1) }
    }

    fn call(&mut self, call: &'w CallExpr) -> Bound {
        let name = call.func_name.as_str();
        let parts: Vec<Bound> =
            call.target.iter().map(AsRef::as_ref).chain(&call.args).map(|part| self.visit(part)).collect();
        let all = |of: fn(&Bound) -> Sum| parts.iter().map(of).fold(Sum::default(), Sum::plus);
        let (visits, sizes) = (all(|part| part.cost), all(|part| part.size));
        // These look at truth values only. All others may look at all of what they are given; an index of the wrong kind is told with it.
        let is_logic = matches!(
            name,
            operators::CONDITIONAL
                | operators::LOGICAL_AND
                | operators::LOGICAL_OR
                | operators::LOGICAL_NOT
                | operators::NOT_STRICTLY_FALSE
        );
        let read = match name {
            _ if is_logic => Sum::default(),
            "contains" => sizes.times(SEARCH),
            _ => sizes,
        };
        let cost = visits.plus(Sum::of(1)).plus(read);
        match (name, parts.as_slice()) {
            (operators::ADD | "string", _) => {
                let widest = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.widest));
                Bound { cost, size: sizes, widest }
            }
            (operators::CONDITIONAL, [_, yes, no]) => {
                Bound { cost, size: yes.size.or(no.size), widest: yes.widest.max(no.widest) }
            }
            (operators::INDEX, [list, _]) => Bound { cost, ..*list },
            _ => Bound::small(cost),
        }
    }

    /// A list or an object that the filter writes out: its parts are copied.
    fn built(&mut self, parts: impl Iterator<Item = &'w IdedExpr>) -> Bound {
        let mut whole = Bound { cost: Sum::of(1), size: Sum::of(1), widest: 0 };
        let mut count = 0;
        for part in parts {
            let Bound { cost, size, widest } = self.visit(part);
            whole.cost = whole.cost.plus(cost).plus(size);
            whole.size = whole.size.plus(size);
            whole.widest = whole.widest.max(widest);
            count += 1;
        }
        Bound { widest: whole.widest.max(count), ..whole }
    }

    fn comprehension(&mut self, inner: &'w ComprehensionExpr) -> Bound {
        let (range, start) = (self.visit(&inner.iter_range), self.visit(&inner.accu_init));
        let (turns, number) = (range.widest, self.loops);
        let names = self.names.len();
        self.loops += 1;
        // What is collected is never copied while it grows: a filter cannot name it.
        self.names.push((&inner.accu_var, Bound::small(Sum::of(1))));
        let element = Bound { cost: Sum::of(1), size: Sum::variable(number), widest: range.widest };
        self.names.push((&inner.iter_var, element));
        self.names.extend(inner.iter_var2.as_deref().map(|name| (name, element)));
        let (condition, step) = (self.visit(&inner.loop_cond), self.visit(&inner.loop_step));
        let result = self.visit(&inner.result);
        self.names.truncate(names);
        self.loops -= 1;
        // An element is copied into its variable.
        let turn = condition.cost.plus(step.cost).plus(element.size).plus(Sum::of(TURN));
        let cost = range.cost.plus(start.cost).plus(result.cost).plus(turn.over(number, turns, range.size));
        if matches!(inner.accu_init.expr, Expr::List(_)) {
            let size = step.size.over(number, turns, range.size).plus(Sum::of(1));
            return Bound { cost, size, widest: step.widest.max(turns) };
        }
        Bound::small(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;
    use proptest::prelude::*;

    /// An order of so many lines, with two values and a short text each.
    fn order(lines: u64) -> Extent {
        let data = Size { values: 4 + 5 * lines, bytes: 100 + 40 * lines, widest: lines.max(4) };
        Extent { data, ..USUAL }
    }

    fn cost(filter: &str, extent: &Extent) -> u64 {
        of(&Filter::compile(filter).unwrap_or_else(|error| panic!("{filter}: {error}")).expression, extent)
    }

    #[test]
    fn the_elements_of_a_list_cost_as_much_as_the_list_and_loops_within_loops_multiply() {
        let one = |lines| cost("data.lines.exists(l, l.sku.startsWith('VIP-') && l.n > 3)", &order(lines));
        let (small, large) = (one(100), one(1_000));
        assert!((9 * small..=11 * small).contains(&large), "{small} {large}");
        let two = |lines| cost("data.lines.exists(l, data.tags.exists(t, t == l.sku))", &order(lines));
        let (small, large) = (two(10), two(100));
        assert!((50 * small..=110 * small).contains(&large), "{small} {large}");
        // Looks at all of the data in each turn.
        let all = |lines| cost("data.lines.exists(l, l.all == data)", &order(lines));
        assert!(all(1_000) > 1_000 * order(1_000).data.steps());
    }

    #[test]
    fn what_is_sensible_is_affordable_and_what_multiplies_is_not() {
        let table = [
            ("event.type == 'x' || event.source.startsWith('/shop')", 5_000, true),
            ("data.total > 100 && data.customer.tier in ['gold', 'silver']", 5_000, true),
            ("data.lines.exists(l, l.sku.startsWith('VIP-') && l.n > 3)", 1_000, true),
            ("data.lines.filter(l, l.n > 1).size() >= 3", 1_000, true),
            ("data.lines.map(l, l.sku).exists(s, s in ['a', 'b'])", 1_000, true),
            ("data.lines.exists(l, data.tags.exists(t, t == l.sku))", 50, true),
            ("data.lines.exists(l, data.tags.exists(t, t == l.sku))", 100, false),
            ("data.lines.exists(l, l == data)", 1_000, false),
            ("[data, data, data].exists(x, data.map(y, data) == x)", 100, false),
            ("data.a.all(x, data.a.all(y, x != y))", 60, true),
            ("(data.a + data.a + data.a + data.a + data.a).all(x, data.a.all(y, x != y))", 60, false),
        ];
        for (filter, lines, expected) in table {
            let compiled = Filter::compile(filter).unwrap();
            let is_affordable = is_affordable(&compiled.expression, compiled.is_cheap, &order(lines));
            assert_eq!(is_affordable, expected, "{filter}: {} steps", cost(filter, &order(lines)));
        }
    }

    #[test]
    fn lists_that_the_filter_writes_out_count_as_long_as_they_are() {
        let list = format!("[{}]", vec!["1"; 200].join(","));
        let filter = format!("{list}.all(x, {list}.all(y, x == y))");
        assert!(cost(&filter, &Extent::default()) > 200 * 200);
    }

    proptest! {
        #[test]
        fn a_larger_event_never_costs_less(
            filter in prop::sample::select(vec![
                "data.a.exists(x, x.b.all(y, y == x.c)) && size(data.d) > 1",
                "data.map(x, x.a).filter(x, x in data.b).size() > 2",
                "has(data.a) ? data.a + data.b == data.c : event.exists(k, event[k] == 'x')",
            ]),
            values in 0u64..10_000, bytes in 0u64..300_000, widest in 0u64..5_000, more in 0u64..1_000,
        ) {
            let extent = |by| {
                Extent { data: Size { values: values + by, bytes: bytes + by, widest: widest + by }, ..USUAL }
            };
            prop_assert!(cost(filter, &extent(0)) <= cost(filter, &extent(more)));
        }
    }
}
