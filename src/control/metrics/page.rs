//! A page of metrics in the text format. Must never mix a value into the format: the library escapes labels, and what
//! would be a command for a terminal is spelled out.

use std::borrow::Cow;

use prometheus::{CounterVec, GaugeVec, Histogram, Registry, TextEncoder};

use crate::journal::metrics::{Metric, MetricType};

/// A page that is being written. It belongs to one reader: nothing of it is shared or stays behind.
#[derive(Debug, Default)]
pub(super) struct Page(Registry);

impl Page {
    /// Adds a metric with all its labelled values.
    pub fn one<'a, const N: usize>(
        &mut self,
        metric: &Metric,
        values: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) -> prometheus::Result<()> {
        match metric.kind {
            MetricType::Counter => {
                let counters = CounterVec::new(metric.opts(), metric.labels)?;
                for (labels, value) in values {
                    counters.get_metric_with_label_values(&labels)?.inc_by(value);
                }
                self.0.register(Box::new(counters))
            }
            MetricType::Gauge => {
                let gauges = GaugeVec::new(metric.opts(), metric.labels)?;
                for (labels, value) in values {
                    gauges.get_metric_with_label_values(&labels)?.set(value);
                }
                self.0.register(Box::new(gauges))
            }
            MetricType::Histogram => Err(prometheus::Error::Msg(format!("{} has no single values", metric.name))),
        }
    }

    /// Adds a metric without labels.
    pub fn number(&mut self, metric: &Metric, value: f64) -> prometheus::Result<()> {
        self.one(metric, [([], value)])
    }

    /// Adds a histogram, which has its labels.
    pub fn histogram(&mut self, histogram: &Histogram) -> prometheus::Result<()> {
        self.0.register(Box::new(histogram.clone()))
    }

    /// The page, sorted by name and labels. Metrics without a value are not on it.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.0.gather())
    }
}

/// A foreign name as the value of a label: control characters, and what changes the direction of a text, are spelled
/// out, since people look at this on terminals. Two names never become one.
pub(super) fn label(name: &str) -> Cow<'_, str> {
    let speaks = |c: char| {
        c.is_control()
            || c == '\\'
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    match name.contains(speaks) {
        false => Cow::Borrowed(name),
        true => {
            let spelled = |c: char| if speaks(c) { c.escape_default().to_string() } else { c.to_string() };
            Cow::Owned(name.chars().map(spelled).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::metrics::{BACKEND_DURATION, BUILD_INFO, CELL_EVENTS, CELL_STATE, INODES};

    #[test]
    fn values_stand_behind_help_and_type_in_the_order_of_their_labels() {
        let mut page = Page::default();
        page.one(&CELL_STATE, [(["zone2", "live"], 1.0), (["zone1", "live"], 0.0)]).unwrap();
        page.number(&INODES, 7.0).unwrap();
        page.one(&CELL_EVENTS, [(["a\"b\\\n"], 3.0)]).unwrap();
        // Nothing to say.
        page.one::<1>(&BUILD_INFO, []).unwrap();
        let expected = format!(
            "# HELP topofs_cell_events_total {}\n# TYPE topofs_cell_events_total counter\n\
             topofs_cell_events_total{{cell=\"a\\\"b\\\\\\n\"}} 3\n\
             # HELP topofs_cell_state {}\n# TYPE topofs_cell_state gauge\n\
             topofs_cell_state{{cell=\"zone1\",state=\"live\"}} 0\n\
             topofs_cell_state{{cell=\"zone2\",state=\"live\"}} 1\n\
             # HELP topofs_inodes {}\n# TYPE topofs_inodes gauge\ntopofs_inodes 7\n",
            CELL_EVENTS.help, CELL_STATE.help, INODES.help
        );
        assert_eq!(page.text().unwrap(), expected);
    }

    #[test]
    fn durations_are_cumulative_and_have_one_name() {
        let mut page = Page::default();
        for (outcome, seconds) in [("ok", 0.0001), ("failed", 100.0)] {
            let histogram = BACKEND_DURATION.histogram(&[("operation", "get"), ("outcome", outcome)]).unwrap();
            histogram.observe(seconds);
            page.histogram(&histogram).unwrap();
        }
        let text = page.text().unwrap();
        assert_eq!(text.matches("# TYPE").count(), 1, "{text}");
        let line = |outcome: &str, le: &str| {
            format!(
                "topofs_backend_request_duration_seconds_bucket{{operation=\"get\",outcome=\"{outcome}\",le=\"{le}\"}} "
            )
        };
        for (start, value) in [
            (line("ok", "0.00005"), 0),
            (line("ok", "0.00025"), 1),
            (line("ok", "60"), 1),
            (line("failed", "60"), 0),
            (line("failed", "+Inf"), 1),
        ] {
            assert!(text.contains(&format!("{start}{value}\n")), "{start}{value} in {text}");
        }
    }

    #[test]
    fn names_hold_nothing_that_a_terminal_obeys() {
        assert_eq!(label("zone1-\u{e4}"), "zone1-\u{e4}");
        assert_eq!(label("a\u{1b}[2J\r\n\u{202e}"), r"a\u{1b}[2J\r\n\u{202e}");
        assert_eq!(label(r"a\n"), r"a\\n");
    }

    proptest! {
        #[test]
        fn two_names_never_become_one(names in proptest::collection::hash_set("[\\\\nu{}1b\u{1b}\n]{0,6}", 0..20)) {
            let labels: HashSet<String> = names.iter().map(|name| label(name).into_owned()).collect();
            prop_assert_eq!(labels.len(), names.len());
        }

        #[test]
        fn any_name_is_one_label(name in any::<String>()) {
            let mut page = Page::default();
            page.one(&CELL_EVENTS, [([&*label(&name)], 1.0)]).unwrap();
            let text = page.text().unwrap();
            prop_assert_eq!(text.lines().count(), 3, "{}", text);
            let is_one_label = text.ends_with("\"} 1\n");
            prop_assert!(is_one_label);
            prop_assert!(!text.replace('\n', "").contains(char::is_control));
        }
    }
}
