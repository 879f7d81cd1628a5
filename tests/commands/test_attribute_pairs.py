"""`jaxcore attribute` of pairs of texts and of recurrent classifiers: lines, words, pages, resuming, bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.__main__ import main
from jaxcore.commands import attribute as command
from jaxcore.commands.attribute_options import AttributeOptions
from jaxcore.data import load_tokenizer, train_tokenizer, word_tokenizer
from jaxcore.evaluation import Interrupted
from jaxcore.models import Encoder, EncoderConfig, save_pretrained
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier, load_classifier, save_classifier
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig
from jaxcore.models.recurrent_directory import load_recurrent, save_recurrent
from jaxcore.transforms import intervene

pytestmark = pytest.mark.usefixtures("quick_compilation")

LABELS = ("entailment", "neutral", "contradiction")
PAIRS = [
    ("a small cat sees the dog", "nobody sleeps"),
    ("the dog hears", "a large house sees the small river"),
    ("the <i>cat</i> sleeps", "the cat <script>sees</script>"),
]
WORDS = sorted({word for pair in PAIRS[:2] for text in pair for word in text.split()})
SIZES = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12, "max_positions": 64}


def drawn(model, *inputs):
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT classifier with a template for pairs, recurrent classifiers of every kind, an encoder, and the pairs."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    root, ids = tmp_path_factory.mktemp("pairs"), jnp.ones((1, 4), jnp.int32)
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair], vocab_size=64)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    for name, pair in (("one_text", "$A $B:1"), ("bert", "[CLS] $A [SEP] $B:1 [SEP]:1")):
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=pair, special_tokens=ends
        )
        with_types = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            **{name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        )
        with_types.save_pretrained(str(root / name))
    config = EncoderConfig(vocab_size=len(tokenizer), architecture="bert", pooler="cls_tanh", **SIZES)
    bert = EncoderClassifier(ClassifierConfig(config, num_classes=3))
    save_classifier(root / "bert", bert, drawn(bert, ids), LABELS)
    encoder = Encoder(EncoderConfig(vocab_size=len(tokenizer), pooler="mean", **SIZES))
    save_pretrained(root / "encoder", encoder, drawn(encoder, ids))
    tokenizer.save_pretrained(str(root / "encoder"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    by_word = word_tokenizer(words, start_token=False, end_token=False, lowercase=True)
    for attention in ("additive", "dot"):
        for inputs in ("single", "pair"):
            model = RecurrentClassifier(
                RecurrentConfig(
                    vocab_size=len(words),
                    embedding_size=6,
                    hidden_size=5,
                    num_classes=3,
                    attention=attention,
                    attention_size=4,
                    inputs=inputs,
                )
            )
            texts = (ids, ids) * (2 if inputs == "pair" else 1)
            save_recurrent(root / f"{attention}_{inputs}", model, drawn(model, *texts), LABELS)
            by_word.save_pretrained(str(root / f"{attention}_{inputs}"))
    with open(root / "pairs.jsonl", "w") as file:
        file.writelines(json.dumps({"premise": first, "hypothesis": second}) + "\n" for first, second in PAIRS)
    return root


def given(folder, model, output, **more):
    if "input" not in more:
        more = {"text": tuple(first for first, _ in PAIRS), "text_pair": tuple(second for _, second in PAIRS), **more}
    options = {"method": "occlusion", "batch_tokens": 60, **more}
    return AttributeOptions(model=str(folder / model), output=output, **options)


def lines_of(folder, model, output, **more):
    command.attribute(given(folder, model, output, **more), devices=jax.devices()[:1])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def check_falls(line, logits):
    """The line's scores are falls of the target's logit; row 0 of the logits is the text itself."""
    target = int(logits[0].argmax())
    assert line["target"] == LABELS[target]
    np.testing.assert_allclose(line["scores"], logits[0, target] - logits[1:, target], atol=2e-5)
    odds = np.exp(logits[0] - logits[0].max())
    assert line["probability"] == pytest.approx(odds[target] / odds.sum(), abs=1e-5)


def left_out_one_by_one(words, ids, pad):
    """[1 + tokens, tokens, dim]: the text's vectors, and those with each token's replaced by padding's."""
    rows = np.repeat(np.asarray(words)[None, ids], 1 + len(ids), axis=0)
    rows[1 + np.arange(len(ids)), np.arange(len(ids))] = np.asarray(words)[pad]
    return jnp.asarray(rows)


