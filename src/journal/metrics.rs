//! The names of the metrics, with their labels and what they mean. docs/metrics.md has the same list. Must never hold a
//! value: the counters are where things happen, and `control/metrics` puts both together.

use std::fmt;

use prometheus::{Histogram, HistogramOpts, Opts};

/// The upper bounds of durations, in seconds. What memory answers takes less than the first; a service in the same
/// place, milliseconds; the last are the time-outs of calls.
const BOUNDS: [f64; 10] = [0.000_05, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 15.0, 60.0];

/// What the values of a metric are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricType {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations, by their length.
    Histogram,
}

impl fmt::Display for MetricType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
        })
    }
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name, as Prometheus wants names: base units, `_total` for counters.
    pub name: &'static str,
    /// What its values are.
    pub kind: MetricType,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, and when it is bad.
    pub help: &'static str,
}

impl Metric {
    /// Name and help for the library.
    pub fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    /// A histogram with fixed labels; `None` only if this definition is no metric.
    pub fn histogram(&self, labels: &[(&str, &str)]) -> Option<Histogram> {
        let opts = HistogramOpts::new(self.name, self.help).buckets(BOUNDS.to_vec());
        let opts = labels.iter().fold(opts, |opts, (name, value)| opts.const_label(*name, *value));
        Histogram::with_opts(opts).ok()
    }
}

macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal [$($label:literal)*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $id: Metric =
                Metric { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help };
        )*
        /// All of them.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    BUILD_INFO: Gauge "topofs_build_info" ["version"]
        "Always 1; the label is the version of topofs.";

    REQUESTS: Counter "topofs_requests_total" ["operation"]
        "Requests of the kernel, without those about .topofs itself.";
    REQUEST_DURATION: Histogram "topofs_request_duration_seconds" ["operation"]
        "Time to answer a request of the kernel; a setlk may wait for a lock for as long as its caller likes.";
    REQUEST_ERRORS: Counter "topofs_request_errors_total" ["operation" "errno"]
        "Requests answered with an error. ENOENT of lookup is everyday life; ETIMEDOUT, EIO and EACCES are not.";
    REQUESTS_WAITING: Gauge "topofs_requests_waiting" []
        "Requests that wait for a service or a lock now. Many for long: a service hangs.";
    SPINS: Counter "topofs_spins_total" []
        "Times that a thread looked for the next request for a moment before it slept (--spin).";
    SPIN_HITS: Counter "topofs_spin_hits_total" []
        "Times that a request came meanwhile. Few of many spins: programs work between requests.";

    BACKEND_DURATION: Histogram "topofs_backend_request_duration_seconds" ["operation" "outcome"]
        "Time of calls to the services of all cells. Outcome: ok, refused (a guard was not met), failed, or abandoned.";
    BACKEND_ERRORS: Counter "topofs_backend_errors_total" ["cell" "failure"]
        "Failed calls to the service of a cell. unreachable, denied, no_space and other are bad; the rest are answers.";

    CELL_INFO: Gauge "topofs_cell_info" ["cell" "implementation"]
        "Always 1; the labels say on which kind of service the cell is.";
    CELL_STATE: Gauge "topofs_cell_state" ["cell" "state"]
        "1 for the state that the cell is in, 0 for the others. down, stale and denied are bad.";
    CELL_LAG: Gauge "topofs_cell_lag_seconds" ["cell"]
        "Time since the last sign of life of a cell's watch: what is shown was true then. More than 4 is bad.";
    CELL_RECORDS: Gauge "topofs_cell_records" ["cell"]
        "Records of the cell that the mirror holds.";
    CELL_BYTES: Gauge "topofs_cell_record_bytes" ["cell"]
        "Bytes of their paths and values.";
    CELL_EVENTS: Counter "topofs_cell_events_total" ["cell"]
        "Changes that the watch has delivered.";
    CELL_RESYNCS: Counter "topofs_cell_resyncs_total" ["cell"]
        "Comparisons of the mirror with the service.";
    CELL_MISSED: Counter "topofs_cell_missed_total" ["cell"]
        "Changes that the watch should have delivered and did not, found by a comparison. Anything but 0 is bad.";
    CELL_CAUGHT_UP: Counter "topofs_cell_caught_up_total" ["cell"]
        "Changes that were found after the connection had been away.";
    CELL_SILENCES: Counter "topofs_cell_silences_total" ["cell"]
        "Times that nothing was heard of the service for three seconds. Growth is bad.";
    CELL_RECONNECTS: Counter "topofs_cell_reconnects_total" ["cell"]
        "Times that the watch was set up again. Steady growth is bad.";
    CELL_RESTORATIONS: Counter "topofs_cell_restorations_total" ["cell"]
        "Times that the history of the service has gone back: it was restored or recreated.";
    CELL_SKIPPED: Gauge "topofs_cell_skipped_keys" ["cell"]
        "Keys that cannot be file names: those of the last list, and changes of such keys since.";
    CELLS_HIDDEN: Gauge "topofs_cells_not_shown" []
        "Cells whose CellInfo record cannot be used. Anything but 0 deserves a look at .topofs/status.";

    TEE_STATE: Gauge "topofs_tee_state" ["cell" "state"]
        "Mounts of two services: 1 for the state of the cell at the secondary. down, denied, missing, unknown are bad.";
    TEE_RECORDS: Gauge "topofs_tee_records" ["cell"]
        "Records of the cell at the secondary.";
    TEE_LAG: Gauge "topofs_tee_lag_seconds" ["cell"]
        "Time since the last sign of life of the watch at the secondary.";
    TEE_DRIFT: Gauge "topofs_tee_drift_records" ["cell" "kind"]
        "Records that are missing, different or left_over at the secondary. Anything but 0 for long is bad.";
    TEE_DRIFT_COMPLETE: Gauge "topofs_tee_drift_complete" ["cell"]
        "1 if both places are known; while it is 0, more records may differ.";
    TEE_FAILING: Gauge "topofs_tee_failing" ["cell"]
        "1 while the secondary does not answer the updates of this mount.";
    TEE_BACKEND_ERRORS: Counter "topofs_tee_backend_errors_total" ["cell" "failure"]
        "Calls to the secondary of a cell that failed.";

    HISTORY_RECORDS: Gauge "topofs_history_records" []
        "Records with a remembered past.";
    HISTORY_VERSIONS: Gauge "topofs_history_versions" []
        "Versions that are remembered.";
    HISTORY_BYTES: Gauge "topofs_history_bytes" []
        "Memory that they use.";
    HISTORY_LIMIT: Gauge "topofs_history_limit_bytes" []
        "Memory that they may use (--history-memory).";
    HISTORY_FORGOTTEN: Counter "topofs_history_forgotten_total" []
        "Versions that were forgotten because of a bound.";

    CACHE_ENTRIES: Gauge "topofs_cache_entries" ["cache"]
        "Entries of a cache: decoded forms (forms), what processes have read (reads), targets of links (links).";
    CACHE_WEIGHT: Gauge "topofs_cache_weight" ["cache"]
        "Their weight: bytes of forms, else a number of entries.";
    CACHE_CAPACITY: Gauge "topofs_cache_capacity" ["cache"]
        "The most weight that a cache holds.";
    CACHE_HITS: Counter "topofs_cache_hits_total" ["cache"]
        "Questions that a cache has answered.";
    CACHE_MISSES: Counter "topofs_cache_misses_total" ["cache"]
        "Questions that a cache could not answer.";

    EVENTS: Counter "topofs_events_total" []
        "Lines of .topofs/events.";
    EVENTS_RAISED: Counter "topofs_events_raised_total" []
        "Changes made elsewhere for which the helper has raised an inotify event.";
    EVENTS_LOST: Counter "topofs_events_lost_total" []
        "inotify events that were not raised. Anything but 0 means that watchers have missed something.";
    HELPER_RUNNING: Gauge "topofs_helper_running" []
        "1 while there is a helper that raises events.";
    HELPER_RESTARTS: Counter "topofs_helper_restarts_total" []
        "Times that the helper has died. Growth is bad.";

    LOCKS_HELD: Gauge "topofs_locks_held" []
        "Locks of the topology that this mount holds.";
    LOCKS_WAITING: Gauge "topofs_locks_waiting" []
        "Places in which this mount waits for locks of the topology.";
    LOCKS_LOST: Gauge "topofs_locks_lost" []
        "Locks that were lost while a program still counts on them. Anything but 0 is bad.";
    LOCKS_LONGEST: Gauge "topofs_locks_longest_held_seconds" []
        "How long the oldest lock has been held by this mount; 0 without one. Nobody else gets that lock meanwhile.";

    INODES: Gauge "topofs_inodes" []
        "Inodes that the kernel knows.";
    HANDLES: Gauge "topofs_open_handles" []
        "Open files.";
    SCRATCH_FILES: Gauge "topofs_scratch_files" []
        "Files that exist only in this mount: they are gone with it.";
    SCRATCH_BYTES: Gauge "topofs_scratch_bytes" []
        "Bytes of such files.";
    SCRATCH_LIMIT: Gauge "topofs_scratch_limit_bytes" []
        "Bytes that they may use (--scratch-quota).";
    LOCAL_DIRECTORIES: Gauge "topofs_local_directories" []
        "Directories that exist only in this mount.";
    SNAPSHOTS: Gauge "topofs_snapshots" []
        "Snapshots in .topofs/at.";
    STAGES: Gauge "topofs_stages" []
        "Stages in .topofs/stage.";
    STAGED_CHANGES: Gauge "topofs_staged_changes" []
        "Changes in all stages that are not committed: they are gone with the mount.";

    PANICS: Counter "topofs_panics_total" []
        "Faults of topofs itself. Anything but 0 is worth a report.";

    PROCESS_CPU: Counter "process_cpu_seconds_total" []
        "User and system time of the process.";
    PROCESS_RSS: Gauge "process_resident_memory_bytes" []
        "Resident memory of the process.";
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the process.";
    PROCESS_FDS: Gauge "process_open_fds" []
        "Open file descriptors of the process.";
    PROCESS_MAX_FDS: Gauge "process_max_fds" []
        "The most file descriptors that the process may open.";
    PROCESS_START: Gauge "process_start_time_seconds" []
        "When the process was started, in seconds since 1970.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let names: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "no name is there twice");
        for Metric { name, kind, labels, help } in ALL {
            let starts = name.starts_with("topofs_") || name.starts_with("process_");
            let letters = name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
            assert!(starts && letters && !name.contains("__"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == MetricType::Counter, "{name}");
            for unit in ["milli", "micro", "minutes", "kilo", "mega", "_bucket", "_sum", "_count", "percent"] {
                assert!(!name.contains(unit), "{name}");
            }
            if *kind == MetricType::Histogram {
                assert!(name.ends_with("_seconds") && !labels.contains(&"le"), "{name}");
                assert!(ALL.iter().any(|metric| metric.name == *name), "{name}");
            }
            assert!(help.ends_with('.') && help.len() < 130 && !help.contains(['\\', '\n']), "{name}: {help}");
        }
    }

    #[test]
    fn every_histogram_can_be_made() {
        for metric in ALL.iter().filter(|metric| metric.kind == MetricType::Histogram) {
            let labels: Vec<(&str, &str)> = metric.labels.iter().map(|label| (*label, "x")).collect();
            assert!(metric.histogram(&labels).is_some(), "{metric:?}");
        }
    }
}
