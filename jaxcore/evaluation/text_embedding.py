"""Texts in, one vector per text out: tokenised, grouped by length, spread over a mesh, and back in input order."""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from jaxcore.data.length_buckets import LengthBatch, batches_by_length, choose_widths
from jaxcore.data.tokenization import pad_rows
from jaxcore.distributed import MeshConfig, batch_sharding, current_ticker, make_mesh, num_batch_shards, replicated
from jaxcore.evaluation.input_checks import positive_integer
from jaxcore.models import Encoder, masked_mean

if TYPE_CHECKING:  # it takes more than a second to import
    from transformers import PreTrainedTokenizerFast

Pooling = Literal["model", "mean", "cls", "max"]
POOLINGS: tuple[Pooling, ...] = ("model", "mean", "cls", "max")

WINDOW_TEXTS = 8192
"""Texts that are sorted by length together."""

# What one more width costs, in tokens computed meanwhile. CPU: a program kept on disk is read in under 0.1 s, at 120
# microseconds a token (six layers of width 384, 2 cores); compiled anew it takes half a second, once. Accelerators
# compute millions of tokens while they compile for seconds.
_COMPILE_TOKENS = {"cpu": 512, "accelerator": 2**20}
_BATCH_TOKENS = {"cpu": 1024, "accelerator": 32768}
_WIDTH_MULTIPLE = {"cpu": 1, "accelerator": 8}
_BATCHES_AHEAD = 3  # dispatched before the host looks at the oldest: the device never waits for the host


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions:
    """What decides the vectors (`pooling`, `normalize`, `max_length`) and, beside rounding, only the speed."""

    pooling: Pooling = "model"
    """The model's own pooler, or mean, first ("cls") or maximum of the last hidden states over the real tokens."""
    normalize: bool = False
    """Scale vectors to unit length; a zero vector stays zero."""
    max_length: int | None = None
    """Tokens after which a text is cut; None = the longest that model and tokenizer take."""
    batch_tokens: int | None = None
    """Tokens of a batch on each device, padding counted; None = 1024 on CPU, 32768 elsewhere."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        for name in ("max_length", "batch_tokens"):
            if getattr(self, name) is not None:
                positive_integer(name, getattr(self, name))


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedWindow:
    """The vectors of one window of texts, and what they cost.

    Attributes:
        vectors: [texts, dim] float32, in input order.
        num_truncated: texts that were cut to the maximal length.
        num_tokens, num_computed: tokens of the texts, and with padding.
        widths: the padded widths in use.
    """

    vectors: Float[np.ndarray, "texts dim"]
    num_truncated: int
    num_tokens: int
    num_computed: int
    widths: tuple[int, ...]


def embed_texts(
    model: Encoder,
    params: Any,
    tokenizer: "PreTrainedTokenizerFast",
    texts: Sequence[str],
    *,
    pooling: Pooling = "model",
    normalize: bool = False,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    widths: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "texts dim"]:
    """One vector per text, float32, in input order.

    Padding is masked exactly: it gets an attention weight of exactly 0 and no part in the pooling, and its own vectors
    are read by nobody. A text's vector therefore depends neither on the batch it was in nor on the number of devices,
    but for the order in which float32 sums are rounded (1e-6 in a MiniLM). A text without a single token has the zero
    vector.

    In a job of several processes every process embeds all the texts it is given, on its own devices.

    Args:
        model: an Encoder.
        params: its parameters; left where they are if they lie on `mesh`, else replicated over it.
        tokenizer: its fast tokenizer (see `jaxcore.data.load_tokenizer`).
        texts: any number of strings.
        pooling, normalize, max_length, batch_tokens: see `EmbeddingOptions`. Normalize modules of sentence-transformers
            directories are not applied: say `normalize=True`.
        widths: padded widths to compile for; None = chosen from the lengths (see `choose_widths`).
        mesh: of this process's devices; None = data-parallel over all of them.

    Raises:
        ValueError: no texts, a text that is not a string (named by its number), an unknown pooling, `max_length`
            beyond what the model takes, a tokenizer that gives ids the model does not have, vectors that are not
            finite.
    """
    if isinstance(texts, str) or not len(texts):
        given = "one string" if isinstance(texts, str) else "none"
        raise ValueError(f"texts must be a sequence of at least one string, got {given}")
    options = EmbeddingOptions(pooling, normalize, max_length, batch_tokens)
    windows = (texts[start : start + WINDOW_TEXTS] for start in range(0, len(texts), WINDOW_TEXTS))
    vectors: np.ndarray | None = None
    start = 0
    for window in embed_windows(
        model, params, tokenizer, windows, options=options, widths=widths, mesh=mesh, num_texts=len(texts)
    ):
        if vectors is None:
            vectors = np.empty((len(texts), window.vectors.shape[1]), np.float32)
        vectors[start : start + len(window.vectors)] = window.vectors
        start += len(window.vectors)
    assert vectors is not None
    return vectors


def embed_windows(
    model: Encoder,
    params: Any,
    tokenizer: "PreTrainedTokenizerFast",
    windows: Iterable[Sequence[str]],
    *,
    options: EmbeddingOptions | None = None,
    widths: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    num_texts: int | None = None,
    advance: Callable[[int], None] = lambda num_texts: None,
) -> Iterator[EmbeddedWindow]:
    """`embed_texts` of one window of texts after the other, as a stream: for more texts than memory holds.

    A window's vectors depend on its texts and `widths` alone, to the last bit on the same devices. While one window is
    computed the next one is read and tokenised in a thread.

    Args:
        windows: the texts; an empty window is an error. Records are counted through all of them in messages.
        options: see `EmbeddingOptions`.
        widths: padded widths; None = chosen from the first window.
        num_texts: texts in all, where known: more of them are worth more widths.
        advance: told after every batch how many texts are done with it.

    Raises:
        ValueError: as `embed_texts`.
    """
    options = options or EmbeddingOptions()
    mesh = mesh or make_mesh(MeshConfig(), jax.local_devices())
    kind = "cpu" if mesh.devices.flat[0].platform == "cpu" else "accelerator"
    tokenize = _tokenizing(tokenizer, model, options)
    plan = _Plan(
        model=model,
        options=options,
        mesh=mesh,
        batch_tokens=options.batch_tokens or _BATCH_TOKENS[kind],
        shards=num_batch_shards(mesh),
    )
    params = on_mesh(params, mesh)
    ahead: collections.deque[_Dispatched] = collections.deque()
    compiled: set[tuple[int, int]] = set()
    for window in _one_ahead(map(tokenize, _numbered(windows))):
        if widths is None:
            repeats = max((num_texts or 0) / len(window.ids), 1.0)
            widths = choose_widths(
                np.fromiter(map(len, window.ids), int),
                longest=text_length(model, tokenizer, options.max_length),
                compile_tokens=_COMPILE_TOKENS[kind],
                repeats=repeats,
                multiple=_WIDTH_MULTIPLE[kind],
            )
        for dispatched in _dispatch(plan, params, window, tuple(widths), compiled):
            ahead.append(dispatched)
            if len(ahead) > _BATCHES_AHEAD:
                yield from _collect(ahead.popleft(), advance)
    while ahead:
        yield from _collect(ahead.popleft(), advance)


def on_mesh(params: Any, mesh: Mesh) -> Any:
    """The parameters on the devices of `mesh`: those that are there stay as they are sharded, others are replicated."""

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            if isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh:
                return leaf
            if not leaf.is_fully_addressable:
                if not leaf.is_fully_replicated:
                    raise ValueError(
                        f"a parameter of shape {leaf.shape} is spread over processes; replicate the parameters first "
                        "(jaxcore.distributed.gather_to_host)"
                    )
                leaf = leaf.addressable_data(0)
        return jax.device_put(leaf, replicated(mesh))

    return jax.tree.map(place, params)


def text_length(model: Encoder, tokenizer: "PreTrainedTokenizerFast", max_length: int | None) -> int:
    """Tokens of the longest text that is not cut: `max_length`, or what model and tokenizer both take.

    Raises:
        ValueError: more than the model has positions for, or no room beside the special tokens.
    """
    most = model.config.max_length
    length = min(most, int(tokenizer.model_max_length)) if max_length is None else max_length
    if length > most:
        raise ValueError(f"max_length is {length}, but the model has {most} positions; give at most {most}")
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if length <= special:
        raise ValueError(f"max_length {length} leaves no room beside {special} special tokens; raise it")
    return length


# ---- host side -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Window:
    """A tokenised window: ids of each text, the number of its first text, and how many texts were cut."""

    ids: list[list[int]]
    first: int
    num_truncated: int


def _numbered(windows: Iterable[Sequence[str]]) -> Iterator[tuple[int, Sequence[str]]]:
    first = 0
    for texts in windows:
        yield first, texts
        first += len(texts)


def _tokenizing(
    tokenizer: "PreTrainedTokenizerFast", model: Encoder, options: EmbeddingOptions
) -> Callable[[tuple[int, Sequence[str]]], _Window]:
    """A function from a numbered window to its ids: the Rust tokenizer by itself, which tokenises in threads."""
    import tokenizers

    # A copy: truncation and padding are settings of the object, which the caller may be using meanwhile.
    backend: Any = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(text_length(model, tokenizer, options.max_length))
    vocab_size = model.config.vocab_size

    def tokenize(numbered: tuple[int, Sequence[str]]) -> _Window:
        first, texts = numbered
        if not len(texts):
            raise ValueError("a window without texts; give at least one text in each")
        wrong = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(f"text {first + wrong} is {type(texts[wrong]).__name__}, not str; decode or drop it")
        encodings = backend.encode_batch_fast(list(texts))
        ids = [encoding.ids for encoding in encodings]
        highest = max((max(row) for row in ids if row), default=0)
        if highest >= vocab_size:
            raise ValueError(
                f"the tokenizer gives id {highest}, but the model has {vocab_size} token vectors; "
                "take the tokenizer that belongs to the model"
            )
        return _Window(ids, first, sum(bool(encoding.overflowing) for encoding in encodings))

    return tokenize


def _one_ahead(windows: Iterator[_Window]) -> Iterator[_Window]:
    """The same windows, the next one made in a thread while its predecessor is in use."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tokenize") as thread:
        upcoming = thread.submit(next, windows, None)
        while (window := upcoming.result()) is not None:
            upcoming = thread.submit(next, windows, None)
            yield window


