//! A plot in SVG: bars of CPU time, in colours for light and dark backgrounds.

use std::fmt::Write;

use crate::measure::{Row, Sample};
use crate::report::{Section, number};

const WIDTH: f64 = 760.0;
const LABELS: f64 = 130.0;
const BARS: f64 = 520.0;
const LINE: f64 = 26.0;
const BAR: f64 = 16.0;
const HEAD: f64 = 40.0;

const TEXT: &str = "#7d8590";
const HOTSHELF: &str = "#2f81f7";
const OTHERS: &str = "#9198a1";

/// A panel for each section, each with its own scale.
pub(crate) fn svg(sections: &[&Section]) -> String {
    let mut body = String::new();
    let mut y = 24.0;
    for section in sections {
        y = panel(&mut body, section, y);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" width=\"{WIDTH}\" height=\"{y:.0}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"{TEXT}\" role=\"img\" \
         aria-label=\"Microseconds of CPU time for each request\">\n{body}</svg>\n"
    )
}

/// Returns the y at which the next panel begins.
fn panel(body: &mut String, section: &Section, mut y: f64) -> f64 {
    let rows: Vec<&Row> =
        section.rows.iter().filter(|row| !row.median(Sample::cpu_us).is_nan()).collect();
    let longest = rows.iter().map(|row| row.median(Sample::cpu_us)).fold(0.0, f64::max);
    // Writing to a String does not fail.
    let title = escaped(&section.title);
    let _ = writeln!(body, "<text x=\"0\" y=\"{y:.0}\" font-weight=\"600\">{title}</text>");
    let _ = writeln!(
        body,
        "<text x=\"{WIDTH}\" y=\"{y:.0}\" text-anchor=\"end\" font-size=\"11\">us of CPU for each request: user, system (paler)</text>"
    );
    y += 12.0;
    for row in rows {
        bar(body, row, y, BARS / longest);
        y += LINE;
    }
    y + HEAD
}

fn bar(body: &mut String, row: &Row, y: f64, scale: f64) {
    let (user, system) =
        (row.median(|sample| sample.user_us), row.median(|sample| sample.system_us));
    let total = row.median(Sample::cpu_us);
    // The medians of the parts need not add up to the median of the total, which is the length of the bar.
    let fit = total / (user + system).max(f64::MIN_POSITIVE);
    let (user, system) = (user * fit * scale, system * fit * scale);
    let colour = if row.label == "hotshelf" { HOTSHELF } else { OTHERS };
    let middle = y + BAR - 4.0;
    let label = escaped(&row.label);
    let _ = writeln!(
        body,
        "<text x=\"{:.0}\" y=\"{middle:.0}\" text-anchor=\"end\">{label}</text>\
         <rect x=\"{LABELS}\" y=\"{y:.0}\" width=\"{user:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
         <rect x=\"{:.1}\" y=\"{y:.0}\" width=\"{system:.1}\" height=\"{BAR}\" fill=\"{colour}\" fill-opacity=\"0.5\"/>\
         <text x=\"{:.1}\" y=\"{middle:.0}\">{}</text>",
        LABELS - 8.0,
        LABELS + user,
        LABELS + user + system + 8.0,
        number(total),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        let row = |label: &str, user_us, system_us| Row {
            label: label.to_owned(),
            samples: vec![Sample { user_us, system_us, ..Sample::default() }],
        };
        Section {
            key: String::new(),
            title: "A < B".to_owned(),
            text: String::new(),
            rows: vec![
                row("hotshelf", 3.0, 2.0),
                row("ordinary", 15.0, 5.0),
                row("bare GET", f64::NAN, f64::NAN),
            ],
            against: Vec::new(),
            columns: &[],
        }
    }

    #[test]
    fn the_longest_bar_fills_the_width_and_the_others_are_in_proportion() {
        let svg = svg(&[&section()]);
        assert!(svg.contains("width=\"390.0\"") && svg.contains("width=\"130.0\""), "{svg}");
        assert!(svg.contains("width=\"78.0\"") && svg.contains("width=\"52.0\""), "{svg}");
    }

    #[test]
    fn what_uses_no_cpu_of_its_own_has_no_bar() {
        assert!(!svg(&[&section()]).contains("bare GET"));
    }

    #[test]
    fn text_is_escaped() {
        assert!(svg(&[&section()]).contains("A &lt; B"));
    }
}
