//! The files that flags name: whether they can be read, and by whom else. Must never print what is in them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::cli::flags::connect::ConnectArgs;
use crate::cli::flags::process::ProcessArgs;
use crate::cli::flags::view::ViewArgs;
use crate::given;

const STEP: &str = "file";
/// Rights of those who need none on a secret.
const OTHERS: u32 = 0o007;

/// Looks at all files in the flags. Secrets should be secret.
pub(in crate::cli) fn files(connect: &ConnectArgs, view: &ViewArgs, process: &ProcessArgs) -> Vec<Finding> {
    let public = [
        ("--topo-etcd-tls-cert", &connect.topo_etcd_tls_cert),
        ("--topo-etcd-tls-ca", &connect.topo_etcd_tls_ca),
        ("--topo-zk-tls-cert", &connect.topo_zk_tls_cert),
        ("--topo-zk-tls-ca", &connect.topo_zk_tls_ca),
        ("--topo-consul-tls-cert", &connect.topo_consul_tls_cert),
        ("--topo-consul-tls-ca", &connect.topo_consul_tls_ca),
        ("--descriptor-set", &view.descriptor_set),
    ];
    let secret = [
        ("--topo-etcd-tls-key", &connect.topo_etcd_tls_key),
        ("--topo-etcd-password-file", &connect.topo_etcd_password_file),
        ("--topo-zk-auth-file", &connect.topo_zk_auth_file),
        ("--topo-zk-tls-key", &connect.topo_zk_tls_key),
        ("--consul-auth-static-file", &connect.consul_auth_static_file),
        ("--topo-consul-tls-key", &connect.topo_consul_tls_key),
    ];
    let one = |(flag, path): &(&'static str, &Option<PathBuf>), is_secret| {
        let most = match *flag {
            "--descriptor-set" => given::DESCRIPTORS,
            flag if flag.contains("-tls-") => given::CERTIFICATE,
            _ => given::SECRET,
        };
        Some(file(flag, path.as_ref()?, is_secret, most))
    };
    let public = public.iter().filter_map(|named| one(named, false));
    public.chain(secret.iter().filter_map(|named| one(named, true))).chain(log_file(process)).collect()
}

fn file(flag: &str, path: &Path, is_secret: bool, most: u64) -> Finding {
    let subject = format!("{flag} {}", path.display());
    match given::look(path, most) {
        Err(error) if error.raw_os_error().is_none() => {
            Finding::failed(STEP, subject, error.to_string(), "name a file")
        }
        Err(error) => {
            Finding::failed(STEP, subject, error.to_string(), "correct the name, or let this user read the file")
        }
        Ok(found) if is_secret && found.is_file() && found.mode() & OTHERS != 0 => {
            Finding::warning(STEP, subject, "everybody on this host can use it", "chmod o-rwx")
        }
        Ok(_) => Finding::ok(STEP, subject, "can be read"),
    }
}

/// The directory of the log file: the file itself is made by the mount.
fn log_file(process: &ProcessArgs) -> Option<Finding> {
    let path = process.log_file.as_ref()?;
    let (subject, advice) = (format!("--log-file {}", path.display()), "name a file that this user may append to");
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let place = if path.exists() { path.as_path() } else { dir };
    Some(match nix::unistd::access(place, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Finding::ok(STEP, subject, "can be written"),
        Err(error) => Finding::failed(STEP, subject, error.desc(), advice),
    })
}
