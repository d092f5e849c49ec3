//! topofs(1): the program. One page for all commands: nobody could find separate pages of subcommands by name.

use clap::{Arg, Command};

use super::flags::{self, Spelling, is_everywhere, told};
use super::page::Page;

/// What a help text calls the statuses of its command.
const STATUS: &str = "Exit status:";

/// The page.
pub(super) fn page(program: &Command) -> Page {
    let mut page = Page::new("topofs", "1", "User Commands", "mount a Vitess Topology Service as a file system");
    page.section("SYNOPSIS").text("`topofs` *COMMAND* [*OPTION*...]");
    page.section("DESCRIPTION").text(
        "topofs mounts the Topology Service of a Vitess cluster (etcd, ZooKeeper, Consul) as a file system. Keyspaces, \
         shards, tablets, VSchemas and routing rules become files in three forms: the stored bytes, protobuf text and \
         JSON. A save is one compare-and-swap. A change made anywhere in the cluster raises an inotify event. flock(1) \
         takes the locks that Vitess takes.

         topofs(5) describes the files, mount.topofs(8) the use with mount(8) and fstab(5).

         Vitess's older spelling of flags is accepted, too: `--topo_global_root`, and `-topo_global_root`.",
    );
    page.section("COMMANDS");
    let commands: Vec<&Command> = program.get_subcommands().filter(is_told).collect();
    let mount = commands.iter().find(|command| command.get_name() == "mount").copied();
    for command in &commands {
        add_command(&mut page, command, mount);
    }
    page.section("EXIT STATUS").text("A command line that is wrong is 1, or 2 where 1 would be an answer.");
    for command in &commands {
        if let Some((_, status)) = about(command).split_once(STATUS) {
            page.item(&format!("`topofs {}`", command.get_name()), &super::capital(status.trim()));
        }
    }
    surroundings(&mut page);
    examples(&mut page);
    page.see_also(&[
        "topofs(5)",
        "mount.topofs(8)",
        "fusermount3(1)",
        "flock(1)",
        "inotifywait(1)",
        "jq(1)",
        "mount(8)",
        "umount(8)",
    ]);
    page
}

/// Whether people call it.
fn is_told(command: &&Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

fn about(command: &Command) -> String {
    command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default()
}

fn add_command(page: &mut Page, command: &Command, mount: Option<&Command>) {
    page.part(&format!("topofs {}", command.get_name()));
    let usage = command.clone().render_usage().to_string();
    // One line for each form; a long one is broken where the terminal ends.
    for form in usage.trim().trim_start_matches("Usage:").lines() {
        page.text(form);
    }
    let about = about(command);
    // The statuses have their own section.
    page.text(&full_stop(about.split(STATUS).next().unwrap_or_default()));
    let args: Vec<&Arg> = told(command).filter(|arg| !is_everywhere(arg)).collect();
    let is_mount = mount.is_some_and(|mount| mount.get_name() == command.get_name());
    let of_mount = |arg: &Arg| mount.is_some_and(|mount| !is_mount && mount.get_arguments().any(|it| is_same(it, arg)));
    let (shared, own): (Vec<&Arg>, Vec<&Arg>) = args.into_iter().partition(|arg| of_mount(arg));
    for heading in flags::headings(&own) {
        if let Some(heading) = heading {
            page.text(&format!("*{}*", heading.to_uppercase()));
        }
        for arg in own.iter().filter(|arg| arg.get_help_heading() == heading) {
            flags::add(page, arg, Spelling::Flag, command);
        }
    }
    let names: Vec<String> = shared.iter().map(|arg| flags::name(arg)).collect();
    if !names.is_empty() {
        page.text(&format!("As of `topofs mount`: {}.", names.join(", ")));
    }
}

/// A first line of help has no full stop.
fn full_stop(text: &str) -> String {
    let mut paragraphs = text.trim().split("\n\n").map(str::trim);
    let first = paragraphs.next().unwrap_or_default();
    let dot = if first.ends_with(['.', ':']) { "" } else { "." };
    let rest: Vec<&str> = paragraphs.collect();
    format!("{first}{dot}\n\n{}", rest.join("\n\n"))
}

/// Whether two commands have the same flag.
fn is_same(a: &Arg, b: &Arg) -> bool {
    let help = |arg: &Arg| arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string);
    !a.is_positional() && a.get_id() == b.get_id() && help(a) == help(b)
}

fn surroundings(page: &mut Page) {
    page.section("ENVIRONMENT");
    page.item(
        "`TOPOFS_`*FLAG*",
        "Flags that say so can be set by a variable: the name of the flag in capitals, with `_` for `-` \
         (`TOPOFS_TOPO_GLOBAL_ROOT`, `TOPOFS_READ_ONLY=yes`). The command line wins. No variable and no flag holds a \
         secret: all secrets are in files.",
    );
    page.section("FILES");
    super::files(page);
}

fn examples(page: &mut Page) {
    page.section("EXAMPLES");
    page.text("A sample cluster, to look around; it touches nothing else:");
    page.example("mkdir /tmp/topo && topofs demo /tmp/topo\nls /tmp/topo/global/keyspaces\numount /tmp/topo");
    page.text("The topology of a cluster on etcd, for reading:");
    page.example(
        "topofs mount --topo-implementation etcd2 \\\n    --topo-global-server-address etcd1:2379,etcd2:2379 \\\n    \
         --topo-global-root /vitess/global --read-only /mnt/topo",
    );
    page.text("The same by mount.topofs(8), with all users, for two minutes until the service answers:");
    page.example(
        "mount -t topofs etcd2:etcd1:2379,etcd2:2379/vitess/global /mnt/topo \\\n    \
         -o ro,allow_other,umask=022,retry=2m",
    );
    page.text("Which tablets are primaries, and a record's policy changed:");
    page.example(
        "cd /mnt/topo\n\
         grep -rl --include=Tablet.txt 'type: PRIMARY' .\n\
         sed -i 's/semi_sync/none/' global/keyspaces/commerce/Keyspace.txt",
    );
    page.text("Completions for this shell, and the pages of the manual:");
    page.example("source <(topofs completions bash)\ntopofs man topofs.5 | man -l -");
}
