//! Rebuilding SrvKeyspace and SrvVSchema.
