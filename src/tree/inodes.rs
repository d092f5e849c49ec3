//! The inode table: which number stands for which node, and how often the kernel knows it. Owns nothing else.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;

use super::Node;

/// The number that the kernel gives to the root.
pub const ROOT: u64 = 1;
/// The number of the global topology's directory: the smallest, since `cp` and `tar` walk a directory in the order of inode
/// numbers, and a copy of a whole tree must make the CellInfo records before it comes to the cells.
const GLOBAL: u64 = 2;

/// Numbers and nodes. A node's number is a hash of what it stands for, so that it is the same when the kernel has
/// forgotten the node and asks again (`tar`, `find` and `rsync` compare numbers over time).
#[derive(Debug)]
pub struct Inodes(Mutex<Table>);

#[derive(Debug)]
struct Table {
    by_number: HashMap<u64, Slot>,
    by_node: HashMap<Node, u64>,
}

#[derive(Debug)]
struct Slot {
    node: Node,
    lookups: u64,
}

impl Default for Inodes {
    fn default() -> Self {
        let mut table = Table { by_number: HashMap::new(), by_node: HashMap::new() };
        table.by_number.insert(ROOT, Slot { node: Node::Root, lookups: 1 });
        table.by_node.insert(Node::Root, ROOT);
        Self(Mutex::new(table))
    }
}

impl Table {
    fn number(&self, node: &Node) -> u64 {
        if let Some(number) = self.by_node.get(node) {
            return *number;
        }
        if matches!(node, Node::Dir(cell, path) if cell.is_global() && path.is_root()) {
            return GLOBAL;
        }
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let mut number = hasher.finish();
        // 0 means "no inode"; a number that another node has is passed over.
        while number <= GLOBAL || self.by_number.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        number
    }
}

impl Inodes {
    /// The number of a node, without the kernel's knowing it.
    pub fn number(&self, node: &Node) -> u64 {
        self.0.lock().number(node)
    }

    /// The number of a node that is told to the kernel: counts one lookup.
    pub fn told(&self, node: &Node) -> u64 {
        let mut table = self.0.lock();
        let number = table.number(node);
        table.by_node.entry(node.clone()).or_insert(number);
        table.by_number.entry(number).or_insert_with(|| Slot { node: node.clone(), lookups: 0 }).lookups += 1;
        number
    }

    /// The kernel forgets a number of lookups.
    pub fn forget(&self, number: u64, lookups: u64) {
        if number == ROOT {
            return;
        }
        let mut table = self.0.lock();
        let Some(slot) = table.by_number.get_mut(&number) else { return };
        slot.lookups = slot.lookups.saturating_sub(lookups);
        if slot.lookups == 0
            && let Some(slot) = table.by_number.remove(&number)
        {
            // A node whose number was retired has another one.
            if table.by_node.get(&slot.node) == Some(&number) {
                table.by_node.remove(&slot.node);
            }
        }
    }

    /// A directory is removed. The kernel takes its inode for dead as long as anybody has something open below it, so what is made
    /// of the same name is another inode.
    pub fn retire(&self, node: &Node) {
        self.0.lock().by_node.remove(node);
    }

    /// What a number stands for, if the kernel knows it.
    pub fn node(&self, number: u64) -> Option<Node> {
        self.0.lock().by_number.get(&number).map(|slot| slot.node.clone())
    }

    /// Whether the kernel knows a node.
    pub fn is_known(&self, node: &Node) -> bool {
        self.0.lock().by_node.contains_key(node)
    }

    /// How many inodes the kernel knows.
    pub fn count(&self) -> usize {
        self.0.lock().by_number.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ScratchId;

    #[test]
    fn an_inode_lives_as_long_as_the_kernel_knows_it() {
        let inodes = Inodes::default();
        let node = Node::Scratch(ScratchId(7));
        let number = inodes.told(&node);
        assert_eq!(inodes.told(&node), number);
        inodes.forget(number, 1);
        assert_eq!(inodes.node(number), Some(node.clone()));
        inodes.forget(number, 1);
        assert_eq!(inodes.node(number), None);
        assert_eq!(inodes.count(), 1, "the root remains");
        assert_eq!(inodes.told(&node), number, "the number is the same again");
    }

    #[test]
    fn what_was_removed_and_made_again_is_another_inode() {
        let inodes = Inodes::default();
        let node = Node::Scratch(ScratchId(7));
        let dead = inodes.told(&node);
        inodes.retire(&node);
        let living = inodes.told(&node);
        assert_ne!(living, dead);
        assert_eq!((inodes.node(dead), inodes.node(living)), (Some(node.clone()), Some(node.clone())));
        inodes.forget(dead, 1);
        assert_eq!(inodes.told(&node), living, "the other is not concerned");
        inodes.forget(living, 2);
        assert_eq!(inodes.told(&node), dead, "when all are forgotten it is the first number again");
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let inodes = Inodes::default();
        inodes.forget(ROOT, 99);
        assert_eq!(inodes.node(ROOT), Some(Node::Root));
    }
}
