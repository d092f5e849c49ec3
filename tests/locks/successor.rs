//! A lock that was broken while its holder was frozen: whoever has it now keeps it when the old holder wakes up.

use nix::sys::signal::Signal;

use crate::common::{self, eventually};
use crate::on_each_service;
use crate::{DIR, Holder, LOCK, events, report};

on_each_service! {
    fn a_holder_that_wakes_up_does_not_take_the_lock_from_its_successor(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let frozen = Holder::new(&one, LOCK);
        common::signal(one.pid(), Signal::SIGSTOP);
        let unlock = format!("{} unlock --force --yes {}", common::mount::TOPOFS, two.path(DIR).display());
        eventually("the lock is seen and taken away", || two.sh(&unlock).contains("taken away").then_some(()));
        let successor = Holder::new(&two, LOCK);
        let key = report(&two, LOCK)[0]["key"].clone();
        common::signal(one.pid(), Signal::SIGCONT);
        eventually("the old holder has noticed", || (events(&one, "lock-lost").len() == 1).then_some(()));
        // Letting go of what was lost is no harm, either.
        frozen.end();
        eventually("it holds nothing more", || {
            let held = report(&one, LOCK);
            (held.len() == 1 && held[0]["lost"].is_null() && held[0]["pid"].is_null()).then_some(())
        });
        two.sh(&format!("! flock -n {LOCK} true"));
        let now = report(&two, LOCK);
        assert_eq!((now.len(), &now[0]["key"], events(&two, "lock-lost").len()), (1, &key, 0), "{now:?}");
        assert_eq!(now[0]["pid"], successor.pid(), "{now:?}");
        successor.end();
    }
}
