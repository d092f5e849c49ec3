//! The events, as JSON lines, newest last. The file grows at its end and loses its beginning; offsets keep their
//! meaning.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::timestamp;
use crate::name::CellName;
use crate::plain::shown_json;

/// Number of events to keep. One more event pushes out the oldest, and a reader that has not read it learns how many it
/// has lost. So a slow reader costs nothing: readers have no queues.
const KEPT: usize = 10_000;

/// A bounded log of events. Many readers read it, each at its own pace.
#[derive(Debug)]
pub struct EventLog {
    log: Mutex<Log>,
    end: watch::Sender<u64>,
    kept: usize,
}

#[derive(Debug, Default)]
struct Log {
    /// Each line, with the place of its first byte among all bytes since the start.
    lines: VecDeque<(u64, String)>,
    /// The number of the oldest line.
    first: u64,
    end: u64,
}

/// How far somebody has read. A reader remembers only the lines of its last read, and belongs to an open file; the
/// number of open files is limited.
#[derive(Debug, Default)]
pub struct Reader {
    started: bool,
    /// The place in the log minus the offset in the file.
    shift: i64,
    /// The number of the next line.
    next: u64,
    /// The place after the last read.
    place: u64,
    /// The lines of the last read, each with its place and number: a shell reads more than it needs, and seeks back.
    given: Vec<(u64, u64)>,
    /// The line that reports lost events, and its offset.
    gap: Option<(u64, Bytes)>,
}

impl Reader {
    /// The number of the line at a place: of the next unread line, or of a line that the reader went back to.
    fn line_at(&self, place: u64) -> u64 {
        if place >= self.place {
            return self.next;
        }
        let before = self.given.iter().take_while(|(start, _)| *start <= place);
        before.last().or(self.given.first()).map_or(self.next, |(_, number)| *number)
    }
}

impl Default for EventLog {
    fn default() -> Self {
        Self::keeping(KEPT)
    }
}

impl EventLog {
    fn keeping(kept: usize) -> Self {
        Self { log: Mutex::default(), end: watch::Sender::new(0), kept }
    }

    /// Adds an event.
    pub fn record(&self, cell: &CellName, path: &str, kind: &str, more: &[(&str, Value)]) {
        let mut event = Map::new();
        event.insert("time".to_owned(), timestamp(SystemTime::now()));
        event.insert("cell".to_owned(), json!(cell.as_str()));
        event.insert("path".to_owned(), json!(path));
        event.insert("kind".to_owned(), json!(kind));
        event.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        self.add(format!("{}\n", shown_json(&Value::Object(event).to_string())));
    }

    fn add(&self, line: String) {
        let end = {
            let mut log = self.log.lock();
            if log.lines.len() >= self.kept && log.lines.pop_front().is_some() {
                log.first += 1;
            }
            let start = log.end;
            log.end += line.len() as u64;
            log.lines.push_back((start, line));
            log.end
        };
        self.end.send_replace(end);
    }

    /// The size of the file: of all events since the start.
    pub fn size(&self) -> usize {
        usize::try_from(*self.end.borrow()).unwrap_or(usize::MAX)
    }

    /// How many there were since the start.
    pub fn count(&self) -> u64 {
        let log = self.log.lock();
        log.first + log.lines.len() as u64
    }

