"""Two-source questions: a generated language in which hints say how far a reliable source is to be believed.

    BOS  three facts in random order  six hints  ?        answer: v or w
    BOS  three facts in random order  six hints  #        answer: u (the control task)

The facts are R_v (a reliable source says v), U_w (an unreliable one says w) and N_u (a neutral one says u), of eight
values, all different. A hint is positive (1/4), negative (1/4) or neutral (1/2), of several ids each. Then

    p(answer = v | ?) = sigmoid(1.5 (#positive - #negative) - 1)

Facts come before hints: what hints say has to be gathered at the last token and used there, along a direction that is
the same in all texts.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

PAD, BOS, QUESTION, CONTROL = 0, 1, 2, 3
NUM_VALUES = 8
_SOURCES = 4  # first id of R_0 .. R_7, U_0 .. U_7, N_0 .. N_7
_HINTS = _SOURCES + 3 * NUM_VALUES  # first id of positive, negative, neutral hints
_HINT_IDS = (3, 3, 6)
_HINT_SHARES = (0.25, 0.25, 0.5)
_ANSWERS = _HINTS + sum(_HINT_IDS)
NUM_HINTS = 6
PROMPT_LENGTH = 1 + 3 + NUM_HINTS + 1
VOCABULARY_SIZE = _ANSWERS + NUM_VALUES
EVIDENCE_WEIGHT, BIAS = 1.5, -1.0


@dataclasses.dataclass(frozen=True, eq=False)
class TwoSourceTexts:
    """Generated prompts with what is known of them."""

    prompt_ids: Int[np.ndarray, "texts 11"]
    answers: Int[np.ndarray, " texts"]
    """Ids of the drawn answers."""
    reliable: Int[np.ndarray, " texts"]
    """Ids of v, the answer that the reliable source gives."""
    unreliable: Int[np.ndarray, " texts"]
    neutral: Int[np.ndarray, " texts"]
    hint_signs: Int[np.ndarray, "texts 11"]
    """+1 and -1 at positive and negative hints, 0 elsewhere."""

    @property
    def evidence(self) -> Int[np.ndarray, " texts"]:
        """#positive - #negative."""
        return self.hint_signs.sum(1)

    @property
    def is_control(self) -> Int[np.ndarray, " texts"]:
        return self.prompt_ids[:, -1] == CONTROL

    def take(self, rows: np.ndarray) -> "TwoSourceTexts":
        """These texts alone."""
        fields = (getattr(self, field.name)[rows] for field in dataclasses.fields(self))
        return TwoSourceTexts(*fields)


def two_source_texts(
    rng: np.random.Generator, count: int, *, control_share: float = 0.25, masked_share: float = 0.0
) -> TwoSourceTexts:
    """Draw texts.

    Args:
        control_share: of texts that ask the control question.
        masked_share: of facts and hints replaced by PAD, each by itself; answers follow the hints that are left.

    Raises:
        ValueError: a count below 1, shares outside [0, 1].
    """
    if count < 1 or not 0 <= control_share <= 1 or not 0 <= masked_share <= 1:
        raise ValueError(
            f"count must be at least 1 and shares in [0, 1]: got {count}, {control_share} and {masked_share}"
        )
    values = np.argsort(rng.random((count, NUM_VALUES)), axis=1)[:, :3]  # v, w, u
    facts = _SOURCES + NUM_VALUES * np.arange(3) + values
    facts = np.take_along_axis(facts, np.argsort(rng.random((count, 3)), axis=1), axis=1)
    kinds = rng.choice(3, size=(count, NUM_HINTS), p=_HINT_SHARES)
    first = _HINTS + np.concatenate([[0], np.cumsum(_HINT_IDS)[:-1]])
    hints = first[kinds] + rng.integers(np.asarray(_HINT_IDS)[kinds])
    signs = np.select([kinds == 0, kinds == 1], [1, -1], 0)
    middle = np.concatenate([facts, hints], axis=1)
    masked = rng.random(middle.shape) < masked_share
    middle, signs = np.where(masked, PAD, middle), np.where(masked[:, 3:], 0, signs)
    is_control = rng.random(count) < control_share
    ends = np.where(is_control, CONTROL, QUESTION)
    prompts = np.concatenate([np.full((count, 1), BOS), middle, ends[:, None]], axis=1)
    believed = rng.random(count) < 1 / (1 + np.exp(-(EVIDENCE_WEIGHT * signs.sum(1) + BIAS)))
    v, w, u = (_ANSWERS + values).T
    placed = np.zeros(prompts.shape, np.int64)
    placed[:, 4:-1] = signs
    answers = np.where(is_control, u, np.where(believed, v, w))
    return TwoSourceTexts(*(array.astype(np.int32) for array in (prompts, answers, v, w, u, placed)))


def preference_rows(texts: TwoSourceTexts) -> dict[str, Int[np.ndarray, "texts time"]]:
    """The reliable source's answer against the unreliable one's, as `jaxcore.data.preference_pairs.encode_pairs`."""
    ones = np.ones((len(texts.answers), 1), np.int32)
    ids = texts.prompt_ids
    return {
        "prompt_ids": ids,
        "special": np.isin(ids, (PAD, BOS, QUESTION, CONTROL)).astype(np.int32),
        "prompt_mask": np.ones_like(ids),
        "chosen": texts.reliable[:, None],
        "chosen_mask": ones,
        "rejected": texts.unreliable[:, None],
        "rejected_mask": ones,
    }


def training_rows(texts: TwoSourceTexts) -> dict[str, Int[np.ndarray, "texts time"]]:
    """Prompt and answer as rows of `jaxcore.training.language_modelling`; only the answer is a target."""
    ids = np.concatenate([texts.prompt_ids, texts.answers[:, None]], axis=1)
    targets = np.zeros_like(ids)
    targets[:, -1] = 1
    return {"input_ids": ids, "target_mask": targets}


def token_names() -> list[str]:
    """How each id reads."""
    sources = [f"{letter}{value}" for letter in "RUN" for value in range(NUM_VALUES)]
    kinds = zip(("yes", "no", "so"), _HINT_IDS, strict=True)
    hints = [f"{name}{number}" for name, count in kinds for number in range(count)]
    return ["[PAD]", "[BOS]", "?", "#", *sources, *hints, *(f"={value}" for value in range(NUM_VALUES))]
