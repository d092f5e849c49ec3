//! topofs(5): the files. The tables come from the code; docs/semantics.md says more.

use clap::ValueEnum;

use super::errnos;
use super::page::Page;
use crate::control::{COMMANDS, ControlFile};
use crate::record::{Form, layout};
use crate::tree::{About, STAGE_COMMANDS};

/// The page.
pub(super) fn page() -> Page {
    let mut page = Page::new("topofs", "5", "File Formats", "the files of a mounted Vitess Topology Service");
    page.section("DESCRIPTION").text(
        "A mount of topofs(1) shows the records of a Vitess topology as files. `global` holds the global topology; \
         every cell that has a CellInfo record has a directory beside it. Below, paths are those of Vitess's own \
         tools (`vtctldclient GetTopologyPath`). A cell connects when somebody first looks into its directory.",
    );
    page.example(
        "global/cells/zone1/CellInfo.json\nglobal/keyspaces/commerce/Keyspace.txt\n\
         global/keyspaces/commerce/VSchema.json\nglobal/keyspaces/commerce/shards/0/Shard.txt\n\
         global/keyspaces/commerce/.lock\nzone1/tablets/zone1-0000000100/Tablet.json\n.topofs/status",
    );
    records(&mut page);
    reading(&mut page);
    writing(&mut page);
    locks(&mut page);
    watching(&mut page);
    control(&mut page);
    page.section("ERRORS").text(
        "The reason of an error that needs explaining is the last line of `.topofs/errors`, with path, line and \
         column where there are any. It is in the log, too.",
    );
    page.rows(errnos::table());
    notes(&mut page);
    page.see_also(&["topofs(1)", "mount.topofs(8)", "flock(2)", "inotify(7)", "xattr(7)", "errno(3)"]);
    page
}

fn records(page: &mut Page) {
    page.part("Forms");
    page.text("A record has a file for each form (`--forms`, `--list`). All show the same state; each can be written.");
    for form in Form::value_variants() {
        let help = form.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        let name = format!("*NAME*{}", form.suffix());
        page.item(&name, &format!("{}.", help.unwrap_or_default()));
    }
    page.part("Records");
    page.text("These names stand for messages of Vitess, each in its place. Other stored keys have the raw form only.");
    let lines = layout::messages().map(|(name, message)| format!("{name:<26}{message}\n"));
    page.example(&lines.collect::<String>());
    page.text(
        "A new file is stored if it has the name of a record in its place, or matches `--record`. Every other file is \
         scratch: it is in the mount's memory, is never stored, and is gone with the mount. A key that is both a \
         record and a directory is a directory with a file `.data`.",
    );
    page.part("Links");
    page.text(
        "Links are computed, open by name and are not listed (`--views`): `.tablets/`*ALIAS* and `.primary` in a \
         shard, `.cells/`*CELL* in a keyspace and in a cell alias.",
    );
    page.part("Attributes");
    page.text("Extended attributes tell what a record is. They cannot be changed.");
    page.item("`user.topo.version`", "What Vitess's tools call the version.");
    page.item("`user.topo.cell`, `user.topo.path`", "Where the record is in the topology.");
    page.item("`user.topo.type`", "The message.");
    page.item("`user.topo.czxid`, `user.topo.acl`", "On ZooKeeper: the creation, and who may do what.");
    page.item("`user.topo.scratch`", "The file is scratch.");
    page.item(
        "`user.topo.by`, `user.topo.change-set`",
        "In `.topofs/history`: who has made the version, and in which stage.",
    );
}

fn reading(page: &mut Page) {
    page.section("READING").text(
        "Reads are answered from a mirror that watches keep current. A read shows a state that the service had, never \
         older than the last event delivered, nor than this mount's own last write. If the watch of a cell is broken \
         for longer than `--stale-after`, reads there fail with ETIMEDOUT and show nothing old, unless \
         `--serve-stale` says so. If the service does not let the mount read a cell, they fail with EACCES. The other \
         cells go on. O_DIRECT asks the service.",
    );
}

fn writing(page: &mut Page) {
    page.section("WRITING").text(
        "Opening for writing notes the version of the record, fresh from the service. What is written stays in the \
         open file until close(2) or fsync(2), and is stored as one compare-and-swap on that version. Readers never \
         see half a record.",
    );
    page.item(
        "Somebody was faster",
        "ESTALE, and nothing is stored. What a program has read counts, too: if the record has changed since, opening \
         it for writing fails once.",
    );
    page.item(
        "Not valid",
        "EBADMSG, and nothing is stored. What was refused stays refused until the file is truncated or written anew.",
    );
    page.item("Equal content", "No new version.");
    page.item("Unknown fields", "Fields of a newer Vitess survive an edit of the text or the JSON.");
    page.item("Renaming a scratch file over a record", "A save. `sed -i`, editors, `mv` and rsync(1) work.");
    page.item("Removing any form", "Removes the record, if it still has the version that was shown.");
    page.item("A killed writer", "Stores nothing.");
    page.item("A writer of another pid namespace", "EPERM, unless `--allow-unseen-writers` is given.");
    page.text(
        "chmod, chown and touch succeed and change nothing. Renaming from cell to cell, or a stored directory, is \
         EXDEV.",
    );
}

