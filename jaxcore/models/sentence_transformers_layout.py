"""The module list of sentence-transformers directories: reading a pooler out of it, and writing one."""

import dataclasses
import pathlib
from typing import Any

from jaxcore.models.checkpoint_files import read_json
from jaxcore.models.encoder_config import EncoderConfig, Pooler

MODULES = "modules.json"
POOLING, DENSE = "1_Pooling", "2_Dense"

_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclasses.dataclass(frozen=True)
class SentenceModules:
    """What `modules.json` says: where the transformer lies, and its pooler, if the Encoder has it."""

    transformer: pathlib.Path
    pooler: Pooler | None
    dense: pathlib.Path | None
    unsupported: str | None
    """Why `pooler` is None."""


def read_modules(directory: pathlib.Path) -> SentenceModules | None:
    """The module list of a sentence-transformers directory; None for a plain transformers one.

    A final Normalize module is passed over: scaling to unit length is left to losses and scores.
    """
    if not (directory / MODULES).is_file():
        return None
    modules = [
        (entry["type"].rsplit(".", 1)[-1], directory / entry["path"]) for entry in read_json(directory / MODULES)
    ]
    if not modules or modules[0][0] != "Transformer":
        raise ValueError(f"{directory / MODULES}: the first module must be a Transformer, got {modules[:1]}")
    transformer, kinds = modules[0][1], [kind for kind, _ in modules[1:]]
    if kinds and kinds[-1] == "Normalize":
        kinds.pop()
    if kinds not in ([], ["Pooling"], ["Pooling", "Dense"]):
        return SentenceModules(transformer, None, None, f"its modules are {', '.join(kinds)}")
    if not kinds:
        return SentenceModules(transformer, "none", None, None)
    mode = _pooling_mode(read_json(modules[1][1] / "config.json"))
    if mode != "mean":
        return SentenceModules(transformer, None, None, f"it pools by {mode}")
    if kinds == ["Pooling"]:
        return SentenceModules(transformer, "mean", None, None)
    dense = modules[2][1]
    activation = str(read_json(dense / "config.json").get("activation_function")).rsplit(".", 1)[-1]
    if activation != "Identity":
        return SentenceModules(transformer, None, None, f"its Dense module applies {activation}")
    return SentenceModules(transformer, "mean_linear", dense, None)


def module_files(config: EncoderConfig) -> dict[str, Any]:
    """JSON files by path that make sentence-transformers pool as `config` does; empty for other poolers."""
    if config.pooler not in ("mean", "mean_linear"):
        return {}
    types = [("", "Transformer"), (POOLING, "Pooling")]
    files: dict[str, Any] = {
        f"{POOLING}/config.json": {
            "word_embedding_dimension": config.hidden_size,
            **{key: mode == "mean" for key, mode in _LEGACY_MODES.items()},
        }
    }
    if config.pooler == "mean_linear":
        types.append((DENSE, "Dense"))
        files[f"{DENSE}/config.json"] = {
            "in_features": config.hidden_size,
            "out_features": config.hidden_size,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
    files[MODULES] = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(types)
    ]
    return files


def _pooling_mode(settings: dict[str, Any]) -> str:
    """The pooling mode, from the current form of the config or the earlier one with a flag per mode."""
    mode = settings.get("pooling_mode")
    if mode is None:
        mode = [name for key, name in _LEGACY_MODES.items() if settings.get(key)]
    return mode if isinstance(mode, str) else "+".join(mode)
