"""Training: state, jitted step, loop, checkpoints, metrics.

Read in this order: `state` (what an update reads and writes, laid over a mesh), `step` (one jitted update),
`gradient_cache` (the same gradient for batches that never fit), `loop` (batches in, trained state out),
`checkpoints`, `run_directory` and `run_parts` (what survives a kill), `optimizers` (optax from a config),
`trained_model`, imported by its name (what a run leaves for ``--model``). By their names: `model_selection` (the best
state, patience), `classifier_training` (by epochs, with both), `classifier_starts` (published encoders, word vectors),
`random_streams` (a key per use).
`language_modelling`, imported by its name: next-token training of decoders, all parameters or LoRA, and perplexity.
"""

from jaxcore.training.checkpoints import Checkpoints, Restored, read_snapshot, save_snapshot
from jaxcore.training.gradient_cache import cached_gradients
from jaxcore.training.loop import Batches, LoopConfig, NonFiniteLoss, Preempted, fit
from jaxcore.training.metrics import MetricsWriter, read_metrics
from jaxcore.training.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer, only_last_layers
from jaxcore.training.results import Results, describe_device, package_versions, write_results
from jaxcore.training.run_directory import (
    RunDirectory,
    RunDirectoryInUse,
    as_plain,
    check_run_directory,
    flatten_fields,
    open_run_directory,
    params_digest,
    write_json,
)
from jaxcore.training.run_parts import run_part
from jaxcore.training.state import TrainState, abstract_state, create_state, state_shardings
from jaxcore.training.step import make_train_step, one_shot_gradients

__all__ = [
    "Batches",
    "Checkpoints",
    "LoopConfig",
    "MetricsWriter",
    "NonFiniteLoss",
    "OptimizerConfig",
    "Preempted",
    "Restored",
    "Results",
    "RunDirectory",
    "RunDirectoryInUse",
    "TrainState",
    "abstract_state",
    "as_plain",
    "cached_gradients",
    "check_run_directory",
    "create_state",
    "describe_device",
    "fit",
    "flatten_fields",
    "learning_rate_schedule",
    "make_optimizer",
    "make_train_step",
    "one_shot_gradients",
    "only_last_layers",
    "open_run_directory",
    "package_versions",
    "params_digest",
    "read_metrics",
    "read_snapshot",
    "run_part",
    "save_snapshot",
    "state_shardings",
    "write_json",
    "write_results",
]
