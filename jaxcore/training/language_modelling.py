"""Training a decoder on next tokens: the objective, with LoRA or all parameters, the loop over rows, perplexity.

    L = - mean log p(x_t | x_<t)  +  w sum_{i != j} max(0, rho - 1 + cos(h_i, h_j)) / pairs

The second term is SimCTG's contrast of a text's tokens (Su et al. 2022); w = 0 leaves maximum likelihood.

    model = Decoder(DecoderConfig(vocab_size=512, num_layers=2, ...))
    rows = {"input_ids": ids, "attention_mask": mask}              # int arrays [rows, time]
    params = fit_language_model(model, rows, config=LanguageModelConfig(num_steps=500), seed=0, mesh=mesh, run=run)
    print(perplexity(model, params, held_out, batch_size=32, mesh=mesh))

A row may also have ``target_mask`` (1 on tokens to be predicted, an answer's), and ``segment_ids`` of packed texts
(`jaxcore.data.packing`). With ``lora`` only adapters are trained: `params` are then `{"base", "adapters"}`, and
`merged_params` gives those that the model runs with.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.data import RowSampler, evaluation_batches, row_batches
from jaxcore.distributed import gather_to_host, jit_on_mesh, replicated, shard_local_batch
from jaxcore.losses.next_token import TokenLogProbs, chunked_next_token_log_probs, next_token_log_probs
from jaxcore.losses.token_margin import token_margin_contrast
from jaxcore.models import Decoder
from jaxcore.models.lora import LoraConfig, init_adapters, merge_adapters
from jaxcore.training.loop import LoopConfig, fit
from jaxcore.training.optimizers import OptimizerConfig, make_optimizer
from jaxcore.training.run_directory import RunDirectory
from jaxcore.training.state import Initialize, Params, TrainState, abstract_state, create_state
from jaxcore.training.step import Gradients, TrainStep, make_train_step

Rows = Mapping[str, Any]
"""``input_ids`` [rows, time], and optionally ``attention_mask``, ``target_mask``, ``segment_ids`` of that shape."""
ROW_NAMES = ("input_ids", "attention_mask", "target_mask", "segment_ids")


@dataclasses.dataclass(frozen=True)
class LanguageModelObjective:
    """What training minimises."""

    margin_weight: float = 0.0
    """w: weight of the token contrast; 1 is SimCTG, 0 maximum likelihood."""
    margin: float = 0.5
    """rho of the token contrast."""
    logits_chunk: int = 0
    """Positions whose logits exist at once; 0 = all."""

    def __post_init__(self) -> None:
        if self.margin_weight < 0 or self.margin < 0 or self.logits_chunk < 0:
            raise ValueError(
                "margin_weight, margin and logits_chunk must be >= 0: got "
                f"{self.margin_weight}, {self.margin}, {self.logits_chunk}"
            )


def _default_optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.1, clip_norm=1.0)


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """A training run of a decoder."""

    num_steps: int = 500
    """Updates."""
    batch_size: int = 32
    """Rows of a batch over all devices."""
    objective: LanguageModelObjective = LanguageModelObjective()
    """What is minimised."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=_default_optimizer)
    """Optimiser and schedule."""
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    """Checkpoints and logging."""

    def __post_init__(self) -> None:
        if self.num_steps < 0 or self.batch_size < 1:
            raise ValueError(f"num_steps must be >= 0 and batch_size >= 1: got {self.num_steps} and {self.batch_size}")


# ---- objective -------------------------------------------------------------------------------------------


def token_log_probs(
    model: Decoder, params: Params, batch: Rows, *, logits_chunk: int = 0, key: Array | None = None
) -> tuple[TokenLogProbs, Float[Array, "batch time hidden"]]:
    """Log probabilities of a batch's tokens, and the hidden states that they come from.

    Args:
        params: of the model (`merged_params` where there are adapters).
        batch: see `Rows`.
        logits_chunk: positions whose logits exist at once; 0 = all.
        key: of dropout; None = none.

    Raises:
        ValueError: an array that is none of `Rows`, shapes that do not fit.
    """
    _check_names(batch)
    variables, segments = {"params": params}, batch.get("segment_ids")
    mask = batch.get("attention_mask")
    if mask is None and segments is not None:
        mask = (segments > 0).astype(jnp.int32)
    options: dict[str, Any] = {} if key is None else {"deterministic": False, "rngs": {"dropout": key}}
    hidden, _ = model.apply(  # type: ignore[misc]
        variables, batch["input_ids"], mask, segment_ids=segments, method="trunk", **options
    )

    def to_logits(states: Array) -> Any:
        return model.apply(variables, states, method="logits")

    targets: Any = {"target_mask": batch.get("target_mask"), "segment_ids": segments}
    if logits_chunk:
        found = chunked_next_token_log_probs(
            hidden, batch["input_ids"], mask, to_logits=to_logits, chunk=logits_chunk, **targets
        )
    else:
        found = next_token_log_probs(to_logits(hidden), batch["input_ids"], mask, **targets)
    return found, hidden


