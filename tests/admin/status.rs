//! `topofs status`: what it says of mounts that live, that are dead, that stand still, and that are not ours to read.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::server::fresh_root;
use crate::common::world::Service;
use crate::common::{bash_in, etcd, eventually, signal};
use crate::shell::{Place, USER, alone};
use topofs::backend::Implementation;

/// `topofs status ARGS MOUNT`.
fn status(mount: &Mount, args: &str) -> (i32, String) {
    Place::new().topofs(&format!("status {args} {}", mount.point().display()))
}

fn json(mount: &Mount) -> Value {
    serde_json::from_str(&status(mount, "--json").1).unwrap()
}

#[test]
fn a_mount_with_idle_cells_is_healthy_in_every_form() {
    let mount = Mount::new(&["demo"]);
    let (code, told) = status(&mount, "");
    assert_eq!(code, 0, "{told}");
    for part in ["healthy", "CELL", "global", "zone1", "idle", "memory:demo", "/vitess/zone1", "3 cells", "0 waiting"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(!told.contains('\u{1b}'), "no colours without a terminal: {told:?}");
    assert!(status(&mount, "--color=always").1.contains("\u{1b}[32m"), "but where they are wanted");
    let (code, told) = status(&mount, "-1");
    assert_eq!((code, told.lines().count()), (0, 1), "{told}");
    assert_eq!(status(&mount, "--quiet"), (0, String::new()));
    // Beside what the mount says itself.
    let json = json(&mount);
    assert_eq!((&json["healthy"], &json["problems"]), (&true.into(), &Value::Array(Vec::new())));
    assert_eq!((&json["pid"], &json["cells"]["zone1"]["state"]), (&mount.pid().into(), &"idle".into()));
    // Any path in it will do, also one that is relative.
    let output =
        bash_in(&mount.path("global/cells"), &format!("{} status -1 ../keyspaces", crate::common::mount::TOPOFS));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_dead_mount_is_told_and_one_of_many_makes_the_answer_no() {
    let mount = Mount::new(&["demo"]);
    signal(mount.pid(), Signal::SIGKILL);
    let told = eventually("it is dead", || {
        let (code, told) = status(&mount, "");
        (code == 1 && told.contains("dead")).then_some(told)
    });
    assert!(told.contains("Transport endpoint is not connected") && told.contains("topofs umount"), "{told}");
    let json = json(&mount);
    assert_eq!((&json["state"], &json["healthy"]), (&"dead".into(), &false.into()));
    let other = Mount::new(&["demo"]);
    let both = format!("{} {}", mount.point().display(), other.point().display());
    let (code, told) = Place::new().topofs(&format!("status -1 {both}"));
    assert_eq!((code, told.lines().count()), (1, 2), "{told}");
    assert!(told.contains(": healthy: "), "{told}");
    assert!(told.contains(": dead: its daemon is gone"), "{told}");
}

#[test]
fn a_daemon_that_stands_still_delays_nobody_and_leaves_no_process_behind() {
    let mount = Mount::new(&["demo"]);
    signal(mount.pid(), Signal::SIGSTOP);
    // A pipeline ends, too: nobody holds its end.
    let place = Place::new();
    let script = format!(
        "{} status --timeout 500ms {} | cat; echo ${{PIPESTATUS[0]}}",
        crate::common::mount::TOPOFS,
        mount.point().display()
    );
    let told = place.sh(&script);
    assert!(told.contains("no answer within 500ms") && told.ends_with("1\n"), "{told}");
    let (code, told) = place.topofs(&format!("events --timeout 500ms {}", mount.point().display()));
    assert!(code == 2 && told.contains("no answer within 500ms"), "{told}");
    signal(mount.pid(), Signal::SIGCONT);
    assert_eq!(status(&mount, "-q").0, 0);
}

#[test]
fn a_mount_that_never_answers_is_asked_once_and_is_unmounted_all_the_same() {
    let place = Place::new();
    place.sh(&format!("mkdir m; {} demo m", crate::common::mount::TOPOFS));
    let daemon = place.pid("m");
    signal(daemon, Signal::SIGSTOP);
    let asked = |_| place.topofs("status -1 --timeout 300ms m");
    let told: Vec<(i32, String)> = (0..4).map(asked).collect();
    assert!(told.iter().all(|(code, told)| *code == 1 && told.contains(": silent: ")), "{told:?}");
    let askers = place.sh("grep -lx topofs-ask /proc/[0-9]*/comm 2> /dev/null | wc -l");
    println!("{askers} askers: {told:?}");
    let (code, told) = place.topofs("umount --wait 0s m");
    assert_eq!(code, 0, "{told}");
    assert!(!crate::common::mount::is_mounted(&place.path("m")));
    signal(daemon, Signal::SIGCONT);
    crate::shell::wait_for_end(daemon);
}

#[test]
fn what_other_users_mount_is_neither_believed_nor_counted() {
    let place = Place::for_users();
    place.sh("mkdir own; echo user_allow_other > fuse.conf");
    let (code, told) = alone(
        place.dir(),
        &format!(
            "mount --bind fuse.conf /etc/fuse.conf; {USER} ./topofs demo --allow-other m
             $T check m; echo check $?; $T status -1; echo foreign $?; $T events; echo events $?
             $T demo own; $T status -1; echo both $?; $T status -1 m; echo named $?
             $T status -1 --all-users; echo all $?
             $T status --json | jq -c '.[] | [.mountpoint, .state, .healthy, .user]'; $T events; echo usual $?
             {USER} ./topofs check m > /dev/null; echo self $?; $T umount m; $T umount own"
        ),
    );
    let told = told.replace(&place.dir().display().to_string(), "DIR");
    assert_eq!(code, 0, "{told}");
    for part in [
        "DIR/m: its settings are not believed, because it was made by uid 65534: check it as that user",
        "check 2\n",
        "DIR/m: not asked: made by uid 65534: not counted\n",
        "foreign 2\n",
        "are of other users: name one of DIR/m\nevents 2\n",
        "both 0\n",
        "DIR/m: healthy: made by uid 65534: 3 cells",
        "named 0\n",
        "all 0\n",
        r#"["DIR/own","healthy",true,0]"#,
        r#"["DIR/m","not asked",null,65534]"#,
        "usual 0\n",
        "self 0\n",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn a_cell_that_is_out_of_reach_is_a_problem_of_its_mount() {
    let proxy = Proxy::start(etcd::shared().port);
    let service = Service::at(Implementation::Etcd2, etcd::shared().endpoint(), &proxy.endpoint());
    let mount = service.mount(&["--stale-after=1s", "--remote-operation-timeout=2s"]);
    mount.sh("ls zone1");
    assert_eq!(status(&mount, "-q").0, 0);
    proxy.cut(true);
    let told = eventually("the cell is down", || {
        let (code, told) = status(&mount, "-1");
        (code == 1 && told.contains("cell zone1 is down")).then_some(told)
    });
    assert!(!told.contains("zone2"), "nobody has looked into it: {told}");
    let json = json(&mount);
    assert!(json["problems"][0].as_str().unwrap().contains("zone1"), "{json}");
}

#[test]
fn all_mounts_of_a_host_are_listed_once_each() {
    let place = Place::new();
    place.sh("mkdir a b copy over");
    let (code, told) = alone(
        place.dir(),
        "$T status; echo none $?
         $T demo a; $T demo b; $T demo over; mount --bind a copy; mount -t tmpfs x over
         $T status -1; echo some $?
         $T status --json | jq -c '.[] | [.mountpoint, .state, .healthy, .also_mounted_at]'
         $T umount a; $T umount copy; $T umount b; umount over; $T umount over",
    );
    let dir = place.dir().display().to_string();
    let told = told.replace(&dir, "DIR");
    assert_eq!(code, 0, "{told}");
    for part in [
        "topofs: there is no mount of topofs on this host\nnone 2\n",
        "DIR/a: healthy: 3 cells",
        "DIR/b: healthy: 3 cells",
        "DIR/over: covered: something else is mounted over it",
        // Nothing is wrong, but not all is known.
        "some 2\n",
        r#"["DIR/a","healthy",true,["DIR/copy"]]"#,
        r#"["DIR/over","covered",null,[]]"#,
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn a_mount_of_another_user_is_unknown_even_to_root() {
    let place = Place::for_users();
    place.sh(&format!("{USER} ./topofs demo m"));
    let (code, told) = place.topofs("status m");
    assert!(code == 2 && told.contains("not readable by uid 0"), "{code} {told}");
    let json: Value = serde_json::from_str(&place.topofs("status m --json").1).unwrap();
    assert_eq!((&json["state"], &json["healthy"]), (&"not readable".into(), &Value::Null));
    place.sh(&format!("{USER} ./topofs status -q m"));
    let (code, told) = place.topofs("events m");
    assert!(code == 2 && told.contains("not readable by uid 0"), "{code} {told}");
    // A user ends only his own.
    place.sh("mkdir r");
    place.sh(&format!("{} demo r", crate::common::mount::TOPOFS));
    let output = bash_in(place.dir(), &format!("{USER} ./topofs umount r"));
    assert_eq!(output.status.code(), Some(1));
    assert!(crate::common::text(&output).contains("the user with uid 0 has mounted it"));
    let pid: u32 = place.sh(&format!("{USER} jq .pid m/.topofs/status")).trim().parse().unwrap();
    place.sh(&format!("{USER} ./topofs umount m"));
    assert!(crate::common::process_has_ended(pid), "it returns when all is finished");
    place.sh("jq -e .pid r/.topofs/status");
}

#[test]
fn what_is_no_mount_has_no_status() {
    let place = Place::new();
    for path in [".", "/", "no/such/place", "/proc/self"] {
        let (code, told) = place.topofs(&format!("status {path}"));
        assert!(code == 2 && told.contains("is not in a mount of topofs"), "{path}: {code} {told}");
    }
    assert_eq!(place.topofs("status --no-such-flag").0, 2);
    let (code, told) = alone(place.dir(), "$T status --json 2> /dev/null; echo $?");
    assert_eq!((code, told.as_str()), (0, "[]\n2\n"));
}

#[test]
fn hostile_records_reach_no_terminal() {
    let root = fresh_root();
    let bad = "\u{1b}[2J\u{9b}x\u{202e}y";
    let info = format!("server_address: \"{bad}:1\" root: \"/{bad}\"");
    let mount = Mount::etcd(&etcd::shared().endpoint(), &root, &[]);
    std::fs::create_dir_all(mount.path("global/cells/zo\u{9b}ne")).unwrap();
    std::fs::write(mount.path("global/cells/zo\u{9b}ne/CellInfo.txt"), info).unwrap();
    let _ = std::fs::read_dir(mount.path("zo\u{9b}ne"));
    eventually("the cell is there", || status(&mount, "").1.contains("zo\\u{9b}ne").then_some(()));
    for args in ["", "-1", "--json"] {
        let told = status(&mount, args).1;
        assert!(told.contains(&mount.point().display().to_string()), "{args}: {told:?}");
        assert!(!told.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{args}: {told:?}");
    }
}
