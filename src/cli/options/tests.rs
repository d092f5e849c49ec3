use clap::CommandFactory;

use super::*;
use crate::cli::{Cli, Command as Commands};

const HELPER: Caller = Caller::Mount8 { sloppy: false };

fn read(args: &[&str], caller: Caller) -> Result<Line, OptionError> {
    let args = std::iter::once("topofs").chain(args.iter().copied()).map(OsString::from);
    Line::read(args, &Cli::command(), caller)
}

fn line(args: &[&str]) -> Result<Vec<String>, OptionError> {
    let words = read(args, Caller::Shell)?.words.into_iter().skip(1);
    Ok(words.map(|word| word.into_string().unwrap()).collect())
}

/// The flags of a list of options.
fn flags(list: &str, caller: Caller) -> Result<String, OptionError> {
    let words = read(&["mount", "-o", list], caller)?.words;
    Ok(words.iter().skip(2).map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
}

/// How a list of options is refused, also by its values.
fn refusal(list: &str, caller: Caller) -> String {
    match read(&["mount", "-o", list, "--", "demo", "/m"], caller) {
        Err(error) => error.to_string(),
        Ok(line) => {
            let mut program = Cli::command();
            match crate::cli::parse(&mut program, &line) {
                Ok(_) => String::new(),
                Err(error) => line.complaint(&error, &program).unwrap_or_else(|| crate::cli::words(&error)),
            }
        }
    }
}

#[test]
fn every_option_that_means_nothing_here_is_ignored() {
    for option in [
        "auto",
        "noauto",
        "user",
        "user=alice",
        "nouser",
        "users",
        "nousers",
        "group",
        "owner",
        "_netdev",
        "nofail",
        "defaults",
        "dev",
        "nodev",
        "suid",
        "nosuid",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "async",
        "sync",
        "dirsync",
        "silent",
        "loud",
        "mand",
        "nomand",
        "iversion",
        "noiversion",
        "default_permissions",
        "nonempty",
        "comment",
        "comment=a\\,b",
        "x-systemd.automount",
        "x-systemd.requires=etcd.service",
        "x-gvfs-show",
        "X-mount.mkdir=0755",
        "rw",
        "",
    ] {
        for caller in [Caller::Shell, HELPER] {
            assert_eq!(flags(option, caller), Ok(String::new()), "{option}");
            assert_eq!(flags(&format!("{option},umask=022"), caller).as_deref(), Ok("--umask=022"), "{option}");
        }
    }
}

#[test]
fn every_long_flag_is_an_option_in_both_spellings() {
    let program = Cli::command();
    let mount = program.find_subcommand("mount").unwrap();
    let mut count = 0;
    for arg in mount.get_arguments() {
        let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
        for long in longs.filter(|long| !["foreground", "debug"].contains(long)) {
            let value = if arg.get_action().takes_values() { "=v" } else { "" };
            let expected = format!("--{}{value}", arg.get_long().unwrap());
            assert_eq!(flags(&format!("{}{value}", long.replace('-', "_")), HELPER), Ok(expected.clone()));
            assert_eq!(flags(&format!("{long}{value}"), HELPER), Ok(expected));
            count += 1;
        }
    }
    assert!(count > 40, "{count} flags");
}

#[test]
fn options_become_flags() {
    for (list, expected) in [
        ("ro", "--read-only"),
        ("read_only,allow-other", "--read-only --allow-other"),
        ("retry=2m,umask=022", "--retry=2m --umask=022"),
        ("uid=alice,gid=100", "--uid=alice --gid=100"),
        (r"topo_global_server_address=a:1\,b:2,ro", "--topo-global-server-address=a:1,b:2 --read-only"),
        (r#"forms="raw,txt",topo-zk-auth-file=/a_b"#, "--forms=raw,txt --topo-zk-auth-file=/a_b"),
        (r"log_file=/var/log/a\040b", "--log-file=/var/log/a b"),
        // The last one counts.
        ("ro,rw", ""),
        ("rw,ro", "--read-only"),
        ("read_only,rw,ro", "--read-only"),
        ("umask=022,ro,umask=027", "--read-only --umask=027"),
        (r"forms=raw\,txt,forms=json", "--forms=json"),
        ("topo_etcd_lease_duration=7,topo-etcd-lease-ttl=8s", "--topo-etcd-lease-ttl=8s"),
        // Each of these counts.
        ("record=a/b,record=c/d", "--record=a/b --record=c/d"),
    ] {
        assert_eq!(flags(list, Caller::Shell).as_deref(), Ok(expected), "{list}");
    }
    assert_eq!(flags("debug,foreground", Caller::Shell).as_deref(), Ok("--debug --foreground"));
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    for (list, reason) in [
        ("alow_other", "unknown mount option \"alow_other\": did you mean \"allow_other\"?"),
        ("ro,alow-other", "unknown mount option \"alow-other\": did you mean \"allow_other\"?"),
        ("noauot", "unknown mount option \"noauot\": did you mean \"noauto\"?"),
        ("_netdv", "unknown mount option \"_netdv\": did you mean \"_netdev\"?"),
        ("qqq", "unknown mount option \"qqq\""),
        ("foo", "unknown mount option \"foo\""),
        ("rmount", "unknown mount option \"rmount\""),
        ("ro=0", "mount option \"ro\" takes no value"),
        ("read_only=true", "mount option \"read_only\" takes no value"),
        ("topo_global_server_address=a:1,b:2", "unknown mount option \"b:2\" (a comma in a value is written \\,)"),
        // A value that may be a secret is not shown.
        (
            "topo_etcd_password=geheim",
            "unknown mount option \"topo_etcd_password\": did you mean \"topo_etcd_password_file\"?",
        ),
        ("retry", "mount option \"retry\" needs a value: retry=VALUE"),
        ("allow_other=yes", "mount option \"allow_other\" takes no value"),
        ("rw=1", "mount option \"rw\" takes no value"),
        ("umask=999", "invalid value \"999\" for mount option \"umask\": must be an octal number up to 777"),
        ("umask=", "invalid value \"\" for mount option \"umask\": must be an octal number up to 777"),
        ("uid=no-such-user", "invalid value \"no-such-user\" for mount option \"uid\": there is no such user"),
        (
            "respect_locks=some",
            "invalid value \"some\" for mount option \"respect_locks\": must be one of none, keyspace, all",
        ),
        (
            "stale_after=ever",
            "invalid value \"ever\" for mount option \"stale_after\": must be a duration such as 30s or 5m",
        ),
        ("topo_implementation=zk2", "the source says which topology is mounted: leave out topo_implementation"),
        ("tee-primary=etcd2:h/r", "the source says which topology is mounted: leave out tee-primary"),
        ("topo_etcd_user=a", "the following required arguments were not provided: --topo-etcd-password-file <FILE>"),
        ("=x", "not a mount option: \"\""),
        ("--help", "not a mount option: \"--help\""),
        ("ro,forms=\"raw,txt", "a quote in the mount options has no end (a quote itself is written \\\")"),
    ] {
        for caller in [Caller::Shell, HELPER] {
            assert_eq!(refusal(list, caller), reason, "{list}");
        }
    }
    for refused in [
        "remount",
        "bind",
        "rbind",
        "move",
        "nosymfollow",
        "allow_root",
        "auto_unmount",
        "fsname=x",
        "fd=3",
        "user_id=0",
    ] {
        let name = refused.split('=').next().unwrap();
        let begin = format!("mount option \"{name}\" cannot be used: ");
        assert!(refusal(refused, HELPER).starts_with(&begin), "{}", refusal(refused, HELPER));
    }
    for stays in ["foreground", "debug"] {
        assert!(refusal(stays, HELPER).contains("mount(8) would wait"), "{stays}");
    }
}

#[test]
fn a_sloppy_caller_may_use_unknown_options_only() {
    let sloppy = Caller::Mount8 { sloppy: true };
    assert_eq!(flags("no_such=1,ro", sloppy).as_deref(), Ok("--read-only"));
    for wrong in ["remount", "retry", "umask=9", "a=\"b"] {
        assert!(!refusal(wrong, sloppy).is_empty(), "{wrong}");
    }
}

#[test]
fn lists_may_be_words_of_their_own_or_not_and_only_mounts_have_them() {
    let expected = ["mount", "--read-only", "--umask=022", "dir"];
    assert_eq!(line(&["mount", "-o", "ro,umask=022", "dir"]).unwrap(), expected);
    assert_eq!(line(&["mount", "-oro,umask=022", "dir"]).unwrap(), expected);
    assert_eq!(line(&["mount", "-oro", "-o", "umask=022", "dir"]).unwrap(), expected);
    assert_eq!(line(&["mount", "-oro,umask=7", "-orw,umask=022"]).unwrap(), ["mount", "--umask=022"]);
    assert_eq!(line(&["demo", "-o", "ro", "dir"]).unwrap(), ["demo", "--read-only", "dir"]);
    assert_eq!(line(&["validate", "-o", "ro"]).unwrap(), ["validate", "-o", "ro"]);
    assert_eq!(line(&["mount", "--", "-o", "ro"]).unwrap(), ["mount", "--", "-o", "ro"]);
    assert_eq!(line(&["mount", "-o"]), Err(OptionError::Missing));
}

#[test]
fn underscores_are_accepted_in_names_only() {
    let args = ["mount", "--topo_global_root=/a_b", "--serve_stale", "my_dir", "--", "--x_y"];
    let expected = ["mount", "--topo-global-root=/a_b", "--serve-stale", "my_dir", "--", "--x_y"];
    assert_eq!(line(&args).unwrap(), expected);
}

#[test]
fn old_flags_of_vitess_have_one_dash() {
    let args = [
        "mount",
        "-topo_global_root=/a_b",
        "-topo_implementation",
        "zk2",
        "-remote_operation_timeout=5s",
        "-r",
        "-o",
        "ro",
    ];
    let expected = [
        "mount",
        "--topo-global-root=/a_b",
        "--topo-implementation",
        "zk2",
        "--remote-operation-timeout=5s",
        "-r",
        "--read-only",
    ];
    assert_eq!(line(&args).unwrap(), expected);
}

#[test]
fn a_mount_point_alone_is_no_source() {
    let mount = |args: &[&str]| {
        let line = read(args, Caller::Shell).unwrap();
        match crate::cli::parse(&mut Cli::command(), &line).unwrap().0.command {
            Commands::Mount(args) => {
                let source = args.source().map(|source| source.to_str().unwrap().to_owned());
                (source, args.mountpoint().to_str().unwrap().to_owned())
            }
            _ => panic!("not a mount"),
        }
    };
    assert_eq!(mount(&["mount", "--ro", "dir"]), (None, "dir".to_owned()));
    let both = (Some("etcd2:h/r".to_owned()), "dir".to_owned());
    assert_eq!(mount(&["mount", "etcd2:h/r", "dir"]), both);
    assert_eq!(mount(&["mount", "etcd2:h/r", "--ro", "dir", "-o", "umask=022"]), both);
    assert_eq!(mount(&["mount", "--", "etcd2:h/r", "dir"]), both);
}