def language_model_loss(
    model: Decoder, params: Params, batch: Rows, objective: LanguageModelObjective, key: Array | None = None
) -> Float[Array, ""]:
    """The loss of a batch, see the module. Arguments and errors as for `token_log_probs`.

    Raises:
        ValueError: the token contrast asked for on packed rows, whose tokens are not one text's.
    """
    found, hidden = token_log_probs(model, params, batch, logits_chunk=objective.logits_chunk, key=key)
    loss = found.negative_mean()
    if not objective.margin_weight:
        return loss
    if "segment_ids" in batch:
        raise ValueError("the token contrast is over the tokens of one text: give a text per row, not packed rows")
    mask = batch.get("attention_mask")
    contrast = token_margin_contrast(
        hidden.astype(jnp.float32), None if mask is None else mask.astype(bool), margin=objective.margin
    )
    return loss + objective.margin_weight * contrast


def language_model_gradients(
    model: Decoder, objective: LanguageModelObjective, *, lora: LoraConfig | None = None
) -> Gradients:
    """`(params, batch, key) -> (loss, gradients)` for `make_train_step`; with `lora`, the base's gradient is zero."""
    drops = max(model.config.dropout, model.config.embedding_dropout, model.config.attention_dropout) > 0

    def loss(params: Params, batch: Rows, key: Array) -> Float[Array, ""]:
        return language_model_loss(model, params, batch, objective, key if drops else None)

    if lora is None:
        return jax.value_and_grad(loss)

    def gradients(params: Params, batch: Rows, key: Array) -> tuple[Float[Array, ""], Params]:
        def of_adapters(adapters: Any) -> Float[Array, ""]:
            merged = merged_params(model, {**params, "adapters": adapters}, lora)
            return loss(merged, batch, key)

        value, gradient = jax.value_and_grad(of_adapters)(params["adapters"])
        return value, {"base": jax.tree.map(jnp.zeros_like, params["base"]), "adapters": gradient}

    return gradients


# ---- parameters ------------------------------------------------------------------------------------------


def language_model_initializer(model: Decoder, lora: LoraConfig | None = None) -> Initialize:
    """key -> fresh parameters with their logical axes; with `lora`, `{"base", "adapters"}`."""

    def initialize(key: Array) -> Params:
        params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        if lora is None:
            return params
        return {"base": params, "adapters": init_adapters(jax.random.fold_in(key, 1), model.config, lora)}

    return initialize


def language_model_optimizer(
    config: OptimizerConfig, num_steps: int, *, lora: LoraConfig | None = None
) -> optax.GradientTransformation:
    """The optimiser of `config`; with `lora`, of the adapters alone (the base has no moments and no decay)."""
    optimizer = make_optimizer(config, max(num_steps, 1))
    return optimizer if lora is None else optax.masked(optimizer, {"base": False, "adapters": True})


def merged_params(model: Decoder, params: Params, lora: LoraConfig | None) -> Params:
    """The parameters that the model runs with: the base with the adapters in it, or `params` without `lora`."""
    if lora is None:
        return params
    return merge_adapters(params["base"], params["adapters"], model.config, scale=lora.scale)


# ---- training and perplexity -----------------------------------------------------------------------------


def language_model_step(
    model: Decoder,
    config: LanguageModelConfig,
    mesh: Mesh,
    *,
    lora: LoraConfig | None = None,
    initialize: Initialize | None = None,
) -> tuple[TrainState, TrainStep]:
    """The abstract training state, and the jitted step ``(state, batch) -> (state, metrics)``.

    Args:
        initialize: key -> parameters; None = `language_model_initializer`.
    """
    optimizer = language_model_optimizer(config.optimizer, config.num_steps, lora=lora)
    state = abstract_state(initialize or language_model_initializer(model, lora), optimizer, mesh)
    gradients = language_model_gradients(model, config.objective, lora=lora)
    return state, make_train_step(gradients, optimizer, state, mesh)


