"""Requests for attribution in, source spans out: tokens laid out in padded rows, located on device, mapped back.

A request has candidate sources, pieces of documents, and a query, parts of a text. Its tokens' states come either from
texts read one by one (`localise_texts`: any encoder, or hashed words), or from a decoder that reads sources and query
in one row (`localise_with_decoder`), each query token having seen the sources.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.attribution.span_localisation import (
    attention_scores,
    localise_tokens,
    localise_windows,
    mean_state,
    piece_scores,
    supported_runs,
)
from jaxcore.attribution.text_spans import Offsets, Span, spans_of_tokens, tokens_in_spans
from jaxcore.data.length_buckets import batches_by_length
from jaxcore.distributed import batch_sharding, jit_on_mesh, num_batch_shards
from jaxcore.evaluation.row_map import Tick, map_rows
from jaxcore.models.layer_states import layer_states

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class LocaliserConfig:
    """How source tokens are chosen."""

    method: Literal["tokens", "windows", "attention"] = "tokens"
    """Runs of tokens close to the query's; windows around the closest ones; runs of attended tokens (decoders)."""
    threshold: float = 0.5
    """Smallest cosine of a chosen token (tokens), or smallest share of the highest score (attention)."""
    max_gap: int = 2
    """Tokens between chosen ones that are taken, too."""
    min_run: int = 2
    """Shorter runs are dropped."""
    num_anchors: int = 5
    """Windows: tokens one of which must be in a window."""
    max_length: int = 20
    """Windows: tokens of the longest."""
    min_share: float = 0.9
    """Windows: further ones must have this share of the best one's score."""
    max_windows: int = 3
    """Windows: most that are taken."""
    centre: bool = False
    """Subtract the mean of the row's source states, which hidden states of language models share."""

    def __post_init__(self) -> None:
        if min(self.min_run, self.num_anchors, self.max_length, self.max_windows) < 1 or self.max_gap < 0:
            raise ValueError(
                "min_run, num_anchors, max_length, max_windows must be >= 1 and max_gap >= 0: got "
                f"{self.min_run}, {self.num_anchors}, {self.max_length}, {self.max_windows}, {self.max_gap}"
            )
        if not -1 <= self.threshold <= 1 or not 0 <= self.min_share <= 1:
            raise ValueError(
                f"threshold must be in [-1, 1] and min_share in [0, 1]: got {self.threshold}, {self.min_share}"
            )


class Request(NamedTuple):
    """What is asked: which parts of the sources support these parts of the query's text."""

    sources: tuple[Span, ...]
    documents: Mapping[str, str]
    query: str
    query_spans: tuple[Offsets, ...]
    question: str = ""
    """What the output answered; a decoder reads it between sources and query."""


class Located(NamedTuple):
    """The answer."""

    spans: tuple[Span, ...]
    best_source: int
    """The source that has most of the query as a whole; -1 where there is none."""
    left_out: int = 0
    """Sources that a decoder's row had no room for."""


class TextTokens(NamedTuple):
    """A text's tokens: where they stand, and their states."""

    offsets: Int[np.ndarray, "tokens 2"]
    states: Float[np.ndarray, "tokens dim"]


ReadTexts = Callable[[Sequence[str]], Sequence[TextTokens]]


# ---- on device -------------------------------------------------------------------------------------------


def localiser_step(config: LocaliserConfig, mesh: Mesh) -> Any:
    """Jitted ``(threshold, rows) -> {"kept", "best"}`` over states given as ``source`` [B, S, D], ``pieces`` [B, S],
    ``query`` [B, Q, D], ``query_mask`` [B, Q].

    Raises:
        ValueError: the attention form, which needs a decoder.
    """
    if config.method == "attention":
        raise ValueError("method 'attention' needs a decoder: take 'tokens' or 'windows'")

    def step(threshold: Float[Array, ""], batch: Mapping[str, Array]) -> dict[str, Array]:
        names = ("source", "pieces", "query", "query_mask")
        rows = (batch[name] for name in names)
        return jax.vmap(lambda *row: _localise(config, threshold, *row))(*rows)

    return jit_on_mesh(step, mesh, out_shardings=batch_sharding(mesh))


def decoder_localiser_step(config: LocaliserConfig, model: Any, mesh: Mesh, *, layer: int) -> Any:
    """Jitted ``((params, threshold), rows) -> {"kept", "best"}`` over rows of ``input_ids``, ``attention_mask``,
    ``pieces`` [B, T], ``query_positions``, ``query_mask`` [B, Q], ``output_mask`` [B, T]; states are those of `layer`.
    """

    def step(given: tuple[Any, Float[Array, ""]], batch: Mapping[str, Array]) -> dict[str, Array]:
        params, threshold = given
        name = "attention_weights" if config.method == "attention" else "layer_output"
        states = layer_states(model, params, batch["input_ids"], batch["attention_mask"], layer=layer, name=name)
        names = ("pieces", "query_positions", "query_mask", "output_mask")

        def row(states: Array, pieces: Array, positions: Array, mask: Array, output: Array) -> dict[str, Array]:
            if config.method == "attention":
                return _attended(config, threshold, states, pieces, positions, mask, output)
            return _localise(config, threshold, states, pieces, states[positions], mask)

        return jax.vmap(row)(states, *(batch[name] for name in names))

    return jit_on_mesh(step, mesh, out_shardings=batch_sharding(mesh))


