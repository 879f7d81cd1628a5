"""What a model, its tokenizer and an assistant must share: the tokens that ids stand for, and those that end a text.

A model's table may have more rows than its tokenizer has tokens. Tables are padded to a multiple of 64, 128 or 1,024:
Qwen 2.5's 151,665 tokens have tables of 151,936 and 152,064 rows, Phi-2's 50,295 one of 51,200 (1.8 % more),
DeepSeek LLM's 100,015 one of 102,400 (2.3 %). A foreign tokenizer leaves far more: Llama 3's 15.6 % of Qwen 2.5's
table, GPT-2's 61 % of Llama 3's.
"""

from typing import Any

from jaxcore.models import DecoderConfig

MOST_SPARE_SHARE = 0.04
"""Of a table's rows, behind its tokenizer's last token: nearly twice what published models have."""
MOST_SPARE_ROWS = 127
"""What padding to a multiple of 128 adds; small tables may have as many, whatever their share."""


def check_tokenizer(tokenizer: Any, config: DecoderConfig) -> None:
    """Whether the tokenizer can be the model's, by its size and by the tokens that end the model's texts.

    The model's beginning and padding tokens are not compared: published models name others than their tokenizers do
    (the distilled DeepSeek-R1 the former, many fine-tuned ones the latter), and no generated token depends on them.

    Args:
        tokenizer: of transformers.

    Raises:
        ValueError: more tokens than the table has rows; fewer than padding explains; none of the model's ends is a
            token; all of them are ordinary tokens while the tokenizer has an end of its own.
    """
    size, rows = len(tokenizer), config.vocab_size
    remedy = "use the tokenizer that belongs to the model"
    if size > rows or rows - size > _most_spare(rows):
        padding = "" if size > rows else ", more than a table's padding explains"
        raise ValueError(f"the tokenizer has {size} tokens, but the model's vocabulary {rows}{padding}: {remedy}")
    ends = _model_ends(config)
    own = getattr(tokenizer, "eos_token_id", None)
    if not ends or own in ends:
        return
    tokens = [tokenizer.convert_ids_to_tokens(end) for end in ends]
    if all(token is None for token in tokens):
        raise ValueError(f"the model ends texts with token {ends[0]}, but the tokenizer has {size} tokens: {remedy}")
    if own is not None and not set(ends) & _special_tokens(tokenizer):
        raise ValueError(
            f"the model ends texts with token {ends[0]}, which is the ordinary {tokens[0]!r} to the tokenizer, whose "
            f"own end is {own}: {remedy}, or correct the model's eos_token_id"
        )


def check_tables(rows: int, assistant_rows: int) -> None:
    """ValueError for tables of model and assistant whose sizes differ by more than padding explains."""
    if abs(rows - assistant_rows) > _most_spare(max(rows, assistant_rows)):
        raise ValueError(
            f"model and assistant must share one vocabulary, got {rows} and {assistant_rows} tokens, which differ by "
            "more than a table's padding explains"
        )


def check_same_tokens(tokenizer: Any, other: Any) -> None:
    """Whether the tokenizers of model and assistant give ordinary tokens the same ids.

    Added tokens (marks of roles, reserved ones) may differ, as they do among the models of one family.

    Raises:
        ValueError: a token with two ids, or an id with two tokens.
    """
    ours, theirs = _ordinary_tokens(tokenizer), _ordinary_tokens(other)
    names = {index: token for token, index in theirs.items()}
    for token, index in ours.items():
        if theirs.get(token, index) != index or names.get(index, token) != token:
            raise ValueError(
                f"model and assistant must share one vocabulary, but token {index} is {token!r} to the model's "
                f"tokenizer and {other.convert_ids_to_tokens(index)!r} to the assistant's, where {token!r} is "
                f"{theirs.get(token, 'none')}: take an assistant of the same family"
            )


def ending_tokens(tokenizer: Any, config: DecoderConfig) -> tuple[int, ...]:
    """Tokens that end a text where none are asked for: the model's, or if it names none the tokenizer's.

    The model's are those of generation_config.json, or else of config.json (`read_config`), as in transformers'
    `generate`; chat models have several. Ids outside the model's table are never generated and left out.

    Args:
        tokenizer: None = the model's alone.
    """
    own = getattr(tokenizer, "eos_token_id", None)
    return _model_ends(config) or (() if own is None else (own,))


def _model_ends(config: DecoderConfig) -> tuple[int, ...]:
    return tuple(dict.fromkeys(end for end in config.eos_token_ids if 0 <= end < config.vocab_size))


def _most_spare(rows: int) -> int:
    return max(MOST_SPARE_ROWS, int(MOST_SPARE_SHARE * rows))


def _special_tokens(tokenizer: Any) -> set[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _ordinary_tokens(tokenizer: Any) -> dict[str, int]:
    """Ids by token, in the order of ids, without added tokens."""
    added = set(tokenizer.get_added_vocab().values())
    items = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {token: index for token, index in items if index not in added}
