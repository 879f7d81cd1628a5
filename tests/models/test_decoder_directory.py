"""Decoders in HuggingFace directories against transformers' torch models, and against damaged checkpoints."""

import dataclasses
import functools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.models import (
    DECODER_FAMILIES,
    Decoder,
    DecoderConfig,
    KeyValueCache,
    RopeScaling,
    count_parameters,
    load_pretrained,
    read_config,
    save_pretrained,
)
from jaxcore.models.checkpoint_files import TensorReader

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
WINDOW = {"use_sliding_window": True, "sliding_window": 4}

MODELS = {
    "gpt2": ("gpt2", {}),
    "gpt2 untied, narrow": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
    "llama 3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e4, "original_max_position_embeddings": 16}}),
    "llama tied, biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, "max_position_embeddings": 8},
    ),
    "mistral": ("mistral", {"sliding_window": 5, "head_dim": 12}),
    "mistral without window": ("mistral", {"sliding_window": None, "num_key_value_heads": 4}),
    "qwen 2.5": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e6}}),
    "qwen 2.5 windowed above": ("qwen2", {**WINDOW, "max_window_layers": 1, "tie_word_embeddings": True}),
    "qwen 3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen 3 biased, yarn": (
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": {**YARN, "rope_theta": 1e4, "beta_fast": 8.0, "attention_factor": 1.3},
        },
    ),
}


@functools.cache
def torch_model(name: str):
    """A tiny random transformers model; norms and biases too are away from their initial values."""
    torch = pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    transformers = pytest.importorskip("transformers")
    family, changes = MODELS[name]
    sizes = SIZES
    if family == "gpt2":
        sizes = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "intermediate_size")}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**sizes, **changes})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def padded_batch(side: str, time: int = 12):
    """Ids, mask and positions of three texts of different length."""
    rng = np.random.default_rng(3)
    lengths = np.array([[time], [time - 5], [time - 2]])
    mask = np.arange(time) < lengths
    if side == "left":
        mask = mask[:, ::-1]
    ids = np.where(mask, rng.integers(3, 61, mask.shape), 0)
    return ids.astype(np.int32), mask.astype(np.int32), np.maximum(mask.cumsum(1) - 1, 0).astype(np.int32)


def torch_logits(model, ids, mask, positions):
    torch = pytest.importorskip("torch")
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        return model(**{name: torch.tensor(array).long() for name, array in given.items()}).logits.numpy()


@functools.cache
def jitted(config: DecoderConfig):
    def run(params, ids, mask, cache):
        return Decoder(config).apply({"params": params}, ids, mask, cache=cache)

    return jax.jit(run)


@pytest.fixture(scope="module", params=MODELS)
def loaded(request, tmp_path_factory):
    """Name, torch model, our config and parameters."""
    directory = tmp_path_factory.mktemp("decoder")
    reference = torch_model(request.param)
    reference.save_pretrained(directory)
    model, params = load_pretrained(directory)
    return request.param, reference, model.config, params


@pytest.mark.parametrize("side", ("left", "right"))
def test_logits_match_torch(loaded, side):
    _, reference, config, params = loaded
    assert count_parameters(params) == sum(parameter.numel() for parameter in reference.parameters())
    ids, mask, positions = padded_batch(side)
    expected = torch_logits(reference, ids, mask, positions)
    output = jitted(config)(params, ids, mask, None)
    assert output.logits.dtype == jnp.float32 and output.cache is None
    np.testing.assert_allclose(output.logits[mask == 1], expected[mask == 1], atol=1e-4)
    assert np.abs(expected[mask == 1]).std() > 0.1


