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

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "the tests' own bytes")]
mod tests {
    use super::*;

    /// The leaves of the test vectors that Certificate Transparency's implementations share.
    const LEAVES: [&[u8]; 8] = [
        &[],
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
    ];

    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    /// RFC 6962 §2.1, word for word: the hash of a list.
    fn naive_root(leaves: &[Vec<u8>]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => Sha256::digest([&[0], leaf.as_slice()].concat()).into(),
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len()));
                Sha256::digest([&[1], naive_root(left).as_slice(), &naive_root(right)].concat()).into()
            }
        }
    }

    /// RFC 6962 §2.1.1, word for word: the path of leaf `m`.
    fn naive_path(m: usize, leaves: &[Vec<u8>]) -> Vec<[u8; 32]> {
        if leaves.len() == 1 {
            return Vec::new();
        }
        let k = split(leaves.len());
        let (left, right) = leaves.split_at(k);
        let (mut path, sibling) =
            if m < k { (naive_path(m, left), right) } else { (naive_path(m - k, right), left) };
        path.push(naive_root(sibling));
        path
    }

    /// The largest power of two smaller than `count`.
    fn split(count: usize) -> usize {
        count.next_power_of_two() / 2
    }

    fn leaves(count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|i| format!("leaf {i}").into_bytes()).collect()
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        for (count, root) in ROOTS.iter().enumerate() {
            let tree = MerkleTree::new(&LEAVES[..count]);
            let text: String = tree.root().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(text, *root, "{count} leaves");
            assert_eq!(tree.size(), count as u64);
        }
    }

    #[test]
    fn roots_and_proofs_are_those_of_the_rfcs_recursion() {
        for count in 0..=70 {
            let leaves = leaves(count);
            let tree = MerkleTree::new(&leaves);
            assert_eq!(tree.root(), naive_root(&leaves), "{count} leaves");
            for index in 0..count {
                assert_eq!(
                    tree.proof(index as u64),
                    Some(naive_path(index, &leaves)),
                    "leaf {index} of {count}"
                );
            }
            assert_eq!(tree.proof(count as u64), None);
            assert_eq!(tree.proof(u64::MAX), None);
        }
    }

    #[test]
    fn proof_holds_for_its_leaf_index_and_size_alone() {
        for count in 1..=20 {
            let leaves = leaves(count);
            let tree = MerkleTree::new(&leaves);
            let (root, size) = (tree.root(), tree.size());
            for index in 0..size {
                let proof = tree.proof(index).unwrap();
                let leaf = leaf_hash(&leaves[index as usize]);
                assert!(verify_proof(&root, size, &leaf, index, &proof), "leaf {index} of {count}");
                for other in (0..size + 3).filter(|other| *other != index) {
                    assert!(
                        !verify_proof(&root, size, &leaf, other, &proof),
                        "{index} as {other} of {count}"
                    );
                }
                for place in 0..proof.len() {
                    let mut flipped = proof.clone();
                    flipped[place][31] ^= 1;
                    assert!(!verify_proof(&root, size, &leaf, index, &flipped));
                }
                let short = proof.split_last().map(|(_, rest)| rest);
                assert!(short.is_none_or(|short| !verify_proof(&root, size, &leaf, index, short)));
                let long = [proof.as_slice(), &[[0; 32]]].concat();
                assert!(!verify_proof(&root, size, &leaf, index, &long));
                assert!(!verify_proof(&[0; 32], size, &leaf, index, &proof));
                assert!(!verify_proof(&root, size, &leaf_hash(b"another"), index, &proof));
                let other = MerkleTree::new(&leaves[..count - 1]).root();
                assert!(!verify_proof(&other, size, &leaf, index, &proof));
            }
        }
    }

    #[test]
    fn proof_longer_than_its_tree_is_deep_is_refused_even_where_it_leads_to_the_root() {
        let pair = leaves(2);
        let root = MerkleTree::new(&pair).root();
        let [left, right] = [0, 1].map(|i| leaf_hash(&pair[i]));
        assert!(verify_proof(&root, 2, &right, 1, &[left]));
        assert!(!verify_proof(&root, 1, &right, 0, &[left]));
    }

    #[test]
    fn nothing_is_in_the_empty_tree() {
        let root = MerkleTree::new::<&[u8]>([]).root();
        assert!(!verify_proof(&root, 0, &root, 0, &[]));
    }

    #[test]
    fn leaf_is_never_a_node() {
        let tree = MerkleTree::new(leaves(2));
        let [left, right] = [0, 1].map(|i| leaf_hash(&leaves(2)[i]));
        // The bytes below the root, given as a leaf, do not hash to it.
        assert_ne!(leaf_hash(&[left, right].concat()), tree.root());
    }

    #[test]
    fn proof_of_any_depth_ends() {
        let siblings = [[7; 32]; SIBLINGS_MAX + 1];
        let top = 1 << 63;
        assert!(!verify_proof(&[0; 32], top, &[1; 32], top - 1, &siblings));
        assert!(!verify_proof(&[0; 32], u64::MAX, &[1; 32], u64::MAX - 1, &siblings));
        let mut hash = [1; 32];
        for sibling in &siblings[..SIBLINGS_MAX] {
            hash = node_hash(&hash, sibling);
        }
        assert!(verify_proof(&hash, top, &[1; 32], 0, &siblings[..SIBLINGS_MAX]));
    }
}
