//! Which states there are, and their names.

use super::*;
use crate::backend::{EarlierState, Node, Role};
use crate::mirror::Record;

fn moment(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + seconds)
}

/// A state with the number of its version, and its creation.
fn past(at: u64, version: Option<(u64, u64)>) -> Past {
    let record = version.map(|(number, created)| Record {
        value: Bytes::from(format!("{at}")),
        version: Version { number, written: Revision(at), created: Revision(created) },
        modified: moment(at),
    });
    Past { at: Revision(at), record, time: moment(at), is_exact: true, follows: true, by: None, is_watched: true }
}

fn etcd(states: &[(u64, Option<u64>)]) -> Earlier {
    let state = |(at, created): &(u64, Option<u64>)| EarlierState {
        at: Revision(*at),
        node: created.map(|created| Node {
            path: TopoPath::parse("a").unwrap(),
            value: Bytes::from(format!("{at}")),
            version: Version { number: *at, written: Revision(*at), created: Revision(created) },
            role: Role::Record,
            modified: None,
        }),
    };
    Earlier { states: states.iter().map(state).collect(), is_whole: true }
}

fn names(states: &States) -> Vec<&str> {
    states.all.iter().map(|state| &*state.name).collect()
}

#[test]
fn numbers_that_begin_again_have_the_creation_before_them() {
    let lives = vec![past(100, Some((0, 100))), past(101, Some((1, 100))), past(102, None), past(110, Some((0, 110)))];
    let states = States::new(lives, None, &[]);
    assert_eq!(names(&states), ["0", "1", "102.deleted", "110-0"]);
    // The creation may always be said.
    for (name, at) in [("0", 100), ("100-0", 100), ("100-1", 101), ("110-0", 110), ("102.deleted", 102)] {
        assert_eq!(states.find(name).unwrap().at, Revision(at), "{name}");
    }
    assert!(states.find("2").is_none() && states.find("110-1").is_none());
    // Of a service that was restored.
    let same = vec![past(5, Some((5, 1))), past(5, Some((5, 1)))];
    assert_eq!(names(&States::new(same, None, &[])), ["5", "5~2"]);
    let child =
        States::new(vec![past(5, Some((5, 1))), past(6, None)], None, &["5".to_owned(), "6.deleted".to_owned()]);
    assert_eq!(names(&child), ["5~2", "6~2.deleted"]);
}

#[test]
fn what_the_service_has_and_what_is_remembered_is_one_list() {
    // This mount has seen 8 and 10, and from a list that the record was gone at 9.
    let mut seen = vec![past(8, Some((8, 2))), past(9, None), past(10, Some((10, 10)))];
    seen[0].is_exact = false;
    seen[1].is_exact = false;
    let service = etcd(&[(2, Some(2)), (4, Some(2)), (5, None), (6, Some(6)), (7, None), (10, Some(10))]);
    let states = States::new(seen, Some(&service), &[]);
    assert_eq!(names(&states), ["2", "4", "5.deleted", "6", "7.deleted", "8", "9.deleted", "10"]);
    assert!(states.all.is_sorted_by(|one, other| one.time < other.time), "ls -tr");
    assert_eq!(states.all[1].known, Some((moment(8), false)), "it was not later");
    // The service knows better when it was deleted.
    let states = States::new(vec![past(2, Some((2, 2))), past(9, None)], Some(&etcd(&[(2, Some(2)), (7, None)])), &[]);
    assert_eq!(names(&states), ["2", "7.deleted"]);
}
