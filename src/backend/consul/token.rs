//! The ACL token of a cell, as its file has it now.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::backend::contract::{BackendError, Failure};
use crate::name::CellName;

/// The token of one cell, and where it comes from.
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

    /// Reads the file again, and says whether the token differs from the one that was used. If the file cannot be read,
    /// the token stays.
    pub async fn differs_from(self: &Arc<Self>, used: Option<&String>) -> bool {
        let token = self.clone();
        // Only the end of the runtime keeps it from being read.
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
            Err(error) => tracing::warn!(cell = %self.cell, %error, "the ACL token cannot be read again"),
        }
    }
}

/// `None` if the file does not name the cell.
fn read(file: &Path, cell: &CellName) -> Result<Option<String>, BackendError> {
    #[derive(Deserialize)]
    struct Credentials {
        acl_token: String,
    }
    let other = |message: String| BackendError::new(Failure::Other, format!("{}: {message}", file.display()));
    let content = std::fs::read(file).map_err(|error| other(error.to_string()))?;
    // The error names a place, never the content.
    let all: HashMap<String, Credentials> = serde_json::from_slice(&content).map_err(|error| {
        other(format!("not a JSON object of {{\"CELL\": {{\"acl_token\": ...}}}}: line {}", error.line()))
    })?;
    if all.is_empty() {
        return Err(other("names no cell".to_owned()));
    }
    Ok(all.get(cell.as_str()).map(|credentials| credentials.acl_token.clone()))
}
