//! A method does not build without a rule of who may call it.
#![allow(missing_docs, reason = "test names are facts and speak for themselves")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../build/rules.rs"]
mod rules;

use prost_reflect::DescriptorPool;
use protox::{
    Compiler,
    file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver},
};
use ringmesh_proto::{
    DESCRIPTORS,
    access::{self, Access, METHODS},
};

/// One file that is nowhere but here.
struct Written(String);

impl FileResolver for Written {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == "small.proto" {
            File::from_source(name, &self.0)
        } else {
            Err(protox::Error::file_not_found(name))
        }
    }
}

/// The table that the build would make of a service whose methods are these.
fn built(methods: &str) -> Result<String, String> {
    let text = format!(
        "syntax = \"proto3\"; package small; import \"ringmesh/options/v1/options.proto\";
        message Empty {{}} service Small {{ {methods} }}"
    );
    let mut files = ChainFileResolver::new();
    files.add(Written(text));
    files.add(IncludeFileResolver::new(env!("CARGO_MANIFEST_DIR").into()));
    files.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(files);
    compiler.include_imports(true).open_file("small.proto").unwrap();
    rules::access_table(&compiler.descriptor_pool())
}

fn method(name: &str, option: &str) -> String {
    format!("rpc {name}(Empty) returns (stream Empty) {{ {option} }} ")
}

#[test]
fn a_method_without_a_rule_does_not_build() {
    let marked = method("Marked", "option (ringmesh.options.v1.access) = ACCESS_NODE;");
    let table = built(&marked).unwrap();
    assert!(table.contains("Method { path: \"/small.Small/Marked\", access: Access::Node }"), "{table}");
    for option in
        ["", "option deprecated = true;", "option (ringmesh.options.v1.access) = ACCESS_UNSPECIFIED;"]
    {
        let refused = built(&(marked.clone() + &method("Forgotten", option))).unwrap_err();
        assert!(refused.contains("small.Small.Forgotten says not who may call it"), "{refused}");
    }
}

#[test]
fn the_table_has_every_method_of_ours_with_the_rule_of_its_description() {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let extension = pool.get_extension_by_name(rules::RULE).unwrap();
    let mut methods = 0;
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let number = method.options().get_extension(&extension).as_enum_number().unwrap();
        let found = access::of(&path).unwrap();
        assert_eq!(i32::from(found), number, "{path}");
        assert_ne!(found, Access::Unspecified, "{path}");
        methods += 1;
    }
    assert_eq!(methods, METHODS.len());
    // What changes something is for operators, and what is for nodes is nobody else's.
    for method in METHODS {
        let (service, name) = method.path.trim_start_matches('/').split_once('/').unwrap();
        let changes = ["Create", "Add", "Remove", "Revoke", "Apply", "Rollback", "Join", "Leave"];
        let changes = changes.iter().any(|verb| name.starts_with(verb));
        match method.access {
            Access::Operator => assert!(changes || name == "ListApiKeys", "{}", method.path),
            Access::ReadOnly => assert!(!changes, "{}", method.path),
            Access::Anybody | Access::Node => assert_eq!(service, "ringmesh.control.v1.ControlService"),
            Access::Unspecified => panic!("{}", method.path),
        }
    }
    assert_eq!(access::of("/ringmesh.admin.v1.NodeService/listNodes"), None);
    assert_eq!(access::of(""), None);
}
