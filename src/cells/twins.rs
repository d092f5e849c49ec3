//! Cells that show the same records, because their CellInfo records name the same place.

use std::collections::BTreeMap;

use super::Cell;
use crate::backend::Places;
use crate::name::CellName;

/// For each cell, other cells with the same location, at most [`MOST`]: the global topology if it is one, then the
/// first by name.
pub type Twins = BTreeMap<CellName, Vec<CellName>>;

/// How many twins of a cell are named. A topology may name one place thousands of times.
pub const MOST: usize = 16;

/// Which cells have the same location. The global topology comes first.
pub(super) fn twins(cells: &[&Cell]) -> Twins {
    let mut places = Places::default();
    // Numbers keep the order.
    cells.iter().enumerate().for_each(|(number, cell)| places.add(&cell.location, number));
    let mut twins = Twins::new();
    for (number, cell) in cells.iter().enumerate() {
        let same = places.same(&cell.location, MOST + 1).into_iter().filter(|other| *other != number);
        let names: Vec<CellName> =
            same.filter_map(|other| cells.get(other)).take(MOST).map(|other| other.name.clone()).collect();
        if !names.is_empty() {
            twins.insert(cell.name.clone(), names);
        }
    }
    twins
}
