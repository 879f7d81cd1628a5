"""A decoder on the bench: directions found on preference pairs, steering judged on others, each as one jitted program.

    bench = SteeringBench(steering_programs(model, mesh), params, batch_size=32, fill=tokenizer.eos_token_id)
    rows = encode_pairs(pairs, tokenizer)                        # jaxcore.data.preference_pairs
    scores = bench.attribute(rows)["scores"]                     # which tokens speak for the chosen response
    direction = grains_direction(bench.token_effects(rows, scores, k=10))
    shifts = scaled_shifts(direction, bench.mean_lengths(rows), layers=(15,), strength=0.5)
    bench.evaluate(test_rows, shifts)["margin"].mean()

`steering_vectors` does the first half by the name of a method.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.attribution import completeness_error, input_x_gradient, integrated_gradients, smoothed
from jaxcore.attribution.preference_score import (
    Objective,
    Reduction,
    ResponsePairs,
    mean_state_norms,
    preference_margin,
    preference_score,
    response_states,
)
from jaxcore.attribution.steering_directions import (
    Aggregate,
    MaskingEffects,
    grains_direction,
    head_shifts,
    in_context_vector,
    masking_effects,
    mean_difference,
    random_direction,
    top_k_tokens,
    with_lengths,
)
from jaxcore.distributed import batch_sharding, jit_on_mesh
from jaxcore.evaluation.row_map import Tick, map_rows
from jaxcore.generation.steering import SteeringVectors, shift_edits
from jaxcore.transforms import intervene

Rows = Mapping[str, np.ndarray]
"""As `jaxcore.data.preference_pairs.encode_pairs` gives them."""
Explainer = Literal["integrated_gradients", "input_x_gradient", "smoothgrad", "chosen_only"]
"""How tokens are scored; "chosen_only" is integrated gradients of log p(chosen) alone."""
Kind = Literal["norm", "plain", "heads"]
KINDS: Mapping[Kind, dict[str, Any]] = {
    "norm": {},
    "plain": {"norm_preserving": False},
    "heads": {"site": "attention_heads", "norm_preserving": False},
}
"""Ways to steer: states keep their lengths; they do not; attention heads are shifted."""
SteeringMethod = Literal["grains", "mean_difference", "caa", "icv", "iti", "random"]

_PAIR_FIELDS = tuple(field.name for field in dataclasses.fields(ResponsePairs))
_INPUTS = ("prompt_ids", *_PAIR_FIELDS)
_SMOOTHGRAD: dict[str, Any] = {"noise_scale": 0.01, "num_samples": 20}  # the released code's


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringPrograms:
    """The jitted functions of a decoder on a mesh; rows are split over it."""

    model: Any
    mesh: Mesh
    attribute: Mapping[Explainer, Any]
    """(params, rows) -> "scores" of tokens [rows, width]; "change" of the score from the baseline; its "error"."""
    states: Any
    """(params, rows) -> last states of "residual" and "heads" [rows, 2, layers, ...]; mean "lengths" [rows, layers]."""
    effects: Any
    """(params, rows, with the masks "positive", "negative" and the id "fill") -> `MaskingEffects` [rows, 2, ...]."""
    evaluate: Mapping[Kind, Any]
    """((params, shifts), rows) -> "margin" of each pair, and the likeliest "answer" token."""


def steering_programs(
    model: Any,
    mesh: Mesh,
    *,
    num_steps: int = 20,
    chunk_size: int | None = None,
    reduction: Reduction = "sum",
    seed: int = 0,
) -> SteeringPrograms:
    """One program for each thing that is done; nothing is compiled before it is called.

    Args:
        num_steps, chunk_size: of integrated gradients; the baseline is zero.
        reduction: of log probabilities over a response's tokens.
        seed: of SmoothGrad's noise.
    """
    options: dict[str, Any] = {"num_steps": num_steps, "chunk_size": chunk_size, "reduction": reduction, "seed": seed}
    jitted = functools.partial(jit_on_mesh, mesh=mesh, out_shardings=batch_sharding(mesh))
    return SteeringPrograms(
        model=model,
        mesh=mesh,
        attribute={name: jitted(_attribution(model, name, **options)) for name in get_args(Explainer)},
        states=jitted(_states(model)),
        effects=jitted(_effects(model)),
        evaluate={name: jitted(_evaluation(model, kind, reduction)) for name, kind in KINDS.items()},
    )


def _prompt_and_pairs(model: Any, params: Any, rows: Mapping[str, Array]) -> tuple[Array, ResponsePairs]:
    """Vectors of prompts, in float32 so that attributions add up, and their responses."""
    prompt = model.apply({"params": params}, rows["prompt_ids"], method="embed")
    return prompt.astype(jnp.float32), ResponsePairs(**{name: rows[name] for name in _PAIR_FIELDS})


def _attribution(
    model: Any, explainer: Explainer, *, num_steps: int, chunk_size: int | None, reduction: Reduction, seed: int
) -> Callable[..., Any]:
    objective: Objective = "chosen" if explainer == "chosen_only" else "contrastive"

    def attribute(params: Any, rows: Mapping[str, Array]) -> dict[str, Array]:
        prompt, pairs = _prompt_and_pairs(model, params, rows)
        score = preference_score(model, params, pairs, objective=objective, reduction=reduction)
        if explainer == "input_x_gradient":
            found = input_x_gradient(score, prompt)
        elif explainer == "smoothgrad":
            smooth = smoothed(input_x_gradient, chunk_size=chunk_size, **_SMOOTHGRAD)
            found = smooth(score, prompt, jax.random.key(seed))
        else:
            found = integrated_gradients(score, prompt, num_steps=num_steps, chunk_size=chunk_size)
        change = score(prompt) - score(jnp.zeros_like(prompt))
        return {"scores": jnp.sum(found, axis=-1), "change": change, "error": completeness_error(score, prompt, found)}

    return attribute


def _states(model: Any) -> Callable[..., Any]:
    def states(params: Any, rows: Mapping[str, Array]) -> dict[str, Array]:
        prompt, pairs = _prompt_and_pairs(model, params, rows)
        return {
            "residual": response_states(model, params, prompt, pairs),
            "heads": response_states(model, params, prompt, pairs, name="attention_heads"),
            "lengths": mean_state_norms(model, params, prompt, pairs.prompt_mask),
        }

    return states


def _effects(model: Any) -> Callable[..., Any]:
    def effects(params: Any, rows: Mapping[str, Array]) -> MaskingEffects:
        prompt, pairs = _prompt_and_pairs(model, params, rows)
        fill = model.apply({"params": params}, rows["fill"][:, None], method="embed")
        masks = rows["positive"] != 0, rows["negative"] != 0
        found = masking_effects(model, params, prompt, pairs, *masks, fill=fill)
        return MaskingEffects(*(part.reshape(prompt.shape[0], 2, *part.shape[1:]) for part in found))

    return effects


def _evaluation(model: Any, kind: Mapping[str, Any], reduction: Reduction) -> Callable[..., Any]:
    def evaluate(params_and_shifts: Any, rows: Mapping[str, Array]) -> dict[str, Array]:
        params, shifts = params_and_shifts

        def run(rows: Mapping[str, Array]) -> dict[str, Array]:
            prompt, pairs = _prompt_and_pairs(model, params, rows)
            margin = preference_margin(model, params, prompt, pairs, reduction=reduction)
            options = {"embeddings": prompt, "method": "trunk"}
            hidden, _ = model.apply({"params": params}, None, pairs.prompt_mask, **options)
            logits = model.apply({"params": params}, hidden[:, -1], method="logits")
            return {"margin": margin, "answer": jnp.argmax(logits, axis=-1)}

        return intervene(run, shift_edits(shifts, **kind))(rows)

    return evaluate


# ---- bench -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Shifts:
    """What is added in every layer, zero where it is not steered, and how."""

    values: Float[Array, "layers ..."]
    kind: Kind = "norm"


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringBench:
    """A decoder with its parameters; runs its programs over rows of any number, results on the host."""

    programs: SteeringPrograms
    params: Any
    batch_size: int
    """Rows of the global batch."""
    fill: int
    """Id whose vector takes the place of a masked token's."""
    tick: Tick = lambda step: False
    """Called once per batch on every process; True raises `jaxcore.evaluation.Interrupted`."""

    @property
    def config(self) -> Any:
        return self.programs.model.config

    def no_shifts(self) -> Shifts:
        """The model as it is."""
        return Shifts(jnp.zeros((self.config.num_layers, self.config.hidden_size)))

    def attribute(self, rows: Rows, explainer: Explainer = "integrated_gradients") -> dict[str, np.ndarray]:
        """Scores of the prompts' tokens; see `SteeringPrograms.attribute`."""
        return self._map(self.programs.attribute[explainer], self.params, _inputs(rows))

    def states(self, rows: Rows) -> dict[str, np.ndarray]:
        """Last states of prompts and responses; see `SteeringPrograms.states`."""
        return self._map(self.programs.states, self.params, _inputs(rows))

    def mean_lengths(self, rows: Rows) -> Float[Array, " layers"]:
        """Mean length of the residual stream behind each block, over the prompts."""
        return jnp.asarray(self.states(rows)["lengths"].mean(0))

    def token_effects(self, rows: Rows, scores: np.ndarray, k: int) -> MaskingEffects:
        """What masking the k highest and the k lowest tokens takes away; a row per prompt and response.

        Special tokens (``rows["special"]``) are never masked.
        """
        positive, negative = top_k_tokens(jnp.asarray(scores), jnp.asarray(rows["special"] == 0), k)
        masks = {"positive": np.asarray(positive, np.int32), "negative": np.asarray(negative, np.int32)}
        fill = np.full(len(scores), self.fill, np.int32)
        found = self._map(self.programs.effects, self.params, {**_inputs(rows), **masks, "fill": fill})
        return MaskingEffects(*(jnp.asarray(part.reshape(-1, *part.shape[2:])) for part in found))

    def evaluate(self, rows: Rows, shifts: Shifts | None = None, params: Any = None) -> dict[str, np.ndarray]:
        """Margins and likeliest next tokens under steering, of this model or of other parameters (fine-tuned ones)."""
        shifts = shifts or self.no_shifts()
        given = (
            self.params if params is None else params,
            np.asarray(shifts.values),
        )  # NumPy: the same on every process
        return self._map(self.programs.evaluate[shifts.kind], given, _inputs(rows))

    def _map(self, program: Any, params: Any, rows: Rows) -> Any:
        return map_rows(program, params, rows, batch_size=self.batch_size, mesh=self.programs.mesh, tick=self.tick)


