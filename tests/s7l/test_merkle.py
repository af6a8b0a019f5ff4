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
