//! What /proc says about other processes and threads. They come and go at any moment, and /proc may hide them. The
//! functions report an unknown answer as unknown, never as the best case.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

mod recent;

/// How many ancestors of a process to look at.
const ANCESTORS: usize = 64;
/// The size of nearly all files of /proc, in bytes. They do not tell it.
const FILE_SIZE: usize = 4_096;
/// The longest one, in bytes: a process may have 65,536 groups of up to 11 bytes each.
const FILE_LIMIT: u64 = 1 << 20;
/// How many threads to remember the process of.
const THREADS: usize = 10_000;

/// A path below /proc for a process or thread; an error if /proc belongs to another pid namespace, where the numbers
/// mean other processes.
pub fn entry(id: u32, file: &str) -> io::Result<std::path::PathBuf> {
    static IS_OURS: LazyLock<bool> = LazyLock::new(|| {
        let own = std::fs::read_link("/proc/self").ok();
        own.and_then(|own| own.to_str()?.parse().ok()) == Some(std::process::id())
    });
    match id != 0 && *IS_OURS {
        true => Ok(format!("/proc/{id}/{file}").into()),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The content of a file of /proc that the kernel writes in one piece, as it does those of a process that topofs reads.
/// Every save asks for many.
fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut content = vec![0; FILE_SIZE];
    let length = file.read(&mut content)?;
    content.truncate(length);
    // Less than there was room for is all of it.
    if length == FILE_SIZE {
        file.take(FILE_LIMIT).read_to_end(&mut content)?;
    }
    Ok(content)
}

fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The user and the process that an action is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Actor {
    /// The user.
    pub uid: u32,
    /// The process; 0 if it cannot be seen.
    pub process: u32,
}

/// A process. Its number alone may be used again; number and start time together are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine started.
    started: u64,
}

/// Whether a process is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is running.
    Running,
    /// It has ended, even if its parent has not noticed.
    Ended,
    /// Unknown.
    Unknown,
}

/// How a thread that closes a file goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It goes on, or ends of its own accord.
    Own,
    /// A signal ends its process.
    Killed,
    /// Its process ends for an unknown reason.
    Unknown,
}

impl Process {
    /// The process of a thread that waits for an answer; `None` if /proc does not show it (0 is a thread in another pid
    /// namespace). Not for a thread that closes a file: see [`stat`].
    pub fn of(thread: u32) -> Option<Self> {
        static KNOWN: LazyLock<quick_cache::sync::Cache<(u32, u64), Process>> =
            LazyLock::new(|| quick_cache::sync::Cache::new(THREADS));
        if let Some(recent) = recent::get(thread) {
            return Some(recent);
        }
        let started = stat(thread).ok()?.started;
        if let Some(known) = KNOWN.get(&(thread, started)) {
            // Not for each process: many call only once.
            if known.pid == thread {
                recent::remember(known);
            }
            return Some(known);
        }
        let pid = pid_of(thread)?;
        let process = Self { pid, started: if pid == thread { started } else { stat(pid).ok()?.started } };
        KNOWN.insert((thread, started), process);
        Some(process)
    }

    /// Whether it is still there. A new process with the same number counts as the same.
    pub fn life(self) -> Life {
        life(self.pid)
    }
}

/// The process number of a thread, if /proc shows it.
fn pid_of(thread: u32) -> Option<u32> {
    status(thread).ok()?.pid
}

/// The lines of /proc/ID/status that topofs uses. Reading this file never waits.
struct Status {
    pid: Option<u32>,
    state: Option<char>,
    parent: Option<u32>,
    threads: Option<u32>,
    /// The user whose rights count.
    effective_user: Option<u32>,
    /// Signals that the thread or its process has not handled yet.
    pending: Option<u64>,
    has_memory: bool,
}

fn status(id: u32) -> io::Result<Status> {
    // Names may have any encoding.
    let text = read(entry(id, "status")?)?;
    let text = String::from_utf8_lossy(&text);
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let number = |name: &str| line(name)?.parse().ok();
    Ok(Status {
        pid: number("Tgid"),
        state: line("State").and_then(|state| state.chars().next()),
        parent: number("PPid"),
        threads: number("Threads"),
        effective_user: line("Uid").and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok()),
        pending: line("SigPnd")
            .zip(line("ShdPnd"))
            .and_then(|(own, shared)| Some(u64::from_str_radix(own, 16).ok()? | u64::from_str_radix(shared, 16).ok()?)),
        has_memory: line("VmSize").is_some(),
    })
}

