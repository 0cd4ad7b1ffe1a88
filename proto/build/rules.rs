//! The table of who may call which method, made from the descriptors. Part of the build, and of a test of it.

use std::fmt::Write as _;

use prost_reflect::{DescriptorPool, MethodDescriptor};

/// The option that every method must have.
pub(crate) const RULE: &str = "ringmesh.options.v1.access";

/// The variants of `Access` that a method may be marked with, by their numbers from 1 on.
const NAMED: [&str; 4] = ["Anybody", "Node", "ReadOnly", "Operator"];

/// The methods of all services, with their rules, as Rust. Fails if one has none.
pub(crate) fn access_table(pool: &DescriptorPool) -> Result<String, String> {
    let mut table = String::from("&[\n");
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let access = rule(pool, &method)?;
        let (service, name) = (method.parent_service().full_name(), method.name());
        writeln!(table, "    Method {{ path: \"/{service}/{name}\", access: Access::{access} }},")
            .map_err(|error| error.to_string())?;
    }
    table.push(']');
    Ok(table)
}

/// The name of the variant of `Access` that a method is marked with.
fn rule(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<&'static str, String> {
    let extension = pool.get_extension_by_name(RULE).ok_or("options.proto has no access option")?;
    let options = method.options();
    let number = options.get_extension(&extension).as_ref().as_enum_number().unwrap_or(0);
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    index.and_then(|index| NAMED.get(index)).copied().ok_or_else(|| {
        format!("{} says not who may call it: add  option ({RULE}) = ACCESS_...;", method.full_name())
    })
}
