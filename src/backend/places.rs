//! Locations by their servers and roots: finds those that share keys, without comparing every pair. Anybody who can
//! write CellInfo records decides how many there are, and where they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::location::{Implementation, Location};

/// Named locations.
#[derive(Debug)]
pub struct Places<T> {
    by_server: HashMap<(Implementation, String), BTreeMap<String, Vec<T>>>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { by_server: HashMap::new() }
    }
}

impl<T: Clone + Ord> Places<T> {
    /// Adds a location by a name. A location may have many names.
    pub fn add(&mut self, location: &Location, name: T) {
        let root = location.clean_root();
        for server in location.server_names() {
            let roots = self.by_server.entry((location.implementation, server)).or_default();
            roots.entry(root.clone()).or_default().push(name.clone());
        }
    }

    /// The first names, in the order in which they were added, of the locations with the very same keys.
    pub fn same(&self, location: &Location, most: usize) -> BTreeSet<T> {
        let root = location.clean_root();
        let found = self.roots_of(location).filter_map(|roots| roots.get(&root));
        found.flat_map(|names| names.iter().take(most)).cloned().collect()
    }

    /// The first names of the locations that have keys in common with this one: the same, or one is inside the other.
    pub fn overlapping(&self, location: &Location, most: usize) -> BTreeSet<T> {
        let root = location.clean_root();
        let above = || root.match_indices('/').map(|(at, _)| root.get(..=at).unwrap_or_default());
        let mut found = BTreeSet::new();
        for roots in self.roots_of(location) {
            let outer = above().filter_map(|outer| roots.get(outer));
            let below = roots.range(root.clone()..).take_while(|(inner, _)| inner.starts_with(&root));
            let inner = below.filter(|(inner, _)| **inner != root).map(|(_, names)| names);
            found.extend(outer.chain(inner).flatten().take(most).cloned());
        }
        found
    }

    fn roots_of(&self, location: &Location) -> impl Iterator<Item = &BTreeMap<String, Vec<T>>> {
        let servers = location.server_names().into_iter();
        servers.filter_map(move |server| self.by_server.get(&(location.implementation, server)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(server: &str, root: &str) -> Location {
        Location { implementation: Implementation::Etcd2, server: server.to_owned(), root: root.to_owned() }
    }

    #[test]
    fn places_inside_of_others_overlap() {
        let mut places = Places::default();
        for (name, root) in
            [("all", "/"), ("vitess", "/vitess"), ("zone1", "vitess/zone1/"), ("zone10", "/vitess/zone10")]
        {
            places.add(&location("a:1,b:1", root), name);
        }
        let overlapping = |server, root| places.overlapping(&location(server, root), 9).into_iter().collect::<Vec<_>>();
        assert_eq!(overlapping("b:1", "/vitess/zone1"), ["all", "vitess", "zone1"]);
        assert_eq!(overlapping("a:1", "/vitess/zone1/tablets"), ["all", "vitess", "zone1"]);
        assert_eq!(overlapping("a:1", "/vitess"), ["all", "vitess", "zone1", "zone10"]);
        assert_eq!(overlapping("a:1", "/vit"), ["all"]);
        assert!(overlapping("c:1", "/vitess").is_empty());
        assert_eq!(places.same(&location("b:1", "/vitess/zone1"), 9).into_iter().collect::<Vec<_>>(), ["zone1"]);
    }

    proptest! {
        #[test]
        fn the_same_place_is_what_it_is_by_comparison(
            all in prop::collection::vec(("[ab]:1(,[abc]:1)?", "/?[xy](/[xy])?/?"), 1..12),
        ) {
            let all: Vec<Location> = all.iter().map(|(server, root)| location(server, root)).collect();
            let mut places = Places::default();
            all.iter().enumerate().for_each(|(number, location)| places.add(location, number));
            for one in &all {
                let same = all.iter().enumerate().filter(|(_, other)| other.is_same_place(one));
                let expected: BTreeSet<usize> = same.map(|(number, _)| number).collect();
                prop_assert_eq!(places.same(one, 99), expected);
                let overlaps = all.iter().enumerate().filter(|(_, other)| other.overlaps(one));
                let expected: BTreeSet<usize> = overlaps.map(|(number, _)| number).collect();
                prop_assert_eq!(places.overlapping(one, 99), expected);
            }
        }
    }
}
