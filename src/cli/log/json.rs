//! Events as JSON, one object a line: time, level, target, message, and the fields of the event and of its spans. Texts
//! may be anybody's: no control character stays.

use std::fmt::{self, Debug};
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::plain::shown_json;

/// The fields of a span, kept for the events in it.
#[derive(Debug)]
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, mut to: Writer<'w>, fields: R) -> fmt::Result {
        let mut known = Known::default();
        fields.record(&mut known);
        write!(to, "{}", Value::Object(known.0))
    }
}

/// One event.
#[derive(Debug)]
pub(super) struct Object;

impl<S, N> FormatEvent<S, N> for Object
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Known::default();
        event.record(&mut fields);
        let mut object = Map::new();
        object.insert("time".to_owned(), json!(humantime::format_rfc3339_micros(SystemTime::now()).to_string()));
        object.insert("level".to_owned(), json!(event.metadata().level().as_str().to_ascii_lowercase()));
        object.insert("target".to_owned(), json!(event.metadata().target()));
        object.insert("message".to_owned(), fields.0.shift_remove("message").unwrap_or_else(|| json!("")));
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let known = extensions.get::<FormattedFields<N>>().map(|known| known.fields.as_str());
            let Ok(Value::Object(known)) = serde_json::from_str(known.unwrap_or_default()) else { continue };
            for (name, value) in known {
                // The span `cell` with the name `zone1` is `"cell": "zone1"`.
                let name = if name == "name" { span.name().to_owned() } else { name };
                object.insert(name, value);
            }
        }
        for (name, value) in fields.0 {
            // The words above are ours.
            let name = if ["time", "level", "target"].contains(&name.as_str()) { format!("{name}_") } else { name };
            object.insert(name, value);
        }
        writeln!(to, "{}", shown_json(&Value::Object(object).to_string()))
    }
}

#[derive(Default)]
struct Known(Map<String, Value>);

impl Known {
    fn add(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().trim_start_matches("r#").to_owned(), value);
    }
}

impl Visit for Known {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, json!(value));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(work: impl FnOnce()) -> Vec<Value> {
        let kept = Kept::default();
        let to = kept.clone();
        let writer = super::super::OneLine(move || to.clone());
        let layer = tracing_subscriber::fmt::layer().fmt_fields(Fields).event_format(Object).with_writer(writer);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains(|character: char| character.is_control() && character != '\n'), "{text:?}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_event_has_its_fields_and_those_of_its_spans() {
        let lines = written(|| {
            let span = tracing::info_span!("cell", name = %"zone1", place = "secondary");
            let _inside = span.enter();
            let error = "no\u{1b}[2J\u{9b}\n\u{7f}";
            let path = "zone1/x";
            tracing::warn!(op = %"flush", path, uid = 7, errno = "EIO", %error, level = "mine", "it {}", "failed");
            tracing::info!(last = true);
        });
        assert_eq!(lines.len(), 2);
        let mut first = lines[0].clone();
        let time = first.as_object_mut().unwrap().shift_remove("time").unwrap();
        assert!(humantime::parse_rfc3339(time.as_str().unwrap()).is_ok(), "{time}");
        let expected = json!({
            "level": "warn", "target": module_path!(), "message": "it failed", "cell": "zone1", "place": "secondary",
            "op": "flush", "path": "zone1/x", "uid": 7, "errno": "EIO", "error": "no\u{1b}[2J\u{9b}\n\u{7f}",
            "level_": "mine",
        });
        assert_eq!(first, expected);
        assert_eq!((&lines[1]["message"], &lines[1]["last"]), (&json!(""), &json!(true)));
    }
}
