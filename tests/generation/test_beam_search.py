"""Beam search against all sequences there are, and against transformers."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from decoding_references import PROMPTS, VOCABULARY

from jaxcore.generation import BeamSearch, complete


def exhaustive(decoder, prompt, count, stop, penalty):
    """Every text that ends with the stop token or is full, best first, as (score, tokens)."""
    texts = {}
    for tokens in itertools.product(range(VOCABULARY), repeat=count):
        end = tokens.index(stop) + 1 if stop in tokens else count
        texts.setdefault(tokens[:end], None)
    sequences = np.array(list(itertools.product(range(VOCABULARY), repeat=count)))
    whole = np.concatenate([np.tile(prompt, (len(sequences), 1)), sequences], 1)
    logits = np.concatenate([decoder.full(part)[0] for part in np.split(whole, VOCABULARY)])[:, len(prompt) - 1 : -1]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    terms = np.take_along_axis(log_probs, sequences[:, :, None], 2)[:, :, 0]
    scores = {}
    for tokens, row in zip(sequences.tolist(), terms, strict=True):
        end = tokens.index(stop) + 1 if stop in tokens else count
        scores[tuple(tokens[:end])] = row[:end].sum() / end**penalty
    return sorted(((score, list(tokens)) for tokens, score in scores.items()), reverse=True)


def test_wide_beams_find_the_best_of_all_sequences(decoder):
    """121 beams hold every beginning of two tokens. Scores of different lengths compete by the penalty."""
    prompts, count, stop = PROMPTS[:2], 3, 7
    lengths = set()
    for penalty in (0.0, 1.0, 2.5):
        results = complete(
            decoder.model, decoder.params, prompts, max_new_tokens=count, stop_tokens=(stop,), num_samples=5,
            strategy=BeamSearch(num_beams=VOCABULARY**2, length_penalty=penalty),
        )  # fmt: skip
        for prompt, hypotheses in zip(prompts, results, strict=True):
            expected = exhaustive(decoder, prompt, count, stop, penalty)[:5]
            assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens in expected]
            for hypothesis, (score, tokens) in zip(hypotheses, expected, strict=True):
                assert hypothesis.score == pytest.approx(score, abs=1e-4)
                assert hypothesis.stopped == (tokens[-1] == stop)
                assert hypothesis.log_probs.sum() / len(tokens) ** penalty == pytest.approx(score, abs=1e-4)
                lengths.add(len(tokens))
    assert len(lengths) > 1


@pytest.mark.parametrize(("early", "theirs"), ((True, True), (False, "never")), ids=str)
def test_narrow_beams_are_those_of_transformers(early, theirs, torch_gpt2):
    """Lengths, ends and order of three hypotheses of each prompt; the stop token is a likely one."""
    torch_model, model, params = torch_gpt2
    stop, count, beams = 4, 12, 3
    lengths = set()
    for penalty in (0.5, 1.5):
        ours = complete(
            model, params, PROMPTS, max_new_tokens=count, stop_tokens=(stop,), num_samples=beams,
            strategy=BeamSearch(num_beams=beams, length_penalty=penalty, early_stopping=early),
        )  # fmt: skip
        for prompt, hypotheses in zip(PROMPTS, ours, strict=True):
            settings = transformers.GenerationConfig(
                max_new_tokens=count, num_beams=beams, num_return_sequences=beams, eos_token_id=stop, pad_token_id=0,
                length_penalty=penalty, early_stopping=theirs, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            ids = torch.tensor([prompt])
            result = torch_model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            expected = result.sequences[:, len(prompt) :].tolist()
            for hypothesis, tokens, score in zip(hypotheses, expected, result.sequences_scores, strict=True):
                end = tokens.index(stop) + 1 if stop in tokens else count
                assert (hypothesis.tokens, hypothesis.stopped) == (tokens[:end], stop in tokens)
                assert hypothesis.score == pytest.approx(float(score), abs=1e-4)
                lengths.add(end)
    assert len(lengths) > 2


def test_options_and_requests_that_do_not_fit(decoder):
    with pytest.raises(ValueError, match="num_beams must be a whole number of 1 or more, got 0"):
        BeamSearch(num_beams=0)
    with pytest.raises(ValueError, match="length_penalty must be a finite number"):
        BeamSearch(length_penalty=float("nan"))
    with pytest.raises(ValueError, match="num_samples must be at most the 2 beams, got 3"):
        complete(
            decoder.model, decoder.params, PROMPTS, max_new_tokens=2, num_samples=3, strategy=BeamSearch(num_beams=2)
        )
