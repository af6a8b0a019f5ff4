import hashlib
import struct

import pytest
from tiny import MODEL

from s7jax import s7l
from s7jax.architecture import sealed_tensors
from s7jax.config import S7_140M
from s7jax.s7l.dimensions import architecture_tree, parse_architecture
from s7jax.s7l.layout import place_tensors

S7_140M_MODEL = architecture_tree(S7_140M.model)


def placed(model):
    table = sealed_tensors(parse_architecture(model, "model"))
    places = place_tensors((spec.name, spec.size) for spec in table)
    return {spec.name: (spec, *place) for spec, place in zip(table, places, strict=True)}


def test_offsets_by_hand():
    # (name, data bytes) → (offset, stored): tensors at 64, components at 4,096, stored in 32.
    given = [("a.x", 1), ("a.y", 32), ("a.z", 65), ("b.x", 4_096), ("b.y", 33), ("c", 31)]
    assert place_tensors(given) == [
        *((0, 32), (64, 32), (128, 96)),
        *((4_096, 4_096), (8_192, 64)),
        (12_288, 32),
    ]


def test_component_name_is_the_whole_first_segment():
    assert place_tensors([("expert1.a", 32), ("expert10.a", 32)])[1] == (4_096, 32)


def test_tiny_model_by_hand():
    # vocab 288, trunk 48: embedding.scale 288·4, then 288·48 int8; next component at 4,096·n.
    layout = placed(MODEL)
    assert layout["embedding.scale"][1:] == (0, 1_152)
    assert layout["embedding.weight"][1:] == (1_152, 13_824)  # ends at 14,976
    # expert0: 32·4 in_norm? no: sorted, in_norm.gain (48·4) is first.
    assert layout["expert0.in_norm.gain"][1:] == (16_384, 192)
    assert layout["expert0.in_proj.scale"][1:] == (16_576, 128)
    assert layout["expert0.in_proj.weight"][1:] == (16_704, 1_536)
    # router: bias 4·4 → 32 stored; scale the next multiple of 64; weight 48·4 int8.
    router = layout["router.bias"][1]
    assert router % 4_096 == 0
    assert layout["router.bias"][2] == 32
    assert layout["router.scale"][1:] == (router + 64, 32)
    assert layout["router.weight"][1:] == (router + 128, 192)


def test_expert_layer_of_s7_140m_is_the_table_of_the_specification():
    # §8: tensor, shape, numel = padded bytes.
    table = {
        "attn.q_proj": ((512, 512), 262_144),
        "attn.k_proj": ((512, 512), 262_144),
        "attn.v_proj": ((512, 512), 262_144),
        "attn.o_proj": ((512, 512), 262_144),
        "ffn.fc1": ((512, 2_048), 1_048_576),
        "ffn.fc2": ((2_048, 512), 1_048_576),
    }
    layout = placed(S7_140M_MODEL)
    for expert in range(4):
        for layer in range(8):
            prefix = f"expert{expert}.layer{layer}."
            found = {
                name.removeprefix(prefix).removesuffix(".weight"): (spec.shape, stored)
                for name, (spec, _, stored) in layout.items()
                if name.startswith(prefix) and spec.dtype == "int8"
            }
            assert found == table


def test_s7_140m_as_a_whole():
    layout = placed(S7_140M_MODEL)
    assert sum(s.size for s, _, _ in layout.values() if s.dtype == "int8") == 146_279_424
    for _, offset, stored in layout.values():
        assert (offset % 64, stored % 32) == (0, 0)
    # A layer: six matrices with scales, six gains. Then embedding and router with theirs, the
    # final norm, five tensors of an expert and its residual's format, bias, the trunk's format.
    experts, layers = 4, 6 + 4 * 8
    assert len(layout) == layers * 18 + 2 + 2 + 1 + experts * 7 + 1 + 1


def test_names_are_in_bytewise_order():
    names = [name.encode() for name in placed({**MODEL, "domains": list("abcdefghijkl")})]
    assert names == sorted(names)
    assert b"expert11.in_norm.gain" in names


def test_head_by_hand(pristine):
    data = (pristine / "moe.s7l").read_bytes()
    assert data[:8] == b"S7LM\x00\x03\x02\x05"
    assert struct.unpack(">Q", data[40:48]) == (len(data),)
    assert not any(data[48:64])
    assert not any(data[384:4_096])
    end = 4_096
    for number in range(1, 6):
        record = data[64 * number : 64 * number + 64]
        assert record[:8] == bytes([number]) + bytes(7)
        offset, length = struct.unpack(">QQ", record[8:24])
        assert offset == -(-end // 4_096) * 4_096
        assert not any(data[end:offset])
        end = offset + length
    assert end == len(data)


def test_batch_lane_hash_by_hand(pristine):
    data = (pristine / "moe.s7l").read_bytes()
    offset, length = struct.unpack(">QQ", data[328:344])
    payload = data[offset : offset + length]
    assert hashlib.sha256(b"\0S7L3BTCH" + payload).digest() == data[344:376]


# A change of this root is a change of the format: every file sealed before becomes unreadable.
GOLDEN = "fb68656d49434afdeb064d7fa822a17422a17223557011dd8c701ac80ef23b80"


def test_golden_root(pristine):
    assert s7l.open(pristine / "moe.s7l").root.hex() == GOLDEN


def test_router_without_experts_is_impossible():
    with pytest.raises(s7l.SealError, match="domains"):
        parse_architecture({**MODEL, "domains": []}, "model")
