//! The Merkle tree of a policy (RFC 6962 §2.1): a node checks the rules it is given without seeing the others.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use sha2::{Digest as _, Sha256};

use super::limits::SIBLINGS_MAX;

/// Returns the hash of a leaf: SHA-256 over 0x00 and its bytes.
pub fn leaf_hash(leaf: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}

/// Returns the hash of a node: SHA-256 over 0x01 and its two children.
fn node_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Checks that the leaf whose hash is `leaf` stands at `index` of the tree of `size` leaves with this `root`.
///
/// `siblings` are the hashes beside the way from the leaf up. Follows RFC 9162 §2.1.3.2, which says for RFC 6962's trees
/// how a verifier goes: a proof for another index or size has another shape, or leads elsewhere.
#[must_use]
pub fn verify_proof(root: &[u8; 32], size: u64, leaf: &[u8; 32], index: u64, siblings: &[[u8; 32]]) -> bool {
    if index >= size || siblings.len() > SIBLINGS_MAX {
        return false;
    }
    // `node` is the place of `hash` in its row, `last` that of the row's last hash.
    let mut node = index;
    let mut last = size.saturating_sub(1);
    let mut hash = *leaf;
    for sibling in siblings {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            // A last hash without a right neighbour went up unchanged: skip the rows where it did.
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// All rows of a tree, for the one who signs its root and hands out proofs.
#[derive(Debug, Clone)]
pub struct MerkleTree {
    /// The leaves' hashes first, the root's row last; never empty, and only the first row may be.
    rows: Vec<Vec<[u8; 32]>>,
}

impl MerkleTree {
    /// Makes the tree of these leaves, in their order.
    pub fn new<L: AsRef<[u8]>>(leaves: impl IntoIterator<Item = L>) -> Self {
        let mut row: Vec<_> = leaves.into_iter().map(|leaf| leaf_hash(leaf.as_ref())).collect();
        let mut rows = Vec::new();
        while row.len() > 1 {
            // Pairing from the left and passing the odd one up gives the splits of RFC 6962, whose left part is always
            // the largest power of two.
            let above = row.chunks(2).filter_map(|pair| match pair {
                [left, right] => Some(node_hash(left, right)),
                [odd] => Some(*odd),
                _ => None,
            });
            let above = above.collect();
            rows.push(core::mem::replace(&mut row, above));
        }
        rows.push(row);
        Self { rows }
    }

    /// Returns the root hash; of no leaves, the hash of nothing.
    pub fn root(&self) -> [u8; 32] {
        let top = self.rows.last().and_then(|row| row.first());
        top.copied().unwrap_or_else(|| Sha256::digest([]).into())
    }

    /// Returns the count of leaves.
    pub fn size(&self) -> u64 {
        self.rows.first().map_or(0, |row| row.len() as u64)
    }

    /// Returns the siblings on the way from leaf `index` up; `None` if there is no such leaf.
    pub fn proof(&self, index: u64) -> Option<Vec<[u8; 32]>> {
        if index >= self.size() {
            return None;
        }
        let mut place = usize::try_from(index).ok()?;
        let mut siblings = Vec::new();
        for row in &self.rows {
            // The top row and an odd last place have no sibling.
            siblings.extend(row.get(place ^ 1));
            place >>= 1;
        }
        Some(siblings)
    }
}
