//! The ACL token of a cell, from the current content of its file.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::backend::contract::BackendError;
use crate::backend::files::wrong;
use crate::given;
use crate::name::CellName;

/// The token of one cell, and its file.
pub(super) struct Token {
    file: Option<PathBuf>,
    cell: CellName,
    current: Mutex<Option<String>>,
}

impl Token {
    /// Reads the file, if there is one.
    pub fn new(file: Option<&PathBuf>, cell: &CellName) -> Result<Self, BackendError> {
        let current = file.map(|file| read(file, cell)).transpose()?.flatten();
        if let (Some(file), None) = (file, &current) {
            tracing::warn!(%cell, file = %file.display(), "no ACL token for this cell");
        }
        Ok(Self { file: file.cloned(), cell: cell.clone(), current: Mutex::new(current) })
    }

    pub fn current(&self) -> Option<String> {
        self.current.lock().clone()
    }

    /// Reloads the file. Returns whether the token differs from the one that was used. If the file cannot be read, the
    /// token stays.
    pub async fn differs_from(self: &Arc<Self>, used: Option<&String>) -> bool {
        let token = self.clone();
        // This fails only when the runtime ends.
        let _ = tokio::task::spawn_blocking(move || token.read_again()).await;
        self.current.lock().as_ref() != used
    }

    fn read_again(&self) {
        let Some(file) = &self.file else { return };
        match read(file, &self.cell) {
            Ok(token) => {
                let mut current = self.current.lock();
                if *current != token {
                    tracing::info!(cell = %self.cell, file = %file.display(), "the ACL token has changed");
                    *current = token;
                }
            }
            Err(error) => tracing::warn!(cell = %self.cell, %error, "cannot reload the ACL token"),
        }
    }
}

/// A number that tells tokens from each other, but nothing about them: it is another one in each process.
pub(super) fn fingerprint(token: &str) -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEY.hash_one(token)
}

/// `None` if the file does not name the cell.
fn read(file: &Path, cell: &CellName) -> Result<Option<String>, BackendError> {
    #[derive(Deserialize)]
    struct Credentials {
        acl_token: String,
    }
    let other = |message: String| wrong(file, message);
    let content = given::read(file, given::SECRET).map_err(|error| wrong(file, error))?;
    // The error contains a position, never the content.
    let all: HashMap<String, Credentials> = serde_json::from_slice(&content).map_err(|error| {
        other(format!("must be a JSON object like {{\"CELL\": {{\"acl_token\": \"...\"}}}}: line {}", error.line()))
    })?;
    if all.is_empty() {
        return Err(other("contains no cell".to_owned()));
    }
    Ok(all.get(cell.as_str()).map(|credentials| credentials.acl_token.clone()))
}