def test_both_parts_of_a_transformers_pair_are_explained_together(folder, tmp_path):
    read = {"input": str(folder / "pairs.jsonl"), "field": "premise", "pair_field": "hypothesis"}
    lines = lines_of(folder, "bert", tmp_path / "out.jsonl", **read)
    model, params, _ = load_classifier(folder / "bert")
    tokenizer = load_tokenizer(folder / "bert")
    for line, (first, second) in zip(lines, PAIRS, strict=True):
        encoded = tokenizer(first, second)
        ids, types = (np.asarray(encoded[name], np.int32) for name in ("input_ids", "token_type_ids"))
        rows = left_out_one_by_one(params["encoder"]["embeddings"]["word"], ids, tokenizer.pad_token_id)
        count = len(rows)

        def logits(types, ids=ids, rows=rows, count=count):
            run = lambda: model.apply(  # noqa: E731
                {"params": params}, np.tile(ids, (count, 1)), None, np.tile(types, (count, 1))
            )
            return np.asarray(jax.jit(intervene(run, {"token_embeddings": rows}))().logits)

        check_falls(line, logits(types))
        assert np.abs(logits(types)[0] - logits(0 * types)[0]).max() > 1e-2  # segments count
        split = line["second_start"]
        assert (line["text"], line["text_pair"]) == (first, second) and line["tokens"][split - 1] == "[SEP]"
        assert [index for index, special in enumerate(line["special"]) if special] == [0, split - 1, len(ids) - 1]
        for text, places in ((first, range(1, split - 1)), (second, range(split, len(ids) - 1))):
            found = [text[slice(*line["offsets"][place])] for place in places]
            assert found == [line["tokens"][place].removeprefix("##") for place in places]


