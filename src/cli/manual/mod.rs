//! The manual: topofs(1), mount.topofs(8) and topofs(5). What the program knows (flags, choices, errnos, files of
//! `.topofs`) comes from the same definitions as `--help`. Must never say it a second time in other words.

use clap::Command;

mod errnos;
pub(super) mod flags;
mod mount;
mod page;
mod program;
mod tree;

use page::Page;

/// A page of the manual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Name {
    /// The program and its commands
    #[value(name = "topofs.1")]
    Program,
    /// The helper of mount(8), and each flag as a mount option
    #[value(name = "mount.topofs.8")]
    Mount,
    /// The files: the tree, reading, writing, locks, errors
    #[value(name = "topofs.5")]
    Tree,
}

impl Name {
    /// All pages.
    pub const ALL: [Self; 3] = [Self::Program, Self::Mount, Self::Tree];

    /// What the page's file is called.
    pub fn file(self) -> &'static str {
        match self {
            Self::Program => "topofs.1",
            Self::Mount => "mount.topofs.8",
            Self::Tree => "topofs.5",
        }
    }

    /// The page, for the definitions of the command line.
    pub fn render(self, mut program: Command) -> String {
        program.build();
        let page = match self {
            Self::Program => program::page(&program),
            Self::Mount => mount::page(&program),
            Self::Tree => tree::page(),
        };
        page.render()
    }
}

/// A text with a capital at its beginning.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// The files of the host that topofs uses.
fn files(page: &mut Page) {
    page.item("*MOUNTPOINT*/.topofs/", "What the mount says of itself; see topofs(5).");
    page.item(
        "/etc/topofs/",
        "A place for the settings of mounts, and for files with secrets. topofs does not read it by itself.",
    );
    page.item("/sbin/mount.topofs, /sbin/mount.fuse.topofs", "topofs(1) by the names that mount(8) looks for.");
    page.item(
        "/dev/fuse, /etc/fuse.conf",
        "fuse(4). Users other than root need fusermount3(1), and `user_allow_other` in /etc/fuse.conf for \
         `--allow-other`.",
    );
    page.item(
        "/etc/updatedb.conf",
        "Add `fuse.topofs` to PRUNEFS there, so that updatedb(8) does not walk the topology.",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, ValueEnum};

    #[test]
    fn a_page_is_asked_for_by_the_name_of_its_file() {
        for name in Name::ALL {
            assert_eq!(name.to_possible_value().unwrap().get_name(), name.file());
        }
        assert_eq!(Name::value_variants(), Name::ALL);
    }

    #[test]
    fn every_command_and_every_flag_is_in_the_manual() {
        let mut program = crate::cli::Cli::command();
        program.build();
        let page = Name::Program.render(program.clone()).replace('\\', "");
        for command in
            program.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
        {
            assert!(page.contains(&format!("\"topofs {}\"", command.get_name())), "{}", command.get_name());
            for long in flags::told(command).filter(|arg| !flags::is_everywhere(arg)).filter_map(|arg| arg.get_long()) {
                assert!(page.contains(&format!("--{long}")), "{} --{long}", command.get_name());
            }
        }
    }

    #[test]
    fn every_flag_of_a_mount_is_an_option_in_mount_topofs() {
        let mut program = crate::cli::Cli::command();
        program.build();
        let page = Name::Mount.render(program.clone()).replace('\\', "");
        let mount = program.find_subcommand("mount").unwrap();
        let longs = flags::told(mount).filter(|arg| !flags::is_everywhere(arg)).filter_map(|arg| arg.get_long());
        for long in longs.filter(|long| !super::super::options::STAY.contains(long)) {
            assert!(page.contains(&format!("fB{}fR", long.replace('-', "_"))), "{long}");
        }
        assert!(page.contains("fBx-fR") && page.contains("fB_netdevfR"), "{page}");
    }
}
