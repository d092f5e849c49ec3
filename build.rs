//! Compiles proto/ into a descriptor set that src/record embeds.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["topodata.proto", "vschema.proto", "workflow.proto"];
    let set = protox::compile(files, ["proto"])?;
    let out = std::path::Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, set.encode_to_vec())?;
    Ok(())
}
