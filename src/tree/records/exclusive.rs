//! Records that are being made with O_EXCL: of several who try at once, one gets the name, and the others hear so at open(),
//! since shells ignore what close() says.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::name::CellPath;
use crate::process::Process;
use crate::record::Form;

/// Who makes a record, and under which form's name.
type Maker = (Option<Process>, Form);

/// The records that are being made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(Arc<Mutex<HashMap<CellPath, Maker>>>);

/// The right to make a record, until dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Claims,
    place: CellPath,
}

/// What comes of asking for that right.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// It is given.
    Now(Claim),
    /// The same process is making the record, under another form's name.
    BySelf,
    /// Somebody else is making it.
    ByAnother,
}

impl Claims {
    /// Whether a process is making a record under another form's name.
    pub fn is_of(&self, place: &CellPath, process: Option<Process>, form: Form) -> bool {
        let is_it = |(maker, through): &Maker| *maker == process && *through != form;
        process.is_some() && self.0.lock().get(place).is_some_and(is_it)
    }

    /// Asks for the right to make a record. Who cannot be seen is nobody else.
    pub fn take(&self, place: CellPath, process: Option<Process>, form: Form) -> Claimed {
        let mut claims = self.0.lock();
        match claims.get(&place) {
            None => {
                claims.insert(place.clone(), (process, form));
                Claimed::Now(Claim { claims: self.clone(), place })
            }
            Some((maker, through)) if maker.is_some() && *maker == process && *through != form => Claimed::BySelf,
            Some(_) => Claimed::ByAnother,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.lock().remove(&self.place);
    }
}
