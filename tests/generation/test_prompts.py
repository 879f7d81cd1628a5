"""Left padding to few widths."""

import numpy as np
import pytest

from jaxcore.generation import chat_parts, chat_prompt, pad_left, prompt_width


def test_widths_are_few_and_near():
    widths = [prompt_width(length, limit=1000) for length in range(1, 1001)]
    assert sorted(set(widths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000]
    for length, width in enumerate(widths, 1):
        assert length <= width <= max(16, 1.5 * length)
    assert prompt_width(9, limit=12) == 12
    stepped = [prompt_width(length, limit=1000, step=64) for length in range(1, 1001)]
    assert sorted(set(stepped)) == [*(16, 24, 32, 48, 64, 96, 128, 192), *range(256, 1000, 64), 1000]
    for length, width in enumerate(stepped, 1):
        assert length <= width < max(17, min(1.5 * length, length + 64))
    with pytest.raises(ValueError, match="a prompt has 13 tokens, but only 12 fit"):
        prompt_width(13, limit=12)


def test_padding_is_on_the_left():
    padded, mask = pad_left([[1, 2, 3], [4]], 4)
    np.testing.assert_array_equal(padded, [[0, 1, 2, 3], [0, 0, 0, 4]])
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1], [0, 0, 0, 1]])
    vectors, mask = pad_left([np.ones((2, 5)), 2 * np.ones((3, 5))], 3)
    assert vectors.shape == (2, 3, 5) and vectors[:, :, 0].tolist() == [[0, 1, 1], [2, 2, 2]]
    for wrong, message in (([[1], []], "prompt 1 has 0 tokens"), ([[1] * 5], "prompt 0 has 5 tokens, expected 1 to 4")):
        with pytest.raises(ValueError, match=message):
            pad_left(wrong, 4)


def chat_tokenizer(template):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = Tokenizer(models.WordLevel({"<end>": 0, "user": 1, "model": 2, "cat": 3}, unk_token="<end>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, unk_token="<end>", eos_token="<end>")
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_template_is_cut_where_the_message_stands():
    around = "user {{ messages[0].content%s }} {{ 'model' if add_generation_prompt }}"
    stripping, keeping = chat_tokenizer(around % " | trim"), chat_tokenizer(around % "")
    assert chat_parts(keeping, " a user ") == ("user ", " a user ", " model")
    assert chat_parts(stripping, " user ") == ("user ", "user", " model")  # though "user" stands before it too
    assert chat_prompt(stripping, " cat") == [1, 3, 2]
    with pytest.raises(ValueError, match="changes the message 'a cat': got 'user A CAT model'"):
        chat_parts(chat_tokenizer(around % " | upper"), "a cat")
    with pytest.raises(ValueError, match="changes the message 'a cat': got 'nothing'"):
        chat_parts(chat_tokenizer("nothing"), "a cat")
    for broken in ("{{ raise_exception('a system turn first') }}", "{% if %}"):
        with pytest.raises(ValueError, match=r"the chat template fails on one message of a user: \S"):
            chat_prompt(chat_tokenizer(broken), "a cat")
    with pytest.raises(ValueError, match="has no chat template"):
        chat_parts(chat_tokenizer(None), "a cat")
