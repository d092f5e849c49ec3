//! How the tree looks, and what may be done to it.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::values::{octal, size};
use crate::record::Form;
use crate::tree::RespectLocks;

/// How the tree looks, and what may be done to it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(in crate::cli) struct ViewArgs {
    /// Refuse every change
    #[arg(long, short = 'r', visible_alias = "ro", env = "TOPOFS_READ_ONLY", value_parser = BoolishValueParser::new())]
    pub read_only: bool,
    /// Refuse to delete stored records
    #[arg(long, env = "TOPOFS_NO_DELETE", value_parser = BoolishValueParser::new())]
    pub no_delete: bool,
    /// The forms in which records exist
    #[arg(long, value_name = "FORM,...", value_delimiter = ',', default_value = "raw,txt,json", env = "TOPOFS_FORMS")]
    pub forms: Vec<Form>,
    /// The forms that directory listings show; the others still open by name [default: those of --forms]
    #[arg(long, value_name = "FORM,...", value_delimiter = ',', env = "TOPOFS_LIST")]
    pub list: Option<Vec<Form>>,
    /// Store new files of these names, too, written as CELL/PATH; `*` stays within a name, `**` crosses directories
    ///
    /// Other names than those of Vitess's records are kept in memory and never stored. May be given more than once.
    #[arg(long, value_name = "GLOB", env = "TOPOFS_RECORD", value_delimiter = ' ')]
    pub record: Vec<String>,
    /// Messages of another Vitess version: a file made by `protoc --include_imports --descriptor_set_out`
    #[arg(long, value_name = "FILE", env = "TOPOFS_DESCRIPTOR_SET")]
    pub descriptor_set: Option<PathBuf>,
    /// Owner of all files [default: the mounting user]
    #[arg(long, value_name = "ID", env = "TOPOFS_UID")]
    pub uid: Option<u32>,
    /// Group of all files [default: the mounting user's]
    #[arg(long, value_name = "ID", env = "TOPOFS_GID")]
    pub gid: Option<u32>,
    /// Permission bits that are taken away, in octal
    #[arg(long, value_name = "MODE", default_value = "077", value_parser = octal, env = "TOPOFS_UMASK")]
    pub umask: u32,
    /// Let other users in; the kernel checks owner and mode
    #[arg(long, env = "TOPOFS_ALLOW_OTHER", value_parser = BoolishValueParser::new())]
    pub allow_other: bool,
    /// Whose records are not saved while somebody else holds the lock of their directory
    ///
    /// Vitess insists on the lock for Keyspace records, and has nothing else to protect the routing rules of keyspaces.
    /// If the lock is free, it is taken for the moment of the save.
    #[arg(long, value_name = "RECORDS", default_value = "keyspace", env = "TOPOFS_RESPECT_LOCKS")]
    pub respect_locks: RespectLocks,
    /// Let processes write records that cannot be seen from the mount, as from a container with process numbers of its
    /// own
    ///
    /// What such a process writes is stored when its last descriptor is closed: nobody hears what it is refused with
    /// then but .topofs/errors, and half of what a killed program wanted to write is stored. Without this, it cannot
    /// open records for writing (EPERM).
    #[arg(long, env = "TOPOFS_ALLOW_UNSEEN_WRITERS")]
    pub allow_unseen_writers: bool,
    /// Room for files that are no records, such as editors' temporary files
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size, env = "TOPOFS_SCRATCH_QUOTA")]
    pub scratch_quota: u64,
}
