"""How a `DecoderConfig` and its parameters correspond to transformers' `config.json` and tensor names.

Pure tables and arithmetic: nothing here reads or writes a file.
"""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from jaxcore.models.decoder_config import DECODER_FAMILIES, DecoderConfig, RopeKind, RopeScaling
from jaxcore.models.huggingface_layout import activation_from_huggingface, activation_to_huggingface
from jaxcore.models.parameter_layout import ALL, TRANSPOSED, ParameterLayout, Piece, stacked, whole

DECODER_TYPES = tuple(DECODER_FAMILIES)
"""Known values of `model_type`; each is the name of our architecture too."""

_GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_positions": "n_positions",
    "norm_epsilon": "layer_norm_epsilon",
    "activation": "activation_function",
    "embedding_dropout": "embd_pdrop",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "initializer_range": "initializer_range",
}
_ROTARY_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "activation": "hidden_act",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
_SIZES = ("vocab_size", "num_layers", "hidden_size", "num_heads", "max_positions")

# What transformers assumes where config.json is silent.
_GPT2_DEFAULTS = {"norm_epsilon": 1e-5, "activation": "gelu_new", "initializer_range": 0.02} | dict.fromkeys(
    ("embedding_dropout", "dropout", "attention_dropout"), 0.1
)
_ROTARY_DEFAULTS = {"norm_epsilon": 1e-6, "activation": "silu", "initializer_range": 0.02, "attention_dropout": 0.0}
_MISTRAL_WINDOW = 4096
_QWEN_FULL_LAYERS = 28

# Options that change the computation and that the Decoder does not have, with the one value it stands for.
_FIXED_OPTIONS = {
    "add_cross_attention": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "partial_rotary_factor": 1.0,
}

_MODEL_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def decoder_fields_from_huggingface(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `DecoderConfig` fields that a `config.json` determines (all but the run-time choices).

    Raises:
        ValueError: unknown model_type, activation, rope type or layer type, a size that is not given, or an option that
            the Decoder does not have.
    """
    architecture = settings.get("model_type")
    if architecture not in DECODER_TYPES:
        raise ValueError(
            f"config.json: unknown model_type {architecture!r}, expected one of {', '.join(DECODER_TYPES)}"
        )
    for option, supported in _FIXED_OPTIONS.items():
        if settings.get(option, supported) != supported:
            raise ValueError(f"config.json: {option}={settings[option]!r} is not supported, only {supported!r}")
    gpt2 = architecture == "gpt2"
    names = _GPT2_FIELDS if gpt2 else _ROTARY_FIELDS
    given = {field: settings[key] for field, key in names.items() if settings.get(key) is not None}
    for field in _SIZES:
        if field not in given:
            raise ValueError(f"config.json: {names[field]} is missing")
    fields: dict[str, Any] = {**DECODER_FAMILIES[architecture], **(_GPT2_DEFAULTS if gpt2 else _ROTARY_DEFAULTS)}
    fields |= {"architecture": architecture, **given}
    fields.setdefault("num_key_value_heads", fields["num_heads"])
    fields.setdefault("head_size", fields["hidden_size"] // fields["num_heads"])
    fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
    fields["activation"] = activation_from_huggingface(fields["activation"])
    fields["tied_head"] = settings.get("tie_word_embeddings", gpt2)
    if not gpt2:
        fields |= _rope_fields(settings, fields["max_positions"])
        fields |= _window_fields(settings, architecture, fields["num_layers"])
        fields |= _bias_fields(settings, architecture)
    return fields | token_fields_from_huggingface(settings)


def _rope_fields(settings: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """Rope settings as transformers 5 writes them (`rope_parameters`) or as older ones did (`rope_scaling`)."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in get_args(RopeKind) or any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"config.json: rope type {kind!r} is not supported, only {', '.join(get_args(RopeKind))}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"config.json: partial_rotary_factor={rope['partial_rotary_factor']} is not supported")
    theta = rope.get("rope_theta") or settings.get("rope_theta") or 10000.0
    options = {field: rope[key] for field, key in _ROPE_OPTIONS[kind].items() if rope.get(key) is not None}
    if kind in ("llama3", "yarn"):
        original = settings.get("original_max_position_embeddings")
        options["original_max_positions"] = original or options.get("original_max_positions", max_positions)
    if kind == "yarn":
        options.setdefault("factor", max_positions / options["original_max_positions"])
    return {"rope_theta": float(theta), "rope_scaling": RopeScaling(kind=kind, **options)}


_ROPE_OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_positions": "original_max_position_embeddings",
        "low_frequency_factor": "low_freq_factor",
        "high_frequency_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_positions": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "truncate": "truncate",
    },
}


