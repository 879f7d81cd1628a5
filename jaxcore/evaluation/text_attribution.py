"""Texts in, one score per token out, by any number of attribution methods: grouped by length, spread over a mesh.

What is explained is a `TextModel`: the score of a classifier's class (or of one class rather than another), for a text
or a pair of texts, or the similarity of an encoder's embedding to a vector. What is varied are the word embeddings; the
baseline of a token is the embedding of the padding token.
"""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxcore.attribution.input_checks import Score
from jaxcore.attribution.method_names import TOKEN_METHODS, expected_total
from jaxcore.attribution.scores import contrast, similarity
from jaxcore.attribution.token_task import token_task
from jaxcore.data.length_buckets import LengthBatch, batches_by_length, choose_widths
from jaxcore.data.tokenization import pad_rows
from jaxcore.distributed import batch_sharding, current_ticker, jit_on_mesh, num_batch_shards, replicated
from jaxcore.evaluation.text_explanation import (
    CLASS_SCORES,
    AttributionOptions,
    ExplainedWindow,
    MethodScores,
    TextExplanation,
)
from jaxcore.evaluation.text_model import (
    Text,
    TextModel,
    TokenizedText,
    TokenRows,
    embedding_of,
    logits_of,
    reading_first_token,
    text_limit,
    tokenized,
    word_vectors,
)
from jaxcore.models import Encoder

# A token is computed hundreds of times, so one more width pays sooner than for embedding; see `choose_widths`.
_COMPILE_TOKENS = {"cpu": 512, "accelerator": 2**15}
_BATCH_TOKENS = {"cpu": 1024, "accelerator": 16384}
_WIDTH_MULTIPLE = {"cpu": 1, "accelerator": 8}
_BATCHES_AHEAD = 1


