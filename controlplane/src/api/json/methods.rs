//! All methods by their paths, from the descriptors.

use std::{collections::HashMap, sync::LazyLock};

use prost_reflect::{DescriptorPool, MethodDescriptor};
use ringmesh_proto::DESCRIPTORS;

static METHODS: LazyLock<HashMap<String, MethodDescriptor>> = LazyLock::new(|| {
    let pool = pool();
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    methods.map(|method| (path(&method), method)).collect()
});

/// Our messages, and those of the health service.
#[allow(clippy::expect_used, reason = "the descriptors are part of this program, and a test reads them")]
fn pool() -> DescriptorPool {
    let mut pool = DescriptorPool::decode(DESCRIPTORS).expect("invariant: our own descriptors");
    pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .expect("invariant: the health service's descriptors");
    pool
}

/// The method that is called by `path`.
pub(super) fn of(path: &str) -> Option<MethodDescriptor> {
    METHODS.get(path).cloned()
}

/// How `method` is called.
pub(super) fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_ours_has_a_path_and_nothing_else_has() {
        for method in ringmesh_proto::access::METHODS {
            assert_eq!(path(&of(method.path).unwrap()), method.path);
        }
        assert!(of("/grpc.health.v1.Health/Check").is_some());
        for path in ["", "/", "/ringmesh.admin.v1.NodeService", "/ringmesh.admin.v1.NodeService/Nothing"] {
            assert!(of(path).is_none(), "{path}");
        }
    }
}