/// The fields of /proc/ID/stat that topofs uses.
struct Stat {
    flags: u32,
    started: u64,
    /// Also 0 if topofs may not see it.
    exit_code: i32,
}

/// The field numbers are those of proc(5). Field 2, the name, may contain anything up to the last parenthesis.
///
/// This read waits while the process is in execve(2), and execve waits for us when it closes a file of the mount: both
/// would wait for ever. So do not call it for a process that may be in execve.
fn stat(id: u32) -> io::Result<Stat> {
    let text = read(entry(id, "stat")?)?;
    let text = String::from_utf8_lossy(&text);
    let unknown = || io::Error::other("a field in /proc cannot be read");
    let fields: Vec<&str> = text.rsplit_once(')').ok_or_else(unknown)?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied().ok_or_else(unknown);
    fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
        text.parse().map_err(|_| io::Error::other("a field in /proc cannot be read"))
    }
    Ok(Stat { flags: number(field(9)?)?, started: number(field(22)?)?, exit_code: number(field(52)?)? })
}

/// When a thread started, in clock ticks since the machine started; `None` if unknown. Like [`stat`], not for a thread
/// that closes a file.
pub fn started(thread: u32) -> Option<u64> {
    stat(thread).ok().map(|stat| stat.started)
}

fn life(id: u32) -> Life {
    match status(id) {
        // The first thread of a process may end before the others.
        Ok(Status { state: Some('Z' | 'X'), threads: None | Some(0 | 1), .. }) => Life::Ended,
        Ok(_) => Life::Running,
        // /proc may have a mount option that hides processes.
        Err(_) => match i32::try_from(id) {
            Ok(id) if id != 0 && kill(Pid::from_raw(id), None) == Err(Errno::ESRCH) => Life::Ended,
            _ => Life::Unknown,
        },
    }
}

/// Whether a process or thread has certainly ended (its parent may not have noticed).
pub fn has_ended(id: u32) -> bool {
    life(id) == Life::Ended
}

/// A thread that closes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// Its process, if /proc shows it.
    pub process: Option<u32>,
    /// How it goes on.
    pub ending: Ending,
}

/// Which process closes a file, and why. Every save asks, so it is one look.
pub fn closing(thread: u32) -> Closing {
    match status(thread) {
        Ok(status) => Closing { process: status.pid, ending: ending(thread, &status) },
        Err(_) => Closing { process: None, ending: Ending::Unknown },
    }
}

fn ending(thread: u32, status: &Status) -> Ending {
    /// linux/sched.h: getting shut down; killed by a signal.
    const PF_EXITING: u32 = 0x4;
    const PF_SIGNALED: u32 = 0x400;
    /// The part of an exit code that is a signal.
    const SIGNAL: i32 = 0x7f;
    // A thread that ends releases its memory before it closes its files. A thread with memory may be in execve(2).
    if status.has_memory {
        return Ending::Own;
    }
    let Ok(found) = stat(thread) else { return Ending::Unknown };
    if found.flags & PF_EXITING == 0 {
        return Ending::Own;
    }
    if found.exit_code != 0 {
        return if found.exit_code & SIGNAL == 0 { Ending::Own } else { Ending::Killed };
    }
    // If one thread ends its process, the kernel kills the others. The flag belongs to the thread, the exit code to the
    // process.
    match (found.flags & PF_SIGNALED == 0, may_see_code(thread)) {
        (true, _) | (false, true) => Ending::Own,
        (false, false) => Ending::Unknown,
    }
}

/// Whether /proc shows the exit code of a thread: this needs the same right as its links.
fn may_see_code(thread: u32) -> bool {
    entry(thread, "cwd").and_then(std::fs::read_link).is_ok()
}

/// What a thread wants from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To open a file, with these flags.
    Open(i32),
    /// To read from a file.
    Read,
    /// Something else, or nothing: it has accessed mapped memory.
    Other,
}

