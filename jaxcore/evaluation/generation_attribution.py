"""Why a language model wrote what it wrote: each token of a continuation explained by the tokens before it.

    explained = LanguageModel(model, params, tokenizer)
    request = given_continuation(explained, "The capital of France is", " Paris", contrast=" Lyon")
    (explanation,) = explain_continuations(explained, [request], ContinuationOptions(("integrated_gradients",)))
    words = by_segment(explanation, "word")            # rows: words written; columns: words before them

Token t is explained by the whole prefix before it, prompt and continuation (`attributed="prefix"`), whose word vectors
go to their baseline together; or by the prompt's tokens alone while those written before t stay (`"prompt"`). The
arrays' part is `jaxcore.attribution.sequence_targets`: one forward pass serves all tokens of a continuation.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.method_names import method_names
from jaxcore.attribution.sequence_targets import (
    SEQUENCE_METHODS,
    SequenceScores,
    TargetScore,
    expected_totals,
    sequence_task,
)
from jaxcore.attribution.token_aggregation import NO_SEGMENT, span_ids_from_offsets, word_ids_from_offsets
from jaxcore.data.grounded_texts import split_sentences
from jaxcore.data.tokenization import pad_rows
from jaxcore.distributed import BATCH_AXES, MeshConfig, batch_sharding, jit_on_mesh, make_mesh
from jaxcore.evaluation.input_checks import positive_integer
from jaxcore.generation import chat_parts, complete, prompt_width
from jaxcore.generation.sampling import GREEDY
from jaxcore.generation.strategy import Strategy
from jaxcore.models import Decoder, unstack_layers

if TYPE_CHECKING:  # it takes more than a second to import
    from transformers import PreTrainedTokenizerFast

Level = Literal["token", "word", "sentence"]
Spans = Sequence[tuple[int, int]]

_WIDTH_STEP = 64
"""Long texts are padded by less than this: a method makes many passes over a text, which cost more than compilation."""


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder whose continuations are explained.

    Attributes:
        model: its attention weights must be explicit for attention methods (`attention_implementation="explicit"`).
        params: its parameters, stacked.
        tokenizer: its fast tokenizer.
    """

    model: Decoder
    params: Any
    tokenizer: "PreTrainedTokenizerFast"

    @functools.cached_property
    def decoding_params(self) -> Any:
        """The parameters once more, in the form that decodes fastest; made when a text is first continued."""
        return unstack_layers(self.params)

    @property
    def baseline_tokens(self) -> tuple[int, ...]:
        """Tokens without content: of padding, of the unknown, of the end; the first is the baseline of paths."""
        tokenizer = self.tokenizer
        ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None and i < self.model.config.vocab_size))


@dataclasses.dataclass(frozen=True)
class ContinuationOptions:
    """What decides the scores, and beside rounding only the speed (`batch_size`, `memory_budget`)."""

    methods: tuple[str, ...]
    """Names or aliases of `SEQUENCE_METHODS`."""
    score: TargetScore = "log_probability"
    """Of each token written; with a contrast, its difference from that of the other token."""
    attributed: Literal["prefix", "prompt"] = "prefix"
    """The tokens that are varied, and get scores."""
    num_steps: int | None = None
    """Points on a path; None = each method's own number."""
    num_samples: int | None = None
    """Draws of sampling methods; None = each method's own number."""
    seed: int = 0
    batch_size: int = 1
    """Continuations explained together on each device; random methods draw anew for each batch."""
    memory_budget: int | None = None
    """Bytes of temporary memory that methods may take; None = by device."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", method_names(self.methods, SEQUENCE_METHODS))
        for name, kinds in (("score", get_args(TargetScore)), ("attributed", ("prefix", "prompt"))):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}")
        for name in ("num_steps", "num_samples", "batch_size", "memory_budget"):
            if getattr(self, name) is not None:
                positive_integer(name, getattr(self, name))


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """A prompt with what follows it, as text and tokens, ready to be explained.

    Attributes:
        prompt, text: the prompt, and the continuation as it stands behind it.
        ids: of all tokens.
        num_prompt: how many of them are the prompt's.
        offsets: characters [start, end) of each token in ``prompt + text``; empty at special tokens.
        versus: for each token of the continuation the one it is contrasted with, or None.
        generated: whether the model wrote it.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    num_prompt: int
    offsets: Int[np.ndarray, "tokens 2"]
    versus: tuple[int, ...] | None = None
    generated: bool = False

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.num_prompt