def _localise(
    config: LocaliserConfig, threshold: Array, source: Array, pieces: Array, query: Array, mask: Array
) -> dict[str, Array]:
    source, query = source.astype(jnp.float32), query.astype(jnp.float32)
    if config.centre:
        shared = mean_state(source, pieces >= 0)
        source, query = source - shared, query - shared
    if config.method == "windows":
        found = localise_windows(
            source, pieces, query, mask, num_anchors=config.num_anchors, max_length=config.max_length,
            min_share=config.min_share, max_windows=config.max_windows,
        )  # fmt: skip
    else:
        found = localise_tokens(
            source, pieces, query, mask, threshold=threshold, max_gap=config.max_gap, min_run=config.min_run
        )
    best = jnp.argmax(piece_scores(source, pieces, query, mask, num_pieces=len(pieces)))
    return {"kept": found.kept, "best": best}


def _attended(
    config: LocaliserConfig,
    threshold: Array,
    attention: Array,
    pieces: Array,
    positions: Array,
    mask: Array,
    output: Array,
) -> dict[str, Array]:
    asked = jnp.zeros(len(pieces), bool).at[positions].max(mask)
    sources = pieces >= 0
    scores = attention_scores(attention, sources, asked, output)
    chosen = sources & (scores > threshold * jnp.max(scores)) & (scores > 0)
    kept = supported_runs(chosen, pieces, max_gap=config.max_gap, min_run=config.min_run)
    slots = jnp.where(sources, pieces, len(pieces))
    totals = jax.ops.segment_sum(jnp.where(sources, scores, 0), slots, num_segments=len(pieces) + 1)[:-1]
    there = jax.ops.segment_max(sources.astype(jnp.int32), slots, num_segments=len(pieces) + 1)[:-1] > 0
    return {"kept": kept, "best": jnp.argmax(jnp.where(there, totals, -jnp.inf))}


# ---- on the host -----------------------------------------------------------------------------------------


def localise_texts(
    requests: Sequence[Request],
    read: ReadTexts,
    step: Any,
    *,
    threshold: float,
    mesh: Mesh,
    batch_tokens: int = 16384,
    tick: Tick = lambda step: False,
) -> list[Located]:
    """Locate every request from the states of texts that are read one by one, each text once.

    Args:
        read: tokens and states of texts.
        step: see `localiser_step`.
        threshold: see `LocaliserConfig`.
        batch_tokens: source tokens of a batch on each device, padding counted.

    Raises:
        ValueError: a query without tokens.
    """
    wanted = dict.fromkeys(text for request in requests for text in (request.query, *_source_texts(request)))
    tokens = dict(zip(wanted, read(list(wanted)), strict=True))
    laid_out = [_text_row(request, tokens) for request in requests]
    located: list[Located] = [Located((), -1)] * len(requests)
    widths = _widths([len(row.pieces) for row in laid_out], least=64, factor=4)
    for chosen, num_rows, rows in _batches(laid_out, widths, mesh, batch_tokens):
        found = map_rows(step, jnp.float32(threshold), rows, batch_size=num_rows, mesh=mesh, tick=tick)
        for number, index in enumerate(chosen):
            located[index] = _located(requests[index], laid_out[index], found, number)
    return located


def localise_with_decoder(
    requests: Sequence[Request],
    params: Any,
    tokenizer: "PreTrainedTokenizerFast",
    step: Any,
    *,
    threshold: float,
    max_length: int,
    mesh: Mesh,
    bos_token_id: int | None = None,
    batch_tokens: int = 16384,
    tick: Tick = lambda step: False,
) -> list[Located]:
    """Locate every request from the states of a decoder that has read its sources, then its query.

    Sources that do not fit into `max_length` tokens, query included, are left out from the end.

    Args:
        params: of the decoder.
        step: see `decoder_localiser_step`.
        bos_token_id: begins each row; it is no source, as it draws attention and likeness of all tokens to it.

    Raises:
        ValueError: a query without tokens, or longer than a row.
    """
    laid_out = [_decoder_row(request, tokenizer, max_length, bos_token_id) for request in requests]
    located: list[Located] = [Located((), -1)] * len(requests)
    given = (params, jnp.float32(threshold))
    widths = _widths([len(row.pieces) for row in laid_out], least=64, factor=2, most=max_length)
    for chosen, num_rows, rows in _batches(laid_out, widths, mesh, batch_tokens):
        found = map_rows(step, given, rows, batch_size=num_rows, mesh=mesh, tick=tick)
        for number, index in enumerate(chosen):
            located[index] = _located(requests[index], laid_out[index], found, number)
    return located


class _Row(NamedTuple):
    """A request's arrays, and for each source token its piece and its place in it."""

    arrays: dict[str, np.ndarray]
    """By name; those of source tokens first, `query...` of query tokens."""
    pieces: np.ndarray
    offsets: np.ndarray
    left_out: int = 0