def _inputs(rows: Rows) -> dict[str, np.ndarray]:
    return {name: rows[name] for name in _INPUTS}


def scaled_shifts(
    direction: Float[Array, "layers hidden"],
    lengths: Float[Array, " layers"],
    *,
    layers: Sequence[int],
    strength: float,
    kind: Kind = "norm",
) -> Shifts:
    """A direction in the steered layers, `strength` times as long as the states there are on average."""
    steered = jnp.zeros(direction.shape[0]).at[jnp.asarray(layers)].set(1.0)
    return Shifts(with_lengths(direction, strength * lengths * steered), kind)


# ---- methods by name -------------------------------------------------------------------------------------


def steering_vectors(
    bench: SteeringBench,
    rows: Rows,
    *,
    method: SteeringMethod = "grains",
    layers: Sequence[int],
    k: int = 10,
    aggregate: Aggregate = "pca",
    num_heads: int = 48,
    seed: int = 0,
) -> SteeringVectors:
    """Steering vectors found on preference pairs; at strength 1 each is as long as its layer's states on average.

    | method | direction |
    |---|---|
    | grains | what masking the tokens for and against the chosen response takes away (`grains_direction`) |
    | mean_difference | mean state of chosen less rejected responses; states keep their lengths |
    | caa | the same, states do not keep their lengths |
    | icv | first principal component of these differences over all layers together |
    | iti | shifts of single heads, in standard deviations and not in lengths of states |
    | random | Gaussian |

    Args:
        layers: steered layers; of ITI those whose heads may be shifted.
        k, aggregate: of grains.
        num_heads: of iti, over all layers before those are cut to `layers`; at most as many as there are.
        seed: of random.

    Raises:
        ValueError: an unknown method; a direction that is zero in all layers (responses with equal states).
    """
    if method not in get_args(SteeringMethod):
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(get_args(SteeringMethod))}")
    config, layers = bench.config, tuple(layers)
    states = bench.states(rows)
    kind: Kind = {"caa": "plain", "iti": "heads"}.get(method, "norm")  # type: ignore[assignment]
    if method == "iti":
        most = config.num_layers * config.num_heads
        vectors = head_shifts(jnp.asarray(states["heads"]), num_heads=min(num_heads, most))
    else:
        residual = jnp.asarray(states["residual"])
        if method == "grains":
            scores = bench.attribute(rows)["scores"]
            direction = grains_direction(bench.token_effects(rows, scores, k), aggregate=aggregate)
        elif method == "icv":
            direction = in_context_vector(residual)
        elif method == "random":
            direction = random_direction(jax.random.key(seed), jnp.ones(residual.shape[2:]))
        else:
            direction = mean_difference(residual)
        vectors = with_lengths(direction, jnp.asarray(states["lengths"].mean(0)))
    chosen = np.asarray(vectors)[list(layers)]
    if not np.isfinite(chosen).all():
        raise ValueError(f"the direction of {method} is not finite: look at the model's weights")
    if not chosen.any():
        raise ValueError(f"the direction of {method} is zero in layers {layers}: the responses have equal states there")
    return SteeringVectors(chosen, layers, config.num_layers, method=method, **KINDS[kind])
