//! What a service wants to be told again: where it was when a mirror and it were equal. Only the service's own code
//! reads it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A point at which a mirror had all that its service had, in the words of that service. Copying it costs nothing.
#[derive(Clone, Default)]
pub struct Mark(Option<Arc<dyn Any + Send + Sync>>);

impl Mark {
    /// Whatever the service has to know about that point.
    pub fn new(point: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(point)))
    }

    /// The point; `None` if there was none, or if it is another service's: then only a whole list can be compared.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.as_deref()?.downcast_ref()
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Mark" } else { "no mark" })
    }
}
