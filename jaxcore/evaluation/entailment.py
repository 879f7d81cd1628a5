"""Whether a premise entails a hypothesis, by a published sequence-pair classifier, in batches on a mesh."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from jaxcore.data.length_buckets import batches_by_length
from jaxcore.data.tokenization import load_tokenizer, pad_rows
from jaxcore.distributed import batch_sharding, jit_on_mesh, num_batch_shards
from jaxcore.evaluation.row_map import Tick, map_rows
from jaxcore.models.classifier import load_classifier


class Entailment(NamedTuple):
    """What the classifier says of pairs."""

    entails: Bool[np.ndarray, " pairs"]
    """Whether entailment is the likeliest class."""
    probability: Float[np.ndarray, " pairs"]
    """Of entailment."""
    cut: Bool[np.ndarray, " pairs"]
    """Whether the end of the premise was left out."""


def entailment_class(labels: Sequence[str], source: str = "the model") -> int:
    """The class whose label is "entailment", in any case.

    Raises:
        ValueError: no such label, or several.
    """
    found = [index for index, label in enumerate(labels) if re.sub("[^a-z]", "", label.lower()) == "entailment"]
    if len(found) != 1:
        raise ValueError(
            f"{source}: expected one class labelled 'entailment', got {', '.join(labels)}: name the classes in "
            "id2label of its config.json, or give a natural language inference model"
        )
    return found[0]


class EntailmentModel:
    """Scores pairs (premise, hypothesis) as the classifier was trained: both texts in one row, premise first.

    A row has at most `max_length` tokens, special ones included, and never more than model and tokenizer take. A pair
    that is longer loses the end of its premise; the hypothesis is never cut. So a premise is best given as the
    attributed spans alone.

    Args:
        path_or_id: a BERT, RoBERTa or DistilBERT `ForSequenceClassification` directory with its tokenizer, or a hub id;
            see `load_classifier`.
        mesh: rows are split over it.
        max_length: None = what the model takes.
        batch_tokens: tokens of a batch on each device, padding counted.
        dtype: computation's.

    Raises:
        ValueError: as `load_classifier` and `entailment_class`; a tokenizer with more tokens than the model.
    """

    def __init__(
        self,
        path_or_id: str | os.PathLike[str],
        *,
        mesh: Mesh,
        max_length: int | None = None,
        batch_tokens: int = 4096,
        dtype: str = "float32",
    ) -> None:
        self._model, self._params, labels = load_classifier(
            path_or_id, sharding=mesh, config_overrides={"dtype": dtype}
        )
        self.label = entailment_class(labels, os.fspath(path_or_id))
        self._tokenizer: Any = load_tokenizer(path_or_id)
        config = self._model.config.encoder
        if len(self._tokenizer) > config.vocab_size:
            raise ValueError(
                f"{path_or_id}: the tokenizer has {len(self._tokenizer)} tokens, the model {config.vocab_size}"
            )
        self._longest = min(max_length or config.max_length, config.max_length, self._tokenizer.model_max_length)
        self._has_types = config.num_token_types > 1
        self._mesh, self._batch_tokens = mesh, batch_tokens

        def step(params: Any, batch: Mapping[str, Array]) -> Float[Array, "rows classes"]:
            types = batch["types"] if self._has_types else None
            output: Any = self._model.apply({"params": params}, batch["ids"], batch["mask"], types)
            return jax.nn.log_softmax(output.logits.astype(jnp.float32))

        self._step = jit_on_mesh(step, mesh, out_shardings=batch_sharding(mesh))

    def __call__(
        self, premises: Sequence[str], hypotheses: Sequence[str], *, tick: Tick = lambda step: False
    ) -> Entailment:
        """The pairs' scores, in order.

        Raises:
            ValueError: lists of different length, an empty text, a hypothesis that leaves a premise no room.
        """
        if len(premises) != len(hypotheses):
            raise ValueError(f"expected as many premises as hypotheses: got {len(premises)}, {len(hypotheses)}")
        rows = [self._row(premise, hypothesis) for premise, hypothesis in zip(premises, hypotheses, strict=True)]
        if not rows:
            return Entailment(np.zeros(0, bool), np.zeros(0), np.zeros(0, bool))
        lengths = np.asarray([len(ids) for ids, *_ in rows])
        scores: Any = [None] * len(rows)
        for batch in batches_by_length(
            lengths, self._widths(), batch_tokens=self._batch_tokens, shards=num_batch_shards(self._mesh)
        ):
            chosen = [rows[index] for index in batch.texts]
            pad = self._tokenizer.pad_token_id
            ids, real = pad_rows([row[0] for row in chosen], length=batch.width, pad_id=pad)
            types, _ = pad_rows([row[1] for row in chosen], length=batch.width, pad_id=0)
            mask = (np.arange(batch.width) < real[:, None]).astype(np.int32)
            arrays = {"ids": ids, "mask": mask, "types": types}
            found = map_rows(self._step, self._params, arrays, batch_size=batch.num_rows, mesh=self._mesh, tick=tick)
            for index, row in zip(batch.texts, np.asarray(found), strict=True):
                scores[index] = row
        log_probs = np.stack(scores)
        return Entailment(
            log_probs.argmax(-1) == self.label, np.exp(log_probs[:, self.label]), np.asarray([row[2] for row in rows])
        )

    def _widths(self) -> list[int]:
        """Padded widths: few, since each is a program."""
        widths = [min(64, self._longest)]
        while widths[-1] < self._longest:
            widths.append(min(2 * widths[-1], self._longest))
        return widths

    def _row(self, premise: str, hypothesis: str) -> tuple[list[int], list[int], bool]:
        """Ids and segments of a pair, and whether its premise was cut."""
        if not premise.strip() or not hypothesis.strip():
            raise ValueError(f"premise and hypothesis must not be empty: got {premise[:60]!r} and {hypothesis[:60]!r}")
        tokenizer = self._tokenizer
        whole = tokenizer(premise, hypothesis, return_token_type_ids=True, verbose=False)
        ids, types = whole["input_ids"], whole["token_type_ids"]
        if len(ids) <= self._longest:
            return ids, types, False
        of_premise = sum(part == 0 for part in whole.sequence_ids(0))
        if len(ids) - of_premise >= self._longest:
            raise ValueError(
                f"the hypothesis {hypothesis[:60]!r} leaves the premise no room in {self._longest} tokens: shorten it"
            )
        cut = tokenizer(
            premise, hypothesis, return_token_type_ids=True, truncation="only_first", max_length=self._longest
        )
        return cut["input_ids"], cut["token_type_ids"], True
