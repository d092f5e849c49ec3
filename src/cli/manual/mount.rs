//! mount.topofs(8): topofs for mount(8) and fstab(5), with each flag of `topofs mount` as an option.

use clap::{Arg, Command};

use super::flags::{self, Spelling, told};
use super::page::Page;
use crate::cli::{mount8, options};

/// Flags of `topofs mount` that are no options. So are those that would keep mount(8) waiting ([`options::STAY`]).
const NO_OPTIONS: [&str; 3] = ["help", "version", "options"];

/// The page.
pub(super) fn page(program: &Command) -> Page {
    let mut page =
        Page::new("mount.topofs", "8", "System Administration", "mount a Vitess Topology Service, as mount(8) does");
    page.section("SYNOPSIS");
    page.text("`mount -t topofs` [`-o` *OPTION*[,*OPTION*]...] *SOURCE* *DIR*");
    let mut helper = mount8::definitions();
    helper.build();
    let short = |arg: &Arg| arg.get_short().filter(|_| !arg.get_action().takes_values() && !flags::is_everywhere(arg));
    let switches: String = told(&helper).filter_map(short).collect();
    page.text(&format!(
        "`mount.topofs` *SOURCE* *DIR* [`-{switches}`] [`-o` *OPTION*[,*OPTION*]...] [`-N` *NAMESPACE*] [`-t` *TYPE*]"
    ));
    page.section("DESCRIPTION").text(
        "mount.topofs is the helper that mount(8) calls for the type `topofs`, also for lines of fstab(5). It is the \
         program topofs(1) by another name. It returns when the mount answers, or says why it does not. The type in \
         /proc/mounts is `fuse.topofs`; this name is also a type for mount(8).

         umount(8) ends the mount.",
    );
    page.text("The source is one of:");
    page.item(
        "*IMPLEMENTATION*:*SERVERS*/*ROOT*",
        "The kind of service (`etcd2`, `zk2`, `consul`, `memory`), its servers, separated by commas, and the path at \
         the beginning of all keys of the global topology: `etcd2:http://127.0.0.1:2379/vitess/global`.",
    );
    page.item("`tee:`*PRIMARY*;*SECONDARY*", "Two services as one, each *IMPLEMENTATION*:*SERVERS*/*ROOT*.");
    page.item("`demo`", "The sample cluster of `topofs demo`.");
    page.section("OPTIONS").text("On the command line, as mount(8) hands them over:");
    for arg in told(&helper).filter(|arg| !arg.is_positional() && !flags::is_everywhere(arg)) {
        flags::add(&mut page, arg, Spelling::Flag, &helper);
    }
    page.section("MOUNT OPTIONS").text(
        "Options are separated by commas. Write a comma in a value as `\\,`. Write `_` or `-` in names. An unknown \
         option is refused. Secrets are no options: options name files that contain them.",
    );
    if let Some(mount) = program.find_subcommand("mount") {
        let is_option = |arg: &&Arg| {
            arg.get_long().is_some_and(|long| !options::STAY.contains(&long))
                && !NO_OPTIONS.contains(&arg.get_id().as_str())
        };
        let args: Vec<&Arg> = told(mount).filter(is_option).collect();
        for heading in flags::headings(&args) {
            page.part(heading.unwrap_or("More"));
            for arg in args.iter().filter(|arg| arg.get_help_heading() == heading) {
                flags::add(&mut page, arg, Spelling::Option, mount);
            }
        }
    }
    page.part("Options without a meaning");
    let ignored: Vec<String> = options::IGNORED.iter().map(|option| format!("`{option}`")).collect();
    page.text(&format!(
        "These mean something to mount(8), systemd.mount(5) or fstab(5), and nothing to topofs: {}, and all that begin \
         with `x-`. A mount of topofs is always `nosuid`, `nodev` and `noexec`.",
        ignored.join(", ")
    ));
    page.part("Options that are refused");
    for (option, reason) in options::REFUSED {
        page.item(&format!("`{option}`"), &format!("{}.", super::capital(reason)));
    }
    fstab(&mut page);
    page.section("EXIT STATUS");
    page.item("0", "The mount answers.").item("1", "The command line is wrong, for example an unknown option.");
    page.item("32", "The mount failed. Standard error has the reason.");
    page.section("ENVIRONMENT").text(
        "The variables of topofs(1) count here, too, as far as mount(8) hands them on: it clears the environment where \
         it runs set-user-id.",
    );
    page.section("FILES");
    super::files(&mut page);
    page.see_also(&["topofs(1)", "topofs(5)", "mount(8)", "umount(8)", "fstab(5)", "systemd.mount(5)"]);
    page
}

fn fstab(page: &mut Page) {
    page.section("EXAMPLES").text(
        "A line of /etc/fstab: mounted when somebody first looks into it, once the network is up, for all users \
         (without `allow_other`, only root could look):",
    );
    page.example(
        "etcd2:etcd1:2379,etcd2:2379/vitess/global  /mnt/topo  topofs  \
         ro,allow_other,umask=022,noauto,_netdev,x-systemd.automount  0 0",
    );
    page.text(
        "At boot, waiting two minutes for the service; a failure does not stop the boot. systemd by itself gives up a \
         mount after 90 seconds, so its time must be longer than that of `retry`:",
    );
    page.example(
        "zk2:zk1:2181,zk2:2181/vitess/global  /mnt/topo  topofs  \
         _netdev,nofail,retry=2m,x-systemd.mount-timeout=3min  0 0",
    );
    page.text("With TLS and a password, each in a file that only root may read:");
    page.example(
        "mount -t topofs etcd2:etcd1:2379/vitess/global /mnt/topo -o \\\n    \
         topo_etcd_tls_ca=/etc/topofs/ca.pem,topo_etcd_user=topofs,\\\n    \
         topo_etcd_password_file=/etc/topofs/password",
    );
}
