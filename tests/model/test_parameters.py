import re
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from s7jax import architecture, mesh
from s7jax.config import PRESETS, Config, preset
from s7jax.model import parameters

S7_140M = preset("s7-140m").model


def test_exact_counts_of_s7_140m():
    """The architecture's table: component sizes without norm gains, then the gains."""
    matrices, vectors = Counter(), Counter()
    for p in architecture.parameters(S7_140M):
        if p.trained:
            (matrices if p.is_matrix else vectors)[p.component] += p.size
    assert matrices == {
        "embedding": 18_874_368,
        "trunk": 23_592_960,
        **{f"expert{e}": 25_952_256 for e in range(4)},
        "router": 3_072,
    }
    assert vectors.pop("router") == 4
    assert sum(vectors.values()) == 47_872
    assert sum(architecture.counts(S7_140M).values()) == 146_327_300


@pytest.mark.parametrize(
    ("name", "low", "high"), [("s7-mini", 11e6, 12e6), ("s7-nano", 2e6, 2.1e6)]
)
def test_small_presets_are_as_large_as_said(name: str, low: float, high: float):
    total = sum(architecture.counts(preset(name).model).values())
    assert low <= total <= high


def test_shapes_of_an_expert_layer_are_those_of_the_specification():
    shapes = {
        name.removeprefix("expert2.layer7."): leaf.shape
        for name, leaf in parameters.named_tensors(parameters.table(S7_140M))
        if name.startswith("expert2.layer7.") and name.endswith("weight")
    }
    square = (512, 512)
    assert shapes == {
        **{f"attn.{name}_proj.weight": square for name in "qkvo"},
        "ffn.fc1.weight": (512, 2_048),
        "ffn.fc2.weight": (2_048, 512),
    }


def test_every_partition_spec_has_its_arrays_rank_and_megatron_layout():
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters.table(S7_140M)):
        name, spec = jax.tree_util.keystr(path, simple=True, separator="/"), leaf.sharding.spec
        assert len(spec) == len(leaf.shape), name
        if re.search(r"(q|k|v)_proj|fc1", name):
            assert spec == P(None, None, "model"), name
        elif re.search(r"o_proj|fc2", name):
            assert spec == P(None, "model", None), name
        elif name.startswith("embedding"):
            assert spec == P("model", None), name
        else:
            assert set(spec) == {None}, name


def test_names_are_in_bytewise_order_and_components_contiguous():
    names = [name for name, _ in parameters.named_tensors(parameters.table(S7_140M))]
    assert names == sorted(names, key=str.encode)
    assert len(set(names)) == len(names)
    components = [name.split(".")[0] for name in names]
    assert [c for i, c in enumerate(components) if c not in components[:i]] == sorted(
        set(components)
    )


def test_initial_weights_are_the_same_bytes_on_any_mesh(tiny: Config):
    digests = {
        shape: parameters.digest(parameters.initial(tiny.model, 3, mesh.make(mesh.parse(shape))))
        for shape in ("1x1", "8x1", "1x2", "4x2", "2x2")
    }
    assert len(set(digests.values())) == 1, digests
    other = parameters.initial(tiny.model, 4, mesh.make(mesh.SINGLE))
    assert parameters.digest(other) != digests["1x1"]


def test_the_table_is_the_same_under_any_mesh(tiny: Config):
    parameters.table.cache_clear()
    with jax.set_mesh(mesh.make(mesh.parse("4x2"))):
        inside = parameters.table(tiny.model)
    parameters.table.cache_clear()
    outside = parameters.table(tiny.model)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding.spec), inside) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.sharding.spec), outside
    )


def test_weights_are_really_split_over_the_mesh(tiny: Config):
    params = parameters.initial(tiny.model, 0, mesh.make(mesh.parse("4x2")))
    fc1 = params["trunk"]["layers"]["ffn"]["fc1"]["weight"]
    assert {shard.data.shape for shard in fc1.addressable_shards} == {(2, 32, 32)}
    embedding = params["embedding"]["weight"]
    assert {shard.data.shape for shard in embedding.addressable_shards} == {(160, 32)}


def test_a_host_copy_is_whole_and_is_not_kept(tiny: Config):
    split = parameters.initial(tiny.model, 0, mesh.make(mesh.parse("4x2")))
    whole = parameters.host(parameters.initial(tiny.model, 0, mesh.make(mesh.SINGLE)))
    once, again = parameters.host(split), parameters.host(split)
    assert jax.tree.all(jax.tree.map(np.array_equal, once, whole))
    fc1 = [copy["trunk"]["layers"]["ffn"]["fc1"]["weight"] for copy in (once, again)]
    assert not np.shares_memory(*fc1), "the array keeps what NumPy was given"


def test_digest_sees_every_bit_and_every_name(tiny: Config):
    params = parameters.host(parameters.initial(tiny.model, 0, mesh.make(mesh.SINGLE)))
    before = parameters.digest(params)
    weight = params["expert3"]["layers"]["attn"]["q_proj"]["weight"].copy()
    weight.view(np.uint32)[1, 5, 7] ^= 1
    changed = jax.tree.map(lambda leaf: leaf, params)
    changed["expert3"]["layers"]["attn"]["q_proj"]["weight"] = weight
    assert parameters.digest(changed) != before
    swapped = params | {"expert0": params["expert1"], "expert1": params["expert0"]}
    assert parameters.digest(swapped) != before


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_what_the_modules_make_is_the_table(config: Config):
    """Flax asks the table for every parameter: none is left out, none is made beside it."""
    made = dict(parameters.named_tensors(parameters.table(config.model)))
    wanted = {p.name: p for p in architecture.parameters(config.model) if p.trained}
    assert {name: leaf.shape for name, leaf in made.items()} == {
        name: p.shape for name, p in wanted.items()
    }


def test_a_claim_of_many_layers_is_counted_without_making_them():
    for config in PRESETS.values():
        tensors = architecture.sealed_tensors(config.model)
        assert architecture.sealed_count(config.model) == len(tensors)
        names = [tensor.name.encode() for tensor in tensors]
        assert names == sorted(set(names))
