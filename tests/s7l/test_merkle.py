import hashlib

import pytest

from s7jax import s7l
from s7jax.s7l import merkle

# Leaves and roots for 1..8 leaves: github.com/transparency-dev/merkle, testonly/constants.go
# (the reference vectors of Certificate Transparency, RFC 6962).
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
LEAVES += ["606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("count", range(1, 9))
def test_rfc_6962_roots(count):
    leaves = [merkle.leaf(b"", bytes.fromhex(data)) for data in LEAVES[:count]]
    assert merkle.tree(leaves).hex() == ROOTS[count - 1]


def test_empty_tree_is_illegal():
    with pytest.raises(s7l.SealError):
        merkle.tree([])


def test_leaf_is_typed():
    assert merkle.leaf(merkle.CHUNK, b"x") == hashlib.sha256(b"\0S7L3CHNKx").digest()
    tags = [merkle.CHUNK, merkle.TENSOR, merkle.COMPONENT, merkle.RECORD]
    tags += [merkle.POLICY, merkle.META, *merkle.PAYLOAD.values()]
    assert len(set(tags)) == len(tags)
    assert {len(tag) for tag in tags} == {8}


@pytest.mark.parametrize(("size", "sizes"), [(1, [1]), (1 << 20, [1 << 20]), (2_097_153, None)])
def test_chunks(size, sizes):
    data = bytes(range(256)) * (size // 256 + 1)
    sizes = sizes or [1 << 20, 1 << 20, 1]
    expected, at = [], 0
    for n in sizes:
        expected.append(hashlib.sha256(b"\0S7L3CHNK" + data[at : at + n]).digest())
        at += n
    assert merkle.chunks(data[:size]) == expected


LEAF_HASHES = [merkle.leaf(b"", bytes.fromhex(data)) for data in LEAVES]
# (index, size) of the paths in the same published set of vectors, and one inside each size.
PATHS = [(0, 1), (0, 8), (5, 8), (2, 3), (1, 5)]


def check(leaf, index, size, path, root):
    try:
        return merkle.included_root(leaf, index, size, path, "path") == root
    except s7l.SealError:
        return False


def probes():
    """Wrong paths, in the manner of Certificate Transparency's own tests."""
    for index, size in PATHS:
        leaf, path = LEAF_HASHES[index], merkle.inclusion(LEAF_HASHES[:size], index)
        root = merkle.tree(LEAF_HASHES[:size])
        wrong = [
            ("index - 1", (leaf, index - 1, size, path, root)),
            ("index + 1", (leaf, index + 1, size, path, root)),
            ("index ^ 2", (leaf, index ^ 2, size, path, root)),
            ("index beyond", (leaf, index + size, size, path, root)),
            ("size * 2", (leaf, index, size * 2, path, root)),
            ("size / 2", (leaf, index, size // 2, path, root)),
            ("size 0", (leaf, index, 0, path, root)),
            ("other leaf", (bytes(32), index, size, path, root)),
            ("empty leaf", (b"", index, size, path, root)),
            ("other root", (leaf, index, size, path, bytes(32))),
            ("empty root", (leaf, index, size, path, b"")),
            ("root as leaf", (root, index, size, [*path, leaf], root)),
            ("hash behind", (leaf, index, size, [*path, b""], root)),
            ("zeros behind", (leaf, index, size, [*path, bytes(32)], root)),
            ("root behind", (leaf, index, size, [*path, root], root)),
            ("hash before", (leaf, index, size, [b"", *path], root)),
            ("zeros before", (leaf, index, size, [bytes(32), *path], root)),
            ("leaf before", (leaf, index, size, [leaf, *path], root)),
        ]
        for i in range(len(path)):
            changed = bytes([path[i][0] ^ 1]) + path[i][1:]
            wrong += [
                (
                    f"hash {i} changed",
                    (leaf, index, size, [*path[:i], changed, *path[i + 1 :]], root),
                ),
                (f"hash {i} missing", (leaf, index, size, path[:i] + path[i + 1 :], root)),
                (f"hash {i} twice", (leaf, index, size, [*path[: i + 1], *path[i:]], root)),
                (
                    f"hash {i} cut",
                    (leaf, index, size, [*path[:i], path[i][:31], *path[i + 1 :]], root),
                ),
            ]
        if len(path) > 1:
            wrong += [
                ("reversed", (leaf, index, size, path[::-1], root)),
                ("none", (leaf, index, size, [], root)),
            ]
        for name, arguments in wrong:
            yield pytest.param(arguments, id=f"{index} of {size}: {name}")


PROBES = list(probes())


def test_enough_probes():
    assert len(PROBES) >= 92


@pytest.mark.parametrize("arguments", PROBES)
def test_wrong_paths_fail(arguments):
    assert not check(*arguments)


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 127, 128, 129])
def test_every_leaf_is_proven_at_its_place_alone(size):
    leaves = [merkle.leaf(b"", bytes([i])) for i in range(size)]
    root = merkle.tree(leaves)
    for index in range(size):
        path = merkle.inclusion(leaves, index)
        assert len(path) <= (size - 1).bit_length()
        assert check(leaves[index], index, size, path, root)
        for other in range(size):
            assert other == index or not check(leaves[index], other, size, path, root)


def test_a_path_of_the_wrong_length_is_no_path():
    path = merkle.inclusion(LEAF_HASHES, 5)
    for wrong, message in ((path[:-1], "too few"), ([*path, bytes(32)], "too many")):
        with pytest.raises(s7l.SealError, match=message):
            merkle.included_root(LEAF_HASHES[5], 5, 8, wrong, "path")


def test_no_such_leaf():
    for index in (-1, 3):
        with pytest.raises(IndexError):
            merkle.inclusion(LEAF_HASHES[:3], index)


@pytest.fixture(scope="module")
def oracle():
    """pymerkle's tree over 300 entries; its leaves have no tag, ours an empty one."""
    pymerkle = pytest.importorskip("pymerkle")
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for i in range(300):
        tree.append_entry(str(i).encode())
    return tree


def test_pymerkle_agrees_for_sizes_up_to_300(oracle):
    leaves = [merkle.leaf(b"", str(i).encode()) for i in range(300)]
    for size in range(1, 301):
        root = merkle.tree(leaves[:size])
        assert root == oracle.get_root(size), size
        for index in {0, size // 3, size // 2, size - 1}:
            theirs = oracle.prove_inclusion(index + 1, size).path[1:]
            ours = merkle.inclusion(leaves[:size], index)
            assert sorted(ours) == sorted(theirs), (index, size)
            assert check(leaves[index], index, size, ours, root)
