//! Charts as SVG. They have no colours of their own: classes `s0`, `s1`, … get them from the page's style, which knows
//! light and dark.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Height of one bar, and of the space from one pair of bars to the next.
const BAR: f64 = 16.0;
const BAR_GAP: f64 = 14.0;
/// Room for the names of bars.
const BAR_LEFT: f64 = 110.0;
/// Room for the figures behind bars.
const BAR_RIGHT: f64 = 170.0;

/// Points joined by a line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// Points by x.
    pub points: Vec<(f64, f64)>,
}

/// A chart of lines over a common x.
#[derive(Debug, Clone)]
pub struct LineChart<'a> {
    /// What it shows, for those who cannot see it.
    pub title: &'a str,
    /// Height in pixels.
    pub height: f64,
    /// Name of the x axis.
    pub x_name: &'a str,
    /// Whether y is logarithmic; then no value may be 0.
    pub log_y: bool,
    /// How a value of x is written.
    pub x_text: fn(f64) -> String,
    /// How a value of y is written.
    pub y_text: fn(f64) -> String,
    /// The lines.
    pub lines: Vec<Line>,
    /// A place on x, and its name.
    pub mark: Option<(f64, &'a str)>,
    /// The part of x, from its start, that does not count.
    pub shaded_until: Option<f64>,
}

impl LineChart<'_> {
    /// The chart; empty without a point.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let Some(x_max) = points().map(|(x, _)| x).reduce(f64::max) else { return String::new() };
        let x_min = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min).min(0.0);
        let y_max = points().map(|(_, y)| y).fold(0.0, f64::max);
        let y_min = points().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
        let ticks = if self.log_y { log_ticks(y_min, y_max) } else { linear_ticks(y_max) };
        let (bottom, top) = (ticks[0], ticks[ticks.len() - 1]);
        let scale = |value: f64| if self.log_y { value.max(bottom).ln() } else { value };
        let span = (scale(top) - scale(bottom)).max(f64::MIN_POSITIVE);
        let to_x =
            |x: f64| LEFT + (x - x_min) / (x_max - x_min).max(f64::MIN_POSITIVE) * (WIDTH - LEFT - RIGHT);
        let to_y = |y: f64| TOP + (1.0 - (scale(y) - scale(bottom)) / span) * (self.height - TOP - BOTTOM);

        let mut svg = open(self.height, self.title);
        let floor = self.height - BOTTOM;
        if let Some(until) = self.shaded_until {
            let width = (to_x(until) - LEFT).max(0.0);
            svg += &format!(
                "<rect class=\"shade\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
                floor - TOP
            );
        }
        for tick in &ticks {
            let y = to_y(*tick);
            svg += &format!(
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            svg += &text(LEFT - 8.0, y + 4.0, "end", &(self.y_text)(*tick));
        }
        for tick in linear_ticks(x_max).into_iter().filter(|tick| *tick <= x_max) {
            svg += &text(to_x(tick), floor + 16.0, "middle", &(self.x_text)(tick));
        }
        svg += &text((LEFT + WIDTH - RIGHT) / 2.0, self.height - 6.0, "middle", self.x_name);
        if let Some((x, name)) = self.mark {
            let x = to_x(x);
            svg +=
                &format!("<line class=\"mark\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{floor:.1}\"/>");
            svg += &text(x - 5.0, TOP + 11.0, "end", name);
        }
        for (index, line) in self.lines.iter().enumerate() {
            let path: Vec<String> =
                line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", to_x(*x), to_y(*y))).collect();
            svg += &format!("<polyline class=\"line s{index}\" points=\"{}\"/>", path.join(" "));
            // Dots on a line of many points would hide it.
            if line.points.len() <= 20 {
                for (x, y) in &line.points {
                    let tip = format!("{}: {} at {}", line.name, (self.y_text)(*y), (self.x_text)(*x));
                    svg += &format!(
                        "<circle class=\"dot s{index}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}</title></circle>",
                        to_x(*x),
                        to_y(*y),
                        escape(&tip),
                    );
                }
            }
        }
        svg + "</svg>"
    }
}

/// Two bars, one of parts.
#[derive(Debug, Clone)]
pub struct BarPair {
    /// Name on the left.
    pub name: String,
    /// The first bar, and its figure.
    pub whole: (f64, String),
    /// The parts of the second bar, and its figure.
    pub parts: (Vec<f64>, String),
}