fn locks(page: &mut Page) {
    page.section("LOCKS").text(
        "`.lock` in a directory is the lock that Vitess's tools take on that directory, in the same format. flock(2) \
         and fcntl(2) take it; it needs a descriptor that can write. Its content is the holder; what is written to \
         the open file before locking is the reason that others see. `global/elections/`*NAME*`/.lock` is an \
         election, `global/internal/named_locks/`*NAME*`/.lock` a lock of any name. Whoever has lost a lock cannot \
         save under it (EIO). `topofs unlock` breaks one.",
    );
}

fn watching(page: &mut Page) {
    page.section("WATCHING").text(
        "A change made elsewhere raises the inotify(7) events of a local one, on every form: OPEN, MODIFY, \
         CLOSE_WRITE for a change, CREATE for a new record, DELETE for a removal. A program that wakes up reads the \
         new content. Several quick changes of one record may raise one event. `.topofs/events` has them all as JSON \
         lines, with who did it: `tail -f` and poll(2) wait for more.",
    );
}

fn control(page: &mut Page) {
    page.section("THE DIRECTORY .topofs").text("It opens by name and is not listed.");
    page.rows(
        ControlFile::ALL
            .into_iter()
            .map(|file| (format!("`.topofs/{}`", file.name()), control_file(file.name()).to_owned())),
    );
    page.item(
        "`.topofs/history/`*CELL*/*PATH*/",
        "The earlier versions of a record, each a file in each form, and `.log`: when, who, what changed. cp(1) \
         restores one.",
    );
    page.item(
        "`.topofs/at/`*NAME*/",
        "The whole topology at one moment, for reading: mkdir(1) makes a snapshot. On etcd *NAME* may be a revision, \
         and everywhere a time at which the mount was there.",
    );
    page.item(
        "`.topofs/stage/`*NAME*/",
        "mkdir(1) makes a private copy that can be changed. Writing `commit` into its `.control` stores everything in \
         one transaction, or nothing.",
    );
    page.text("Commands for `.topofs/control`, one a line:");
    page.rows(commands(COMMANDS));
    let names: Vec<String> = About::ALL.iter().map(|about| format!("`{}`", about.name())).collect();
    page.text(&format!(
        "In the root of a stage these names open and are not listed: {}. Commands for its `.control`:",
        names.join(", ")
    ));
    page.rows(commands(STAGE_COMMANDS));
}

/// The commands in the text that explains them. Its first line is an introduction; in the others the explanations begin
/// at one column, and a line without a command goes on with the explanation before.
fn commands(help: &str) -> Vec<(String, String)> {
    let lines = || help.lines().skip(1).map(|line| line.trim_start_matches('#'));
    let column = |line: &str| line.rfind("  ").map(|gap| gap + 2);
    let column = lines().next().and_then(column).unwrap_or_default();
    let mut commands: Vec<(String, String)> = Vec::new();
    for (command, text) in lines().filter_map(|line| line.split_at_checked(column)) {
        match (command.trim(), commands.last_mut()) {
            ("", Some((_, explained))) => explained.push_str(&format!("; {text}")),
            (command, _) => commands.push((format!("`{command}`"), text.to_owned())),
        }
    }
    commands
}

/// What a file of `.topofs` shows.
fn control_file(name: &str) -> &'static str {
    match name {
        "status" => "JSON: each cell with server, state, counts and last event; requests, handles, locks, the helper.",
        "errors" => "The last refused operations, newest last, one JSON object a line, with errno and reason.",
        "events" => "What has happened, one JSON object a line. It grows.",
        "locks" => "Every lock of the connected cells, one JSON object a line: holder, age, queue.",
        "problems" => "Records that contradict each other, one JSON object a line, as `topofs validate` finds them.",
        "metrics" => "Counters, gauges and histograms in the text format of Prometheus.",
        "config" => "The effective settings as JSON, without secrets.",
        "version" => "The version of topofs.",
        "control" => "Takes commands. Reading it shows them.",
        _ => "",
    }
}

fn notes(page: &mut Page) {
    page.section("NOTES").text(
        "Sizes are those of the form shown. The time of a record is when this mount first saw its version. Comments \
         in the text form are accepted and not kept. Backups and git should leave `.lock` out. No symbolic or hard \
         links, devices, pipes or sockets can be made.",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_mount_is_described() {
        for file in ControlFile::ALL {
            assert!(!control_file(file.name()).is_empty(), "{}", file.name());
        }
    }

    #[test]
    fn commands_come_from_the_text_that_the_mount_shows() {
        let commands = [commands(COMMANDS), commands(STAGE_COMMANDS)].concat();
        let what = "compare the mirror with the service; `resyncs` in the status grows then".to_owned();
        let resync = ("`resync [CELL]`".to_owned(), what);
        assert_eq!(commands.first(), Some(&resync));
        for (command, text) in &commands {
            assert!(!command.contains("  ") && !text.starts_with(' ') && !text.is_empty(), "{command}: {text}");
        }
        let lines = COMMANDS.lines().chain(STAGE_COMMANDS.lines()).filter(|line| !line.starts_with("#        "));
        assert_eq!(commands.len(), lines.count() - 2, "{commands:?}");
    }
}
