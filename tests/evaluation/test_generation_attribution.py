"""Continuations explained token by token: against Captum prefix by prefix, alone and together, by word and span."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.generation_attribution import (
    ContinuationOptions,
    LanguageModel,
    _token_text,
    by_segment,
    explain_continuations,
    generated_continuations,
    given_continuation,
)
from jaxcore.generation import complete
from jaxcore.models import Decoder, DecoderConfig, load_pretrained, unstack_layers

pytestmark = pytest.mark.usefixtures("quick_compilation")

torch = pytest.importorskip("torch", reason="the models are drawn in torch, for parity")
transformers = pytest.importorskip("transformers")

WORDS = ("<end>", "the", "a", "cat.", "dog", "sees", "hears", "small", "Large", "house", "river")
PROMPT, TEXT, CONTRAST = "the small cat. Large dog", " sees the river", " hears a house"


def word_tokenizer(words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<end>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=table, eos_token="<end>", unk_token="<end>")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """GPT-2 in torch, float64, and as a `LanguageModel`."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=20, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    ours, params = load_pretrained(folder, config_overrides={"attention_implementation": "explicit"})
    return model.double(), LanguageModel(ours, params, word_tokenizer())


@pytest.fixture(scope="module")
def request_(both):
    return given_continuation(both[1], PROMPT, TEXT, contrast=CONTRAST)


@pytest.fixture(scope="module")
def explanation(both, request_):
    options = ContinuationOptions(("ig", "occlusion"), num_steps=6)
    (found,) = explain_continuations(both[1], [request_], options)
    return found


def captum_scores(model, item, *, steps, unknown=0):
    """Integrated gradients and occlusion of each target's log-odds against its contrast, on its prefix alone."""
    captum = pytest.importorskip("captum.attr")
    table = model.transformer.wte.weight.detach()
    paths, falls = (np.zeros((item.num_targets, len(item.ids))) for _ in range(2))
    for row in range(item.num_targets):
        end = item.num_prompt + row
        token, versus = item.ids[end], item.versus[row]

        def score(vectors, token=token, versus=versus):
            logits = torch.log_softmax(model(inputs_embeds=vectors).logits[:, -1], -1)
            return logits[:, token] - logits[:, versus]

        vectors = table[list(item.ids[:end])][None]
        baseline = table[unknown].expand_as(vectors)
        method = captum.IntegratedGradients(score)
        paths[row, :end] = (
            method.attribute(vectors, baseline, n_steps=steps, method="gausslegendre").sum(-1)[0].detach()
        )
        copies = vectors.repeat(end, 1, 1)
        copies[range(end), range(end)] = table[unknown]
        falls[row, :end] = (score(vectors) - score(copies)).detach()
    return paths, falls


