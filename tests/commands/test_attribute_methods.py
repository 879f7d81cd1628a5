"""Every method of `jaxcore attribute` on saved BERT, DistilBERT and RoBERTa classifiers, against the library's call."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.attribution.method_names import TOKEN_METHODS, token_scores
from jaxcore.attribution.scores import logit
from jaxcore.commands import attribute as command
from jaxcore.commands.attribute_options import AttributeOptions
from jaxcore.data import load_tokenizer, train_tokenizer
from jaxcore.models import EncoderConfig
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier, load_classifier, save_classifier
from jaxcore.transforms import intervene

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXTS = ["a small cat sees", "the dog hears a large house"]
LABELS = ("bad", "good", "neither")


def saved_classifier(folder, architecture, *, kind="word"):
    """A random classifier of one layer with its tokenizer; norms and biases too are away from their initial values."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=280 if kind == "bpe" else 30, kind=kind)
    roberta = architecture == "roberta"
    encoder = EncoderConfig(
        vocab_size=len(tokenizer), num_layers=1, hidden_size=8, num_heads=2, intermediate_size=12, max_positions=48,
        architecture=architecture, pooler="cls_tanh" if architecture == "bert" else "none",
        position_offset=int(roberta), num_token_types=0 if architecture == "distilbert" else 2,
    )  # fmt: skip
    model = EncoderClassifier(ClassifierConfig(encoder, num_classes=3))
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    save_classifier(folder, model, params, LABELS)
    tokenizer.save_pretrained(str(folder))
    return folder


def explained(folder, output, **options):
    """The lines of a run on one device, by method and text."""
    given = {"text": tuple(TEXTS), "num_samples": 4, "num_steps": 6, **options}
    command.attribute(AttributeOptions(model=str(folder), output=output, **given), devices=jax.devices()[:1])
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return {(line["method"], line["index"]): line for line in lines}


def library_call(folder, name, text):
    """The method called as a library function on this text alone: no padding, no other text, no command."""
    model, params, _ = load_classifier(folder, config_overrides={"attention_implementation": "explicit"})
    tokenizer = load_tokenizer(folder)
    ids = jnp.asarray([tokenizer(text)["input_ids"]], jnp.int32)
    predict = lambda e: intervene(lambda: model.apply({"params": params}, ids), {"token_embeddings": e})().logits  # noqa: E731
    words = params["encoder"]["embeddings"]["word"]
    neutral = [model.config.encoder.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]
    target = int(jnp.argmax(predict(words[ids])))
    scores = token_scores(
        name, logit(predict, target), words[ids], jnp.ones_like(ids), key=jax.random.key(0), baseline=words[neutral[0]],
        baselines=words[jnp.asarray(neutral)][:, None], num_steps=6, num_samples=4, chunk_size=4,
    )  # fmt: skip
    return scores[0], target


def test_every_method_gives_a_line_per_text_and_the_exact_ones_the_librarys_values(tmp_path):
    folder = saved_classifier(tmp_path / "bert", "bert")
    lines = explained(folder, tmp_path / "out.jsonl", method=",".join(TOKEN_METHODS))
    assert list(lines) == [(name, index) for index in (0, 1) for name in TOKEN_METHODS]
    for (name, index), line in lines.items():
        tokens = ["[CLS]", *TEXTS[index].split(), "[SEP]"]
        assert line["tokens"] == tokens and len(line["scores"]) == len(tokens), name
        assert line["special"] == [token.startswith("[") for token in tokens]
        assert np.isfinite(line["scores"]).all() and np.abs(line["scores"]).max() > 1e-4, name
        assert (line["completeness_error"] is None) == (TOKEN_METHODS[name].total is None), name
        assert TOKEN_METHODS[name].is_signed or min(line["scores"]) >= 0, name
    for name in ("deeplift", "deepshap", "kernel_shap", "shapley_sampling"):
        assert abs(lines[name, 0]["completeness_error"]) < 1e-5, name
    for name in ("saliency", "integrated_gradients", "attnlrp", "occlusion", "attention_flow", "grad_sam"):
        scores, target = library_call(folder, name, TEXTS[0])
        np.testing.assert_allclose(lines[name, 0]["scores"], scores, atol=2e-6, rtol=1e-4, err_msg=name)
        assert lines[name, 0]["target"] == LABELS[target]


def test_byte_level_tokens_of_a_roberta_become_words(tmp_path):
    folder = saved_classifier(tmp_path / "roberta", "roberta", kind="bpe")
    text = "Ünïcode  cats, naïve"
    given = {"text": (text,), "method": "saliency,occlusion"}
    tokens = explained(folder, tmp_path / "tokens.jsonl", **given)["occlusion", 0]
    words = explained(folder, tmp_path / "words.jsonl", **given, level="word")["occlusion", 0]
    assert words["tokens"] == ["[CLS]", "Ünïcode", "cats,", "naïve", "[SEP]"]
    assert len(tokens["tokens"]) > 15
    assert sum(words["scores"]) == pytest.approx(sum(tokens["scores"]), abs=1e-5)


def test_a_model_that_transformers_saved(tmp_path):
    """Its probability is torch's, and its occlusion is what torch gives with the token's embedding replaced."""
    torch = pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(TEXTS, vocab_size=30, kind="word")
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=8, n_layers=2, n_heads=2, hidden_dim=12, max_position_embeddings=20,
        id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.DistilBertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path / "torch"
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    line = explained(folder, tmp_path / "out.jsonl", method="occlusion", target="good", score="log_probability")[
        "occlusion", 1
    ]
    ids = torch.tensor([tokenizer(TEXTS[1])["input_ids"]])
    vectors = model.get_input_embeddings().weight.detach()

    def log_probability(embeddings):
        with torch.no_grad():
            return model(inputs_embeds=embeddings).logits.log_softmax(-1)[0, 1].item()

    whole = log_probability(vectors[ids])
    falls = []
    for place in range(ids.shape[1]):
        changed = vectors[ids].clone()
        changed[0, place] = vectors[tokenizer.pad_token_id]
        falls.append(whole - log_probability(changed))
    np.testing.assert_allclose(line["scores"], falls, atol=2e-5)
    assert line["probability"] == pytest.approx(np.exp(whole), abs=1e-5) and line["target"] == "good"
