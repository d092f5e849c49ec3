//! The same topology on Consul, through topofs and through consulfs.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use topofs::backend::Implementation;

use crate::service::{Mount, Server, load, open_all, wait};
use crate::{bash, dir_of, row, timed};

/// consulfs takes a quarter of a millisecond for each file, or more.
const TABLETS: usize = 1_000;
const PROGRAM: &str = "target/tools/consulfs/usr/bin/consulfs";

pub fn measure() -> Result<()> {
    if !std::path::Path::new(PROGRAM).exists() {
        println!("consulfs is not installed");
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let server = Server::start("consul")?;
    let root = "vitess";
    {
        let _runtime = runtime.enter();
        wait("Consul", || {
            let all = open_all(Implementation::Consul, &server.endpoint, root).ok()?;
            load(&*all, &server.endpoint, root, TABLETS, &runtime).ok()
        })?;
    }
    println!("## consulfs, {TABLETS} tablets on Consul\n\n| what | topofs | consulfs | ratio |\n|---|---|---|---|");
    let theirs = tempfile::tempdir()?;
    let address = format!("http://{}", server.endpoint);
    let mut consulfs = Command::new(PROGRAM)
        .args([&address, &theirs.path().display().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let outcome = wait("consulfs", || theirs.path().join("vitess/global").exists().then_some(())).and_then(|()| {
        let ours = Mount::start("consul", &server.endpoint, "vitess/global", &["--list", "raw"], None)?;
        for (name, script) in
            [("ls -lR", "ls -lR D > /dev/null"), ("grep -r", "grep -r no-such-text D > /dev/null || true")]
        {
            let run = |dir: &str| -> Result<Duration> { Ok(timed(|| bash(&script.replace('D', dir)))?.0) };
            let theirs = run(&format!("{}/vitess", theirs.path().display()))?;
            let fresh = Mount::start("consul", &server.endpoint, "vitess/global", &["--list", "raw"], None)?;
            bash(&format!("ls {0}/zone1/tablets {0}/zone2/tablets > /dev/null", dir_of(&fresh)))?;
            row(&format!("{name}, cold"), run(&dir_of(&fresh))?, theirs);
            run(&dir_of(&ours))?;
            row(&format!("{name}, warm"), run(&dir_of(&ours))?, theirs);
        }
        Ok(())
    });
    let _ = nix::mount::umount2(theirs.path(), nix::mount::MntFlags::MNT_DETACH);
    let _ = consulfs.kill();
    let _ = consulfs.wait();
    outcome
}