def test_values_are_those_of_captum_on_each_prefix(both, request_, explanation):
    paths, falls = captum_scores(both[0], request_, steps=6)
    np.testing.assert_allclose(explanation.methods["integrated_gradients"].scores, paths, atol=2e-5)
    np.testing.assert_allclose(explanation.methods["occlusion"].scores, falls, atol=2e-5)
    assert np.ptp(paths) > 0.1 and np.ptp(falls) > 0.1
    with torch.no_grad():
        logits = torch.log_softmax(both[0](torch.tensor([request_.ids])).logits[0], -1).numpy()
    places = np.arange(request_.num_prompt - 1, len(request_.ids) - 1)
    expected = logits[places, list(request_.ids[request_.num_prompt :])]
    versus = logits[places, list(request_.versus)]
    np.testing.assert_allclose(explanation.log_probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(explanation.versus_log_probabilities, versus, atol=1e-5)
    np.testing.assert_allclose(explanation.scores, expected - versus, atol=2e-5)
    change = explanation.scores - explanation.baseline_scores
    errors = explanation.methods["integrated_gradients"].completeness_errors
    np.testing.assert_allclose(paths.sum(axis=1) - change, errors, atol=3e-5)


def test_neighbours_padding_and_devices_change_nothing(both, request_, explanation):
    other = given_continuation(both[1], "a cat.", " hears the small house the river", contrast=" a a a a a a")
    mesh = make_mesh(MeshConfig(), jax.local_devices()[:2])
    options = ContinuationOptions(("ig",), num_steps=6, batch_size=1)
    told = []
    found = list(explain_continuations(both[1], [other, request_], options, mesh=mesh, first=3, advance=told.append))
    assert [len(item.scores) for item in found] == [6, 3] and told == [2]
    for name in ("scores", "baseline_scores", "log_probabilities"):
        np.testing.assert_allclose(getattr(found[1], name), getattr(explanation, name), atol=1e-5)
    ours = explanation.methods["integrated_gradients"].scores
    np.testing.assert_allclose(found[1].methods["integrated_gradients"].scores, ours, atol=1e-5)


def test_the_prompt_alone(both, request_, explanation):
    options = ContinuationOptions(("occlusion",), attributed="prompt", seed=3)
    (found,) = explain_continuations(both[1], [request_], options)
    scores, all_scores = found.methods["occlusion"].scores, explanation.methods["occlusion"].scores
    np.testing.assert_allclose(scores[:, :5], all_scores[:, :5], atol=1e-5)
    assert np.all(scores[:, 5:] == 0) and np.ptp(all_scores[1:, 5:]) > 1e-3


def test_generated_tokens_are_those_of_complete(both):
    ours = both[1]
    prompts = ["the small cat.", "a dog"]
    found = generated_continuations(ours, prompts, max_new_tokens=4, stop_tokens=())
    ids = [ours.tokenizer(prompt)["input_ids"] for prompt in prompts]
    expected = complete(ours.model, unstack_layers(ours.params), ids, max_new_tokens=4, stop_tokens=())
    for item, (completion,), prompt in zip(found, expected, prompts, strict=True):
        assert item.ids[item.num_prompt :] == tuple(completion.tokens) and item.generated and item.prompt == prompt
        words = [WORDS[token] for token in completion.tokens]
        assert item.text.split() == words
        spans = item.offsets[item.num_prompt :] - len(prompt)
        assert [item.text[start:end].strip() for start, end in spans] == words
    with pytest.raises(ValueError, match=r"the contrast ' a' has 1 tokens, but 4 were generated"):
        generated_continuations(ours, prompts, max_new_tokens=4, stop_tokens=(), contrast=" a")


def test_segments_are_sums_on_both_sides(explanation):
    tokens = by_segment(explanation)
    assert tokens.sources == ("the", "small", "cat.", "Large", "dog", " sees", " the", " river")
    assert (tokens.num_prompt, tokens.targets) == (5, (" sees", " the", " river"))
    assert tokens.versus == ("hears", "a", "house")
    scores = explanation.methods["integrated_gradients"].scores
    np.testing.assert_allclose(tokens.methods["integrated_gradients"], scores, atol=1e-6)
    sentences = by_segment(explanation, "sentence")
    assert sentences.sources == ("the small cat.", "Large dog", " sees the river") and sentences.num_prompt == 2
    parts = scores.sum(axis=0)
    expected = [[parts[:3].sum(), parts[3:5].sum(), parts[5:].sum()]]
    np.testing.assert_allclose(sentences.methods["integrated_gradients"], expected, atol=1e-5)
    assert float(sentences.scores[0]) == pytest.approx(explanation.scores.sum(), abs=1e-5)
    errors = explanation.methods["integrated_gradients"].completeness_errors
    assert sentences.completeness_errors["integrated_gradients"][0] == pytest.approx(errors.sum(), abs=1e-5)
    spans = by_segment(explanation, "word", prompt_spans=[(4, 9), (15, 24)], continuation_spans=[(1, 9)])
    assert spans.sources == ("small", "Large dog", "sees the") and spans.targets == ("sees the",)
    expected = [[scores[:2, 1].sum(), scores[:2, 3:5].sum(), scores[:2, 5:7].sum()]]
    np.testing.assert_allclose(spans.methods["integrated_gradients"], expected, atol=1e-5)
    assert PROMPT[slice(*spans.source_offsets[1])] == "Large dog"
    assert (PROMPT + TEXT)[slice(*spans.target_offsets[0])] == "sees the"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "page"}, "unknown level 'page': expected one of token, word, sentence"),
        ({"prompt_spans": [(0, 99)]}, r"span \[0, 99\) lies outside the prompt, which has characters 0 to 24"),
        ({"continuation_spans": [(-1, 3)]}, r"span \[-1, 3\) lies outside the continuation"),
        ({"prompt_spans": []}, "prompt_spans hold no span"),
        ({"prompt_spans": [(0, 5), (4, 9)]}, "not overlap"),
        ({"prompt_spans": [(3, 4)]}, r"span \[3, 4\) of the prompt, ' ', holds no token of its own"),
    ],
)
def test_segments_that_do_not_exist_are_refused(explanation, options, message):
    with pytest.raises(ValueError, match=message):
        by_segment(explanation, **options)


