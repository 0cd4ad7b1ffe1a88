//! The very files of the crate.

#[path = "../../../src/offload/checksum.rs"]
pub(crate) mod checksum;
#[path = "../../../src/offload/coalesce.rs"]
pub(crate) mod coalesce;
#[path = "../../../src/offload/flows.rs"]
pub(crate) mod flows;
#[path = "../../../src/offload/headers.rs"]
pub(crate) mod headers;
#[path = "../../../src/offload/look.rs"]
pub(crate) mod look;
#[path = "../../../src/offload/super_packet.rs"]
pub(crate) mod super_packet;
#[path = "../../../src/offload/virtio.rs"]
pub(crate) mod virtio;
