//! The guide and the recipes of docs/changes.md, on real etcd servers.

use crate::common::world::Service;
use crate::page::Page;

fn page() -> Page {
    let page = Page::of(include_str!("../../docs/changes.md"), &["global"]);
    page.load(&["zone1", "zone2"]);
    page.run(&[&page.block("setup"), &page.here("ls /mnt/topo/zone1 /mnt/topo/zone2")]);
    page
}

/// A file of the live tree.
fn read(page: &Page, path: &str) -> String {
    std::fs::read_to_string(page.mounted().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn a_change_is_prepared_reviewed_stored_and_taken_back() {
    let page = page();
    let (keyspace, shard) = ("global/keyspaces/archive/Keyspace.txt", "global/keyspaces/commerce/shards/0/Shard.txt");
    let before = [keyspace, shard].map(|path| read(&page, path));
    let go = page.here("cd /mnt/topo");
    let printed = page.run(&[&go, &page.block("guide")]);
    assert!(printed.contains("-durability_policy: \"semi_sync\"\n+durability_policy: \"none\"\n"), "{printed}");
    assert!(printed.contains("deleted file"), "{printed}");
    let patch = std::fs::read_to_string(page.work.path().join("durability.patch")).unwrap();
    assert!(patch.contains(keyspace) && !patch.contains("shards"), "{patch}");
    assert_eq!(read(&page, keyspace), before[0].replace("semi_sync", "none"));
    assert_eq!(read(&page, shard), before[1]);
    page.run(&[&page.block("guide-undo")]);
    assert_eq!(read(&page, keyspace), before[0]);
    for dir in ["at", "stage"] {
        assert_eq!(std::fs::read_dir(page.mounted().join(".topofs").join(dir)).unwrap().count(), 0, "{dir}");
    }
}

#[test]
fn what_others_have_changed_meanwhile_is_taken_in() {
    let page = page();
    let refused = page.run(&[&page.here(
        "cd /mnt/topo; mkdir .topofs/stage/s; cd .topofs/stage/s
         sed -i 's/\"semi_sync\"/\"none\"/' global/keyspaces/archive/Keyspace.txt
         sed -i 's/\"_vt\"/\"_vt2\"/' /mnt/topo/global/keyspaces/archive/Keyspace.txt
         ! echo commit 2>&1 > .control",
    )]);
    assert!(refused.contains("Stale file handle"), "{refused}");
    let keyspace = read(&page, "global/keyspaces/archive/Keyspace.txt");
    assert!(keyspace.contains("semi_sync"), "{keyspace}");
    let conflicts = page.run(&[&page.here("cd /mnt/topo/.topofs/stage/s"), &page.block("conflict")]);
    assert!(conflicts.contains("global/keyspaces/archive/Keyspace"), "{conflicts}");
    let keyspace = read(&page, "global/keyspaces/archive/Keyspace.txt");
    assert!(keyspace.contains("\"none\"") && keyspace.contains("\"_vt2\""), "{keyspace}");
}

#[test]
fn the_last_change_to_a_record_is_undone() {
    let page = page();
    let path = "global/keyspaces/commerce/Keyspace.txt";
    let before = read(&page, path);
    page.run(&[&page.here("cd /mnt/topo; sed -i 's/\"semi_sync\"/\"none\"/' global/keyspaces/commerce/Keyspace.txt")]);
    let log = page.run(&[&page.block("undo")]);
    assert!(log.contains("durability_policy") && log.lines().count() == 1, "{log}");
    assert_eq!(read(&page, path), before);
}

/// The function of the recipe, for a mount at a place.
fn undo_at(page: &Page, root: &str) -> String {
    let block = page.block("undo");
    let (function, _) = block.rsplit_once("undo ").unwrap();
    function.replace(page.mounted().to_str().unwrap(), root)
}

#[test]
fn a_deletion_and_a_creation_are_undone_too() {
    let page = page();
    let undo = undo_at(&page, page.mounted().to_str().unwrap());
    let path = "global/keyspaces/archive/Keyspace.txt";
    let edit = "sed -i 's/^durability_policy: .*/durability_policy: \"'$policy'\"/' archive/Keyspace.txt";
    let edits = format!("cd /mnt/topo/global/keyspaces; for policy in none cross_cell; do {edit}; done");
    page.run(&[&page.here(&edits)]);
    let last = read(&page, path);
    assert!(last.contains("cross_cell"), "{last}");
    let log = page.run(&[&page.here("rm -r /mnt/topo/global/keyspaces/archive"), &undo, &format!("undo {path}")]);
    assert!(log.ends_with(": deleted\n"), "{log}");
    assert_eq!(read(&page, path), last);
    // It was made again by that: undone, it is deleted.
    page.run(&[&undo, &format!("undo {path}")]);
    assert!(!page.mounted().join(path).exists());
    // Records that never were before, with and without text form.
    let made = ["global/keyspaces/fresh/Keyspace.txt", "global/metadata/fresh"];
    page.run(&[
        &page.here("cd /mnt/topo; mkdir global/keyspaces/fresh"),
        &page.here(&format!("echo 'durability_policy: \"none\"' > {}; echo x > {}", made[0], made[1])),
    ]);
    for path in made {
        assert!(page.mounted().join(path).exists(), "{path}");
        page.run(&[&undo, &format!("undo {path}")]);
        assert!(!page.mounted().join(path).exists(), "{path}");
    }
    page.run(&[
        &page.here("cd /mnt/topo; echo one > global/metadata/fresh; echo two > global/metadata/fresh"),
        &undo,
        "undo global/metadata/fresh",
    ]);
    assert_eq!(read(&page, "global/metadata/fresh"), "one\n");
}

#[test]
fn the_last_change_to_a_record_that_was_made_again_is_undone_on_zookeeper() {
    let page = Page::of(include_str!("../../docs/changes.md"), &[]);
    let service = Service::zk2();
    let path = "global/keyspaces/commerce/Keyspace.txt";
    service.put("global/keyspaces/commerce/Keyspace", b"\x42\x04none");
    let mount = service.mount(&["--list", "txt"]);
    let undo = undo_at(&page, mount.root().to_str().unwrap());
    // Only the present version is known, and it is not the first: nothing is done.
    let before = mount.read(path);
    assert!(!mount.bash(&format!("set -euo pipefail; {undo} undo {path}")).status.success());
    assert_eq!(mount.read(path), before);
    let say = |policy: &str| format!("echo 'durability_policy: \"{policy}\"' > {path};");
    mount.sh(&format!("rm {path}; {} {} {}", say("none"), say("semi_sync"), say("cross_cell")));
    let listed = mount.sh(&format!("ls -v .topofs/history/{}", path.trim_end_matches(".txt")));
    assert!(listed.lines().last().unwrap().ends_with("-2.txt"), "{listed}");
    mount.sh(&format!("set -uo pipefail; {undo} undo {path}"));
    assert!(mount.read(path).contains("semi_sync"), "{listed}");
    // Twice undone is done again.
    mount.sh(&format!("set -uo pipefail; {undo} undo {path}; rm {path}; undo {path}"));
    assert!(mount.read(path).contains("cross_cell"));
}

#[test]
fn a_repository_elsewhere_keeps_what_a_stage_holds() {
    let page = page();
    let known = "export GIT_AUTHOR_NAME=me GIT_AUTHOR_EMAIL=me GIT_COMMITTER_NAME=me GIT_COMMITTER_EMAIL=me";
    let diff = page.run(&[known, &page.block("git"), "cat .diff; ! git init --quiet . 2> /dev/null; ls -A"]);
    assert!(diff.contains("+durability_policy: \"none\"\n"), "{diff}");
    // Taken back: the stage has no changes, and nothing but records.
    assert_eq!(diff.matches("diff --git").count(), 1, "{diff}");
    assert!(diff.ends_with("\nglobal\nzone1\nzone2\n"), "{diff}");
}

#[test]
fn what_has_changed_lately_is_shown_with_who_did_it() {
    let page = page();
    // The mount is not as old as the example wants.
    let since = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    page.run(&[&page.here("cd /mnt/topo; echo me > global/metadata/owner; rm global/keyspaces/archive/VSchema.txt")]);
    let hour = page.block("hour").replace("$(date -u -d '1 hour ago' +%FT%TZ)", &since);
    assert!(hour.contains(&since));
    let printed = page.run(&[&hour]);
    assert!(printed.contains("+me") || printed.contains("> me"), "{printed}");
    assert!(printed.contains("archive: VSchema.txt"), "{printed}");
    let events: Vec<&str> = printed.lines().filter(|line| line.starts_with('[')).collect();
    assert!(events.len() >= 2 && events.iter().all(|event| event.contains("\"uid\"")), "{printed}");
}

#[test]
fn the_primaries_of_a_keyspace_move_in_one_commit() {
    let page = page();
    page.run(&[&page.block("primaries")]);
    for shard in ["-80", "80-"] {
        let record = read(&page, &format!("global/keyspaces/customer/shards/{shard}/Shard.txt"));
        assert!(record.contains("cell: \"zone2\"") && record.contains("primary_term_start_time"), "{record}");
        assert_eq!(record.matches("primary_alias").count(), 1, "{record}");
    }
    // Nothing contradicts it.
    let primaries =
        page.run(&[&page.here("cd /mnt/topo; grep -l 'type: PRIMARY' zone*/tablets/*/Tablet.txt; topofs validate .")]);
    assert_eq!(primaries.matches("zone2/tablets/").count(), 2, "{primaries}");
    // All of it is of one revision.
    let versions = page.run(&[&page.here(
        "cd /mnt/topo; getfattr --only-values -n user.topo.version global/keyspaces/customer/shards/*/Shard.txt
         getfattr --only-values -n user.topo.version $(grep -l 'type: PRIMARY' zone2/tablets/*/Tablet.txt)",
    )]);
    let length = versions.len() / 4;
    assert_eq!(versions, versions[..length].repeat(4));
}

#[test]
fn an_alias_is_renamed_everywhere() {
    let page = page();
    let alias = read(&page, "global/cells_aliases/region1/CellsAlias.txt");
    std::fs::write(page.mounted().join("global/metadata/alias"), "\"region1\"").unwrap();
    page.run(&[&page.block("alias")]);
    assert_eq!(read(&page, "global/cells_aliases/east/CellsAlias.txt"), alias);
    assert!(!page.mounted().join("global/cells_aliases/region1").exists());
    assert_eq!(read(&page, "global/metadata/alias"), "\"east\"");
}

#[test]
fn a_deleted_keyspace_comes_back_and_two_clusters_are_compared() {
    let page = page();
    let before = page.stored("global", "global");
    page.run(&[
        &page.here("cd /mnt/topo; mkdir .topofs/at/before; rm -r global/keyspaces/archive zone*/keyspaces/archive")
    ]);
    assert_ne!(page.stored("global", "global"), before);
    let diff = page.run(&[&page.block("keyspace")]);
    assert!(diff.contains("new file") && diff.contains("global/keyspaces/archive/Keyspace"), "{diff}");
    assert_eq!(page.stored("global", "global"), before);
    // Another mount of the same.
    std::fs::create_dir(page.work.path().join("other")).unwrap();
    let variables = page.variables();
    let mount = page.here("topofs mount --list txt /mnt/other; ls /mnt/other/zone1 /mnt/other/zone2 > /dev/null");
    assert_eq!(page.run(&[&variables, &mount, &page.block("compare")]), "");
    let differs = page.here(
        "cd /mnt/other; echo other > global/metadata/owner; rmdir /mnt/topo/.topofs/at/now .topofs/at/now
         mkdir .topofs/at/now; ! diff -r .topofs/at/now /mnt/topo/.topofs/at/before",
    );
    let differs = page.run(&[&variables, &differs]);
    assert!(differs.contains("< other") && differs.lines().count() <= 6, "{differs}");
}
