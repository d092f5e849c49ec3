//! Owns the records that are being made with O_EXCL. If several processes try at once, one gets the name, and the
//! others must fail at open(), since shells ignore the errors of close().

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::name::CellPath;
use crate::process::Process;
use crate::record::Form;

/// Who makes a record, and under which form's name.
type Maker = (Option<Process>, Form);

/// The records that are being made, and who makes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExclusiveMakers(Arc<Mutex<HashMap<CellPath, Maker>>>);

/// The right to make a record. To drop it is to give it up.
#[derive(Debug)]
pub(crate) struct ExclusiveRight {
    makers: ExclusiveMakers,
    place: CellPath,
}

/// The outcome of asking for that right.
#[derive(Debug)]
pub(crate) enum Taken {
    /// The caller has it.
    Now(ExclusiveRight),
    /// The same process is making the record, under another form's name.
    BySelf,
    /// Somebody else is making it.
    ByAnother,
}

impl ExclusiveMakers {
    /// Whether a process is making a record under another form's name.
    pub fn is_of(&self, place: &CellPath, process: Option<Process>, form: Form) -> bool {
        let is_it = |(maker, through): &Maker| *maker == process && *through != form;
        process.is_some() && self.0.lock().get(place).is_some_and(is_it)
    }

    /// Asks for the right to make a record. An unseen process is never the same as another one.
    pub fn take(&self, place: CellPath, process: Option<Process>, form: Form) -> Taken {
        let mut makers = self.0.lock();
        match makers.get(&place) {
            None => {
                makers.insert(place.clone(), (process, form));
                Taken::Now(ExclusiveRight { makers: self.clone(), place })
            }
            Some((maker, through)) if maker.is_some() && *maker == process && *through != form => Taken::BySelf,
            Some(_) => Taken::ByAnother,
        }
    }
}

impl Drop for ExclusiveRight {
    fn drop(&mut self) {
        self.makers.0.lock().remove(&self.place);
    }
}
