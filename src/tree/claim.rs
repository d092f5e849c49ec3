//! Records that are being made with O_EXCL: of several who try at once, one gets the name, and the others hear so at open(),
//! since shells ignore what close() says.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::overlay::Place;

/// The names that are being made.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(Arc<Mutex<HashSet<Place>>>);

/// The right to make a record, until dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Claims,
    place: Place,
}

impl Claims {
    /// `None` if somebody else is making it.
    pub fn take(&self, place: Place) -> Option<Claim> {
        self.0.lock().insert(place.clone()).then(|| Claim { claims: self.clone(), place })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.lock().remove(&self.place);
    }
}