def _window_fields(settings: Mapping[str, Any], architecture: str, num_layers: int) -> dict[str, Any]:
    """The sliding window, and the blocks it holds in; those of Qwen keep full attention in the first ones."""
    if architecture == "mistral":
        return {"sliding_window": settings.get("sliding_window", _MISTRAL_WINDOW)}
    if architecture == "llama" or not settings.get("use_sliding_window", False):
        return {}
    kinds = settings.get("layer_types")
    if kinds is None:
        full = settings.get("max_window_layers", _QWEN_FULL_LAYERS)
        kinds = ["sliding_attention" if layer >= full else "full_attention" for layer in range(num_layers)]
    if unknown := sorted(set(kinds) - {"sliding_attention", "full_attention"}):
        raise ValueError(
            f"config.json: layer type {unknown[0]!r} is not supported, only sliding_attention and full_attention"
        )
    windowed = tuple(kind == "sliding_attention" for kind in kinds)
    if not any(windowed):
        return {}
    window = settings.get("sliding_window", 4096)
    return {"sliding_window": window, "windowed_layers": None if all(windowed) else windowed}


def _bias_fields(settings: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    if architecture not in ("llama", "qwen3"):
        return {}
    biased = bool(settings.get("attention_bias", False))
    fields = {"qkv_bias": biased, "output_bias": biased}
    return {**fields, "mlp_bias": bool(settings.get("mlp_bias", False))} if architecture == "llama" else fields


def token_fields_from_huggingface(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of special tokens that a `config.json` or `generation_config.json` gives; not those it leaves null.

    Raises:
        ValueError: an end that is neither an id nor a list of ids.
    """
    names = ("bos_token_id", "pad_token_id")
    fields: dict[str, Any] = {name: settings[name] for name in names if settings.get(name) is not None}
    ends = settings.get("eos_token_id")
    if ends is not None:
        ends = ends if isinstance(ends, list) else [ends]
        if not all(isinstance(end, int) for end in ends):
            raise ValueError(f"eos_token_id must be a token's id or a list of ids, got {settings['eos_token_id']!r}")
        fields["eos_token_ids"] = tuple(ends)
    return fields


def decoder_to_huggingface(config: DecoderConfig, *, dtype: str) -> dict[str, Any]:
    """The `config.json` of the same network in transformers; `dtype` is that of the stored weights."""
    gpt2, ends = config.architecture == "gpt2", list(config.eos_token_ids)
    settings: dict[str, Any] = {
        "model_type": config.architecture,
        "architectures": [_MODEL_CLASSES[config.architecture]],
        "dtype": dtype,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config.pad_token_id,
    }
    names = _GPT2_FIELDS if gpt2 else _ROTARY_FIELDS
    settings |= {key: getattr(config, field) for field, key in names.items()}
    settings[names["activation"]] = activation_to_huggingface(config.activation)
    if gpt2:
        if config.activation == "gelu_tanh":
            settings["activation_function"] = "gelu_new"  # its own name for the same function
        return settings
    scaling = config.rope_scaling
    rope = {key: getattr(scaling, field) for field, key in _ROPE_OPTIONS[scaling.kind].items()}
    settings["rope_parameters"] = {"rope_type": scaling.kind, "rope_theta": config.rope_theta} | {
        key: value for key, value in rope.items() if value is not None
    }
    if config.architecture == "mistral":
        settings["sliding_window"] = config.sliding_window
    elif config.architecture.startswith("qwen"):
        settings |= _qwen_window(config)
    if config.architecture in ("llama", "qwen3"):
        settings["attention_bias"] = config.qkv_bias
    if config.architecture == "llama":
        settings["mlp_bias"] = config.mlp_bias
    return settings


def _qwen_window(config: DecoderConfig) -> dict[str, Any]:
    windowed = config.windowed_layers or (config.sliding_window is not None,) * config.num_layers
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windowed],
    }


HEAD = "lm_head.weight"

_GPT2_LAYER: dict[str, Any] = {
    "attention/output": "h.{}.attn.c_proj",
    "attention_norm": "h.{}.ln_1",
    "mlp/in": "h.{}.mlp.c_fc",
    "mlp/out": "h.{}.mlp.c_proj",
    "mlp_norm": "h.{}.ln_2",
}
_ROTARY_LAYER: dict[str, Any] = {
    "attention/output": "layers.{}.self_attn.o_proj",
    "attention_norm": "layers.{}.input_layernorm",
    "attention/query_norm": "layers.{}.self_attn.q_norm",
    "attention/key_norm": "layers.{}.self_attn.k_norm",
    "mlp/gate": "layers.{}.mlp.gate_proj",
    "mlp/in": "layers.{}.mlp.up_proj",
    "mlp/out": "layers.{}.mlp.down_proj",
    "mlp_norm": "layers.{}.post_attention_layernorm",
}


def decoder_layouts(config: DecoderConfig) -> dict[str, ParameterLayout]:
    """Every parameter of `Decoder(config)` by its path, with where it is stored (canonical tensor names)."""
    gpt2, depth, hidden = config.architecture == "gpt2", config.num_layers, config.hidden_size
    names = _GPT2_LAYER if gpt2 else _ROTARY_LAYER
    word = "wte.weight" if gpt2 else "embed_tokens.weight"
    layouts = {"embeddings/word": whole(word, (config.vocab_size, hidden))}
    if config.positions == "learned":
        layouts["embeddings/position"] = whole("wpe.weight", (config.max_positions, hidden))
    layouts |= _gpt2_attention(config) if gpt2 else _rotary_attention(config)
    inner, wide = config.num_heads * config.head_size, config.intermediate_size
    for path, sizes, biased in (
        ("attention/output", (inner, hidden), config.output_bias),
        ("mlp/in", (hidden, wide), config.mlp_bias),
        ("mlp/gate", (hidden, wide), config.mlp_bias),
        ("mlp/out", (wide, hidden), config.mlp_bias),
    ):
        if path == "mlp/gate" and not config.gated:
            continue
        axes = ((0,), (1,)) if gpt2 else TRANSPOSED  # GPT-2 stores (inputs, outputs)
        layouts |= stacked(f"layers/{path}/kernel", f"{names[path]}.weight", (depth, *sizes), axes=axes)
        if biased:
            layouts |= stacked(f"layers/{path}/bias", f"{names[path]}.bias", (depth, sizes[1]))
    for path, size in _norms(config):
        layouts |= stacked(f"layers/{path}/scale", f"{names[path]}.weight", (depth, size))
        if config.norm == "layer":
            layouts |= stacked(f"layers/{path}/bias", f"{names[path]}.bias", (depth, size))
    final = "ln_f" if gpt2 else "norm"
    layouts["final_norm/scale"] = whole(f"{final}.weight", (hidden,))
    if config.norm == "layer":
        layouts["final_norm/bias"] = whole(f"{final}.bias", (hidden,))
    if not config.tied_head:
        layouts["head"] = whole(HEAD, (config.vocab_size, hidden))
    return layouts


def _norms(config: DecoderConfig) -> list[tuple[str, int]]:
    heads = [("attention/query_norm", config.head_size), ("attention/key_norm", config.head_size)]
    return [
        ("attention_norm", config.hidden_size),
        ("mlp_norm", config.hidden_size),
        *(heads if config.query_key_norm else []),
    ]


def _gpt2_attention(config: DecoderConfig) -> dict[str, ParameterLayout]:
    """One stored matrix whose columns are all queries, all keys, all values; ours go head by head."""
    shape = (config.num_layers, config.hidden_size, config.num_heads, 3, config.head_size)
    kernel, name = "layers/attention/qkv_kernel", "h.{}.attn.c_attn"
    layouts = stacked(kernel, f"{name}.weight", shape, axes=((0,), (2, 1, 3)))
    return layouts | stacked("layers/attention/qkv_bias", f"{name}.bias", (shape[0], *shape[2:]), axes=((1, 0, 2),))


def _rotary_attention(config: DecoderConfig) -> dict[str, ParameterLayout]:
    """Three stored matrices; ours goes by key-value head: its queries, its key, its value."""
    members = config.group_size
    columns = (config.num_key_value_heads, members + 2, config.head_size)
    parts: tuple[tuple[str, int | slice], ...] = (("q", slice(0, members)), ("k", members), ("v", members + 1))
    kernels, biases = [], []
    for layer in range(config.num_layers):
        for part, at in parts:
            name = f"layers.{layer}.self_attn.{part}_proj"
            axes = (0, 1, 2) if part == "q" else (0, 1)
            biases.append(Piece(f"{name}.bias", (layer, ALL, at, ALL), (axes,)))
            kernel_axes = tuple(axis + 1 for axis in axes)
            kernels.append(Piece(f"{name}.weight", (layer, ALL, ALL, at, ALL), (kernel_axes, (0,))))
    kernel = ParameterLayout((config.num_layers, config.hidden_size, *columns), tuple(kernels))
    layouts = {"layers/attention/qkv_kernel": kernel}
    if config.qkv_bias:
        layouts["layers/attention/qkv_bias"] = ParameterLayout((config.num_layers, *columns), tuple(biases))
    return layouts


# Task heads that transformers stores beside the decoder, and buffers of older versions: read past, never loaded.
_SKIPPED_PREFIXES = ("score.", "classifier.", "qa_outputs.", "v_head.")
_SKIPPED_SUFFIXES = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")


def decoder_prefix(config: DecoderConfig) -> str:
    """What stands before the canonical tensor names (all but the head's) in a stored language model."""
    return "transformer." if config.architecture == "gpt2" else "model."


def unexpected_decoder_tensors(names: Iterable[str], config: DecoderConfig) -> list[str]:
    """Those canonical names that are neither the Decoder's nor a known head or buffer, nor a copy of a tied head."""
    expected = {piece.tensor for layout in decoder_layouts(config).values() for piece in layout.pieces}
    return sorted(
        name
        for name in names
        if name not in expected
        and not name.startswith(_SKIPPED_PREFIXES)
        and not name.endswith(_SKIPPED_SUFFIXES)
        and not (config.tied_head and name == HEAD)
    )
