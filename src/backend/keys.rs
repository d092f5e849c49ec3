//! How a service spells the keys of a cell, and which keys are paths.

use crate::name::TopoPath;

/// The keys of one cell: `root` joined with the path, as Vitess joins them.
#[derive(Debug, Clone)]
pub(crate) struct KeySpace {
    prefix: String,
}

impl KeySpace {
    /// Cleans the root as Go's `path.Join` does: it removes repeated and trailing slashes and `.`; `..` removes the
    /// name before it; a leading slash stays, and nothing is above it.
    pub fn new(root: &str) -> Self {
        let rooted = root.starts_with('/');
        let mut parts: Vec<&str> = Vec::new();
        for part in root.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
                ".." if rooted => {}
                _ => parts.push(part),
            }
        }
        let mut prefix = String::from(if rooted { "/" } else { "" });
        for part in parts {
            prefix.push_str(part);
            prefix.push('/');
        }
        Self { prefix }
    }

    /// The same without a leading slash.
    pub fn relative(root: &str) -> Self {
        let Self { prefix } = Self::new(root);
        Self { prefix: prefix.trim_start_matches('/').to_owned() }
    }

    /// The prefix of all keys, ending in a slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The stored key of a path.
    pub fn key(&self, path: &TopoPath) -> String {
        format!("{}{path}", self.prefix)
    }

    /// The prefix of all keys below a directory.
    pub fn dir_prefix(&self, dir: &TopoPath) -> String {
        if dir.is_root() { self.prefix.clone() } else { format!("{}{dir}/", self.prefix) }
    }

    /// The path of a stored key; `None` if it cannot be a file name.
    pub fn path(&self, key: &[u8]) -> Option<TopoPath> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        TopoPath::parse(rest).ok().filter(|p| !p.is_root())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_cleaned_as_vitess_does() {
        // What Go's path.Join(root, "x") gives, without the x.
        let cleaned = [
            ("/vitess/global", "/vitess/global/"),
            ("vitess//global/", "vitess/global/"),
            ("/vitess/./old/../global", "/vitess/global/"),
            ("/../vitess/..", "/"),
            ("../a", "../a/"),
            ("a/../../b", "../b/"),
            ("", ""),
            ("/", "/"),
            ("/...", "/.../"),
        ];
        for (root, prefix) in cleaned {
            assert_eq!(KeySpace::new(root).prefix(), prefix, "{root}");
        }
    }
}
