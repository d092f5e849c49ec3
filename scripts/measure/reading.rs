//! Reading the whole tree, against the same tree in tmpfs.

use std::time::Duration;

use anyhow::Result;

use crate::service::Topology;
use crate::{bash, dir_of, median, row, timed};

/// Programs that go through the whole tree.
const PROGRAMS: [(&str, &str); 4] = [
    ("ls -lR", "ls -lR D > /dev/null"),
    ("find", "find D > /dev/null"),
    ("cat of all", "find D -type f -print0 | xargs -0 cat > /dev/null"),
    ("grep -r", "grep -r no-such-text D > /dev/null || true"),
];
/// Repetitions: in large trees fewer.
const REPEAT: usize = 3;

/// Times of a program: the first time, and when it has all been read before.
struct Times {
    cold: Duration,
    warm: Duration,
}

/// Pinned: tool, daemon and tmpfs all on one CPU, which takes out the cost of waking up another one.
pub fn measure(topology: &Topology) -> Result<()> {
    let copy = tempfile::tempdir_in("/dev/shm")?;
    {
        let mount = topology.mount(&[], None)?;
        bash(&format!("cp -r {}/. {}", dir_of(&mount), copy.path().display()))?;
    }
    for (pinning, cpu) in [("one CPU", Some("0")), ("not pinned", None)] {
        for (name, script) in PROGRAMS {
            let run = |dir: &str| {
                let pin = cpu.map_or_else(String::new, |cpu| format!("taskset -cp {cpu} $$ > /dev/null; "));
                Ok(timed(|| bash(&(pin + &script.replace('D', dir))))?.0)
            };
            let of_copy = median((0..REPEAT).map(|_| run(&copy.path().display().to_string())).collect::<Result<_>>()?);
            for (kind, flags) in [("", &[][..]), (", --read-only", &["--read-only"])] {
                let times = times(topology, flags, cpu, &run)?;
                row(&format!("{name}, cold{kind} ({pinning}) / tmpfs"), times.cold, of_copy);
                row(&format!("{name}, warm{kind} ({pinning}) / tmpfs"), times.warm, of_copy);
            }
        }
    }
    Ok(())
}

fn times(
    topology: &Topology,
    flags: &[&str],
    cpu: Option<&str>,
    run: &impl Fn(&str) -> Result<Duration>,
) -> Result<Times> {
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..REPEAT {
        let mount = topology.mount(flags, cpu)?;
        mount.wait_until_loaded(topology)?;
        cold.push(run(&dir_of(&mount))?);
        run(&dir_of(&mount))?;
        warm.push(run(&dir_of(&mount))?);
    }
    Ok(Times { cold: median(cold), warm: median(warm) })
}