def byte_level(texts):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=262, min_frequency=1, special_tokens=["<|end|>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<|end|>", unk_token="<|end|>"
    )


def test_tokens_that_make_a_character_together_share_it():
    tokenizer = byte_level(["abc"])
    sizes = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "num_key_value_heads": 2, "head_size": 4}
    model = Decoder(DecoderConfig(vocab_size=300, intermediate_size=12, max_positions=40, **sizes))
    explained = LanguageModel(model, None, tokenizer)
    item = given_continuation(explained, "añ", " é€!\n")
    assert (item.prompt, item.text) == ("añ", " é€!\n") and item.num_prompt == 3
    pieces = [(item.prompt + item.text)[start:end] for start, end in item.offsets]
    assert pieces == ["a", "ñ", "ñ", " ", "é", "é", "€", "€", "€", "!", "\n"]
    shown = [_token_text(tokenizer, token) for token in item.ids]
    assert (shown[0], shown[3], shown[-1]) == ("a", " ", "\n") and "\ufffd" not in "".join(shown)


@pytest.mark.parametrize(
    ("prompt", "text", "contrast", "message"),
    [
        (" \n", " sees", None, r"empty prompt: ' \\n' has no token"),
        ("the cat.", "", None, "the continuation has no token"),
        ("the cat.", " sees the", " hears", "has 1 tokens, but the continuation ' sees the' has 2"),
        ("the " * 20, " sees", None, None),
        ("the " * 20, " sees a", None, r"have 20 \+ 2 tokens, but the model's context is 20: cut the prompt"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(both, prompt, text, contrast, message):
    if message is None:  # the last token is no input
        assert given_continuation(both[1], prompt, text, contrast=contrast).num_targets == 1
        return
    with pytest.raises(ValueError, match=message):
        given_continuation(both[1], prompt, text, contrast=contrast)


def test_other_bad_input_is_refused(both, request_):
    options = ContinuationOptions(("occlusion",))
    with pytest.raises(ValueError, match="no continuations"):
        next(explain_continuations(both[1], [], options))
    plain = dataclasses.replace(request_, versus=None)
    with pytest.raises(ValueError, match="some continuations have a contrast and some have none"):
        next(explain_continuations(both[1], [request_, plain], options))
    larger = dataclasses.replace(both[1], tokenizer=word_tokenizer((*WORDS, "more")))
    with pytest.raises(ValueError, match="the tokenizer gives id 11, but the model has 11 token vectors"):
        given_continuation(larger, "the more", " cat.")
    for changes, message in (
        ({"methods": ("integratd_gradients",)}, "did you mean integrated_gradients"),
        ({"methods": ()}, "no attribution method given"),
        ({"score": "loss"}, "score must be one of"),
        ({"attributed": "suffix"}, "attributed must be one of prefix, prompt"),
        ({"num_steps": 0}, "num_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            ContinuationOptions(**{"methods": ("occlusion",), **changes})


def test_weights_that_hold_nan_are_named(both, request_):
    params = jax.tree.map(lambda leaf: leaf * np.nan, both[1].params)
    broken = dataclasses.replace(both[1], params=params)
    with pytest.raises(ValueError, match="not finite for the continuation of 'the small"):
        list(explain_continuations(broken, [request_], ContinuationOptions(("attention",))))
