"""Tokenizers against the tables, the ends and the assistants of models."""

import pytest

from jaxcore.generation.vocabularies import check_same_tokens, check_tables, check_tokenizer, ending_tokens
from jaxcore.models import DecoderConfig

WORDS = ("<end>", "the", "a", "cat", "dog", "sees")


def words_tokenizer(words=WORDS, end="<end>", added=()):
    """A token per word; `added` ones are special."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    return tokenizer


class Sized:
    """As many tokens as a published tokenizer has."""

    eos_token_id = None

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (50257, 50257),  # GPT-2
        (50257, 50304),  # padded to a multiple of 64
        (50295, 51200),  # Phi-2
        (100015, 102400),  # DeepSeek LLM
        (128256, 128256),  # Llama 3
        (151665, 151936),  # Qwen 2.5 up to 3B
        (151665, 152064),  # from 7B on
        (12, 128),
    ],
)
def test_padded_tables_are_accepted(size, rows):
    check_tokenizer(Sized(size), DecoderConfig(vocab_size=rows))


@pytest.mark.parametrize(
    ("size", "rows", "padding"),
    [
        (50258, 50257, ""),
        (151665, 128256, ""),  # Qwen 2.5's with Llama 3
        (128256, 151936, ", more than a table's padding explains"),  # Llama 3's with Qwen 2.5
        (50257, 128256, ", more than a table's padding explains"),  # GPT-2's with Llama 3
        (32000, 50257, ", more than a table's padding explains"),  # Llama 2's with GPT-2
    ],
)
def test_tokenizers_of_another_size_are_refused(size, rows, padding):
    with pytest.raises(ValueError, match=rf"has {size} tokens, but the model's vocabulary {rows}{padding}: use the"):
        check_tokenizer(Sized(size), DecoderConfig(vocab_size=rows))


def config(*ends, rows=8):
    return DecoderConfig(vocab_size=rows, eos_token_ids=ends)


def test_the_model_s_ends_must_be_ends_to_the_tokenizer():
    tokenizer = words_tokenizer(added=("<turn>",))  # 0 and 6 are special
    for ends in ((), (0,), (6,), (3, 0), (50256,)):  # 50256: GPT-2's default in a model of fewer tokens
        check_tokenizer(tokenizer, config(*ends))
    with pytest.raises(ValueError, match="ends texts with token 7, but the tokenizer has 7 tokens: use the tokenizer"):
        check_tokenizer(tokenizer, config(7))
    with pytest.raises(ValueError, match="token 3, which is the ordinary 'cat' to the tokenizer, whose own end is 0"):
        check_tokenizer(tokenizer, config(3, 4))
    check_tokenizer(words_tokenizer(end=None), config(3))  # it has no end to compare


def test_texts_end_with_the_model_s_tokens_or_else_the_tokenizer_s():
    tokenizer = words_tokenizer()
    assert ending_tokens(tokenizer, config(4, 3, 4)) == (4, 3)
    assert ending_tokens(tokenizer, config()) == ending_tokens(tokenizer, config(50256)) == (0,)
    assert ending_tokens(words_tokenizer(end=None), config()) == ending_tokens(None, config()) == ()


def test_tokenizers_of_one_family_agree_on_ordinary_tokens():
    tokenizer = words_tokenizer(added=("<turn>", "<think>"))
    for other in (
        words_tokenizer(added=("<turn>", "<think>")),
        words_tokenizer(added=("<reserved_0>", "<turn>", "<think>")),  # added ones may have other names and places
        words_tokenizer((*WORDS, "more")),
    ):
        check_same_tokens(tokenizer, other)
        check_same_tokens(other, tokenizer)
    swapped = words_tokenizer(("<end>", "the", "cat", "a", "dog", "sees"))
    message = "token 2 is 'a' to the model's tokenizer and 'cat' to the assistant's, where 'a' is 3: take an assistant"
    with pytest.raises(ValueError, match=message):
        check_same_tokens(tokenizer, swapped)
    with pytest.raises(ValueError, match=r"token 5 is 'sees' .* and 'hears' to the assistant's, where 'sees' is none"):
        check_same_tokens(tokenizer, words_tokenizer((*WORDS[:-1], "hears")))


def test_tables_of_model_and_assistant_may_be_padded_otherwise():
    for sizes in ((151936, 152064), (152064, 151936), (12, 128), (50257, 51200)):
        check_tables(*sizes)
    for rows, other in ((50257, 128256), (128256, 151936), (12, 140)):
        with pytest.raises(ValueError, match=rf"got {rows} and {other} tokens, which differ by more than"):
            check_tables(rows, other)