    /// Changes whenever there is more to read.
    pub fn growth(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Whether a reader has not read everything.
    pub fn has_more(&self, reader: &Reader) -> bool {
        let log = self.log.lock();
        if reader.started { reader.place < log.end } else { !log.lines.is_empty() }
    }

    /// Reads from a place among all bytes since the start, for a reader without a history. If the log has dropped that
    /// place, the answer has a line with the number of lost events, and then empty lines.
    pub fn read_at(&self, offset: u64, size: usize) -> Bytes {
        let log = self.log.lock();
        let start = log.lines.front().map_or(log.end, |(start, _)| *start);
        let lost = format!("{}\n", json!({ "lost": log.first }));
        let mut data = Vec::new();
        let mut place = offset;
        let index = log.lines.partition_point(|(start, _)| *start <= place).saturating_sub(1);
        while data.len() < size && place < start {
            let byte = usize::try_from(place).ok().and_then(|place| lost.as_bytes().get(place)).copied();
            data.push(byte.unwrap_or(b'\n'));
            place += 1;
        }
        for (start, line) in log.lines.iter().skip(index) {
            let from = usize::try_from(place.saturating_sub(*start)).unwrap_or(usize::MAX);
            let rest = line.as_bytes().get(from..).unwrap_or_default();
            let taken = rest.get(..rest.len().min(size - data.len())).unwrap_or_default();
            data.extend_from_slice(taken);
            place += taken.len() as u64;
        }
        data.into()
    }

    /// Reads on. A reader that begins at offset 0 gets everything in the log. A reader that is too slow gets a line
    /// with the number of events that it has lost, and goes on after them. An empty answer means that there is nothing
    /// new yet.
    pub fn read(&self, reader: &mut Reader, offset: u64, size: usize) -> Bytes {
        let log = self.log.lock();
        let start = log.lines.front().map_or(log.end, |(start, _)| *start);
        if !reader.started {
            reader.started = true;
            reader.shift = if offset == 0 { start.cast_signed() } else { 0 };
            reader.next = log.first;
        }
        if let Some((at, text)) = &reader.gap {
            let end = at + text.len() as u64;
            if (*at..end).contains(&offset) {
                let from = usize::try_from(offset - at).unwrap_or(0);
                return text.slice(from..text.len().min(from.saturating_add(size)));
            }
        }
        let mut place = offset.saturating_add_signed(reader.shift);
        if place < start {
            let lost = log.first.saturating_sub(reader.line_at(place));
            let text = Bytes::from(format!("{}\n", json!({ "lost": lost })));
            reader.shift = start.cast_signed() - offset.cast_signed() - i64::try_from(text.len()).unwrap_or(0);
            reader.next = log.first;
            reader.gap = Some((offset, text.clone()));
            return text.slice(..text.len().min(size));
        }
        let mut data = Vec::new();
        let mut given = Vec::new();
        let index = log.lines.partition_point(|(start, _)| *start <= place).saturating_sub(1);
        for (number, (start, line)) in log.lines.iter().enumerate().skip(index) {
            given.push((*start, log.first + number as u64));
            let from = usize::try_from(place.saturating_sub(*start)).unwrap_or(usize::MAX);
            let rest = line.as_bytes().get(from..).unwrap_or_default();
            let taken = rest.get(..rest.len().min(size - data.len())).unwrap_or_default();
            data.extend_from_slice(taken);
            place += taken.len() as u64;
            reader.next = log.first + number as u64 + 1;
            if data.len() == size {
                break;
            }
        }
        // At the end of the log there is nothing new to remember.
        if !data.is_empty() {
            reader.given = given;
        }
        reader.place = place;
        data.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(log: &EventLog, reader: &mut Reader, offset: &mut u64, size: usize) -> String {
        let mut text = String::new();
        loop {
            let data = log.read(reader, *offset, size);
            if data.is_empty() {
                return text;
            }
            *offset += data.len() as u64;
            text += std::str::from_utf8(&data).unwrap();
        }
    }

    #[test]
    fn who_seeks_back_is_told_of_all_that_is_lost() {
        let log = EventLog::keeping(3);
        let (mut reader, mut offset) = (Reader::default(), 0);
        for line in ["one\n", "two\n", "three\n"] {
            log.add(line.to_owned());
        }
        assert_eq!(all(&log, &mut reader, &mut offset, 1000), "one\ntwo\nthree\n");
        // `read` of a shell wanted one line.
        offset = 4;
        for line in ["four\n", "five\n", "six\n", "seven\n"] {
            log.add(line.to_owned());
        }
        assert_eq!(all(&log, &mut reader, &mut offset, 1000), "{\"lost\":3}\nfive\nsix\nseven\n");
    }

    #[test]
    fn readers_go_on_where_they_were() {
        for size in [1, 3, 7, 1000] {
            let log = EventLog::keeping(3);
            let (mut reader, mut offset) = (Reader::default(), 0);
            assert!(!log.has_more(&reader));
            log.add("one\n".to_owned());
            log.add("two\n".to_owned());
            assert!(log.has_more(&reader));
            assert_eq!(all(&log, &mut reader, &mut offset, size), "one\ntwo\n");
            assert!(!log.has_more(&reader));
            log.add("three\n".to_owned());
            assert_eq!(all(&log, &mut reader, &mut offset, size), "three\n");
            // Two are dropped before they are read.
            for line in ["four\n", "five\n", "six\n", "seven\n", "eight\n"] {
                log.add(line.to_owned());
            }
            assert_eq!(all(&log, &mut reader, &mut offset, size), "{\"lost\":2}\nsix\nseven\neight\n");
            log.add("nine\n".to_owned());
            assert_eq!(all(&log, &mut reader, &mut offset, size), "nine\n");
            // A late reader begins with the oldest event in the log.
            assert_eq!(all(&log, &mut Reader::default(), &mut 0, size), "seven\neight\nnine\n");
            // `tail` begins near the end.
            let mut end = log.size() as u64 - 5;
            assert_eq!(all(&log, &mut Reader::default(), &mut end, size), "nine\n");
        }
    }
}
