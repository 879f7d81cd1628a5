"""Instances split over eight devices: the values of one device, and an eighth of its memory on each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from jaxcore.attribution import integrated_gradients, kernel_shap, scores, token_groups
from jaxcore.distributed import MeshConfig, batch_sharding, jit_on_mesh, make_mesh, replicated
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.transforms import intervene

MODEL = EncoderClassifier(
    ClassifierConfig(
        EncoderConfig(
            num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64, vocab_size=100, max_positions=32,
            attention_implementation="explicit", initializer_range=0.2,
        )
    )
)  # fmt: skip
IDS = np.random.default_rng(0).integers(1, 100, (16, 24)).astype(np.int32)


def explain(method, params, ids):
    words = params["encoder"]["embeddings"]["word"]

    def predict(embeddings):
        return intervene(lambda: MODEL.apply({"params": params}, ids), {"token_embeddings": embeddings})().logits

    score = scores.logit(predict, 1)
    if method == "integrated_gradients":
        return integrated_gradients(score, words[ids], baseline=words[0], num_steps=8, chunk_size=4)
    groups = token_groups(jnp.ones(ids.shape, bool))
    return kernel_shap(
        score, words[ids], jax.random.key(0), baseline=words[0], groups=groups, num_samples=64, chunk_size=16
    )


@pytest.mark.parametrize("method", ["integrated_gradients", "kernel_shap"])
def test_devices_share_the_memory_and_change_nothing(method):
    params = meta.unbox(MODEL.init(jax.random.key(0), IDS[:1])["params"])
    values, temporaries = {}, {}
    for count in (1, 8):
        mesh = make_mesh(MeshConfig(data=count), jax.devices()[:count])
        split = batch_sharding(mesh)
        program = jit_on_mesh(
            functools.partial(explain, method), mesh, in_shardings=(replicated(mesh), split), out_shardings=split
        )
        compiled = program.lower(params, jax.ShapeDtypeStruct(IDS.shape, IDS.dtype, sharding=split)).compile()
        temporaries[count] = compiled.memory_analysis().temp_size_in_bytes
        placed = jax.device_put(params, replicated(mesh))
        values[count] = np.asarray(compiled(placed, jax.device_put(IDS, split)))
    scale = np.abs(values[1]).max()
    np.testing.assert_allclose(values[8], values[1], atol=2e-5 * scale)
    assert scale > 1e-3 and temporaries[8] < 1.1 / 8 * temporaries[1]