def _source_texts(request: Request) -> list[str]:
    return [request.documents[document][start:end] for document, start, end in request.sources]


def _text_row(request: Request, tokens: Mapping[str, TextTokens]) -> _Row:
    found = [tokens[text] for text in _source_texts(request)]
    query = tokens[request.query]
    asked = tokens_in_spans(query.offsets, request.query_spans)
    if not asked.any():
        raise ValueError(f"no token of the query {request.query[:60]!r} is in its spans {list(request.query_spans)}")
    states = query.states[asked]
    pieces = np.repeat(np.arange(len(found)), [len(part.offsets) for part in found]).astype(np.int32)
    source = np.concatenate([part.states for part in found]) if found else np.zeros((0, states.shape[1]), np.float32)
    offsets = np.concatenate([part.offsets for part in found]) if found else np.zeros((0, 2), int)
    arrays = {"source": source, "pieces": pieces, "query": states, "query_mask": np.ones(len(states), bool)}
    return _Row(arrays, pieces, offsets)


def _decoder_row(request: Request, tokenizer: Any, max_length: int, bos: int | None) -> _Row:
    def encode(text: str) -> tuple[list[int], np.ndarray]:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], np.asarray(encoded["offset_mapping"], int).reshape(-1, 2)

    query_ids, query_offsets = encode(request.query)
    asked = tokens_in_spans(query_offsets, request.query_spans) if len(query_ids) else np.zeros(0, bool)
    if not asked.any():
        raise ValueError(f"no token of the query {request.query[:60]!r} is in its spans {list(request.query_spans)}")
    joint = encode("\n")[0]
    question = [*encode(request.question)[0], *joint] if request.question else []
    ids = [] if bos is None else [bos]
    if len(ids) + len(question) + len(query_ids) > max_length:
        raise ValueError(f"the query {request.query[:60]!r} has {len(query_ids)} tokens, a row {max_length}: raise it")
    pieces, offsets = [-1] * len(ids), [(0, 0)] * len(ids)
    left_out = 0
    for number, text in enumerate(_source_texts(request)):
        source_ids, places = encode(text)
        if len(ids) + len(source_ids) + len(joint) + len(question) + len(query_ids) > max_length:
            left_out = len(request.sources) - number
            break
        ids += [*source_ids, *joint]
        pieces += [number] * len(source_ids) + [-1] * len(joint)
        offsets += [*map(tuple, places), *[(0, 0)] * len(joint)]
    sources = len(ids) + len(question)
    positions = sources + np.flatnonzero(asked)
    ids += [*question, *query_ids]
    pieces += [-1] * (len(ids) - len(pieces))
    offsets += [(0, 0)] * (len(ids) - len(offsets))
    arrays = {
        "input_ids": np.asarray(ids, np.int32),
        "attention_mask": np.ones(len(ids), np.int32),
        "pieces": np.asarray(pieces, np.int32),
        "output_mask": np.arange(len(ids)) >= sources,
        "query_positions": positions.astype(np.int32),
        "query_mask": np.ones(len(positions), bool),
    }
    return _Row(arrays, arrays["pieces"], np.asarray(offsets, int), left_out)


_FILL = {"pieces": -1}


def _batches(
    rows: Sequence[_Row], widths: Sequence[int], mesh: Mesh, batch_tokens: int
) -> Iterator[tuple[np.ndarray, int, dict[str, np.ndarray]]]:
    """Rows of like length: their numbers, the number of rows of the program, their arrays padded to one width."""
    if not len(rows):
        return
    lengths = np.asarray([len(row.pieces) for row in rows])
    query_width = _widths([len(row.arrays["query_mask"]) for row in rows], least=32, factor=2)[-1]
    shards = num_batch_shards(mesh)
    for batch in batches_by_length(lengths, widths, batch_tokens=batch_tokens, shards=shards):
        arrays: dict[str, np.ndarray] = {}
        for name, example in rows[0].arrays.items():
            width = query_width if name.startswith("query") else batch.width
            parts = [rows[index].arrays[name] for index in batch.texts]
            arrays[name] = np.full((len(parts), width, *example.shape[1:]), _FILL.get(name, 0), example.dtype)
            for row, part in zip(arrays[name], parts, strict=True):
                row[: len(part)] = part
        yield batch.texts, batch.num_rows, arrays


def _widths(lengths: Sequence[int], *, least: int, factor: int, most: int | None = None) -> list[int]:
    """Padded widths up to the longest row: few, since each is a program; none beyond `most`."""
    widths = [least if most is None else min(least, most)]
    while widths[-1] < max(lengths, default=0):
        widths.append(factor * widths[-1] if most is None else min(factor * widths[-1], most))
    return widths


def _located(request: Request, row: _Row, found: Mapping[str, np.ndarray], number: int) -> Located:
    if not len(row.pieces) or row.pieces.max() < 0:
        return Located((), -1, row.left_out)
    kept = np.asarray(found["kept"][number][: len(row.pieces)])
    spans = spans_of_tokens(kept, row.pieces, row.offsets, request.sources, request.documents)
    return Located(tuple(spans), int(found["best"][number]), row.left_out)
