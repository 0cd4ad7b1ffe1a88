//! Generates the code of this crate from `ringmesh/*/v1/*.proto`, in pure Rust: no protoc is needed.
//!
//! Beside messages and services that is the table of who may call which method. A method without a rule ends the build.

#[path = "build/rules.rs"]
mod rules;

use std::{env, error::Error, fs, path::PathBuf};

use protox::Compiler;

const FILES: [&str; 4] = [
    "ringmesh/options/v1/options.proto",
    "ringmesh/control/v1/control.proto",
    "ringmesh/admin/v1/admin.proto",
    "ringmesh/local/v1/local.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=ringmesh");
    println!("cargo:rerun-if-changed=build/rules.rs");
    let mut compiler = Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    fs::write(out.join("access.rs"), rules::access_table(&compiler.descriptor_pool())?)?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
