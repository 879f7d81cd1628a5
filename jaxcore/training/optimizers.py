"""Optimisers and schedules from a config: a thin, typed front on optax."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimiser with a warm-up schedule.

    Attributes:
        name: adamw, adafactor (external learning rate: no relative step, no parameter scaling), amsgrad or sgd.
        learning_rate: peak value, reached at the end of the warm-up.
        schedule: what follows the warm-up: linear or cosine decay to 0, or constant.
        warmup_steps: linear warm-up from 0, in steps; where 0, `warmup_fraction` of all steps.
        warmup_fraction: share of all steps, used when `warmup_steps` is 0.
        weight_decay: decoupled, on matrices only (no bias or norm scale); of sgd and amsgrad, added to the gradient, of
            amsgrad to that of every parameter (torch's Adam).
        beta1, beta2: AdamW's and AMSGrad's moment decays.
        clip_norm: global gradient norm limit; 0 for none.
    """

    name: Literal["adamw", "adafactor", "amsgrad", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    warmup_fraction: float = 0.06
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"optimizer.learning_rate must be positive: got {self.learning_rate}")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"optimizer.warmup_fraction must be in [0, 1): got {self.warmup_fraction}")


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then the configured decay, reaching 0 at `num_steps`."""
    warmup = config.warmup_steps or round(config.warmup_fraction * num_steps)
    decay_steps = max(num_steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(config.learning_rate, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, decay_steps),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.schedule]
    if warmup == 0:
        return after
    # Starts at peak/warmup, not at 0: a first step that changes nothing would be a step thrown away.
    first = config.learning_rate / warmup
    return optax.join_schedules(
        [optax.linear_schedule(first, config.learning_rate, max(warmup - 1, 1)), after], [warmup]
    )


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The configured optimiser over `num_steps` steps; every option is applied by optax."""
    schedule = learning_rate_schedule(config, num_steps)
    if config.name == "adamw":
        update = optax.adamw(schedule, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=_is_matrix)
    elif config.name == "adafactor":
        update = optax.adafactor(
            schedule,
            multiply_by_parameter_scale=False,
            weight_decay_rate=config.weight_decay or None,
            weight_decay_mask=_is_matrix,
        )
    elif config.name == "amsgrad":
        update = _amsgrad(schedule, config)
    else:
        update = optax.chain(optax.add_decayed_weights(config.weight_decay, mask=_is_matrix), optax.sgd(schedule))
    if config.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update


def _amsgrad(schedule: optax.Schedule, config: OptimizerConfig) -> optax.GradientTransformation:
    """``Adam(amsgrad=True)`` of torch: the maximum is over second moments as they are, and corrected afterwards.

        g = gradient + weight_decay p,   m, v: moving averages of g and g^2,   u = max(u, v)
        p <- p - lr (m / (1 - beta1^t)) / (sqrt(u / (1 - beta2^t)) + eps)

    Correcting before the maximum, optax's default, keeps the first gradients for ever. Source: Reddi et al. 2018.
    """
    correction = lambda count: jnp.sqrt(1 - config.beta2 ** (count + 1.0))  # noqa: E731
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_amsgrad(config.beta1, config.beta2, bias_correction_nu=False),
        optax.scale_by_schedule(correction),
        optax.scale_by_learning_rate(schedule),
    )


def _is_matrix(params: optax.Params) -> optax.Params:
    """True for weights, False for biases and norm scales, by name: stacked layers add an axis to every shape."""

    def decays(path: tuple, _: object) -> bool:
        name = next(str(entry.key) for entry in reversed(path) if hasattr(entry, "key"))
        return name not in {"bias", "scale"}

    return jax.tree_util.tree_map_with_path(decays, params)


def only_last_layers(optimizer: optax.GradientTransformation, count: int) -> optax.GradientTransformation:
    """`optimizer` with its updates zeroed outside the last `count` layers and the pooler of an `Encoder`.

    Layers are stacked along the first axis of every parameter under ``layers``; weight decay is zeroed with the rest.
    """

    def masked(path: tuple, update: jax.Array) -> jax.Array:
        name = next(entry.key for entry in path if hasattr(entry, "key"))
        if name == "layers":
            kept = jnp.arange(update.shape[0]) >= update.shape[0] - count
            return update * kept.reshape(-1, *(1,) * (update.ndim - 1)).astype(update.dtype)
        return update if name == "pooler" else jnp.zeros_like(update)

    keep = optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(masked, updates))
    return optax.chain(optimizer, keep)
