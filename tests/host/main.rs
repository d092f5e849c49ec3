//! topofs as a part of its host: mount(8) and fstab, systemd, the package, the image, the manual. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod image;
mod kubernetes;
mod log;
mod manual;
mod mount8;
mod package;
mod systemd;
mod upgrade;
