//! How the tree looks, and which changes it allows.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::values::{group, number, octal, size, user};
use crate::mirror::HistoryLimits;
use crate::record::Form;
use crate::tree::{RespectLocks, Views};

/// How the tree looks, and which changes it allows.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(in crate::cli) struct ViewArgs {
    /// Refuse every change
    #[arg(long, short = 'r', visible_alias = "ro", env = "TOPOFS_READ_ONLY", value_parser = BoolishValueParser::new())]
    pub read_only: bool,
    /// Refuse to delete stored records
    #[arg(long, env = "TOPOFS_NO_DELETE", value_parser = BoolishValueParser::new())]
    pub no_delete: bool,
    /// Let the CellInfo record of a cell be deleted although keyspaces are served there
    ///
    /// Without this flag, topofs refuses that with EBUSY, as vtctldclient DeleteCellInfo does without --force.
    #[arg(long, env = "TOPOFS_FORCE_CELL_REMOVAL", value_parser = BoolishValueParser::new())]
    pub force_cell_removal: bool,
    /// The forms in which records exist
    #[arg(long, value_name = "FORM,...", value_delimiter = ',', default_value = "raw,txt,json", env = "TOPOFS_FORMS")]
    pub forms: Vec<Form>,
    /// The forms that directory listings show; files of other forms can be opened by name [default: all of --forms]
    #[arg(long, value_name = "FORM,...", value_delimiter = ',', env = "TOPOFS_LIST")]
    pub list: Option<Vec<Form>>,
    /// Links to what belongs together: .tablets/ and .primary of a shard, .cells/ of a keyspace and of a cell alias
    #[arg(long, value_name = "WHICH", default_value = "on", env = "TOPOFS_VIEWS")]
    pub views: Views,
    /// Also store new files that match CELL/PATH; `*` matches within a name, `**` across directories
    ///
    /// Without this flag, topofs stores only files that have the name of a Vitess record. It keeps all other new files
    /// in memory. Can be given more than once.
    #[arg(long, value_name = "GLOB", env = "TOPOFS_RECORD", value_delimiter = ' ')]
    pub record: Vec<String>,
    /// Messages of another Vitess version: a file from `protoc --include_imports --descriptor_set_out`
    #[arg(long, value_name = "FILE", env = "TOPOFS_DESCRIPTOR_SET")]
    pub descriptor_set: Option<PathBuf>,
    /// Owner of all files: a name or a number [default: the mounting user]
    #[arg(long, value_name = "USER", env = "TOPOFS_UID", value_parser = user)]
    pub uid: Option<u32>,
    /// Group of all files: a name or a number [default: the group of the mounting user]
    #[arg(long, value_name = "GROUP", env = "TOPOFS_GID", value_parser = group)]
    pub gid: Option<u32>,
    /// Permission bits to remove from all files, in octal
    #[arg(long, value_name = "MODE", default_value = "077", value_parser = octal, env = "TOPOFS_UMASK")]
    pub umask: u32,
    /// Let other users access the mount; the kernel checks owner and mode
    #[arg(long, env = "TOPOFS_ALLOW_OTHER", value_parser = BoolishValueParser::new())]
    pub allow_other: bool,
    /// Show one state of a record from its first byte to its last, whatever changes while it is open
    ///
    /// Records are read from topofs, past the page cache, which costs a request for each read. An open file goes on
    /// showing the state that it was opened with: `tail -f` shows nothing new, `tail -F` does not either. stat(2)
    /// tells the length that the record has now, also of an open file.
    #[arg(long, env = "TOPOFS_DIRECT_IO", value_parser = BoolishValueParser::new())]
    pub direct_io: bool,
    /// Refuse to save these records while somebody else holds the lock of their directory
    ///
    /// Vitess requires the lock for Keyspace records, and protects the routing rules of keyspaces only with it. If the
    /// lock is free, topofs takes it during the save.
    #[arg(long, value_name = "RECORDS", default_value = "keyspace", env = "TOPOFS_RESPECT_LOCKS")]
    pub respect_locks: RespectLocks,
    /// Let processes write that the mount cannot see, such as those in a container with its own PID namespace
    ///
    /// topofs stores what such a process has written when it closes its last descriptor. If the service refuses the
    /// save, only .topofs/errors shows it. If the process is killed halfway, topofs stores half of a record. Without
    /// this flag, such a process cannot open records for writing (EPERM).
    #[arg(long, env = "TOPOFS_ALLOW_UNSEEN_WRITERS")]
    pub allow_unseen_writers: bool,
    /// Maximum total size of files that are not records, such as temporary files of editors
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size, env = "TOPOFS_SCRATCH_QUOTA")]
    pub scratch_quota: u64,
    /// Number of earlier versions of each record to remember, shown in .topofs/history; 0 for none
    ///
    /// On etcd, .topofs/history shows the versions that etcd still has, too, whatever this number is.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = HistoryLimits::VERSIONS,
        value_parser = number,
        env = "TOPOFS_HISTORY"
    )]
    pub history: usize,
    /// Maximum memory for the remembered versions of all records
    ///
    /// The oldest are forgotten first; those of a record that uses more than its share, before all others.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size, env = "TOPOFS_HISTORY_MEMORY")]
    pub history_memory: u64,
}
