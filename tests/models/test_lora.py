"""Adapters against the equation, against PEFT, and in training."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig, save_pretrained
from jaxcore.models.lora import LoraConfig, init_adapters, load_adapters, merge_adapters, save_adapters

SIZES = {
    "vocab_size": 23,
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_size": 6,
    "intermediate_size": 20,
    "max_positions": 16,
}
CONFIGS = {
    "llama": DecoderConfig(architecture="llama", **DECODER_FAMILIES["llama"], **SIZES),
    "gpt2": DecoderConfig(**{**SIZES, "num_key_value_heads": 4, "head_size": 4}),
}
TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
IDS = np.random.default_rng(0).integers(0, 23, (2, 7)).astype(np.int32)


def random_params(config: DecoderConfig, seed: int = 0):
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), nn.meta.unbox(shapes))


def random_adapters(config: DecoderConfig, lora: LoraConfig):
    rng = np.random.default_rng(5)
    fresh = init_adapters(jax.random.key(1), config, lora)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), fresh)


def logits(config, params):
    return np.asarray(jax.jit(Decoder(config).apply)({"params": params}, IDS).logits)


@pytest.fixture(params=CONFIGS)
def family(request) -> str:
    return request.param


def test_fresh_adapters_change_nothing(family):
    config, params = CONFIGS[family], random_params(CONFIGS[family])
    lora = LoraConfig(rank=3, targets=TARGETS[family])
    fresh = init_adapters(jax.random.key(0), config, lora)
    assert all(float(jnp.abs(adapter["a"]).max()) > 0.01 for adapter in fresh.values())
    merged = merge_adapters(params, fresh, config, scale=lora.scale)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_merged_weights_are_the_equation(family, tmp_path):
    """Of what save_pretrained writes, each adapted tensor is W + (alpha / r) B A and no other one changes."""
    config, params = CONFIGS[family], random_params(CONFIGS[family])
    lora = LoraConfig(rank=3, alpha=6.0, targets=TARGETS[family][:2])
    adapters = random_adapters(config, lora)
    save_pretrained(tmp_path / "base", config, params)
    save_pretrained(tmp_path / "merged", config, merge_adapters(params, adapters, config, scale=lora.scale))
    save_adapters(tmp_path / "adapter", adapters, config, lora)
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    pairs = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    changed = set()
    for name, tensor in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" not in pairs:
            np.testing.assert_array_equal(merged[name], tensor)
            continue
        a, b = pairs[f"{stem}.lora_A.weight"], pairs[f"{stem}.lora_B.weight"]
        change = 2.0 * b @ a
        np.testing.assert_allclose(merged[name], tensor + (change.T if family == "gpt2" else change), atol=1e-5)
        changed.add(name)
    assert len(changed) == len(pairs) // 2 == 2 * (2 if family == "llama" else 3)  # c_proj is in attention and mlp


def test_peft_computes_the_same(family, tmp_path):
    """Our files in PEFT give our merged logits; and PEFT's own files come back as the same adapters."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config, params = CONFIGS[family], random_params(CONFIGS[family])
    lora = LoraConfig(rank=3, alpha=6.0, targets=TARGETS[family])
    adapters = random_adapters(config, lora)
    save_pretrained(tmp_path / "base", config, params)
    save_adapters(tmp_path / "adapter", adapters, config, lora, base_model=str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(IDS).long()).logits.numpy()
    got = logits(config, merge_adapters(params, adapters, config, scale=lora.scale))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert not np.allclose(logits(config, params), expected, atol=0.05)
    model.save_pretrained(tmp_path / "theirs")
    again, lora_again = load_adapters(tmp_path / "theirs", config)
    assert (lora_again.rank, lora_again.alpha, set(lora_again.targets)) == (3, 6.0, set(lora.targets))
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


def test_gradients_reach_only_adapters_and_training_lowers_the_loss():
    config, params = CONFIGS["llama"], random_params(CONFIGS["llama"])
    lora = LoraConfig(rank=2, targets=("q_proj", "down_proj"))

    def loss(adapters):
        merged = merge_adapters(params, adapters, config, scale=lora.scale)
        scores = jax.nn.log_softmax(Decoder(config).apply({"params": merged}, IDS).logits[:, :-1])
        return -jnp.take_along_axis(scores, IDS[:, 1:, None], -1).mean()

    step = jax.jit(jax.value_and_grad(loss))
    adapters = init_adapters(jax.random.key(0), config, lora)
    first, gradients = step(adapters)
    assert all(float(jnp.abs(g["b"]).max()) > 0 and float(jnp.abs(g["a"]).max()) == 0 for g in gradients.values())
    for _ in range(10):
        adapters = jax.tree.map(lambda leaf, g: leaf - 0.5 * g, adapters, step(adapters)[1])
    assert step(adapters)[0] < first - 0.05


def test_unfit_adapters_are_refused(tmp_path):
    config = CONFIGS["llama"]
    with pytest.raises(ValueError, match="no linear layer of llama is called 'c_attn': use down_proj, gate_proj"):
        init_adapters(jax.random.key(0), config, LoraConfig(targets=("c_attn",)))
    with pytest.raises(ValueError, match="rank must be positive"):
        LoraConfig(rank=0)
    lora = LoraConfig(rank=2, targets=("q_proj",))
    adapters, params = init_adapters(jax.random.key(0), config, lora), random_params(config)
    (name,) = adapters
    wrong = {name: {**adapters[name], "a": adapters[name]["a"][:, 1:]}}
    with pytest.raises(ValueError, match=r"shapes \(2, 15, 2\) .* expected \(2, 16, 2\)"):
        merge_adapters(params, wrong, config, scale=1.0)
    with pytest.raises(ValueError, match="the model has no linear layer 'elsewhere'"):
        merge_adapters(params, {"elsewhere": adapters[name]}, config, scale=1.0)

    save_adapters(tmp_path, adapters, config, lora)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": tensors[first]}, file)
    with pytest.raises(ValueError, match=r"lm_head\.lora_A\.weight belongs to no linear layer"):
        load_adapters(tmp_path, config)
    save_file({key: value for key, value in tensors.items() if key != first}, file)
    with pytest.raises(ValueError, match=r"missing tensor .*adapters must cover every block"):
        load_adapters(tmp_path, config)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(ValueError, match="use_dora=True is not supported"):
        load_adapters(tmp_path, config)


def test_arrays_that_were_never_on_a_device_are_merged_alike():
    config, lora = CONFIGS["gpt2"], LoraConfig(rank=3, targets=TARGETS["gpt2"][:1])
    params, adapters = random_params(config), random_adapters(config, lora)
    merge = functools.partial(merge_adapters, adapters=adapters, config=config, scale=lora.scale)
    jax.tree.map(np.testing.assert_array_equal, merge(jax.tree.map(np.asarray, params)), merge(params))
