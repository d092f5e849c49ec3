//! What this process uses, as monitoring expects it of every process. Looks only at the process itself.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// What the process uses. What is unknown is `None`.
#[derive(Debug)]
pub(super) struct Usage {
    /// User and system time.
    pub cpu: Duration,
    pub resident: Option<u64>,
    pub virtual_size: Option<u64>,
    pub open_files: Option<u64>,
    /// `None` also if there is no limit.
    pub most_files: Option<u64>,
    pub started: Option<SystemTime>,
}

impl Usage {
    pub fn now() -> Self {
        /// The process starts once. Looking later would show it a little moved.
        static STARTED: LazyLock<Option<SystemTime>> = LazyLock::new(started);
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let mut pages = pages.split(' ').map(|pages| Some(pages.parse::<u64>().ok()? * page_size() as u64));
        // One of them is that of the directory itself.
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|all| all.count().saturating_sub(1) as u64);
        Self {
            cpu: duration(clock_gettime(ClockId::ProcessCPUTime)),
            virtual_size: pages.next().flatten(),
            resident: pages.next().flatten(),
            open_files: open,
            most_files: getrlimit(Resource::Nofile).current,
            started: *STARTED,
        }
    }
}

/// Field 22 of proc(5) says when the process was started, in ticks since the machine was.
fn started() -> Option<SystemTime> {
    let stat = std::fs::read("/proc/self/stat").ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // Field 2, the name, may contain anything up to the last parenthesis.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let since_boot = Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64);
    SystemTime::now().checked_sub(duration(clock_gettime(ClockId::Boottime)).checked_sub(since_boot)?)
}

fn duration(time: Timespec) -> Duration {
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let before = Usage::now();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let more = Usage::now();
        assert!(more.open_files.unwrap() >= before.open_files.unwrap() + 30, "{before:?} {more:?}");
        drop(files);
        assert!(more.most_files.unwrap() > more.open_files.unwrap());
        let (resident, virtual_size) = (more.resident.unwrap(), more.virtual_size.unwrap());
        assert!(resident > 1 << 20 && virtual_size >= resident, "{more:?}");
        let age = more.started.unwrap().elapsed().unwrap();
        assert!(age < Duration::from_secs(24 * 3600), "{age:?}");
        assert!(more.cpu > Duration::ZERO && more.cpu >= before.cpu);
    }
}
