"""The training step of both phases.

Phase 1 trains embedding and trunk. Phase 2 trains one expert on the frozen trunk: gradients
are taken with respect to the expert alone, so the program holds no trunk backward.

A step is a fixed number of logical microbatches of fixed shape. The gradient of one is one
compiled program, the optimizer's update another; what lies between is additions in a fixed
tree (:mod:`s7jax.train.reduction`). With ``reduction="tree"`` both programs are compiled for a
single data-parallel group and never see the others: any number of groups computes the same
bits. With ``"psum"`` the whole mesh is one group and the compiler sums as it likes.
Shape suffixes: B sequences, T time, D hidden, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture
from s7jax.config import ComputeConfig, Recipe
from s7jax.mesh import DATA
from s7jax.model.language_model import EXACT, Params, expert_output, trunk_output
from s7jax.model.loss import mean_loss
from s7jax.train.compilation import for_groups
from s7jax.train.groups import join, split, submeshes
from s7jax.train.optimizer import optimizer
from s7jax.train.phase import Phase
from s7jax.train.reduction import across_groups, tree_sum


class TrainState(NamedTuple):
    """What training changes: parameters, moments (float32) and the running mean of the loss."""

    params: Params
    optimizer: Any
    loss: jax.Array  # float32; 0 before the first step


Loss = Callable[[Architecture, ComputeConfig, Params, Params, jax.Array], jax.Array]


def trunk_loss(
    cfg: Architecture, compute: ComputeConfig, params: Params, _: Params, tokens_BT: jax.Array
) -> jax.Array:
    """Mean next-token loss of the trunk; ``tokens`` hold one more position than the context."""
    h_BTD = trunk_output(cfg, params, tokens_BT[:, :-1], compute)
    return mean_loss(cfg, compute, params, h_BTD, tokens_BT[:, 1:])


def expert_loss(
    cfg: Architecture, compute: ComputeConfig, expert: Params, frozen: Params, tokens_BT: jax.Array
) -> jax.Array:
    """Mean next-token loss of an expert on the frozen trunk."""
    h_BTD = trunk_output(cfg, frozen, tokens_BT[:, :-1], compute)
    refined_BTD = expert_output(cfg, expert, h_BTD, compute)
    return mean_loss(cfg, compute, frozen, refined_BTD, tokens_BT[:, 1:])


def loss_of(phase: Phase) -> Loss:
    """What a phase minimises."""
    return trunk_loss if phase.expert is None else expert_loss


def initial_state(recipe: Recipe, params: Params) -> TrainState:
    """Fresh moments beside the parameters, sharded as they are."""
    moments = jax.jit(optimizer(recipe).init)(params)
    zero = jax.jit(lambda: jnp.zeros((), jnp.float32, out_sharding=P()))()
    return TrainState(params=params, optimizer=moments, loss=zero)


LOSS_MEMORY = 0.98  # of the running mean that spikes are told by


class Stepper:
    """Steps a training state on a mesh; the state lives in the groups between steps."""

    def __init__(
        self,
        cfg: Architecture,
        recipe: Recipe,
        loss: Loss,
        mesh: Mesh,
        state: TrainState,
        frozen: Params,
        reduction: str = "tree",
        compute: ComputeConfig = EXACT,
    ) -> None:
        """Take over ``state`` and ``frozen``, both laid out on ``mesh``."""
        self._mesh, self._recipe = mesh, recipe
        self._groups = submeshes(mesh) if reduction == "tree" else (mesh,)
        self._tree = reduction == "tree"
        self._states = split(state, self._groups)
        self._gradient_sum: list[Any] | None = None
        self._frozen = split(frozen, self._groups)
        self._gradient = gradient_program(cfg, loss, compute)
        self._update = update_program(recipe)
        self._gradients: list[Callable[..., Any]] | None = None  # as each group calls them
        self._updates: list[Callable[..., Any]] | None = None

    @property
    def state(self) -> TrainState:
        """The training state on the whole mesh."""
        return join(self._states, self._mesh)

    @property
    def gradient_sum(self) -> Params:
        """Sum of the gradients of all microbatches of the last step, which must have kept it."""
        assert self._gradient_sum is not None
        return join(self._gradient_sum, self._mesh)

    def program_digest(self, context: int) -> str:
        """SHA-256 of the StableHLO of both programs, as one group runs them.

        With the tree it does not depend on the number of groups.
        """
        group, state, frozen = self._groups[0], self._states[0], self._frozen[0]
        rows = self._recipe.microbatch * (1 if self._tree else group.shape[DATA])
        shape, at = (rows, context + 1), NamedSharding(group, P(DATA))
        tokens = jax.ShapeDtypeStruct(shape, np.int32, sharding=at)
        total = jax.eval_shape(lambda: (state.loss, state.params))
        sha, one = hashlib.sha256(), everywhere(np.float32(1), group)
        true = everywhere(np.bool_(True), group)
        with jax.set_mesh(group):
            for program, args in (
                (self._gradient, (state.params, frozen, tokens)),
                (self._update, (state, total, one, one, true)),
            ):
                sha.update(program.lower(*args).as_text().encode())
        return sha.hexdigest()

    def microbatches(self, tokens: np.ndarray) -> Iterator[tuple[jax.Array, Params]]:
        """Loss and gradient of every microbatch of a step, in order; in one process."""
        for group, leaves in enumerate(self._rows(tokens)):
            for rows in leaves:
                yield self._gradient_of(group, rows)

    def _gradient_of(self, group: int, rows: np.ndarray) -> Any:
        """Loss and gradient of one microbatch, computed by a group."""
        mesh = self._groups[group]
        args = self._states[group].params, self._frozen[group], place(rows, mesh)
        if self._gradients is None:
            self._gradients = for_groups(self._gradient, self._groups, args)
        return _under(mesh, self._gradients[group], *args)

    def step(
        self,
        tokens: np.ndarray,
        learning_rate: float,
        apply: bool = True,
        keep_gradient: bool = False,
    ) -> dict[str, jax.Array]:
        """One optimizer step on the global batch, int32 [batch, T + 1].

        A step whose loss or gradient is not finite, or whose loss is a spike, leaves the state
        as it was; so does any step with ``apply`` false. With ``keep_gradient`` there is
        :attr:`gradient_sum` until the next step.

        Returns:
            float32 scalars: ``loss`` in nats per token, ``grad_norm`` before clipping,
            ``skipped`` 1 or 0.
        """
        leaves = self._rows(tokens)

        def gradient(i: int) -> list[Any]:
            return [self._gradient_of(group, rows[i]) for group, rows in enumerate(leaves)]

        totals = tree_sum(gradient, leaves[0].shape[0], self._groups)
        if self._tree:
            totals = across_groups(totals, self._mesh)
        self._gradient_sum = [gradient for _, gradient in totals] if keep_gradient else None
        count = self._recipe.batch // self._recipe.microbatch
        if not self._tree:
            count //= self._mesh.shape[DATA]  # each leaf is already a mean over the groups
        scalars = np.float32(learning_rate), np.float32(count), np.bool_(apply)
        args = [
            (state, total, *(everywhere(value, group) for value in scalars))
            for group, state, total in zip(self._groups, self._states, totals, strict=True)
        ]
        if self._updates is None:
            self._updates = for_groups(self._update, self._groups, args[0])
        updated = [
            _under(group, update, *given)
            for group, update, given in zip(self._groups, self._updates, args, strict=True)
        ]
        self._states = [state for state, _ in updated]
        return updated[0][1]

    def _rows(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Each local group's leaves, [leaf, sequence, T + 1]: contiguous rows of the batch."""
        data = self._mesh.shape[DATA]
        if not self._tree:
            return [tokens.reshape(-1, self._recipe.microbatch * data, tokens.shape[1])]
        every = tokens.reshape(data, -1, self._recipe.microbatch, tokens.shape[1])
        first = [row[0] for row in self._mesh.devices]
        return [every[first.index(group.devices[0, 0])] for group in self._groups]


