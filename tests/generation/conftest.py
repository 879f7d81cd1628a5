"""Tiny decoders, and a random transformers model in both libraries."""

import pytest
from decoding_references import VOCABULARY, Tiny, tiny

from jaxcore.models import load_pretrained, unstack_layers


@pytest.fixture(scope="session")
def decoder() -> Tiny:
    return tiny(0)


@pytest.fixture(scope="session")
def other() -> Tiny:
    """Other parameters of the same model."""
    return tiny(1)


@pytest.fixture(scope="session")
def narrow() -> Tiny:
    """A model of the same vocabulary and another width."""
    return tiny(1, hidden_size=16, num_heads=2, num_key_value_heads=2)


@pytest.fixture(scope="session")
def torch_gpt2(tmp_path_factory):
    return in_both_libraries("gpt2", tmp_path_factory.mktemp("gpt2"), n_embd=32, n_layer=2, n_head=4, n_positions=40)


@pytest.fixture(scope="session")
def torch_llama(tmp_path_factory):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("llama")
    return in_both_libraries("llama", folder, **sizes, intermediate_size=48, max_position_embeddings=40)


def in_both_libraries(family, folder, **sizes):
    """transformers' model, ours, and ours' parameters, of weights large enough for texts to differ."""
    torch = pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, initializer_range=0.3, **sizes
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    ours, params = load_pretrained(folder)
    return model, ours, unstack_layers(params)