@dataclasses.dataclass(frozen=True, eq=False)
class TargetScores:
    """Scores by one method, and how far each row's sum is from what it should be (None: undefined)."""

    scores: Float[np.ndarray, "targets tokens"]
    completeness_errors: Float[np.ndarray, " targets"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuationExplanation:
    """A continuation as the methods explain it.

    Attributes:
        continuation: what is explained.
        tokens: as text, the prompt's first; what is none by itself, part of a character, as the tokenizer writes it.
        special: tokens that are no part of the text.
        log_probabilities: of each token of the continuation, given all before it.
        versus_log_probabilities: of those they are contrasted with; None without a contrast.
        scores, baseline_scores: what is explained: of the text, and where the attributed tokens are the baseline.
        score: its kind.
        methods: by name; columns are all tokens (a target's own, and those behind it, are 0).
    """

    continuation: Continuation
    tokens: tuple[str, ...]
    versus: tuple[str, ...] | None
    special: Bool[np.ndarray, " tokens"]
    log_probabilities: Float[np.ndarray, " targets"]
    versus_log_probabilities: Float[np.ndarray, " targets"] | None
    scores: Float[np.ndarray, " targets"]
    baseline_scores: Float[np.ndarray, " targets"]
    score: TargetScore
    methods: dict[str, TargetScores]


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentExplanation:
    """A matrix from segments of the prefix to segments of the continuation, for each method.

    Attributes:
        sources, source_offsets: texts of the segments that are attributed to, those of the prompt first, and their
            characters in prompt + continuation; special tokens stand by themselves, with empty offsets.
        num_prompt: how many of them are the prompt's.
        targets, target_offsets: the same of the continuation.
        versus: what each target is contrasted with, or None.
        log_probabilities, scores, baseline_scores: sums over a target's tokens.
        methods: name -> [targets, sources], sums over both sides' tokens.
        completeness_errors: name -> [targets], or None.
    """

    level: str
    sources: tuple[str, ...]
    source_offsets: Int[np.ndarray, "sources 2"]
    num_prompt: int
    targets: tuple[str, ...]
    target_offsets: Int[np.ndarray, "targets 2"]
    versus: tuple[str, ...] | None
    log_probabilities: Float[np.ndarray, " targets"]
    scores: Float[np.ndarray, " targets"]
    baseline_scores: Float[np.ndarray, " targets"]
    methods: dict[str, Float[np.ndarray, "targets sources"]]
    completeness_errors: dict[str, Float[np.ndarray, " targets"] | None]


# ---- requests --------------------------------------------------------------------------------------------


def given_continuation(
    explained: LanguageModel, prompt: str, text: str, *, contrast: str | None = None, chat: bool = False
) -> Continuation:
    """A continuation that somebody has written, tokenised by itself: begin it with the space that belongs to it.

    Args:
        chat: the prompt is a user's message; the tokenizer's chat template puts tokens around it, which are special
            ones here: no part of the text, each with scores of its own.
        contrast: the text that each token is contrasted with, in the same context: its first token with the first, and
            so on; of as many tokens as `text`.

    Raises:
        ValueError: an empty prompt or continuation, a contrast of another number of tokens, more tokens than the
            model's context, a tokenizer of another model; a chat template that is missing or changes the prompt.
    """
    encoded = _encoded_prompt(explained, prompt, chat)
    targets = _plain_ids(explained, text)
    if not targets:
        raise ValueError(f"the continuation has no token: {text!r:.80}")
    versus = None
    if contrast is not None:
        versus = tuple(_plain_ids(explained, contrast))
        if len(versus) != len(targets):
            raise ValueError(
                f"the contrast {contrast!r:.80} has {len(versus)} tokens, but the continuation {text!r:.80} has "
                f"{len(targets)}: each token is contrasted with the one in its place"
            )
    return _continuation(explained, encoded, targets, versus, generated=False)


def generated_continuations(
    explained: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    strategy: Strategy = GREEDY,
    key: Array | None = None,
    stop_tokens: Sequence[int] | None = None,
    batch_size: int | None = None,
    contrast: str | None = None,
    chat: bool = False,
) -> list[Continuation]:
    """What the model itself writes after each prompt; arguments as of `jaxcore.generation.complete`, and `chat` as of
    `given_continuation`.

    Raises:
        ValueError: as `complete` and `given_continuation`; a continuation without tokens.
    """
    encoded = [_encoded_prompt(explained, prompt, chat) for prompt in prompts]
    versus = None if contrast is None else tuple(_plain_ids(explained, contrast))
    found = complete(
        explained.model, explained.decoding_params, [prompt.ids for prompt in encoded], max_new_tokens=max_new_tokens,
        strategy=strategy, key=key, stop_tokens=stop_tokens, batch_size=batch_size,
    )  # fmt: skip
    continuations = []
    for prompt, (completion,) in zip(encoded, found, strict=True):
        if versus is not None and len(versus) != len(completion.tokens):
            raise ValueError(
                f"the contrast {contrast!r:.80} has {len(versus)} tokens, but {len(completion.tokens)} were generated "
                f"after {prompt.text!r:.80}: give the continuation too, or ask for as many new tokens"
            )
        continuations.append(_continuation(explained, prompt, completion.tokens, versus, generated=True))
    return continuations


@dataclasses.dataclass(frozen=True, eq=False)
class _EncodedPrompt:
    """A prompt, its tokens, and their characters in it; empty at tokens that are no part of it."""

    text: str
    ids: list[int]
    offsets: Int[np.ndarray, "tokens 2"]


def _encoded_prompt(explained: LanguageModel, prompt: str, chat: bool) -> _EncodedPrompt:
    if not prompt.strip():
        raise ValueError(f"empty prompt: {prompt!r:.80} has no token; there must be something to attribute to")
    before, text, after = chat_parts(explained.tokenizer, prompt) if chat else ("", prompt, "")
    found = explained.tokenizer(
        before + text + after, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False
    )
    if not found["input_ids"]:
        raise ValueError(f"empty prompt: {prompt!r:.80} has no token; there must be something to attribute to")
    offsets = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
    inside = np.clip(offsets - len(before), 0, len(text)) + prompt.find(text)
    return _EncodedPrompt(prompt, list(found["input_ids"]), inside)


def _plain_ids(explained: LanguageModel, text: str) -> list[int]:
    return list(explained.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _continuation(
    explained: LanguageModel,
    prompt: _EncodedPrompt,
    targets: Sequence[int],
    versus: tuple[int, ...] | None,
    *,
    generated: bool,
) -> Continuation:
    config, tokenizer = explained.model.config, explained.tokenizer
    whole = [*prompt.ids, *targets]
    if len(whole) - 1 > config.context_length:
        raise ValueError(
            f"prompt and continuation have {len(prompt.ids)} + {len(targets)} tokens, but the model's context is "
            f"{config.context_length}: cut the prompt {prompt.text!r:.60}"
        )
    if max((*whole, *(versus or ()))) >= config.vocab_size:
        raise ValueError(
            f"the tokenizer gives id {max((*whole, *(versus or ())))}, but the model has {config.vocab_size} token "
            "vectors; take the tokenizer that belongs to the model"
        )
    text, pieces = _decoded_pieces(tokenizer, prompt.ids, targets)
    offsets = np.concatenate([prompt.offsets, pieces + len(prompt.text)])
    return Continuation(prompt.text, text, tuple(whole), len(prompt.ids), offsets, versus, generated)


def _decoded_pieces(tokenizer: Any, ids: list[int], targets: Sequence[int]) -> tuple[str, np.ndarray]:
    """The text that tokens add behind a prompt, and the characters of each in it.

    Tokens that only together make a character all have that character.
    """

    def decoded(count: int) -> str:
        return tokenizer.decode([*ids, *targets[:count]], clean_up_tokenization_spaces=False)

    start, whole = len(decoded(0)), decoded(len(targets))
    ends = []
    for count in range(1, len(targets)):
        so_far = decoded(count)
        ends.append(max(len(so_far.rstrip("\ufffd")), start) if so_far.endswith("\ufffd") else len(so_far))
    stops = np.maximum.accumulate(np.asarray([*ends, len(whole)])) - start
    starts = np.concatenate([[0], stops[:-1]])
    for number in range(len(stops) - 2, -1, -1):
        if starts[number] == stops[number]:
            stops[number] = stops[number + 1]
    return whole[start:], np.stack([starts, stops], axis=1)


# ---- explaining ------------------------------------------------------------------------------------------


def explain_continuations(
    explained: LanguageModel,
    continuations: Sequence[Continuation],
    options: ContinuationOptions,
    *,
    mesh: Mesh | None = None,
    first: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[ContinuationExplanation]:
    """Explain continuations in their order, `options.batch_size` on each device at a time.

    Programs are compiled once per padded length (16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, ... tokens) and
    padded number of targets (1, 2, 3, 4, 6, 8, ...).

    Args:
        mesh: of this process's devices; None: the first device. Parameters lie where the caller put them.
        first: number of the first continuation among all of a longer run; random draws depend on it.
        advance: told after every batch and method how many continuations are done with it.

    Raises:
        ValueError: no continuations, some with a contrast and some without, attributions that are not finite.
    """
    if not continuations:
        raise ValueError("no continuations: expected at least one")
    if len({item.versus is None for item in continuations}) > 1:
        raise ValueError("some continuations have a contrast and some have none: explain them apart")
    mesh = make_mesh(MeshConfig(), jax.local_devices()[:1]) if mesh is None else mesh
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    rows = min(options.batch_size * shards, -(-len(continuations) // shards) * shards)
    programs = _Programs(explained, options, mesh)
    for start in range(0, len(continuations), rows):
        batch = continuations[start : start + rows]
        filled = [*batch, *[batch[-1]] * (rows - len(batch))]
        outputs = programs.run(filled, first + start, functools.partial(advance, len(batch)))
        for row, item in enumerate(batch):
            yield _explanation(explained, item, {name: _row(values, row) for name, values in outputs.items()}, options)


def _row(values: Any, row: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[row], values)


def _padded_count(count: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, ...: padding stays below half."""
    size = 1
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 and size > 1 else size * 4 // 3 if size > 2 else size + 1
    return size


class _Programs:
    """The jitted programs, one per method and one for the scores; each is traced once for each shape of batch."""

    def __init__(self, explained: LanguageModel, options: ContinuationOptions, mesh: Mesh) -> None:
        self._explained, self._options, self._mesh = explained, options, mesh
        plan = _Plan(explained.model, options, explained.baseline_tokens)
        self._scores = jit_on_mesh(functools.partial(_scores, plan=plan), mesh)
        self._methods = {
            name: jit_on_mesh(functools.partial(_method_scores, plan=plan, name=name), mesh) for name in options.methods
        }

    def run(self, batch: list[Continuation], number: int, advance: Callable[[], None]) -> dict[str, Any]:
        """Everything about a batch, on the host."""
        arrays = jax.device_put(self._arrays(batch), batch_sharding(self._mesh))
        outputs = jax.tree.map(np.asarray, self._scores(self._explained.params, arrays))
        key = jax.random.fold_in(jax.random.key(self._options.seed), number)
        mask = np.asarray(arrays["mask"])
        for name, program in self._methods.items():
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            found, error = jax.tree.map(np.asarray, program(self._explained.params, arrays, own))
            finish = SEQUENCE_METHODS[name].finish
            if finish is not None:
                found = finish(found, mask, np.asarray(arrays["positions"]))
            outputs[name] = found, error
            advance()
        return outputs

    def _arrays(self, batch: list[Continuation]) -> dict[str, np.ndarray | None]:
        """The last token of a continuation is no input: nothing looks at it."""
        pad_id = self._explained.baseline_tokens[0] if self._explained.baseline_tokens else 0
        inputs = [np.asarray(item.ids[:-1], np.int32) for item in batch]
        limit = self._explained.model.config.context_length
        width = prompt_width(max(map(len, inputs)), limit=limit, step=_WIDTH_STEP)
        ids, lengths = pad_rows(inputs, length=width, pad_id=pad_id)
        count = _padded_count(max(item.num_targets for item in batch))

        def by_target(rows: list[Sequence[int]]) -> np.ndarray:
            return np.asarray([[*row, *[row[0]] * (count - len(row))] for row in rows], np.int32)

        versus = None if batch[0].versus is None else by_target([item.versus or () for item in batch])
        return {
            "ids": ids,
            "mask": np.arange(width) < np.asarray(lengths)[:, None],
            "is_prompt": np.arange(width) < np.asarray([item.num_prompt for item in batch])[:, None],
            "positions": by_target([range(item.num_prompt - 1, len(item.ids) - 1) for item in batch]),
            "targets": by_target([item.ids[item.num_prompt :] for item in batch]),
            "versus": versus,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What programs are specialised for."""

    model: Decoder
    options: ContinuationOptions
    baseline_tokens: tuple[int, ...]

    def scores(self, params: Any, arrays: dict[str, Array], **options: Any) -> SequenceScores:
        def trunk(embeddings: Array) -> Array:
            return self.model.apply({"params": params}, None, arrays["mask"], embeddings=embeddings, method="trunk")[0]

        def head(states: Array) -> Array:
            logits: Any = self.model.apply({"params": params}, states, method="logits")
            return logits

        return SequenceScores(trunk, head, arrays["positions"], arrays["targets"], **options)

    def task(self, params: Any, arrays: dict[str, Array], key: Array) -> Any:
        baselines = jnp.zeros((1, self.model.config.hidden_size), self.model.config.dtype)
        if self.baseline_tokens:
            tokens = jnp.asarray([self.baseline_tokens])
            baselines = self.model.apply({"params": params}, tokens, method="embed")[0]
        embeddings: Any = self.model.apply({"params": params}, arrays["ids"], method="embed")
        return sequence_task(
            self.scores(params, arrays, versus=arrays["versus"], kind=self.options.score),
            embeddings,
            arrays["mask"],
            key,
            arrays["is_prompt"] if self.options.attributed == "prompt" else None,
            baselines[0],
            baselines[:, None],
            num_steps=self.options.num_steps,
            num_samples=self.options.num_samples,
            memory_budget=self.options.memory_budget,
        )


def _scores(params: Any, arrays: dict[str, Array], *, plan: _Plan) -> dict[str, Array | None]:
    """What the model says of each target."""
    task = plan.task(params, arrays, jax.random.key(0))
    plain = plan.scores(params, arrays)
    embeddings = task.one.embeddings
    baseline = jnp.broadcast_to(task.one.baseline, embeddings.shape).astype(embeddings.dtype)
    versus = None if arrays["versus"] is None else dataclasses.replace(plain, tokens=arrays["versus"])(embeddings)
    return {
        "log_probability": plain(embeddings),
        "versus_log_probability": versus,
        "score": task.scores(embeddings),
        "baseline_score": task.scores(baseline),
    }


def _method_scores(
    params: Any, arrays: dict[str, Array], key: Array, *, plan: _Plan, name: str
) -> tuple[Array, Array | None]:
    """A method's scores (or what its host half makes them of), and their completeness errors."""
    method = SEQUENCE_METHODS[name]
    task = plan.task(params, arrays, key)
    result, totals = method.compute(task), expected_totals(method, task)
    if method.finish is not None:
        return result, None
    result = task.kept(result)
    return result, None if totals is None else jnp.sum(result, axis=2) - totals


def _explanation(
    explained: LanguageModel, item: Continuation, values: dict[str, Any], options: ContinuationOptions
) -> ContinuationExplanation:
    count, length = item.num_targets, len(item.ids)
    moved = np.arange(length) < (item.num_prompt if options.attributed == "prompt" else length)
    methods = {}
    for name in options.methods:
        found, error = values[name]
        matrix = np.zeros((count, length), np.float32)
        matrix[:, : length - 1] = found[:count, : length - 1]
        matrix = np.where(moved, matrix, 0)
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"{name} gives values that are not finite for the continuation of {item.prompt!r:.60}: the model or "
                "its gradient is NaN or infinite there (compute in float32 if the dtype is another)"
            )
        methods[name] = TargetScores(matrix, None if error is None else error[:count])
    if not np.isfinite(values["score"][:count]).all():
        raise ValueError(
            f"the scores of the continuation of {item.prompt!r:.60} are not finite: the weights hold NaN, or the "
            "compute dtype overflows"
        )
    versus = values["versus_log_probability"]
    return ContinuationExplanation(
        continuation=item,
        tokens=tuple(_token_text(explained.tokenizer, token) for token in item.ids),
        versus=None
        if item.versus is None
        else tuple(str(explained.tokenizer.decode([token])) for token in item.versus),
        special=item.offsets[:, 0] == item.offsets[:, 1],
        log_probabilities=values["log_probability"][:count],
        versus_log_probabilities=None if versus is None else versus[:count],
        scores=values["score"][:count],
        baseline_scores=values["baseline_score"][:count],
        score=options.score,
        methods=methods,
    )


def _token_text(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


# ---- segments --------------------------------------------------------------------------------------------


def by_segment(
    explanation: ContinuationExplanation,
    level: Level = "token",
    *,
    prompt_spans: Spans | None = None,
    continuation_spans: Spans | None = None,
) -> SegmentExplanation:
    """The same by tokens, by words (what white space separates), by sentences, or by given spans of characters.

    Prompt and continuation are cut apart, each at the level unless it has spans. Scores are summed on both sides;
    tokens outside all spans are left out.

    Args:
        prompt_spans: characters [start, end) in the prompt.
        continuation_spans: characters [start, end) in the continuation.

    Raises:
        ValueError: an unknown level, spans that are empty, overlap, reach outside the text or hold no token.
    """
    if level not in get_args(Level):
        raise ValueError(f"unknown level {level!r}: expected one of {', '.join(get_args(Level))}")
    item = explanation.continuation
    cut = item.num_prompt
    prompt = _Part(item.prompt, explanation.tokens[:cut], item.offsets[:cut])
    written = _Part(item.text, explanation.tokens[cut:], item.offsets[cut:] - len(item.prompt))
    before = _segments(prompt, level, prompt_spans, "prompt")
    after = _segments(written, level, continuation_spans, "continuation")
    behind = np.where(after.ids >= 0, after.ids + len(before.texts), NO_SEGMENT)
    source_ids, target_ids = np.concatenate([before.ids, behind]), after.ids

    of_target = target_ids == np.arange(len(after.texts))[:, None]
    of_source = source_ids == np.arange(len(before.texts) + len(after.texts))[:, None]

    def summed(values: np.ndarray) -> np.ndarray:
        return (of_target @ values.astype(np.float64)).astype(np.float32)

    methods = {name: summed(found.scores) @ of_source.T for name, found in explanation.methods.items()}
    errors = {
        name: None if found.completeness_errors is None else summed(found.completeness_errors)
        for name, found in explanation.methods.items()
    }
    versus = explanation.versus
    if versus is not None:
        versus = tuple(
            "".join(token for token, segment in zip(versus, target_ids, strict=True) if segment == number)
            for number in range(len(after.texts))
        )
    return SegmentExplanation(
        level=level,
        sources=(*before.texts, *after.texts),
        source_offsets=np.concatenate([before.offsets, after.offsets + len(item.prompt)]),
        num_prompt=len(before.texts),
        targets=after.texts,
        target_offsets=after.offsets + len(item.prompt),
        versus=versus,
        log_probabilities=summed(explanation.log_probabilities),
        scores=summed(explanation.scores),
        baseline_scores=summed(explanation.baseline_scores),
        methods=methods,
        completeness_errors=errors,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Prompt or continuation: its text, its tokens and their characters in it."""

    text: str
    tokens: Sequence[str]
    offsets: Int[np.ndarray, "tokens 2"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Segments:
    ids: Int[np.ndarray, " tokens"]
    texts: tuple[str, ...]
    offsets: Int[np.ndarray, "segments 2"]


def _segments(part: _Part, level: Level, spans: Spans | None, name: str) -> _Segments:
    if spans is not None:
        return _given_segments(part, spans, name)
    empty = part.offsets[:, 0] == part.offsets[:, 1]
    if level == "token":
        numbers = np.arange(len(part.tokens))
    elif level == "word":
        numbers = word_ids_from_offsets(part.offsets[None], [part.text])[0]
    else:
        numbers = span_ids_from_offsets(part.offsets[None], [split_sentences(part.text)])[0]
        for index in range(1, len(numbers)):  # white space between sentences goes with the one before
            if numbers[index] == NO_SEGMENT and not empty[index]:
                numbers[index] = numbers[index - 1]
    is_first = np.ones(len(numbers), bool)
    is_first[1:] = (numbers[1:] != numbers[:-1]) | empty[1:] | empty[:-1]
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(numbers)) - 1
    offsets = np.stack([part.offsets[starts, 0], part.offsets[ends, 1]], axis=1)
    texts = tuple(
        part.tokens[start] if empty[start] else part.text[left:right]
        for start, (left, right) in zip(starts.tolist(), offsets.tolist(), strict=True)
    )
    return _Segments(np.cumsum(is_first) - 1, texts, offsets)


def _given_segments(part: _Part, spans: Spans, name: str) -> _Segments:
    if not len(spans):
        raise ValueError(f"{name}_spans hold no span: give at least one, or None for the level's own")
    for start, end in spans:
        if not 0 <= start < end <= len(part.text):
            raise ValueError(
                f"span [{start}, {end}) lies outside the {name}, which has characters 0 to {len(part.text)}: "
                f"{part.text!r:.60}"
            )
    ids = span_ids_from_offsets(part.offsets[None], [spans])[0]
    missing = sorted(set(range(len(spans))) - set(ids.tolist()))
    if missing:
        start, end = spans[missing[0]]
        raise ValueError(
            f"span [{start}, {end}) of the {name}, {part.text[start:end]!r:.60}, holds no token of its own"
        )
    return _Segments(ids, tuple(part.text[start:end] for start, end in spans), np.asarray(spans, np.int64))