# ---- device side -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What stays the same for all windows."""

    model: Encoder
    options: EmbeddingOptions
    mesh: Mesh
    batch_tokens: int
    shards: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Dispatched:
    """A batch that the device is at work on, where its vectors go, and the finished window if it is its last."""

    batch: LengthBatch
    vectors: Float[Array, "rows dim"]
    window: EmbeddedWindow
    first: int
    is_last: bool


def _dispatch(
    plan: _Plan, params: Any, window: _Window, widths: tuple[int, ...], compiled: set[tuple[int, int]]
) -> Iterator[_Dispatched]:
    lengths = np.fromiter(map(len, window.ids), np.int32)
    batches = batches_by_length(lengths, widths, batch_tokens=plan.batch_tokens, shards=plan.shards)
    embedded = None
    for number, batch in enumerate(batches):
        vectors = _start(plan, params, window, batch, compiled)
        if embedded is None:
            embedded = EmbeddedWindow(
                vectors=np.empty((len(lengths), vectors.shape[1]), np.float32),
                num_truncated=window.num_truncated,
                num_tokens=int(lengths.sum()),
                num_computed=sum(batch.num_rows * batch.width for batch in batches),
                widths=widths,
            )
        yield _Dispatched(batch, vectors, embedded, window.first, number == len(batches) - 1)


