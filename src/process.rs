//! What /proc says about other processes and threads. They come and go at any moment: what cannot be read is gone.

use std::fs::read_to_string;

/// Parents looked at when a process is asked whose descendant it is.
const ANCESTORS: usize = 64;

/// The process of a thread.
pub fn process_of(thread: u32) -> Option<u32> {
    let status = read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// The fields of /proc/ID/stat behind the name, which may contain anything up to the last parenthesis.
pub fn stat(id: u32) -> Option<Vec<String>> {
    let stat = read_to_string(format!("/proc/{id}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(ToOwned::to_owned).collect())
}

/// Whether a process has ended (or waits for its parent to notice).
pub fn has_ended(process: u32) -> bool {
    stat(process).is_none_or(|fields| fields.first().is_none_or(|state| state.starts_with(['Z', 'X'])))
}

/// Whether a thread is ending because of a signal. The last field of its stat is the exit code; the kernel sets it before it
/// closes the files.
pub fn was_killed(thread: u32) -> bool {
    const SIGNAL: i32 = 0x7f;
    let code = stat(thread).and_then(|fields| fields.last()?.parse::<i32>().ok());
    code.is_some_and(|code| code & SIGNAL != 0)
}

/// What a thread asks of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To open a file, with these flags.
    Open(i32),
    /// To read from a file.
    Read,
    /// Something else, or nothing: it has looked into memory.
    Other,
}

/// The system call that a waiting thread is in; `None` if that cannot be told.
pub fn call(thread: u32) -> Option<Call> {
    let text = read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    let mut fields = text.split_whitespace();
    let number: libc::c_long = fields.next()?.parse().ok()?;
    let mut argument = |index| i32::from_str_radix(fields.nth(index)?.trim_start_matches("0x"), 16).ok();
    match number {
        libc::SYS_openat => argument(2).map(Call::Open),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => argument(1).map(Call::Open),
        // Its flags are in memory.
        libc::SYS_openat2 => None,
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => Some(Call::Read),
        libc::SYS_sendfile | libc::SYS_splice | libc::SYS_copy_file_range => Some(Call::Read),
        _ => Some(Call::Other),
    }
}

/// The call that locks a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// flock(2).
    Flock,
    /// fcntl(2): locks of processes and of open files.
    Fcntl,
}

/// By which call a waiting thread locks or unlocks; `None` if that cannot be told. (The kernel tells, but fuser does not.)
pub fn locking(thread: u32) -> Option<Locking> {
    let text = read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    match text.split_whitespace().next()?.parse().ok()? {
        libc::SYS_flock => Some(Locking::Flock),
        libc::SYS_fcntl => Some(Locking::Fcntl),
        _ => None,
    }
}

/// The user of a process.
pub fn owner(process: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{process}")).ok().map(|known| known.uid())
}

/// The name of a process.
pub fn name(process: u32) -> Option<String> {
    read_to_string(format!("/proc/{process}/comm")).ok().map(|name| name.trim_end().to_owned())
}

/// Whether a process is another one or its descendant.
pub fn descends_from(process: u32, ancestor: u32) -> bool {
    let parent = |process: &u32| stat(*process)?.get(1)?.parse::<u32>().ok();
    std::iter::successors(Some(process), parent).take(ANCESTORS).any(|known| known == ancestor)
}

/// How many descriptors of a process are open for writing on an inode; `None` if that cannot be told, or is too much to look at.
pub fn writers_of(process: u32, ino: u64) -> Option<usize> {
    /// Descriptors looked at.
    const LIMIT: usize = 4_096;
    let wanted = format!("ino:\t{ino}");
    let mut count = 0;
    for (number, entry) in std::fs::read_dir(format!("/proc/{process}/fdinfo")).ok()?.enumerate() {
        if number == LIMIT {
            return None;
        }
        // One that is closed meanwhile does not count.
        let Ok(info) = read_to_string(entry.ok()?.path()) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags, 8).ok()).unwrap_or(0);
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        count += usize::from(writes && info.lines().any(|line| line == wanted));
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there() {
        let own = std::process::id();
        assert_eq!(process_of(own), Some(own));
        assert!(!has_ended(own) && !was_killed(own));
        assert!(descends_from(own, own) && descends_from(own, 1) && !descends_from(1, own));
        assert!(name(own).is_some());
        assert!(has_ended(u32::MAX >> 1));
    }

    #[test]
    fn a_call_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Waits for somebody who writes.
        let mut opens = std::process::Command::new("cat").arg(&pipe).spawn().unwrap();
        let mut sleeps = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let waits_in = |id: u32| {
            (0..1_000).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                call(id).filter(|_| name(id).is_some_and(|name| name == "cat" || name == "sleep"))
            })
        };
        let opened = waits_in(opens.id());
        assert!(
            matches!(opened, Some(Call::Open(flags)) if flags & (libc::O_CREAT | libc::O_ACCMODE) == libc::O_RDONLY),
            "{opened:?}"
        );
        assert_eq!(waits_in(sleeps.id()), Some(Call::Other));
        for child in [&mut opens, &mut sleeps] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
