"""What a model's attention says about the sentences of traces: suppression matrices and receiver heads, on a mesh.

Source: Bogdan et al. 2025 (Thought Anchors).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.attribution.attention_suppression import sentence_log_means, suppressed_divergences, suppression_matrix
from jaxcore.attribution.receiver_heads import (
    kurtosis,
    mean_kurtosis,
    split_half_reliability,
    top_heads,
    vertical_scores,
    with_sentence_attention,
)
from jaxcore.attribution.sentence_matrices import Matrix
from jaxcore.data.reasoning_trace import ReasoningTrace
from jaxcore.distributed import batch_sharding, jit_on_mesh
from jaxcore.evaluation.row_map import map_rows


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """How attention between sentences is measured."""

    max_tokens: int = 64
    """Tokens that traces are padded to; longer ones are refused."""
    max_sentences: int = 32
    """Sentences that traces are padded to."""
    sources_per_row: int = 8
    """Source sentences of a row: a trace stands in several rows, which devices share."""
    batch_size: int = 8
    """Rows of a call over all devices."""
    sources_at_once: int = 8
    """Sources of a row that go through the model together."""
    time_block: int = 128
    """Tokens whose logits are formed together."""
    temperature: float = 0.6
    """Of the divergence between distributions."""
    shift: int = -1
    """-1: a divergence counts for the token that is predicted; 0, as released: for the one before."""
    proximity: int = 4
    """Sentences nearer than this do not count in a head's vertical scores (published: 4 and 20)."""
    drop_first: int = 0
    """Vertical scores left out at the beginning of a trace."""
    top_heads: int = 20
    """Receiver heads (published: 16 to 64)."""
    skip_layers: int = 1
    """Layers at the bottom that have none."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_sentences", "sources_per_row", "batch_size", "sources_at_once", "time_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"attention.{name} must be at least 1: got {getattr(self, name)}")
        if self.top_heads < 1 or self.shift not in (0, -1) or not self.temperature > 0:
            raise ValueError(
                "attention.top_heads must be at least 1, shift 0 or -1, temperature above 0: got "
                f"{self.top_heads}, {self.shift}, {self.temperature}"
            )


def suppression_step(model: Any, config: AttentionConfig, mesh: Mesh) -> Any:
    """Jitted ``(params, rows) -> [rows, sources, targets]``, rows as `row_shapes` says: log means of divergences."""

    def run(params: Any, batch: Mapping[str, Array]) -> Float[Array, "rows sources targets"]:
        divergences = suppressed_divergences(
            model,
            params,
            batch["input_ids"],
            batch["attention_mask"],
            batch["sources"],
            temperature=config.temperature,
            chunk_size=config.sources_at_once,
            time_block=config.time_block,
        )
        return sentence_log_means(divergences, batch["targets"], shift=config.shift)

    return jit_on_mesh(run, mesh, out_shardings=batch_sharding(mesh))


def attention_step(model: Any, config: AttentionConfig, mesh: Mesh) -> Any:
    """Jitted ``(params, rows) -> vertical scores [rows, layers, heads, sentences]``."""

    def run(params: Any, batch: Mapping[str, Array]) -> Float[Array, "rows layers heads sentences"]:
        def states() -> Any:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            return model.apply({"params": params}, ids, mask, method="trunk")[0]

        matrices = with_sentence_attention(states, batch["targets"])()[1]
        scores = vertical_scores(matrices, proximity=config.proximity, drop_first=config.drop_first)
        return jnp.moveaxis(scores, 0, 1)

    return jit_on_mesh(run, mesh, out_shardings=batch_sharding(mesh))


def row_shapes(config: AttentionConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one row of `suppression_step`; `attention_step` takes it without ``sources``."""
    time = (config.max_tokens,)
    return {
        "input_ids": time,
        "attention_mask": time,
        "targets": (config.max_sentences, 2),
        "sources": (config.sources_per_row, 2),
    }