def _start(
    plan: _Plan, params: Any, window: _Window, batch: LengthBatch, compiled: set[tuple[int, int]]
) -> Float[Array, "rows dim"]:
    """Hand a batch to the devices; returns at once, unless its shape is new and has to be compiled."""
    empty: list[list[int]] = [[]] * (batch.num_rows - len(batch.texts))
    rows = [window.ids[text] for text in batch.texts] + empty
    input_ids, lengths = pad_rows(rows, length=batch.width, pad_id=plan.model.config.pad_token_id)
    inputs = jax.device_put((input_ids, lengths), batch_sharding(plan.mesh))
    run = functools.partial(
        _embed_batch,
        params,
        *inputs,
        model=plan.model,
        pooling=plan.options.pooling,
        normalize=plan.options.normalize,
        mesh=plan.mesh,
    )
    if input_ids.shape in compiled:
        return run()
    compiled.add(input_ids.shape)
    with current_ticker().phase("compile"):
        return run()


def _collect(dispatched: _Dispatched, advance: Callable[[int], None]) -> Iterator[EmbeddedWindow]:
    """Wait for a batch and put its vectors where they belong; yields the window when it is complete."""
    texts = dispatched.batch.texts
    vectors = np.asarray(dispatched.vectors)[: len(texts)]
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the vector of text {dispatched.first + int(texts[bad].min())} is not finite: the weights hold NaN, or "
            "float16 overflows (use bfloat16 or float32)"
        )
    dispatched.window.vectors[texts] = vectors
    advance(len(texts))
    if dispatched.is_last:
        yield dispatched.window


@functools.partial(jax.jit, static_argnames=("model", "pooling", "normalize", "mesh"))
def _embed_batch(
    params: Mapping[str, Any],
    input_ids: Int[Array, "rows width"],
    lengths: Int[Array, "rows"],
    *,
    model: Encoder,
    pooling: Pooling,
    normalize: bool,
    mesh: Mesh,
) -> Float[Array, "rows dim"]:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        mask = jnp.arange(input_ids.shape[1]) < lengths[:, None]
        output = model.apply({"params": params}, input_ids, mask)
        pooled = _pool(output, mask, pooling).astype(jnp.float32)
        pooled = jnp.where(lengths[:, None] > 0, pooled, 0.0)
        if normalize:
            norms = jnp.linalg.norm(pooled, axis=1, keepdims=True)
            pooled = pooled / jnp.where(norms == 0, 1.0, norms)
        return jax.lax.with_sharding_constraint(pooled, batch_sharding(mesh))


def _pool(output: Any, mask: Array, pooling: Pooling) -> Float[Array, "rows dim"]:
    hidden = output.last_hidden_state
    if pooling == "mean":
        return masked_mean(hidden.astype(jnp.float32), mask)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return jnp.where(mask[:, :, None], hidden, -jnp.inf).max(1)
    if output.pooled is None:
        raise ValueError("the model has no pooler of its own; choose the pooling mean, cls or max")
    return output.pooled
