//! The line of /etc/fstab for a directory: what would be mounted there. Must never show its options: they may hold what
//! nobody should see.

use std::path::Path;

use crate::mount::unescape;

const FSTAB: &str = "/etc/fstab";
/// The types that mount(8) has topofs for.
const TYPES: [&str; 2] = ["topofs", "fuse.topofs"];

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Line {
    pub source: String,
    pub dir: String,
    pub options: String,
}

impl Line {
    /// What is taken from it, for people.
    pub fn told(&self) -> String {
        format!("nothing is mounted there; {FSTAB} says what would be: {}", self.source)
    }
}

/// The line for a directory.
pub(in crate::cli) fn line_for(dir: &Path) -> Option<Line> {
    let dir = std::path::absolute(dir).ok()?;
    find(&std::fs::read_to_string(FSTAB).ok()?, &dir)
}

fn find(text: &str, dir: &Path) -> Option<Line> {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
        let plain = |field: &str| String::from_utf8(unescape(field.as_bytes())).ok();
        let mut fields = line.split_ascii_whitespace();
        let (source, place, kind) = (plain(fields.next()?)?, plain(fields.next()?)?, fields.next()?);
        let options = plain(fields.next().unwrap_or("defaults"))?;
        (TYPES.contains(&kind) && Path::new(&place) == dir).then_some(Line { source, dir: place, options })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_directory_and_type() {
        let text = "# etcd2:no:1/r /srv/a topofs\n/dev/sda1 /srv/a ext4 defaults 0 1\n\
                    etcd2:h:1/r\t/srv/a\\040b/  topofs _netdev,ro 0 0\ndemo /srv/c fuse.topofs\n";
        let found = |dir: &str| find(text, Path::new(dir)).map(|line| (line.source, line.options));
        assert_eq!(found("/srv/a"), None);
        assert_eq!(found("/srv/a b"), Some(("etcd2:h:1/r".to_owned(), "_netdev,ro".to_owned())));
        assert_eq!(found("/srv/c"), Some(("demo".to_owned(), "defaults".to_owned())));
    }
}
