"""The model that a run leaves behind, as a directory that the library's commands and transformers read."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxcore.distributed import gather_to_host
from jaxcore.models import Decoder, Encoder, save_pretrained
from jaxcore.models.classifier import EncoderClassifier, save_classifier
from jaxcore.models.recurrent import RecurrentClassifier
from jaxcore.models.recurrent_directory import save_recurrent
from jaxcore.training.run_directory import RunDirectory

MODEL = "model"
"""Its folder's name in the run directory."""


def write_trained_model(
    run: RunDirectory, model: Any, params: Any, *, tokenizer: Any = None, labels: Sequence[str] | None = None
) -> None:
    """Write ``model/`` into the run directory: `config.json`, safetensors weights, the tokenizer's files.

    So ``jaxcore embed``, ``attribute``, ``generate`` and ``steer`` take ``--model RUN/model``, and transformers' auto
    classes load it, but for recurrent classifiers, which are ``attribute``'s alone. Stand-ins for encoders (counts of
    words, tables of word vectors) are left to the checkpoints, and nothing is written. All processes call it; process 0
    writes.

    Args:
        run: an opened run directory.
        model: an `Encoder`, `Decoder`, `EncoderClassifier` or `RecurrentClassifier`.
        params: its parameters, on any devices of all processes.
        tokenizer: of transformers; None = the model reads no text.
        labels: of a classifier's classes.
    """
    if not isinstance(model, Encoder | Decoder | EncoderClassifier | RecurrentClassifier):
        return
    whole = gather_to_host(params)
    if jax.process_index() != 0:
        return
    directory = run.path / MODEL
    if isinstance(model, EncoderClassifier):
        save_classifier(directory, model, whole, labels, overwrite=True)
    elif isinstance(model, RecurrentClassifier):
        save_recurrent(directory, model, whole, labels, overwrite=True)
    else:
        save_pretrained(directory, model, whole, overwrite=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(directory))