def _under(mesh: Mesh, program: Callable[..., Any], *args: Any) -> Any:
    with jax.set_mesh(mesh):
        return program(*args)


def place(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Rows of a batch over the data groups of a mesh; every process gives the whole batch."""
    return _moved(rows, NamedSharding(mesh, P(DATA)))


def everywhere(value: np.generic, mesh: Mesh) -> jax.Array:
    """A scalar on every device of a mesh; every process gives the same."""
    return _moved(np.asarray(value), NamedSharding(mesh, P()))


def _moved(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Each device's part of a value that every process has, moved there explicitly."""
    parts = sharding.addressable_devices_indices_map(value.shape).items()
    shards = [jax.device_put(value[at], device) for device, at in parts]
    return jax.make_array_from_single_device_arrays(value.shape, sharding, shards)


@cache
def gradient_program(cfg: Architecture, loss: Loss, compute: ComputeConfig = EXACT) -> Any:
    """The program ``(params, frozen, tokens_BT) → (loss, gradient)`` of one microbatch."""
    return jax.jit(jax.value_and_grad(partial(loss, cfg, compute)))


@cache
def update_program(recipe: Recipe) -> Any:
    """The program ``(state, sums of loss and gradient, rate, count, apply) → (state, metrics)``.

    The skip rule is part of the program: skipping a step and being told to skip it are the same.
    """
    rule = optimizer(recipe)

    @partial(jax.jit, donate_argnums=0)
    def update(
        state: TrainState,
        total: Any,
        learning_rate: jax.Array,
        count: jax.Array,
        apply: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, gradient = jax.tree.map(lambda x: x / count, total)
        norm = optax.tree.norm(gradient)
        mean = jnp.where(state.loss > 0, state.loss, loss)
        good = apply & jnp.isfinite(loss) & jnp.isfinite(norm) & (loss < mean + recipe.spike)
        with jax.numpy_dtype_promotion("standard"):  # optax takes float ** int
            change, moments = rule.update(gradient, state.optimizer, state.params)
        params = jax.tree.map(lambda p, c: p - learning_rate * c, state.params, change)
        new = TrainState(params, moments, LOSS_MEMORY * mean + (1 - LOSS_MEMORY) * loss)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return kept, {"loss": loss, "grad_norm": norm, "skipped": 1.0 - good.astype(jnp.float32)}

    return update
