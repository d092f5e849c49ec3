//! Cells that somebody has used and whose records are gone.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::name::CellName;

/// Number of cells to remember. Any further cell is forgotten: if its record comes back, it is connected when somebody
/// uses it.
const REMEMBERED: usize = 1_000;

/// Cells to connect again by themselves when their records come back.
#[derive(Debug, Default)]
pub(super) struct Missed(Mutex<BTreeSet<CellName>>);

impl Missed {
    /// The record of a used cell is gone.
    pub fn note(&self, cell: &CellName) {
        let mut missed = self.0.lock();
        if missed.len() < REMEMBERED {
            missed.insert(cell.clone());
        }
    }

    /// The record of a cell is there. Returns whether the cell was missed.
    pub fn take(&self, cell: &CellName) -> bool {
        self.0.lock().remove(cell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_missed_once_and_only_so_many_are_remembered() {
        let missed = Missed::default();
        let cell = |number: usize| CellName::new(&format!("zone{number}")).unwrap();
        for number in 0..=REMEMBERED {
            missed.note(&cell(number));
        }
        assert!(!missed.take(&cell(REMEMBERED)), "one too many");
        assert!(missed.take(&cell(REMEMBERED - 1)) && !missed.take(&cell(REMEMBERED - 1)));
        missed.note(&cell(REMEMBERED));
        assert!(missed.take(&cell(REMEMBERED)), "there is room again");
    }
}
