//! Generates the code of this crate from `ringmesh/*/v1/*.proto`, in pure Rust: no protoc is needed.
//!
//! Beside messages and services that is the table of who may call which method. A method without a rule ends the build.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

use prost_reflect::{DescriptorPool, MethodDescriptor};
use protox::Compiler;

const FILES: [&str; 4] = [
    "ringmesh/options/v1/options.proto",
    "ringmesh/control/v1/control.proto",
    "ringmesh/admin/v1/admin.proto",
    "ringmesh/local/v1/local.proto",
];
/// The option that every method must have.
const RULE: &str = "ringmesh.options.v1.access";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=ringmesh");
    let mut compiler = Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    fs::write(out.join("access.rs"), access_table(&compiler.descriptor_pool())?)?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The methods of all services of ours, with their rules, as Rust.
fn access_table(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut table = String::from("&[\n");
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let access = rule(pool, &method)?;
        let (service, name) = (method.parent_service().full_name(), method.name());
        writeln!(table, "    Method {{ path: \"/{service}/{name}\", access: Access::{access} }},")?;
    }
    table.push(']');
    Ok(table)
}

/// The name of the variant of `Access` that a method is marked with.
fn rule(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<&'static str, String> {
    let extension = pool.get_extension_by_name(RULE).ok_or("options.proto has no access option")?;
    let options = method.options();
    let number = options.get_extension(&extension).as_ref().as_enum_number().unwrap_or(0);
    let named = ["Anybody", "Node", "ReadOnly", "Operator"];
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    index.and_then(|index| named.get(index)).copied().ok_or_else(|| {
        format!("{} says not who may call it: add  option ({RULE}) = ACCESS_...;", method.full_name())
    })
}