def explain_windows(
    explained: TextModel,
    windows: Iterable[tuple[int, Sequence[Text]]],
    *,
    options: AttributionOptions,
    mesh: Mesh,
    widths: Sequence[int] | None = None,
    num_texts: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[ExplainedWindow]:
    """Explain one window of texts after the other, as a stream.

    A window's scores depend on its texts, the number of its first text, and `widths` alone, to the last bit on the
    same devices. Random methods draw anew for every batch; what one draws does not depend on the others asked for.

    Args:
        windows: (number of the first text, texts), at least one text in each; all single, or all pairs.
        options: see `AttributionOptions`.
        mesh: of this process's devices.
        widths: padded widths; None = chosen from the first window.
        num_texts: texts in all, where known: more of them are worth more widths.
        advance: told after every batch and method how many texts are done with it.

    Raises:
        ValueError: a text that is empty or too long (for the model, or for a method), pairs for a model or tokenizer
            that reads none, a class out of range, a tokenizer that gives ids the model does not have, attributions that
            are not finite (names text and method).
    """
    kind = "cpu" if mesh.devices.flat[0].platform == "cpu" else "accelerator"
    programs = _Programs(explained, options, mesh)
    shards = num_batch_shards(mesh)
    ahead: collections.deque[_Dispatched] = collections.deque()
    for first, texts in windows:
        window = _Window(first, tokenized(explained, texts, first, truncate=options.truncate))
        lengths = np.fromiter((len(text.ids) for text in window.texts), np.int32)
        longest = _checked_for_methods(options.methods, lengths, first, text_limit(explained))
        if widths is None:
            widths = choose_widths(
                lengths,
                longest=longest,
                compile_tokens=_COMPILE_TOKENS[kind],
                repeats=max((num_texts or 0) / len(texts), 1.0),
                multiple=_WIDTH_MULTIPLE[kind],
            )
        batches = batches_by_length(
            lengths, widths, batch_tokens=options.batch_tokens or _BATCH_TOKENS[kind], shards=shards
        )
        results = ExplainedWindow([None] * len(texts), tuple(widths))  # type: ignore[list-item]  # filled below
        most_rows = -(-max(num_texts or 0, len(texts)) // shards) * shards
        for number, batch in enumerate(batches):
            batch = dataclasses.replace(batch, num_rows=min(batch.num_rows, most_rows))
            outputs = programs.dispatch(window, batch, number)
            ahead.append(_Dispatched(window, batch, outputs, results, number == len(batches) - 1))
            if len(ahead) > _BATCHES_AHEAD:
                yield from _collect(ahead.popleft(), explained, advance)
    while ahead:
        yield from _collect(ahead.popleft(), explained, advance)


# ---- host side -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Window:
    """The number of the first text, and all of them as tokens."""

    first: int
    texts: list[TokenizedText]


@dataclasses.dataclass(frozen=True, eq=False)
class _Dispatched:
    """A batch that the devices are at work on, and the window its explanations go to."""

    window: _Window
    batch: LengthBatch
    outputs: dict[str, Any]
    results: ExplainedWindow
    is_last: bool


def _checked_for_methods(methods: Sequence[str], lengths: Int[np.ndarray, " texts"], first: int, limit: int) -> int:
    """The most tokens that the model and all methods take; ValueError for a text with more."""
    for name in methods:
        most = TOKEN_METHODS[name].max_tokens
        if most is None:
            continue
        if lengths.max() > most:
            raise ValueError(
                f"{name} takes texts of up to {most} tokens, special ones counted: text {first + lengths.argmax()} has "
                f"{lengths.max()}; kernel_shap and shapley_sampling take longer ones"
            )
        limit = min(limit, most)
    return limit


def _collect(
    dispatched: _Dispatched, explained: TextModel, advance: Callable[[int], None]
) -> Iterator[ExplainedWindow]:
    """Wait for a batch, method by method, and make its explanations; yields the window when it is complete."""
    window, texts = dispatched.window, dispatched.batch.texts.tolist()
    lengths = [len(window.texts[text].ids) for text in texts]
    model = {name: np.asarray(value) for name, value in dispatched.outputs["model"].items()}
    for row, text in enumerate(texts):
        if not np.isfinite(model["score"][row]):
            raise ValueError(
                f"the score of text {window.first + text} is not finite: the weights hold NaN, or --dtype overflows"
            )
    methods: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for name, (output, error) in dispatched.outputs["methods"].items():
        with current_ticker().phase("evaluate"):
            scores, finish = np.asarray(output), TOKEN_METHODS[name].finish
            if finish is not None:
                mask = np.arange(dispatched.batch.width) < np.asarray(lengths)[:, None]
                scores = finish(scores[: len(texts)], mask).astype(np.float32)
        for row, text in enumerate(texts):
            if not np.isfinite(scores[row]).all():
                raise ValueError(
                    f"{name} gives values that are not finite for text {window.first + text}: the model or its "
                    "gradient is NaN or infinite there (compute in float32 if --dtype is another)"
                )
        methods[name] = scores, None if error is None else np.asarray(error)
        advance(len(texts))
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        found = {
            name: MethodScores(scores[row, :length], None if error is None else _finite(error[row]))
            for name, (scores, error) in methods.items()
        }
        values = {name: array[row] for name, array in model.items()}
        dispatched.results.explanations[text] = _explanation(explained, window, text, values, found)
    if dispatched.is_last:
        yield dispatched.results


def _explanation(
    explained: TextModel, window: _Window, text: int, values: dict[str, Any], methods: dict[str, MethodScores]
) -> TextExplanation:
    is_class, item = "target" in values, window.texts[text]
    both = (item.text, None) if isinstance(item.text, str) else item.text
    return TextExplanation(
        number=window.first + text,
        text=both[0],
        tokens=tuple(explained.tokenizer.convert_ids_to_tokens(item.ids.tolist())),
        offsets=item.offsets,
        special=item.special,
        truncated=item.truncated,
        predicted=int(values["predicted"]) if is_class else None,
        target=int(values["target"]) if is_class else None,
        probability=_number(values["probability"]) if is_class and len(explained.labels) > 1 else None,
        score=_number(values["score"]),
        baseline_score=_finite(values["baseline_score"]),
        methods=methods,
        text_pair=both[1],
        second_start=item.second_start,
    )


def _number(value: Any) -> float:
    """A float32 as the float with the fewest digits that rounds to it."""
    return float(str(np.float32(value)))


def _finite(value: Any) -> float | None:
    """The same; None where the model gives the baseline no finite score."""
    return _number(value) if np.isfinite(value) else None


# ---- device side -----------------------------------------------------------------------------------------


class _Programs:
    """The jitted programs, one per method and one for the scores; each is traced once for each shape of batch."""

    def __init__(self, explained: TextModel, options: AttributionOptions, mesh: Mesh) -> None:
        classes = len(explained.labels)
        for name in ("target", "versus"):
            chosen = getattr(options, name)
            if chosen is not None and not 0 <= chosen < classes:
                raise ValueError(f"{name} {chosen} is out of range: the model has {classes} classes")
        self._explained, self._options, self._mesh = explained, options, mesh
        reference = np.zeros(1, np.float32) if explained.reference is None else explained.reference
        self._fixed = explained.params, jax.device_put(reference, replicated(mesh))
        plan = _Plan(explained.model, options, explained.content_free_tokens(), explained.words())
        self._outputs = jit_on_mesh(functools.partial(_outputs, plan=plan), mesh)
        self._methods = {
            name: jit_on_mesh(functools.partial(_method_scores, plan=plan, name=name), mesh) for name in options.methods
        }
        self._compiled: set[tuple[int, ...]] = set()

    def dispatch(self, window: _Window, batch: LengthBatch, number: int) -> dict[str, Any]:
        """Hand a batch to the devices, all methods; returns before they are done, unless there is to be compiled."""
        # Rows without a text repeat the last one: nothing is undefined in them.
        texts = [*batch.texts, *[batch.texts[-1]] * (batch.num_rows - len(batch.texts))]
        chosen = [window.texts[text] for text in texts]
        ids, lengths = pad_rows([text.ids for text in chosen], length=batch.width, pad_id=self._explained.pad_token_id)
        segments, _ = pad_rows([text.segments for text in chosen], length=batch.width, pad_id=0)
        rows = jax.device_put(TokenRows(ids, lengths, segments), batch_sharding(self._mesh))  # type: ignore[arg-type]
        is_new = ids.shape not in self._compiled
        self._compiled.add(ids.shape)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._options.seed), window.first), number)

        def call(program: Any, *arguments: Any) -> Any:
            if not is_new:
                return program(*self._fixed, rows, *arguments)
            with current_ticker().phase("compile"):
                return program(*self._fixed, rows, *arguments)

        model = call(self._outputs)
        targets = model.get("target", rows.lengths)  # a similarity has no classes and looks at none
        methods = {
            name: call(program, targets, jax.random.fold_in(key, zlib.crc32(name.encode())))
            for name, program in self._methods.items()
        }
        return {"model": model, "methods": methods}


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What programs are specialised for."""

    model: Any
    options: AttributionOptions
    baseline_tokens: tuple[int, ...]
    words: Int[np.ndarray, " words"]


def _outputs(params: Any, reference: Array, rows: TokenRows, *, plan: _Plan) -> dict[str, Array]:
    """What the model says of each text."""
    words, options = word_vectors(plan.model, params), plan.options
    embeddings = words[rows.ids]
    found: dict[str, Array] = {}
    targets = rows.lengths
    if not isinstance(plan.model, Encoder):
        logits = logits_of(reading_first_token(plan.model), params, embeddings, rows)
        predicted = jnp.argmax(logits, axis=-1)
        targets = predicted if options.target is None else jnp.full_like(predicted, options.target)
        chances = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        chance = jnp.take_along_axis(chances, targets[:, None], axis=-1)[:, 0]
        found = {"predicted": predicted, "target": targets, "probability": chance}
    score = _score(reading_first_token(plan.model), plan, params, reference, rows, targets)
    baseline = jnp.broadcast_to(words[plan.baseline_tokens[0]], embeddings.shape)
    return {**found, "score": score(embeddings), "baseline_score": score(baseline)}


def _method_scores(
    params: Any, reference: Array, rows: TokenRows, targets: Array, key: Array, *, plan: _Plan, name: str
) -> tuple[Array, Array | None]:
    """A method's scores (or what its host half makes them of), and their completeness error."""
    words, options, method = word_vectors(plan.model, params), plan.options, TOKEN_METHODS[name]
    model = plan.model if method.reads_layers else reading_first_token(plan.model)
    task = token_task(
        _score(model, plan, params, reference, rows, targets),
        words[rows.ids],
        rows.mask,
        key,
        baseline=words[plan.baseline_tokens[0]],
        baselines=words[jnp.asarray(plan.baseline_tokens)][:, None],
        num_steps=options.num_steps,
        num_samples=options.num_samples,
        memory_budget=options.memory_budget,
        vocabulary=words[plan.words],
    )
    scores, total = method.compute(task), expected_total(method, task)
    return scores, None if total is None else jnp.sum(scores, axis=1) - total


def _score(model: Any, plan: _Plan, params: Any, reference: Array, rows: TokenRows, targets: Array) -> Score:
    options = plan.options
    if isinstance(model, Encoder):
        return similarity(lambda embeddings: embedding_of(model, params, embeddings, rows), reference)

    def predict(embeddings: Array) -> Array:
        return logits_of(model, params, embeddings, rows)

    if options.versus is not None:
        return contrast(predict, targets, options.versus)
    return CLASS_SCORES[options.score](predict, targets)