/// The system call of a waiting thread; `None` if unknown.
pub fn call(thread: u32) -> Option<Call> {
    let text = read_to_string(entry(thread, "syscall").ok()?).ok()?;
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

/// The call with which a waiting thread locks or unlocks; `None` if unknown. (The kernel says which, but fuser does not
/// pass it on.)
pub fn locking(thread: u32) -> Option<Locking> {
    let text = read_to_string(entry(thread, "syscall").ok()?).ok()?;
    match text.split_whitespace().next()?.parse().ok()? {
        libc::SYS_flock => Some(Locking::Flock),
        libc::SYS_fcntl => Some(Locking::Fcntl),
        _ => None,
    }
}

/// The user of a process.
pub fn owner(process: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(entry(process, "").ok()?).ok().map(|known| known.uid())
}

/// The numbers of all processes that /proc shows.
pub fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The user whose rights a process has. The owner of its files in /proc may be root all the same.
pub fn effective_user(process: u32) -> Option<u32> {
    status(process).ok()?.effective_user
}

/// Whether a process was killed, and has not ended yet.
pub fn is_killed(process: u32) -> bool {
    status(process)
        .ok()
        .and_then(|status| status.pending)
        .is_some_and(|pending| pending & (1 << (libc::SIGKILL - 1)) != 0)
}

/// The name of a process.
pub fn name(process: u32) -> Option<String> {
    read_to_string(entry(process, "comm").ok()?).ok().map(|name| name.trim_end().to_owned())
}

fn parent(process: u32) -> Option<u32> {
    status(process).ok()?.parent.filter(|parent| *parent != 0)
}

/// Whether a process is another one or its descendant. An unseen process (0) is nobody's descendant.
pub fn descends_from(process: u32, ancestor: u32) -> bool {
    process != 0
        && ancestor != 0
        && std::iter::successors(Some(process), |known| parent(*known)).take(ANCESTORS).any(|known| known == ancestor)
}

/// Whether a signal is about to kill a thread.
pub fn is_being_killed(thread: u32) -> Option<bool> {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    let pending = status(thread).ok()?.pending?;
    Some(pending & SIGKILL != 0)
}

/// How many descriptors of a process are open for writing on an inode; `None` if unknown, or if there are too many to
/// look at.
pub fn writers_of(process: u32, ino: u64) -> Option<usize> {
    /// How many descriptors to look at.
    const LIMIT: usize = 16_384;
    let wanted = format!("ino:\t{ino}");
    let (mut count, mut seen) = (0, false);
    for (number, entry) in std::fs::read_dir(entry(process, "fdinfo").ok()?).ok()?.enumerate() {
        if number == LIMIT {
            return None;
        }
        seen = true;
        let info = match read_to_string(entry.ok()?.path()) {
            Ok(info) => info,
            // The process has closed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return None,
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags, 8).ok())?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        count += usize::from(writes && info.lines().any(|line| line == wanted));
    }
    // A process that is ending releases its table of descriptors before it closes them; its first thread may also have
    // ended.
    seen.then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there() {
        let own = std::process::id();
        let process = Process::of(own).unwrap();
        assert_eq!((process.pid, process.life()), (own, Life::Running));
        assert_eq!(closing(own), Closing { process: Some(own), ending: Ending::Own });
        assert!(descends_from(own, own) && descends_from(own, 1) && !descends_from(1, own));
        assert!(name(own).is_some());
        assert!(has_ended(u32::MAX >> 1) && !has_ended(own));
    }

    #[test]
    fn who_cannot_be_seen_is_nobody() {
        assert_eq!(Process::of(0), None);
        assert!(!has_ended(0));
        assert!(!descends_from(std::process::id(), 0) && !descends_from(0, 1) && !descends_from(0, 0));
        let unknown = Closing { process: None, ending: Ending::Unknown };
        assert_eq!((closing(0), closing(u32::MAX >> 1)), (unknown, unknown));
    }

    #[test]
    fn a_process_is_known_as_long_as_it_runs() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let first = Process::of(child.id()).unwrap();
        for _ in 0..3 {
            assert_eq!(Process::of(child.id()), Some(first));
        }
        assert_eq!(recent::get(child.id()), Some(first), "without a look into /proc");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(recent::get(child.id()), None);
        assert_eq!(Process::of(child.id()), None);
    }

    #[test]
    fn threads_are_of_one_process() {
        let (more, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw().cast_unsigned()).unwrap();
            let _ = wait.recv();
        });
        let running = told.recv().unwrap();
        assert!(Process::of(running).is_some_and(|process| process.pid == std::process::id()));
        drop(more);
        thread.join().unwrap();
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