/// Horizontal bars in pairs: the first in class `s0`, the parts of the second in `s1`, `s2`, ….
pub fn bars(title: &str, pairs: &[BarPair]) -> String {
    let largest = |pair: &BarPair| pair.whole.0.max(pair.parts.0.iter().sum());
    let max = pairs.iter().map(largest).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - BAR_LEFT - BAR_RIGHT) / max;
    let height = pairs.len() as f64 * (2.0 * BAR + BAR_GAP) + BAR_GAP;
    let mut svg = open(height, title);
    for (index, pair) in pairs.iter().enumerate() {
        let y = BAR_GAP + index as f64 * (2.0 * BAR + BAR_GAP);
        svg += &text(BAR_LEFT - 10.0, y + BAR + 4.0, "end", &pair.name);
        svg += &bar(0, BAR_LEFT, y, pair.whole.0 * scale);
        svg += &text(BAR_LEFT + pair.whole.0 * scale + 8.0, y + 12.0, "start", &pair.whole.1);
        let mut x = BAR_LEFT;
        for (part, value) in pair.parts.0.iter().enumerate() {
            svg += &bar(part + 1, x, y + BAR, value * scale);
            x += value * scale;
        }
        svg += &text(x + 8.0, y + BAR + 12.0, "start", &pair.parts.1);
    }
    svg + "</svg>"
}

fn bar(class: usize, x: f64, y: f64, width: f64) -> String {
    format!(
        "<rect class=\"bar s{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
        y + 1.0,
        BAR - 2.0
    )
}

/// The legend of a chart.
pub fn legend(names: &[&str]) -> String {
    let mut html = String::from("<p class=\"legend\">");
    for (index, name) in names.iter().enumerate() {
        // Writing to a string never fails.
        let _ = write!(html, "<span><i class=\"swatch s{index}\"></i>{}</span> ", escape(name));
    }
    html + "</p>"
}

fn open(height: f64, title: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">", escape(title))
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text))
}

/// Text as it may stand in HTML and SVG, attributes included.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Round numbers from 0 to at least `max`, about six of them.
fn linear_ticks(max: f64) -> Vec<f64> {
    if max <= 0.0 || !max.is_finite() {
        return vec![0.0, 1.0];
    }
    let rough = max / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    let steps = (max / step - 1e-9).ceil().max(1.0) as usize;
    (0..=steps).map(|index| index as f64 * step).collect()
}

/// One, two and five of each power of ten, from at most `min` to at least `max`; only the powers if that were many.
fn log_ticks(min: f64, max: f64) -> Vec<f64> {
    let min = if min.is_finite() { min.max(1e-3) } else { 1.0 };
    let max = max.max(min * 1.01);
    let first = min.log10().floor() as i32;
    let last = max.log10().ceil() as i32;
    let fine = last - first <= 3;
    let all = (first..=last).flat_map(|power| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(power)));
    let kept: Vec<f64> =
        all.enumerate().filter(|(index, _)| fine || index % 3 == 0).map(|(_, tick)| tick).collect();
    let from = kept.partition_point(|tick| *tick <= min).saturating_sub(1);
    let until = kept.partition_point(|tick| *tick < max).min(kept.len() - 1);
    kept[from..=until].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_beyond_the_largest_value() {
        assert_eq!(linear_ticks(47.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(linear_ticks(0.0), [0.0, 1.0]);
        assert_eq!(log_ticks(300.0, 4_500.0), [200.0, 500.0, 1_000.0, 2_000.0, 5_000.0]);
        assert_eq!(log_ticks(700.0, 2_000_000.0), [100.0, 1e3, 1e4, 1e5, 1e6, 1e7]);
        for value in [0.001, 1.0, 999.0] {
            let ticks = log_ticks(value, value);
            assert!(ticks.len() >= 2 && ticks[0] <= value, "{ticks:?}");
        }
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }

    #[test]
    fn a_chart_without_points_is_empty_and_one_with_them_has_every_line() {
        let mut chart = LineChart {
            title: "t",
            height: 200.0,
            x_name: "x",
            log_y: true,
            x_text: |x| x.to_string(),
            y_text: |y| y.to_string(),
            lines: Vec::new(),
            mark: Some((1.0, "here")),
            shaded_until: Some(0.5),
        };
        assert_eq!(chart.svg(), "");
        let line = |name: &str| Line { name: name.to_owned(), points: vec![(0.0, 10.0), (2.0, 30.0)] };
        chart.lines = vec![line("a"), line("b")];
        let svg = chart.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("here") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
