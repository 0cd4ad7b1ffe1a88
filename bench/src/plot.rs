//! The ratios as a picture: a bar for each, on a logarithmic scale around 1, so that twice as good and half as good are
//! equally far away.

use std::fmt::Write as _;

use crate::ground::Ground;
use crate::quantity::Quantity;
use crate::report::{Ratio, Report};

const WIDTH: f64 = 960.0;
/// Where names end and bars begin.
const LEFT: f64 = 330.0;
const RIGHT: f64 = WIDTH - 60.0;
const ROW: f64 = 18.0;
const MARGIN: f64 = 16.0;
/// What is drawn: the others are in the table.
const DRAWN: [Quantity; 6] =
    [Quantity::Tcp1, Quantity::Tcp4, Quantity::BoxCpu, Quantity::Udp64, Quantity::PingP50, Quantity::PingP99];

/// Draws all ratios of a report whose quantity has a better and a worse.
pub(crate) fn draw(report: &Report) -> String {
    let (mut body, mut y) = (String::new(), MARGIN + ROW);
    let scale = Scale::of(&report.ratios);
    for ground in report.grounds() {
        for quantity in DRAWN {
            y = section(&mut body, &scale, report, ground, quantity, y);
        }
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// One quantity on one ground; returns where the next begins.
fn section(
    body: &mut String,
    scale: &Scale,
    report: &Report,
    ground: Ground,
    quantity: Quantity,
    from: f64,
) -> f64 {
    let same = |ratio: &&Ratio| ratio.ground == ground && ratio.quantity == quantity.name();
    let ratios: Vec<_> = report.ratios.iter().filter(same).collect();
    let Some(more_is_better) = quantity.more_is_better().filter(|_| !ratios.is_empty()) else { return from };
    let better = if more_is_better { "more" } else { "less" };
    let title = format!("{}: {} ({better} is better)", ground.name(), quantity.name());
    let mut y = from;
    text(body, MARGIN, y, "start", "bold", &title);
    y += ROW;
    for ratio in &ratios {
        let (one, end) = (scale.x(1.0), scale.x(ratio.ratio));
        let good = (ratio.ratio >= 1.0) == more_is_better;
        let colour = if good { "#2a7f62" } else { "#c8553d" };
        let (x, width) = (one.min(end), (one - end).abs().max(1.0));
        let bar = format!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"12\" fill=\"{colour}\"/>\n",
            y - 10.0
        );
        body.push_str(&bar);
        let name = format!("{} / {}", ratio.subject, ratio.to);
        text(body, LEFT - 10.0, y, "end", "normal", &name);
        text(body, RIGHT + 6.0, y, "start", "normal", &format!("{:.2}", ratio.ratio));
        y += ROW;
    }
    let (x, top, bottom) = (scale.x(1.0), from + 4.0, y - ROW + 4.0);
    let line = format!("<path d=\"M{x:.1} {top:.1}V{bottom:.1}\" stroke=\"black\"/>\n");
    body.push_str(&line);
    y + ROW / 2.0
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, weight: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let written = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{words}</text>"
    );
    written.expect("invariant: a string takes whatever is written");
}

/// Where a ratio is drawn.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    /// From the least to the most of all that is drawn, and 1 in any case.
    fn of(ratios: &[Ratio]) -> Self {
        let drawn = |ratio: &&Ratio| DRAWN.iter().any(|quantity| quantity.name() == ratio.quantity);
        let logarithms = ratios.iter().filter(drawn).map(|ratio| ratio.ratio.ln());
        let finite = logarithms.filter(|logarithm| logarithm.is_finite());
        // A little more than 1 either way, so that there is a width to divide by.
        let (least, most) =
            finite.fold((-0.1_f64, 0.1_f64), |(least, most), it| (least.min(it), most.max(it)));
        Self { least, most }
    }

    fn x(&self, ratio: f64) -> f64 {
        let place = (ratio.ln().clamp(self.least, self.most) - self.least) / (self.most - self.least);
        LEFT + place * (RIGHT - LEFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(ratio: f64) -> Ratio {
        let (subject, to) = ("uring".to_owned(), "<raw>".to_owned());
        Ratio { subject, to, ground: Ground::PLAIN, quantity: "tcp1", ratio }
    }

    #[test]
    fn twice_and_half_are_equally_far_from_one() {
        let scale = Scale::of(&[ratio(0.5), ratio(2.0)]);
        let (half, one, twice) = (scale.x(0.5), scale.x(1.0), scale.x(2.0));
        assert!(((one - half) - (twice - one)).abs() < 1e-6);
        assert_eq!((half, twice), (LEFT, RIGHT));
    }

    #[test]
    fn nothing_of_a_name_is_markup() {
        let mut body = String::new();
        text(&mut body, 0.0, 0.0, "end", "normal", "a < b & c");
        assert!(body.contains("a &lt; b &amp; c"), "{body}");
    }
}