def test_logits_match_torch_token_by_token(loaded):
    """A prompt, left padded, then one token after the other through both caches."""
    torch = pytest.importorskip("torch")
    name, reference, config, params = loaded
    ids, mask, positions = padded_batch("left")
    run, past, cache = jitted(config), None, KeyValueCache.empty(config, 3, 14)
    for start, stop in ((0, 7), *((t, t + 1) for t in range(7, 12))):
        with torch.no_grad():
            theirs = reference(
                input_ids=torch.tensor(ids[:, start:stop]).long(),
                attention_mask=torch.tensor(mask[:, :stop]).long(),
                position_ids=torch.tensor(positions[:, start:stop]).long(),
                past_key_values=past,
                use_cache=True,
            )
        past = theirs.past_key_values
        ours = run(params, ids[:, start:stop], mask[:, start:stop], cache)
        cache, real = ours.cache, mask[:, start:stop] == 1
        np.testing.assert_allclose(ours.logits[real], theirs.logits.numpy()[real], atol=1e-4)
    assert int(cache.length) == 12 and (np.asarray(cache.valid[:, :12]) == mask).all()
    if name != "llama dynamic":  # whose frequencies depend on the length of the call
        whole = run(params, ids, mask, None).logits
        np.testing.assert_allclose(ours.logits[:, 0], whole[:, -1], atol=1e-4)


def test_round_trip_through_transformers(loaded, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, reference, config, params = loaded
    save_pretrained(tmp_path, config, params)
    assert read_config(tmp_path) == config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for name, tensor in reference.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)
    ids, mask, positions = padded_batch("left")
    np.testing.assert_array_equal(
        torch_logits(again, ids, mask, positions), torch_logits(reference, ids, mask, positions)
    )
    _, params_again = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.fixture
def small(tmp_path):
    """A tiny Qwen 3 written by ourselves, for tests that need no torch: directory, config, parameters."""
    config = DecoderConfig(
        architecture="qwen3", **DECODER_FAMILIES["qwen3"], vocab_size=24, num_layers=2, hidden_size=16, num_heads=8,
        num_key_value_heads=4, head_size=4, intermediate_size=24, max_positions=16, eos_token_ids=(2, 3),
    )  # fmt: skip
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), nn.meta.unbox(shapes))
    save_pretrained(tmp_path / "small", config, params)
    return tmp_path / "small", config, params


@pytest.mark.parametrize("axes", ({"fsdp": 2, "tensor": 4}, {"fsdp": 8}), ids=str)
def test_weights_go_straight_to_their_shards(small, axes, monkeypatch):
    """On a mesh no read is larger than what one device holds of the parameter, and the values are the same."""
    directory, config, expected = small
    largest = {"part": 0}
    plain = TensorReader.read

    def watched(self, tensor, index):
        values = plain(self, tensor, index)
        largest["part"] = max(largest["part"], values.size)
        return values

    monkeypatch.setattr(TensorReader, "read", watched)
    model, params = load_pretrained(directory, sharding=make_mesh(MeshConfig(**axes)))
    assert model.config == config
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    for leaf in (
        params["layers"]["attention"]["qkv_kernel"],
        params["layers"]["mlp"]["gate"]["kernel"],
        params["head"],
    ):
        assert leaf.addressable_shards[0].data.size == leaf.size // 8
    assert largest["part"] <= 8 * 4 * 16 // 8  # of the queries, the largest tensor


def test_sharded_files_and_bfloat16(small, tmp_path):
    directory, config, expected = small
    save_pretrained(tmp_path / "many", config, expected, max_shard_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "many")[1], expected)
    model, halves = load_pretrained(directory, dtype="bfloat16", config_overrides={"dtype": "bfloat16"})
    assert model.config.dtype == "bfloat16" and {str(leaf.dtype) for leaf in jax.tree.leaves(halves)} == {"bfloat16"}
    save_pretrained(tmp_path / "many", config, halves, overwrite=True)  # one file now: the others must not stay
    assert [path.name for path in (tmp_path / "many").glob("*.safetensors*")] == ["model.safetensors"]
    assert json.loads((tmp_path / "many" / "config.json").read_text())["dtype"] == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "many", dtype="bfloat16")[1], halves)


def test_older_names_settings_and_buffers_are_read(small):
    """No prefix, rope_scaling beside rope_theta, inverse frequencies stored, a copy of a tied head."""
    directory, _, expected = small
    settings = json.loads((directory / "config.json").read_text())
    del settings["rope_parameters"]
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    settings |= {"rope_theta": 5e5, "rope_scaling": scaling, "tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(settings))
    tensors = {
        name.removeprefix("model."): tensor for name, tensor in load_file(directory / "model.safetensors").items()
    }
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, directory / "model.safetensors")
    model, params = load_pretrained(directory)
    assert (model.config.rope_theta, model.config.rope_scaling) == (5e5, RopeScaling("yarn", 4.0, 8))
    assert "head" not in params and model.config.eos_token_ids == (2, 3)
    np.testing.assert_array_equal(params["layers"]["mlp"]["out"]["kernel"], expected["layers"]["mlp"]["out"]["kernel"])


