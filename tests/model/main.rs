//! The tree and the write path against a simple reference: random operations of one program and of others on the same
//! records; both must agree after every step. The mirror may be behind when the program does something, and catch up
//! while it does. The kernel's habit of repeating what fails with ESTALE is part of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod real;
mod reference;
mod words;

use std::ffi::OsStr;

use common::world::runtime;
use proptest::prelude::*;
use real::{Real, caller};
use reference::Model;
use topofs::tree::{OpenMode, SetAttr};
use words::*;

async fn agree(ops: &[Op]) -> Result<(), TestCaseError> {
    agree_in(Real::new().await, false, ops).await
}

async fn agree_in(real: Real, in_stage: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut model = Model { revision: 1, ..Model::default() };
    let (inodes, handles) = (real.count("inodes").await, real.count("handles").await);
    for (step, op) in ops.iter().enumerate() {
        let expected = model.apply(op);
        prop_assert_eq!(real.apply(op).await, expected, "step {}: {:?}", step, op);
        if matches!(op, Op::Unheard(..)) && step + 1 < ops.len() {
            continue;
        }
        model.unheard.clear();
        real.catch_up().await;
        prop_assert_eq!(real.listing().await, model.listing(), "after step {}: {:?}", step, op);
        prop_assert_eq!(real.versions(in_stage).await, model.revision, "versions made, step {}: {:?}", step, op);
    }
    prop_assert_eq!(real.count("handles").await, handles, "handles leak");
    prop_assert_eq!(real.count("inodes").await, inodes, "inodes leak");
    real.tree.forget(real.dir, 1);
    prop_assert_eq!(real.count("inodes").await, inodes - 1, "a directory that is forgotten is kept");
    real.cells.shutdown().await;
    Ok(())
}

/// A short run by default; PROPTEST_CASES for a long one.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_tree_agrees_with_the_reference(ops in prop::collection::vec(op(), 1..25)) {
        runtime().block_on(agree(&ops))?;
    }
}

proptest! {
    // Most of what can go wrong is tried above.
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases() / 2, ..ProptestConfig::default() })]

    #[test]
    fn so_does_a_stage_and_nothing_reaches_the_service(ops in prop::collection::vec(op_in_stage(), 1..25)) {
        runtime().block_on(async {
            let real = Real::staged().await;
            let (backend, before) = (real.backend.clone(), stored(&*real.backend).await);
            let outcome = agree_in(real, true, &ops).await;
            assert_eq!(stored(&*backend).await, before);
            outcome
        })?;
    }
}

/// All that the service has, but for marks.
async fn stored(backend: &dyn topofs::backend::Backend) -> Vec<topofs::backend::Node> {
    let listing = backend.list(&topofs::name::TopoPath::root()).await.unwrap();
    listing.nodes.into_iter().filter(|node| node.path.as_str() != "mark").collect()
}

/// Found by the tests above, or worth keeping by name.
mod known {
    use super::*;

    fn check(ops: &[Op]) {
        runtime().block_on(agree(ops)).unwrap();
    }

    fn save(name: Name, content: u8) -> Op {
        Op::Save { name, append: false, content, length: 2, meanwhile: None }
    }

    #[test]
    fn a_program_does_not_conflict_with_its_own_save() {
        check(&[save("a", 1), Op::Read("a"), save("a", 2), save(".x", 3), Op::Rename(".x", "a")]);
    }

    #[test]
    fn a_program_does_not_conflict_with_its_own_removal() {
        check(&[save("a", 1), Op::Read("a"), Op::Unlink("a"), save(".x", 3), Op::Rename(".x", "a")]);
    }

    /// close(2) returns before the kernel says that the last descriptor is gone: what was open then is still in the
    /// table.
    #[test]
    fn a_program_sees_the_file_that_it_wrote_last() {
        runtime().block_on(async {
            let real = Real::new().await;
            let ino = real.lookup("keep").await.unwrap();
            let size = async || {
                let by_number = real.tree.getattr(&caller(), ino).await.unwrap().attr.size;
                let by_name = real.tree.lookup(&caller(), real.dir, OsStr::new("keep")).await.unwrap().attr.size;
                assert_eq!(by_number, by_name);
                by_name
            };
            let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
            let closed = real.tree.open(&caller(), ino, mode).await.unwrap().handle;
            real.tree.write(closed, 0, b"12345678").unwrap();
            real.tree.flush(&caller(), closed, 0).await.unwrap();
            let open = real.tree.open(&caller(), ino, mode).await.unwrap().handle;
            assert_eq!(size().await, 8);
            let set = SetAttr { size: Some(3), ..SetAttr::default() };
            assert_eq!(real.tree.setattr(&caller(), ino, Some(open), set).await.unwrap().attr.size, 3);
            assert_eq!(size().await, 3);
            real.tree.close(closed).await.unwrap();
            assert_eq!(size().await, 3);
            real.tree.close(open).await.unwrap();
            assert_eq!((size().await, real.read("keep").await.unwrap()), (3, b"123".to_vec()));
            real.cells.shutdown().await;
        });
    }

    #[test]
    fn a_save_after_a_backup_conflicts_with_a_change_between_them() {
        check(&[save("a", 1), Op::Rename("a", ".x"), Op::Remote("a", Remote::Put(3)), save("a", 2), Op::Read(".x")]);
    }
}
