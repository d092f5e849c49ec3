//! What a check has found: one line each.

use serde_json::{Value, json};

use crate::cli::paint::{BOLD, GREEN, PLAIN, RED, YELLOW, padded, painted};
use crate::plain::shown_json;

/// The width of the column with the outcome: `warning` is the longest.
const OUTCOME_WIDTH: usize = 7;
/// The width of the column with the step: `mountpoint` is the longest.
const STEP_WIDTH: usize = 10;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli) enum Outcome {
    /// All is well.
    Ok,
    /// The mount would work, but not in every respect; or it could not be found out.
    Warning,
    /// The mount would fail, or not do what its flags say.
    Failed,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "failed",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Finding {
    pub outcome: Outcome,
    /// In one word, which part of the configuration it is about.
    pub step: &'static str,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(step: &'static str, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Ok, step, subject: subject.into(), text: text.into(), advice: None }
    }

    /// Deserves a look.
    pub fn warning(step: &'static str, subject: impl Into<String>, text: impl Into<String>, advice: &str) -> Self {
        Self { outcome: Outcome::Warning, advice: Some(advice.to_owned()), ..Self::ok(step, subject, text) }
    }

    /// Does not work.
    pub fn failed(step: &'static str, subject: impl Into<String>, text: impl Into<String>, advice: &str) -> Self {
        Self { outcome: Outcome::Failed, ..Self::warning(step, subject, text, advice) }
    }

    /// A line for people.
    pub fn for_people(&self) -> String {
        let style = match self.outcome {
            Outcome::Ok => GREEN,
            Outcome::Warning => YELLOW,
            Outcome::Failed => RED.bold(),
        };
        let outcome = padded(style, self.outcome.word(), OUTCOME_WIDTH);
        let step = padded(BOLD, self.step, STEP_WIDTH);
        let subject = if self.subject.is_empty() { String::new() } else { format!("{}: ", self.subject) };
        let advice = self.advice.as_ref().map_or(String::new(), |advice| format!(". To do: {advice}"));
        let text = painted(PLAIN, &format!("{subject}{}{advice}", self.text.trim_end_matches('.')));
        format!("{outcome}  {step}  {text}\n")
    }

    /// The same as JSON.
    pub fn json(&self) -> String {
        let Self { outcome, step, subject, text, advice } = self;
        let line: Value =
            json!({ "outcome": outcome.word(), "step": step, "subject": subject, "text": text, "advice": advice });
        shown_json(&line.to_string()) + "\n"
    }
}

/// Takes findings, as they come.
pub(in crate::cli) struct Report<'a> {
    print: Box<dyn FnMut(&Finding) + 'a>,
    counts: [u64; 3],
}

impl<'a> Report<'a> {
    /// A report that is printed while it grows.
    pub fn new(print: impl FnMut(&Finding) + 'a) -> Self {
        Self { print: Box::new(print), counts: [0; 3] }
    }

    /// Adds a line.
    pub fn add(&mut self, finding: Finding) {
        if let Some(count) = self.counts.get_mut(finding.outcome as usize) {
            *count += 1;
        }
        (self.print)(&finding);
    }

    /// Adds lines.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// The worst of all.
    pub fn worst(&self) -> Outcome {
        let [_, warnings, failures] = self.counts;
        match (warnings, failures) {
            (0, 0) => Outcome::Ok,
            (_, 0) => Outcome::Warning,
            _ => Outcome::Failed,
        }
    }

    /// How many there are of each outcome.
    pub fn summary(&self) -> String {
        let [ok, warnings, failures] = self.counts;
        let plural = if warnings == 1 { "" } else { "s" };
        format!("{ok} ok, {warnings} warning{plural}, {failures} failed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_is_one_harmless_line() {
        let bad = "a\n\u{1b}[2J\u{9b}b\u{202e}";
        let finding = Finding::failed("reach", bad, bad, bad);
        let plain = anstream::adapter::strip_str(&finding.for_people()).to_string();
        assert_eq!(plain.lines().count(), 1, "{plain:?}");
        assert!(!plain.trim_end().chars().any(|c| c.is_control() || c == '\u{202e}'), "{plain:?}");
        assert!(plain.starts_with("failed   reach       a\\u{a}"), "{plain:?}");
        let json = finding.json();
        assert_eq!(json.lines().count(), 1, "{json:?}");
        assert!(!json.contains('\u{9b}') && !json.contains('\u{202e}'));
        let read: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((read["subject"].as_str(), read["outcome"].as_str()), (Some(bad), Some("failed")));
    }

    #[test]
    fn the_worst_finding_decides() {
        let mut report = Report::new(|_| {});
        assert_eq!(report.worst(), Outcome::Ok);
        report.add(Finding::ok("a", "", "b"));
        assert_eq!(report.worst(), Outcome::Ok);
        report.add(Finding::warning("a", "", "b", "c"));
        assert_eq!(report.worst(), Outcome::Warning);
        report.extend([Finding::failed("a", "", "b", "c"), Finding::ok("a", "", "b")]);
        assert_eq!((report.worst(), report.summary().as_str()), (Outcome::Failed, "2 ok, 1 warning, 1 failed"));
    }
}