def fit_language_model(
    model: Decoder,
    rows: Rows,
    *,
    config: LanguageModelConfig,
    seed: int,
    mesh: Mesh,
    run: RunDirectory,
    params: Params | None = None,
    lora: LoraConfig | None = None,
    initialize: Initialize | None = None,
    title: str = "language model",
    tick: Callable[[int], bool] = lambda step: False,
) -> Params:
    """Train on rows in shuffled epochs, and return the parameters of the last step (see `merged_params`).

    Args:
        rows: numpy arrays, see `Rows`; every process holds all of them.
        seed: of fresh parameters, of the order of the rows, of dropout.
        params: pretrained parameters of the model to start from; None = fresh ones.
        lora: train adapters of this kind; None = all parameters. Checkpoints hold the adapters, not the base.
        initialize: key -> fresh parameters; None = `language_model_initializer`.
        run, title, tick: as for `jaxcore.training.fit`, which raises what this raises.

    Raises:
        ValueError: fewer rows than a batch takes, a name that `Rows` does not have.
    """
    _check_names(rows)
    sampler = RowSampler(dict(rows), batch_size=config.batch_size, seed=seed)
    initialize = initialize or language_model_initializer(model, lora)
    _, step = language_model_step(model, config, mesh, lora=lora, initialize=initialize)
    if params is not None and lora is not None:
        params = {"base": params, "adapters": init_adapters(jax.random.key(seed), model.config, lora)}
    optimizer = language_model_optimizer(config.optimizer, config.num_steps, lora=lora)
    state = create_state(initialize, optimizer, mesh, seed=seed, params=meta.unbox(params))
    batches = row_batches(
        sampler, num_steps=config.num_steps, process_index=jax.process_index(), process_count=jax.process_count()
    )
    state = fit(
        state, step, batches, num_steps=config.num_steps, mesh=mesh, run=run, loop=config.loop, title=title, tick=tick,
        frozen=() if lora is None else ("base",),
    )  # fmt: skip
    return state.params


def mean_negative_log_likelihood(
    model: Decoder, params: Params, rows: Rows, *, batch_size: int, mesh: Mesh, logits_chunk: int = 0
) -> float:
    """Mean of -log p over all counted tokens of `rows`, in nats. `params` are those the model runs with.

    Raises:
        ValueError: as `token_log_probs`; a batch that does not divide over the mesh; nothing to predict.
    """
    _check_names(rows)

    def of_batch(params: Params, batch: Rows, row_mask: Array) -> tuple[Array, Array]:
        found, _ = token_log_probs(model, params, batch, logits_chunk=logits_chunk)
        counted = jnp.sum(found.counted, axis=1)
        return jnp.sum(jnp.where(row_mask, found.sums(), 0)), jnp.sum(jnp.where(row_mask, counted, 0))

    step = jit_on_mesh(of_batch, mesh, out_shardings=replicated(mesh))
    total, count = 0.0, 0
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for batch in evaluation_batches(dict(rows), batch_size=batch_size, **process):
        inputs = shard_local_batch(mesh, {name: batch[name] for name in rows})
        value, counted = gather_to_host(step(params, inputs, shard_local_batch(mesh, batch["row_mask"])))
        total, count = total - float(value), count + int(counted)
    if not count:
        raise ValueError("nothing to predict: no row has two real tokens of one text that count")
    return total / count


def perplexity(
    model: Decoder, params: Params, rows: Rows, *, batch_size: int, mesh: Mesh, logits_chunk: int = 0
) -> float:
    """`exp` of `mean_negative_log_likelihood`, per token."""
    return math.exp(
        mean_negative_log_likelihood(model, params, rows, batch_size=batch_size, mesh=mesh, logits_chunk=logits_chunk)
    )


def _check_names(rows: Rows) -> None:
    if "input_ids" not in rows or set(rows) - set(ROW_NAMES):
        raise ValueError(f"rows must have input_ids and may have {', '.join(ROW_NAMES[1:])}: got {', '.join(rows)}")
    shapes = {name: np.shape(array) for name, array in rows.items()}
    if len(set(shapes.values())) > 1 or len(shapes["input_ids"]) != 2:
        raise ValueError(f"rows must be arrays [rows, time] of one shape: got {shapes}")