def test_words_stay_in_their_own_text(folder, tmp_path):
    tokens = lines_of(folder, "bert", tmp_path / "tokens.jsonl")
    words = lines_of(folder, "bert", tmp_path / "words.jsonl", level="word")
    for line, fine, (first, second) in zip(words, tokens, PAIRS, strict=True):
        assert line["tokens"] == ["[CLS]", *first.split(), "[SEP]", *second.split(), "[SEP]"]
        split = line["second_start"]
        assert line["tokens"][split:] == [*second.split(), "[SEP]"]
        assert [second[slice(*place)] for place in line["offsets"][split:-1]] == second.split()
        assert sum(line["scores"][split:]) == pytest.approx(sum(fine["scores"][fine["second_start"] :]), abs=1e-5)
        assert sum(line["scores"]) == pytest.approx(sum(fine["scores"]), abs=1e-5)


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_a_recurrent_classifier_of_pairs(folder, tmp_path, attention):
    name = f"{attention}_pair"
    occlusion, weights = (
        lines_of(folder, name, tmp_path / f"{method}.jsonl", method=method) for method in ("occlusion", "attention")
    )
    model, params, _ = load_recurrent(folder / name)
    tokenizer = load_tokenizer(folder / name)
    for line, looked, texts in zip(occlusion, weights, PAIRS, strict=True):
        sides = [np.asarray(tokenizer(text)["input_ids"]) for text in texts]
        split, ids = len(sides[0]), np.concatenate(sides)
        rows = left_out_one_by_one(params["word"], ids, 0)
        output = jax.jit(
            lambda rows, split=split: model.apply(
                {"params": params}, rows[:, :split], None, rows[:, split:], None, method="classify"
            )
        )(rows)
        check_falls(line, np.asarray(output.logits))
        assert line["second_start"] == split and line["special"] == [False] * len(ids)
        assert line["tokens"] == [word if word in WORDS else "[UNK]" for text in texts for word in text.split()]
        expected = np.concatenate([output.attention_weights[0], output.second_attention_weights[0]])
        np.testing.assert_allclose(looked["scores"], expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_a_recurrent_classifier_of_single_texts(folder, tmp_path, attention):
    name, texts = f"{attention}_single", tuple(first for first, _ in PAIRS)
    lines = lines_of(folder, name, tmp_path / "out.jsonl", text_pair=())
    model, params, _ = load_recurrent(folder / name)
    tokenizer = load_tokenizer(folder / name)
    classify = jax.jit(lambda rows: model.apply({"params": params}, rows, method="classify").logits)
    for line, text in zip(lines, texts, strict=True):
        rows = left_out_one_by_one(params["word"], np.asarray(tokenizer(text)["input_ids"]), 0)
        check_falls(line, np.asarray(classify(rows)))
        assert line["text_pair"] is None and line["second_start"] is None


def test_an_interrupted_run_of_pairs_resumes_to_the_same_bytes(folder, tmp_path):
    read = {"input": str(folder / "pairs.jsonl"), "field": "premise", "pair_field": "hypothesis", "window": 1}
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    lines_of(folder, "dot_pair", whole, **read)
    with pytest.raises(Interrupted, match="--resume"):
        command.attribute(
            given(folder, "dot_pair", output, **read), devices=jax.devices()[:1], tick=lambda tick: tick == 16 + 5
        )
    with pytest.raises(ValueError, match=r"another input, model or options .*pair_field was hypothesis, is "):
        command.attribute(given(folder, "dot_pair", output, resume=True, window=1), devices=jax.devices()[:1])
    command.attribute(given(folder, "dot_pair", output, resume=True, **read), devices=jax.devices()[:1])
    assert output.read_bytes() == whole.read_bytes()


def test_page_and_terminal_show_both_parts_apart_and_as_text(folder, tmp_path, capsys):
    command.attribute(given(folder, "bert", tmp_path / "page.html", level="word"), devices=jax.devices()[:1])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>sees" not in page and "&lt;script&gt;sees" in page and "&lt;i&gt;cat" in page
    assert page.count("here the next text begins") == 3 and "pair 2: why" in page
    assert "begins on a line of its own" in page
    command.attribute(given(folder, "dot_pair", "terminal"), devices=jax.devices()[:1])
    assert "a small cat sees the dog\n‖ nobody sleeps\n" in capsys.readouterr().out


PAIR = {"text": "a cat", "text-pair": "the dog"}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("bert", {"text": "a cat", "text-pair": " "}, "--text-pair is empty (text 0)"),
        ("bert", {"text-pair": "a cat", "input": "{pairs}"}, "got 1 for 0 texts (of a file, --pair-field"),
        ("bert", {"text": "a cat", "pair-field": "second"}, "--pair-field is of the records of --input"),
        ("bert", {"input": "{pairs}", "field": "premise", "pair-field": "other"}, "missing field 'other'"),
        ("bert", {"input": "{pairs}", "field": "premise", "pair-field": "premise"}, "names the field of the text"),
        ("bert", {"input": "x.txt", "pair-field": "second"}, "a line of text has no fields"),
        ("bert", {"text": "a " * 40, "text-pair": "the " * 40}, "tokens, but the model reads 64: split it"),
        ("bert", {"text": "a " * 9, "text-pair": "the " * 9, "method": "exact_shapley"}, "up to 16 tokens, special"),
        ("bert", {**PAIR, "tokenizer": "{one_text}"}, "takes no pairs: it adds 2 special tokens to a text and 0 to a"),
        ("encoder", {**PAIR, "similar-to": "a cat"}, "explains the embedding of one text"),
        ("dot_single", PAIR, "the model reads one text (inputs='single'): got pairs"),
        ("dot_pair", {"text": "a cat"}, "the model reads pairs of texts (inputs='pair'): got single texts"),
        ("dot_single", {"text": "a cat", "similar-to": "a dog"}, "is a recurrent classifier, without embeddings"),
        ("dot_pair", {**PAIR, "method": "attention_rollout"}, "it has 'attention' alone"),
        ("dot_pair", {**PAIR, "method": "value_zeroing"}, "value_zeroing needs 'layer_output'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, model, options, message):
    places = {"{pairs}": folder / "pairs.jsonl", "{one_text}": folder / "one_text"}
    arguments = ["attribute", "--model", str(folder / model)]
    for name, value in {"method": "occlusion", **options}.items():
        arguments += [f"--{name}", str(places.get(value, value))]
    assert main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0], error
