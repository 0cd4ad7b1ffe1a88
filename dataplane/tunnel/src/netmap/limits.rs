//! The named bounds of records and maps. A parser checks them before it keeps anything.

use core::time::Duration;

/// The longest name of a node, tag or group, bytes: a DNS label's (RFC 1035 §2.3.4).
pub const NAME_MAX: usize = 63;
/// The longest full name of a [`NameRecord`](super::NameRecord), bytes, dots included.
pub const DOMAIN_MAX: usize = 253;
/// The most tags of a member.
pub const TAGS_MAX: usize = 32;
/// The most groups of a member.
pub const GROUPS_MAX: usize = 64;
/// The most routes of a member.
pub const ROUTES_MAX: usize = 256;
/// The most endpoints a node may say it has.
pub const ENDPOINTS_MAX: usize = 32;
/// The most WebSocket URLs a node may say it has.
pub const WEBSOCKETS_MAX: usize = 4;
/// The longest of them, bytes.
pub const URL_MAX: usize = 255;
/// The most addresses of its SSH endpoint a node may say it has.
pub const SSH_ENDPOINTS_MAX: usize = 8;
/// The most selectors on one side of a rule.
pub const SELECTORS_MAX: usize = 256;
/// The most port ranges of a rule.
pub const PORTS_MAX: usize = 64;
/// The most addresses of a name record.
pub const NAME_ADDRESSES_MAX: usize = 16;
/// The longest nonce of a coordinator, bytes.
pub const SERVER_NONCE_MAX: usize = 64;
/// The longest payload of an envelope, bytes: a member with everything it may have needs about 12 KB.
pub const PAYLOAD_MAX: usize = 16 * 1024;
/// The longest leaf of a policy, bytes: a rule with everything it may have needs about 34 KB.
pub const LEAF_MAX: usize = 40 * 1024;
/// The longest inclusion proof: the depth of a tree of 2^63 leaves.
pub const SIBLINGS_MAX: usize = 63;

/// The most certificates a chain holds.
pub const CERTIFICATES_MAX: usize = 64;
/// The most members in a map.
pub const MEMBERS_MAX: usize = 65_536;
/// The most leaves of the policy in a map.
pub const LEAVES_MAX: usize = 16_384;

/// How far a head's time may lie ahead of this machine's clock before the clock is to blame.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(600);
/// The most members of which a map remembers the newest record seen, those it holds and those that are gone.
pub const FLOORS_MAX: usize = 2 * MEMBERS_MAX;
