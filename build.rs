//! Compiles proto/: into a descriptor set that src/record embeds, and into types for the rules in src/topology.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["topodata.proto", "vschema.proto", "workflow.proto"];
    let set = protox::compile(files, ["proto"])?;
    let out = std::path::Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, set.encode_to_vec())?;
    // Maps in the order of their keys: what is computed from them is the same every time.
    prost_build::Config::new().btree_map(["."]).include_file("messages.rs").compile_fds(set)?;
    Ok(())
}
