"""How an `EncoderConfig` and its parameters correspond to transformers' `config.json` and tensor names.

Pure tables and arithmetic: nothing here reads or writes a file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.parameter_layout import ALL, TRANSPOSED, ParameterLayout, Piece, stacked, whole, whole_norm

# model_type of config.json -> our architecture. The last two are RoBERTa with other training data.
MODEL_TYPES = {
    "bert": "bert",
    "roberta": "roberta",
    "distilbert": "distilbert",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
}

_BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "norm_epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "pad_token_id": "pad_token_id",
    "initializer_range": "initializer_range",
    "activation": "hidden_act",
}
_DISTILBERT_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "n_layers",
    "hidden_size": "dim",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "pad_token_id": "pad_token_id",
    "initializer_range": "initializer_range",
    "activation": "activation",
}
_FIELDS = {"bert": _BERT_FIELDS, "roberta": _BERT_FIELDS, "distilbert": _DISTILBERT_FIELDS}

# What transformers assumes where config.json is silent and EncoderConfig's own default differs.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "distilbert": {"num_layers": 6, "num_token_types": 0},
}

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_ACTIVATION_NAMES = {"gelu_tanh": "gelu_pytorch_tanh"}

_MODEL_CLASSES = {"bert": "BertModel", "roberta": "RobertaModel", "distilbert": "DistilBertModel"}

# Options that change the computation and that the Encoder does not have, with the one value it stands for.
_FIXED_OPTIONS = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def activation_from_huggingface(name: str) -> str:
    """Our name of an activation. Raises ValueError for one that we lack."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"config.json: unknown activation {name!r}, expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def activation_to_huggingface(name: str) -> str:
    """What transformers calls it."""
    return _ACTIVATION_NAMES.get(name, name)


