"""Attribution priors on disk: one JSON line per training text, one number per word and prior.

    {"id": 0, "words": ["card", "lost"], "label": 3, "r_cap": [0.2, 0.8], "r_lime": [0.5, 0.5]}

So priors that another program made, with a language model say, can stand where this project's own would.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxcore.data.intent_task import LabelledWords


def write_priors(
    path: pathlib.Path, texts: LabelledWords, priors: Mapping[str, Float[np.ndarray, "texts words"]]
) -> None:
    """One line per text: id, words, label, and each prior under ``r_`` and its name, to seven decimals."""
    with path.open("w", encoding="utf-8") as file:
        for number, words in enumerate(texts.words):
            line: dict[str, Any] = {"id": number, "words": words, "label": int(texts.labels[number])}
            for name, values in priors.items():
                line[f"r_{name}"] = [round(float(value), 7) for value in values[number][: len(words)]]
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_priors(
    path: pathlib.Path, texts: LabelledWords, *, names: Sequence[str]
) -> dict[str, Float[np.ndarray, "texts words"]]:
    """The priors that a file holds for these texts, found by words and label; 0 after a text's last word.

    Args:
        names: priors that are looked for; those that every line has are read.

    Raises:
        ValueError: no such file, a line that cannot be read, a text that it does not hold, a number of values other
            than of words.
    """
    if not path.is_file():
        raise ValueError(f"no file of priors at {path}; give the priors.jsonl of a run, or leave priors.file out")
    found: dict[tuple, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            found[(tuple(record["words"]), int(record["label"]))] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected words, label and r_... ({error})") from error
    stored = [name for name in names if all(f"r_{name}" in record for record in found.values())]
    read = {name: np.zeros(texts.roles.shape, np.float32) for name in stored}
    for row, (words, label) in enumerate(zip(texts.words, texts.labels, strict=True)):
        matching = found.get((tuple(words), int(label)))
        if matching is None:
            raise ValueError(f"{path} has no prior for training text {row} ({' '.join(words[:6])} ...)")
        for name in stored:
            values = matching[f"r_{name}"]
            if len(values) != len(words):
                raise ValueError(f"{path}: r_{name} of text {row} has {len(values)} values, not {len(words)}")
            read[name][row, : len(words)] = values
    return read
