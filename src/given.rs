//! Reads the files that flags name. Whoever names them may be wrong, or may want to be waited for: only files and pipes
//! are read, no more than the bound, and nobody is waited for without end. Must never print what is in them.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The most of a file with passwords or tokens: those of many cells are a few kilobytes.
pub const SECRET: u64 = 64 << 10;
/// The most of a file with certificates or a key: a bundle of all public authorities has 250 KB.
pub const CERTIFICATE: u64 = 1 << 20;
/// The most of a file of message descriptors: those of Vitess have 1 MB.
pub const DESCRIPTORS: u64 = 16 << 20;
/// How long to wait for the writer of a pipe, such as `<(pass show etcd)`, which may ask a person.
const PATIENCE: Duration = Duration::from_secs(30);

/// The content of a file or pipe.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_within(path, most, PATIENCE)
}

/// The same, as text.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))
}

/// Whether a file can be read. Nobody who writes into a pipe is waited for.
pub fn look(path: &Path, most: u64) -> io::Result<Metadata> {
    let found = std::fs::metadata(path)?;
    match found.file_type().is_fifo() {
        true => Ok(found),
        false => open(path, most).map(|(_, found)| found),
    }
}

fn open(path: &Path, most: u64) -> io::Result<(File, Metadata)> {
    // Opening a device may do something already.
    can_be_read(&std::fs::metadata(path)?, most)?;
    // Another file may have come to its place meanwhile.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let found = file.metadata()?;
    can_be_read(&found, most)?;
    Ok((file, found))
}

fn can_be_read(found: &Metadata, most: u64) -> io::Result<()> {
    let kind = found.file_type();
    match (kind.is_file() || kind.is_fifo(), kind.is_dir()) {
        (_, true) => Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory")),
        (false, _) => Err(io::Error::new(io::ErrorKind::InvalidInput, "is neither a file nor a pipe")),
        _ if found.len() > most => Err(too_long(most)),
        _ => Ok(()),
    }
}

fn too_long(most: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("is longer than {} KiB", most >> 10))
}

fn read_within(path: &Path, most: u64, patience: Duration) -> io::Result<Vec<u8>> {
    let (file, found) = open(path, most)?;
    let mut content = Vec::new();
    if found.is_file() {
        // It may grow meanwhile, or have no size, as in /proc.
        file.take(most + 1).read_to_end(&mut content)?;
    } else {
        read_pipe(file, most, Instant::now() + patience, &mut content)?;
    }
    if content.len() as u64 > most { Err(too_long(most)) } else { Ok(content) }
}

fn read_pipe(mut pipe: File, most: u64, end: Instant, content: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut was_told = false;
    while content.len() as u64 <= most {
        match pipe.read(&mut buffer) {
            // Before the first byte, nobody may have opened it for writing yet.
            Ok(0) if was_told || !content.is_empty() => return Ok(()),
            Ok(0) => {}
            Ok(count) => {
                content.extend_from_slice(buffer.get(..count).unwrap_or_default());
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "is a pipe into which nobody writes to the end"));
        }
        // Rounded up, so that no wait of zero is repeated.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        was_told = matches!(poll(&mut fds, left), Ok(1..));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_pipes_are_read_and_no_more_than_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "1234").unwrap();
        assert_eq!(read(&file, 4).unwrap(), b"1234");
        assert_eq!(read(&file, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(look(&file, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        for (wrong, words) in
            [("/dev/zero", "neither"), (dir.path().to_str().unwrap(), "directory"), ("/no", "No such")]
        {
            for error in [read(Path::new(wrong), 4).unwrap_err(), look(Path::new(wrong), 4).unwrap_err()] {
                assert!(error.to_string().contains(words), "{wrong}: {error}");
            }
        }
        // It says that it is empty, and is not.
        assert!(read(Path::new("/proc/self/status"), 4).is_err());
    }

    #[test]
    fn a_pipe_is_read_to_its_end_and_waited_for_only_so_long() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(look(&pipe, 4).is_ok(), "nobody is waited for");
        let late = read_within(&pipe, 4, Duration::from_millis(50)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let writes = |text: &'static str| {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::write(pipe, text))
        };
        let writer = writes("1234");
        assert_eq!(read(&pipe, 4).unwrap(), b"1234");
        writer.join().unwrap().unwrap();
        let writer = writes("12345");
        assert_eq!(read(&pipe, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        drop(writer.join());
    }
}