def fields_from_huggingface(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `EncoderConfig` fields that a `config.json` determines (all but the pooler and run-time choices).

    Raises:
        ValueError: unknown model_type or activation, or an option that the Encoder does not have.
    """
    model_type = settings.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"config.json: unknown model_type {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    architecture = MODEL_TYPES[model_type]
    for option, supported in _FIXED_OPTIONS.items():
        if settings.get(option, supported) != supported:
            raise ValueError(f"config.json: {option}={settings[option]!r} is not supported, only {supported!r}")
    fields: dict[str, Any] = {"architecture": architecture, **_DEFAULTS[architecture]}
    for field, key in _FIELDS[architecture].items():
        if settings.get(key) is not None:
            fields[field] = settings[key]
    fields["activation"] = activation_from_huggingface(fields.get("activation", "gelu"))
    if architecture == "roberta":
        fields["position_offset"] = fields["pad_token_id"] + 1
    return fields


def config_to_huggingface(config: EncoderConfig, *, dtype: str) -> dict[str, Any]:
    """The `config.json` of the same network in transformers; `dtype` is that of the stored weights."""
    settings: dict[str, Any] = {
        "model_type": config.architecture,
        "architectures": [_MODEL_CLASSES[config.architecture]],
        "dtype": dtype,
    }
    for field, key in _FIELDS[config.architecture].items():
        settings[key] = getattr(config, field)
    settings[_FIELDS[config.architecture]["activation"]] = activation_to_huggingface(config.activation)
    return settings


# The linear layer of a sentence-transformers Dense module lives in a file of its own, under this prefix here.
SENTENCE_DENSE = "sentence_dense."


def parameter_layouts(config: EncoderConfig) -> dict[str, ParameterLayout]:
    """Every parameter of `Encoder(config)` by its path ("layers/mlp_in/kernel"), with where it is stored."""
    hidden, wide, depth = config.hidden_size, config.intermediate_size, config.num_layers
    layouts = {
        "embeddings/word": whole("embeddings.word_embeddings.weight", (config.vocab_size, hidden)),
        "embeddings/position": whole("embeddings.position_embeddings.weight", (config.max_positions, hidden)),
        **whole_norm("embeddings/norm", "embeddings.LayerNorm", hidden),
    }
    if config.num_token_types > 0:
        shape = (config.num_token_types, hidden)
        layouts["embeddings/token_type"] = whole("embeddings.token_type_embeddings.weight", shape)
    names = _DISTILBERT_LAYER if config.architecture == "distilbert" else _BERT_LAYER
    qkv = [[name.format(layer) for name in names["qkv"]] for layer in range(depth)]
    heads, size = config.num_heads, config.head_size
    layouts["layers/attention/qkv_kernel"] = ParameterLayout(
        (depth, hidden, heads, 3, size),
        tuple(
            Piece(f"{name}.weight", (layer, ALL, ALL, part, ALL), ((1, 2), (0,)))
            for layer in range(depth)
            for part, name in enumerate(qkv[layer])
        ),
    )
    layouts["layers/attention/qkv_bias"] = ParameterLayout(
        (depth, heads, 3, size),
        tuple(
            Piece(f"{name}.bias", (layer, ALL, part, ALL), ((0, 1),))
            for layer in range(depth)
            for part, name in enumerate(qkv[layer])
        ),
    )
    for path, sizes in (
        ("attention/output", (hidden, hidden)),
        ("mlp_in", (hidden, wide)),
        ("mlp_out", (wide, hidden)),
    ):
        layouts |= stacked(f"layers/{path}/kernel", f"{names[path]}.weight", (depth, *sizes), axes=TRANSPOSED)
        layouts |= stacked(f"layers/{path}/bias", f"{names[path]}.bias", (depth, sizes[1]))
    for path in ("attention_norm", "mlp_norm"):
        layouts |= stacked(f"layers/{path}/scale", f"{names[path]}.weight", (depth, hidden))
        layouts |= stacked(f"layers/{path}/bias", f"{names[path]}.bias", (depth, hidden))
    return layouts | pooler_layouts(config)


def pooler_layouts(config: EncoderConfig) -> dict[str, ParameterLayout]:
    """The part of `parameter_layouts` that belongs to the pooler; empty where it has no parameters."""
    if config.pooler not in ("cls_tanh", "mean_linear"):
        return {}
    stored = "pooler.dense" if config.pooler == "cls_tanh" else SENTENCE_DENSE + "linear"
    return {
        "pooler/dense/kernel": ParameterLayout(
            (config.hidden_size, config.hidden_size),
            (Piece(f"{stored}.weight", (ALL, ALL), TRANSPOSED),),
        ),
        "pooler/dense/bias": whole(f"{stored}.bias", (config.hidden_size,)),
    }


_BERT_LAYER: dict[str, Any] = {
    "qkv": tuple(f"encoder.layer.{{}}.attention.self.{part}" for part in ("query", "key", "value")),
    "attention/output": "encoder.layer.{}.attention.output.dense",
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "mlp_in": "encoder.layer.{}.intermediate.dense",
    "mlp_out": "encoder.layer.{}.output.dense",
    "mlp_norm": "encoder.layer.{}.output.LayerNorm",
}
_DISTILBERT_LAYER: dict[str, Any] = {
    "qkv": tuple(f"transformer.layer.{{}}.attention.{part}_lin" for part in "qkv"),
    "attention/output": "transformer.layer.{}.attention.out_lin",
    "attention_norm": "transformer.layer.{}.sa_layer_norm",
    "mlp_in": "transformer.layer.{}.ffn.lin1",
    "mlp_out": "transformer.layer.{}.ffn.lin2",
    "mlp_norm": "transformer.layer.{}.output_layer_norm",
}


# What the head of each family reads; BERT's dense layer is its pooler, the others have one of their own.
CLASSIFIER_POOLERS: dict[str, Any] = {"bert": "cls_tanh", "roberta": "none", "distilbert": "none"}
_CLASSIFIER_TENSORS = {
    "bert": {"output": "classifier"},
    "roberta": {"dense": "classifier.dense", "output": "classifier.out_proj"},
    "distilbert": {"dense": "pre_classifier", "output": "classifier"},
}


def classifier_layouts(config: EncoderConfig, num_classes: int) -> dict[str, ParameterLayout]:
    """The parameters of a sequence classifier's head by path ("output/kernel"), with where they are stored."""
    layouts = {}
    for path, tensor in _CLASSIFIER_TENSORS[config.architecture].items():
        outputs = num_classes if path == "output" else config.hidden_size
        kernel = Piece(f"{tensor}.weight", (ALL, ALL), TRANSPOSED)
        layouts[f"{path}/kernel"] = ParameterLayout((config.hidden_size, outputs), (kernel,))
        layouts[f"{path}/bias"] = whole(f"{tensor}.bias", (outputs,))
    return layouts


def classifier_dropout(settings: Mapping[str, Any], config: EncoderConfig) -> float:
    """Dropout of the head as a `config.json` gives it; what transformers assumes where it is silent."""
    if config.architecture == "distilbert":
        return settings.get("seq_classif_dropout", 0.2)
    given = settings.get("classifier_dropout")
    return settings.get("hidden_dropout_prob", 0.1) if given is None else given


def classifier_to_huggingface(
    config: EncoderConfig, *, labels: Sequence[str], head_dropout: float, dtype: str
) -> dict[str, Any]:
    """The `config.json` of a sequence classifier with these labels."""
    settings = config_to_huggingface(config, dtype=dtype)
    family = _MODEL_CLASSES[config.architecture].removesuffix("Model")
    settings["architectures"] = [f"{family}ForSequenceClassification"]
    settings["id2label"] = {str(index): label for index, label in enumerate(labels)}
    settings["label2id"] = {label: index for index, label in enumerate(labels)}
    settings["seq_classif_dropout" if config.architecture == "distilbert" else "classifier_dropout"] = head_dropout
    return settings


# Task heads that transformers stores beside the encoder, and buffers of older versions: read past, never
# loaded.
_HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.", "vocab_", "pre_classifier.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def canonical_tensor_name(name: str, architecture: str) -> str:
    """A stored name without the prefix of a model with a head and without TensorFlow's norm names."""
    name = name.removeprefix(f"{architecture}.")
    if "LayerNorm." in name:
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name


def unexpected_tensors(names: Iterable[str], config: EncoderConfig) -> list[str]:
    """Those canonical names that are neither the Encoder's nor a known head, buffer or unused pooler."""
    expected = {piece.tensor for layout in parameter_layouts(config).values() for piece in layout.pieces}
    skipped = (*_HEADS, "pooler.dense.", SENTENCE_DENSE)
    return sorted(
        name for name in names if name not in expected and name not in _BUFFERS and not name.startswith(skipped)
    )
