"""Names of a classifier's classes, and where config.json keeps them: `id2label`, as transformers writes it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def checked_labels(labels: Sequence[str] | None, num_classes: int) -> list[str]:
    """One distinct name per class, "LABEL_0", ... for None; ValueError for names that do not fit."""
    names = [f"LABEL_{index}" for index in range(num_classes)] if labels is None else [str(name) for name in labels]
    if len(names) != num_classes or len(set(names)) != len(names):
        raise ValueError(f"labels must be {num_classes} distinct names, one per class, got {names}")
    return names


def stored_labels(directory: pathlib.Path, settings: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The names in the contents of ``config.json``; ValueError for ids that are not those of the classes."""
    by_id = {str(index): str(name) for index, name in (settings.get("id2label") or {}).items()}
    expected = [str(index) for index in range(num_classes)]
    if by_id and set(by_id) != set(expected):
        raise ValueError(
            f"{directory / 'config.json'}: id2label has the ids {', '.join(by_id)}, "
            f"but the head has {num_classes} classes, 0 to {num_classes - 1}"
        )
    return tuple(by_id.get(index, f"LABEL_{index}") for index in expected)
