"""Models written twice, in JAX and in torch with the same weights, for tests that compare with Captum in float64.

Captum's DeepLIFT hangs its rules on the tensors that a module takes and gives: one that serves two modules, or a module
and an operation, loses a part of its multiplier. The torch side clones such tensors, which changes no value.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.ad_checkpoint import checkpoint_name

from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig

CLASSES, TARGET = 3, 1
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@dataclasses.dataclass(frozen=True)
class Twins:
    """One model on both sides, two examples in float64, and a layer that both sides can name.

    score: ours, inputs -> [batch], the logit of class 1.
    module: torch's, (inputs, *extra) -> logits.
    groups: four features, as feature numbers that broadcast against the inputs; -1 for what belongs to none.
    window: of occlusion.
    layer: torch's module; `name` is the activation's name on our side, `loop` its place in a scan.
    """

    score: Callable[[Any], Any]
    module: Any
    inputs: np.ndarray
    baseline: np.ndarray
    groups: np.ndarray
    window: tuple[int, ...]
    layer: Any
    name: str
    loop: int | None = None
    extra: tuple[Any, ...] = ()


@pytest.fixture(scope="session")
def twins() -> Iterator[Callable[[str], Twins]]:
    """The twins by name: mlp, cnn (pooling and a residual), bilstm, bert. Each is built once."""
    pytest.importorskip("captum.attr", reason="parity tests need the extra 'torch'")
    torch = pytest.importorskip("torch")
    built: dict[str, Twins] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other

    def get(name: str) -> Twins:
        if name not in built:
            built[name] = {"mlp": _mlp, "cnn": _cnn, "bilstm": _bilstm, "bert": _bert}[name]()
        return built[name]

    yield get
    torch.set_num_threads(threads)


def _mlp() -> Twins:
    import torch

    torch.manual_seed(0)
    layers = torch.nn
    module = layers.Sequential(
        layers.Linear(6, 8), layers.Softplus(), layers.Linear(8, 5), layers.Tanh(), layers.Linear(5, 5),
        layers.Sigmoid(), layers.Linear(5, CLASSES),
    ).double()  # fmt: skip
    _enlarge(module)
    first, second, third, last = (_affine(module[i]) for i in (0, 2, 4, 6))

    def score(x):
        h = checkpoint_name(jnp.tanh(second(jax.nn.softplus(first(x)))), "hidden")
        return last(jax.nn.sigmoid(third(h)))[:, TARGET]

    inputs, baseline = np.random.default_rng(0).standard_normal((2, 2, 6))
    return Twins(score, module, inputs, baseline, np.array([[0, 1, 2, 3, 3, 3]]), (2,), module[3], "hidden")


def _cnn() -> Twins:
    import torch
    from captum.attr._utils.custom_modules import Addition_Module

    layers = torch.nn

    class Convolutional(layers.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Conv2d(2, 4, 3, padding=1), layers.Conv2d(4, 4, 3, padding=1)
            self.rectify, self.features, self.add = layers.ReLU(), layers.ReLU(), Addition_Module()
            self.largest, self.mean = layers.MaxPool2d(2), layers.AvgPool2d((2, 1), stride=1)
            self.squash, self.head = layers.Tanh(), layers.Linear(36, CLASSES)

        def forward(self, x):
            h = self.rectify(self.first(x))
            h = self.features(self.add(self.second(h), h)).clone()
            return self.head(self.squash(self.mean(self.largest(h))).flatten(1))

    torch.manual_seed(1)
    module = Convolutional().double()
    _enlarge(module)
    head = _affine(module.head)
    kernels = [(_array(m.weight), _array(m.bias)[:, None, None]) for m in (module.first, module.second)]

    def convolved(x, kernel, bias):
        return bias + jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    def score(x):
        h = jax.nn.relu(convolved(x, *kernels[0]))
        h = checkpoint_name(jax.nn.relu(convolved(h, *kernels[1]) + h), "features")
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        h = jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 1, 2, 1), (1, 1, 1, 1), "VALID") / 2
        return head(jnp.tanh(h).reshape(len(x), -1))[:, TARGET]

    inputs, baseline = np.random.default_rng(1).standard_normal((2, 2, 2, 8, 6))
    quarters = np.repeat(np.repeat([[0, 1], [2, 3]], 4, axis=0), 3, axis=1)[None, None]
    return Twins(score, module, inputs, baseline, quarters, (2, 3, 2), module.features, "features")


def _bilstm() -> Twins:
    """`RecurrentClassifier`, and torch's cells one by one, so that Captum finds every nonlinearity as a module."""
    import torch

    layers, time, size = torch.nn, MASK.shape[1], 3
    config = RecurrentConfig(
        vocab_size=7, embedding_size=4, hidden_size=size, attention_size=4, num_classes=CLASSES, dtype="float64"
    )
    model, rng = RecurrentClassifier(config), np.random.default_rng(2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, time), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), meta.unbox(shapes))

    def score(vectors):
        return model.apply({"params": params}, vectors, MASK, method="classify").logits[:, TARGET]

    class Cell(layers.Module):
        def __init__(self, direction):
            super().__init__()
            self.input, self.state = layers.Linear(4, 4 * size), layers.Linear(size, 4 * size, bias=False)
            _assign(self.input.weight, params["layer_0"]["kernel"][:, direction].T)
            _assign(self.input.bias, params["layer_0"]["bias"][direction])
            _assign(self.state.weight, params["layer_0"]["recurrent_kernel"][direction].T)
            self.gates = layers.ModuleList(layers.Sigmoid() for _ in range(3 * time))
            self.tanhs = layers.ModuleList(layers.Tanh() for _ in range(2 * time))

        def forward(self, x, mask, order):
            h, c = x.new_zeros(len(x), size), x.new_zeros(len(x), size)
            states = [None] * time
            for step in order:
                i, f, g, o = (self.input(x[:, step]) + self.state(h)).split(size, dim=1)
                enter, forget, leave = (self.gates[3 * step + k](gate) for k, gate in enumerate((i, f, o)))
                cell = forget * c + enter * self.tanhs[2 * step](g)
                new, real = leave * self.tanhs[2 * step + 1](cell.clone()), mask[:, step, None] == 1
                h, c = torch.where(real, new, h), torch.where(real, cell, c)
                states[step] = torch.where(real, new, 0)
            return torch.stack(states, dim=1)

    class Recurrent(layers.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.hidden = layers.ModuleList([Cell(0), Cell(1)]), layers.Identity()
            self.project, self.tanh, self.output = layers.Linear(6, 4), layers.Tanh(), layers.Linear(6, CLASSES)
            for layer, name in ((self.project, "attention"), (self.output, "output")):
                _assign(layer.weight, params[name]["kernel"].T)
                _assign(layer.bias, params[name]["bias"])
            self.vector = torch.tensor(params["attention"]["vector"])

        def forward(self, x, mask):
            orders = range(time), reversed(range(time))
            states = [cell(x, mask, order) for cell, order in zip(self.cells, orders, strict=True)]
            h = self.hidden(torch.cat(states, dim=2))
            weights = (self.tanh(self.project(h)) @ self.vector).masked_fill(mask == 0, -torch.inf).softmax(1)
            return self.output((weights[:, :, None] * h).sum(1))

    inputs, baseline, groups = _text(rng, 4)
    module, extra = Recurrent().double(), (torch.tensor(MASK),)
    return Twins(score, module, inputs, baseline, groups, (1, 4), module.hidden, "hidden_states", extra=extra)


def _bert() -> Twins:
    """transformers' BERT from its word vectors on, and the same in plain JAX with a scan over the layers."""
    import torch
    import transformers

    time, width, heads = MASK.shape[1], 8, 2
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=12,
        max_position_embeddings=time, num_labels=CLASSES, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.BertForSequenceClassification(config).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    weights = {name: _array(value) for name, value in model.state_dict().items() if value.is_floating_point()}
    stacked = {
        name: np.stack([weights[f"bert.encoder.layer.{layer}.{name}"] for layer in range(2)])
        for name in (key.removeprefix("bert.encoder.layer.0.") for key in weights if ".layer.0." in key)
    }

    def affine(x, held, name):
        return x @ held[f"{name}.weight"].T + held[f"{name}.bias"]

    def norm(x, held, name):
        centred = x - jnp.mean(x, -1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-12)
        return centred * scale * held[f"{name}.weight"] + held[f"{name}.bias"]

    def layer(h, held):
        split = lambda name: affine(h, held, f"attention.self.{name}").reshape(*h.shape[:2], heads, -1)  # noqa: E731
        scores = jnp.einsum("bqhd,bkhd->bhqk", split("query"), split("key")) / np.sqrt(width // heads)
        attention = jax.nn.softmax(jnp.where(MASK[:, None, None] == 1, scores, -1e30))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", attention, split("value")).reshape(h.shape)
        h = norm(affine(mixed, held, "attention.output.dense") + h, held, "attention.output.LayerNorm")
        inner = affine(h, held, "intermediate.dense")
        inner = inner * (1 + jax.lax.erf(inner / np.sqrt(2))) / 2
        out = norm(affine(inner, held, "output.dense") + h, held, "output.LayerNorm")
        return checkpoint_name(out, "layer_output"), None

    def score(vectors):
        embeddings = "bert.embeddings."
        places = (
            weights[f"{embeddings}position_embeddings.weight"] + weights[f"{embeddings}token_type_embeddings.weight"][0]
        )
        h, _ = jax.lax.scan(layer, norm(vectors + places, weights, f"{embeddings}LayerNorm"), stacked)
        pooled = jnp.tanh(affine(h[:, 0], weights, "bert.pooler.dense"))
        return affine(pooled, weights, "classifier")[:, TARGET]

    class FromVectors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, vectors, mask):
            return self.model(inputs_embeds=vectors, attention_mask=mask).logits

    inputs, baseline, groups = _text(np.random.default_rng(4), width)
    output, extra = model.bert.encoder.layer[0].output, (torch.tensor(MASK),)
    return Twins(score, FromVectors(), inputs, baseline, groups, (1, width), output, "layer_output", 0, extra)


def _text(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Word vectors and a baseline, both 0 at padding, and features: the last two tokens are one."""
    real = MASK[..., None] == 1
    inputs, baseline = np.where(real, rng.standard_normal((2, *MASK.shape, width)), 0)
    return inputs, baseline, np.where(real, np.array([0, 1, 2, 3, 3])[:, None], -1)


def _enlarge(module: Any) -> None:
    """Parameters far from the small initial ones, with which a network is hardly more than linear."""
    for parameter in module.parameters():
        parameter.data.mul_(2)


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


def _affine(module: Any) -> Callable[[Any], Any]:
    weight, bias = _array(module.weight), _array(module.bias)
    return lambda x: x @ weight.T + bias


def _assign(parameter: Any, value: np.ndarray) -> None:
    import torch

    parameter.data = torch.tensor(np.ascontiguousarray(value))