def trace_rows(traces: Sequence[ReasoningTrace], config: AttentionConfig) -> dict[str, Int[np.ndarray, "traces ..."]]:
    """Traces padded on the right, a row each, as `attention_step` takes them.

    Raises:
        ValueError: no trace, one with more tokens or sentences than the configuration has room for.
    """
    if not traces:
        raise ValueError("no traces")
    ids = np.zeros((len(traces), config.max_tokens), np.int32)
    mask = np.zeros_like(ids)
    targets = np.zeros((len(traces), config.max_sentences, 2), np.int32)
    for row, trace in enumerate(traces):
        if len(trace.tokens) > config.max_tokens or len(trace) > config.max_sentences:
            raise ValueError(
                f"{trace.name} has {len(trace.tokens)} tokens and {len(trace)} sentences, but there is room for "
                f"{config.max_tokens} and {config.max_sentences}: raise attention.max_tokens or max_sentences"
            )
        ids[row, : len(trace.tokens)], mask[row, : len(trace.tokens)] = trace.tokens, 1
        targets[row, : len(trace)] = trace.spans
    return {"input_ids": ids, "attention_mask": mask, "targets": targets}


def suppression_matrices(
    step: Any,
    params: Any,
    traces: Sequence[ReasoningTrace],
    config: AttentionConfig,
    *,
    mesh: Mesh,
    tick: Callable[[int], bool] = lambda batch: False,
) -> list[Matrix]:
    """Of each trace: how much suppressing each sentence changes each later one, normalised by target."""
    rows = trace_rows(traces, config)
    groups = [-(-len(trace) // config.sources_per_row) for trace in traces]
    of_row = np.repeat(np.arange(len(traces)), groups)
    sources = np.zeros((len(of_row), config.sources_per_row, 2), np.int32)
    firsts = np.concatenate([np.arange(count) for count in groups]) * config.sources_per_row
    for row, (number, first) in enumerate(zip(of_row.tolist(), firsts.tolist(), strict=True)):
        spans = traces[number].spans[first : first + config.sources_per_row]
        sources[row, : len(spans)] = spans
    batch = {name: array[of_row] for name, array in rows.items()} | {"sources": sources}
    found = map_rows(step, params, batch, batch_size=config.batch_size, mesh=mesh, tick=tick)
    return [
        suppression_matrix(found[of_row == number].reshape(-1, config.max_sentences)[: len(trace), : len(trace)])
        for number, trace in enumerate(traces)
    ]


class ReceiverHeads(NamedTuple):
    """Receiver heads of a model on some traces."""

    heads: Int[np.ndarray, "heads 2"]
    """(layer, head), best first."""
    kurtoses: Float[np.ndarray, "layers heads"]
    """Mean over traces."""
    reliability: float
    """Correlation of the mean kurtosis between even and odd traces; NaN for a single trace."""
    scores: list[Float[np.ndarray, " M"]]
    """Of each trace's sentences: mean vertical score over the receiver heads; NaN where undefined."""


def receiver_heads(
    step: Any,
    params: Any,
    traces: Sequence[ReasoningTrace],
    config: AttentionConfig,
    *,
    mesh: Mesh,
    tick: Callable[[int], bool] = lambda batch: False,
) -> ReceiverHeads:
    """Heads of largest mean kurtosis of their vertical scores, and what they say about each sentence."""
    rows = trace_rows(traces, config)
    vertical = map_rows(step, params, rows, batch_size=config.batch_size, mesh=mesh, tick=tick)
    kurtoses = np.asarray(kurtosis(jnp.asarray(vertical)))
    heads = top_heads(kurtoses, config.top_heads, skip_layers=config.skip_layers)
    chosen = vertical[:, heads[:, 0], heads[:, 1]].mean(1)
    return ReceiverHeads(
        heads=heads,
        kurtoses=mean_kurtosis(kurtoses),
        reliability=split_half_reliability(kurtoses) if len(traces) > 1 else float("nan"),
        scores=[chosen[row, : len(trace)] for row, trace in enumerate(traces)],
    )