def test_ends_of_generation_config_precede_those_of_config(small):
    """Facts about ending alone: what it leaves out or null stays config.json's, and sampling is nobody's business."""
    directory, config, params = small
    settings = {"eos_token_id": [5, 6, 7], "pad_token_id": 9, "bos_token_id": None, "temperature": 0.6, "top_p": 0.9}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    assert read_config(directory) == dataclasses.replace(config, eos_token_ids=(5, 6, 7), pad_token_id=9)
    assert load_pretrained(directory)[0].config.eos_token_ids == (5, 6, 7)
    assert read_config(directory, config_overrides={"eos_token_ids": (1,)}).eos_token_ids == (1,)
    (directory / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert read_config(directory) == dataclasses.replace(config, eos_token_ids=(5,))
    save_pretrained(directory, config, params, overwrite=True)  # another model's ends must not stay
    assert read_config(directory) == config
    (directory / "generation_config.json").write_text('{"eos_token_id": "end"}')
    with pytest.raises(ValueError, match="eos_token_id must be a token's id or a list of ids, got 'end'"):
        read_config(directory)


def test_ends_are_fetched_from_the_hub_with_the_model(small, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    directory, config, _ = small
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (directory / "tokenizer.json").write_text("{}")

    def snapshot(name, *, revision, allow_patterns):
        (tmp_path / name).mkdir(parents=True)
        for file in filter_repo_objects([path.name for path in directory.iterdir()], allow_patterns=allow_patterns):
            shutil.copy(directory / file, tmp_path / name / file)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert read_config("owner/name") == dataclasses.replace(config, eos_token_ids=(5, 6))


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    (
        (
            lambda t: t.pop(Q),
            r"missing tensor layers\.1\.self_attn\.q_proj\.weight of shape \(32, 16\) .* a qwen3",
        ),
        (lambda t: t.pop("lm_head.weight"), "missing tensor lm_head.weight .*set tied_head=True"),
        (lambda t: t.update(surprise=np.zeros(3, np.float32)), "unexpected tensor surprise"),
        (lambda t: t.update({Q: t[Q][:-1]}), r"q_proj\.weight has shape \(31, 16\), expected \(32, 16\)"),
        (lambda t: t.update({Q: t[Q].astype(np.int8)}), r"q_proj\.weight has dtype I8"),
        (lambda t: t.update({Q.removeprefix("model."): t[Q]}), "are the same parameter"),
    ),
    ids=("missing", "no head", "extra", "shape", "quantised", "twice"),
)
def test_damaged_tensors_are_named(small, edit, message):
    file = small[0] / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_pretrained(small[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        (
            {"model_type": "mamba"},
            "unknown model_type 'mamba', expected one of bert, .*gpt2, llama, mistral, qwen2, qwen3",
        ),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_act": "mish"}, "unknown activation 'mish'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported, only default, linear"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ({"use_sliding_window": True, "layer_types": ["chunked_attention"] * 2}, "layer type 'chunked_attention'"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads, got 8 and 3"),
        ({"num_hidden_layers": 3}, r"missing tensor layers\.2"),
    ),
    ids=str,
)
def test_unfit_configs_are_refused(small, changes, message):
    file = small[0] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        load_pretrained(small[0])


def test_options_that_decoders_lack_are_refused(small):
    with pytest.raises(ValueError, match="key draws an encoder's pooler, but this is a decoder"):
        load_pretrained(small[0], key=jax.random.key(0))
    with pytest.raises(ValueError, match="unknown field 'pooler'"):
        load_pretrained(small[0], config_overrides={"pooler": "mean"})
    with pytest.raises(ValueError, match="exists: choose another directory"):
        save_pretrained(*small)
    with pytest.raises(ValueError, match="head is missing from params"):
        save_pretrained(small[0], small[1], {k: v for k, v in small[2].items() if k != "head"}, overwrite=True)
