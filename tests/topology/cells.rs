//! Rules about cells, in a mount.
