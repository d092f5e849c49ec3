//! `mount -t topofs`, mount.topofs and fstab.
