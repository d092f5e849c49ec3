//! The Debian package, and the image that is made from it.
