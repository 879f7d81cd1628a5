"""Text from decoder language models: one decoding loop, strategies as small pure objects.

    generated = generate(model, params, ids, mask, strategy=ContrastiveSearch(k=4, alpha=0.6), max_new_tokens=64)
    texts = complete(model, params, ["Once upon"], tokenizer=tokenizer, strategy=Sampling(top_p=0.95), key=key, ...)

Map of the room
    generate.py              `generate`: padded arrays in, arrays out; one program per shape and kind of strategy
    completions.py           `complete`: texts or lists of any length in, lists out
    prompts.py               left padding to few widths; chat templates
    strategy.py              what a strategy is, and the loop that runs it
    token_by_token.py        strategies with one call per token, on top of which
        sampling.py              greedy; temperature, top-k, nucleus, min-p, typical
        contrastive_decoding.py  against an amateur model
    contrastive_search.py    probability against likeness to the context
    beam_search.py           the likeliest hypotheses
    speculative_decoding.py  drafts of a small model, checked by the large one
    strategy_names.py        strategies by name
    steering.py              directions added to activations in every call, and their files
    rollouts.py              many samples of many prefixes, kept on disk, resumed exactly; by its name
    replay.py                scores, hidden states and attention of a run, in one call
    text_generators.py       prompts and a seed in, texts out: a model, in batches, or recorded answers
    bound_model.py, progress.py                  a model ready to run, what it has generated
    probability_filters.py, categorical_draws.py    which tokens may be drawn; drawing one
    vocabularies.py          tokenizers against models and assistants; which tokens end a text
    request_checks.py, option_checks.py          errors before compilation

A prompt is read once, into a cache that all its samples, beams and candidates share uncopied. Rows that have met a stop
token wait for the others. Edits of activations (`jaxcore.transforms.intervene`) hold in every call alike.
"""

from jaxcore.generation.beam_search import BeamSearch
from jaxcore.generation.bound_model import BoundModel, Prompt
from jaxcore.generation.categorical_draws import draw_categorical
from jaxcore.generation.completions import Completion, complete, unpadded
from jaxcore.generation.contrastive_decoding import ContrastiveDecoding
from jaxcore.generation.contrastive_search import ContrastiveSearch, contrastive_scores, largest_cosine
from jaxcore.generation.generate import generate
from jaxcore.generation.probability_filters import keep_min_p, keep_top_k, keep_top_p, keep_typical
from jaxcore.generation.progress import Generated
from jaxcore.generation.prompts import chat_parts, chat_prompt, pad_left, prompt_width
from jaxcore.generation.replay import Replay, replay
from jaxcore.generation.sampling import Chooser, Greedy, Sampling
from jaxcore.generation.speculative_decoding import SpeculativeDecoding
from jaxcore.generation.steering import SteeringVectors, load_steering, save_steering, steering_edits
from jaxcore.generation.strategy import Strategy
from jaxcore.generation.strategy_names import STRATEGIES, strategy_from_name, strategy_table
from jaxcore.generation.text_generators import TextGenerator, model_generator, rule_generator, scripted_generator
from jaxcore.generation.vocabularies import check_same_tokens, check_tables, check_tokenizer, ending_tokens

__all__ = [
    "STRATEGIES",
    "BeamSearch",
    "BoundModel",
    "Chooser",
    "Completion",
    "ContrastiveDecoding",
    "ContrastiveSearch",
    "Generated",
    "Greedy",
    "Prompt",
    "Replay",
    "Sampling",
    "SpeculativeDecoding",
    "SteeringVectors",
    "Strategy",
    "TextGenerator",
    "chat_parts",
    "chat_prompt",
    "check_same_tokens",
    "check_tables",
    "check_tokenizer",
    "complete",
    "contrastive_scores",
    "draw_categorical",
    "ending_tokens",
    "generate",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "keep_typical",
    "largest_cosine",
    "load_steering",
    "model_generator",
    "pad_left",
    "prompt_width",
    "replay",
    "rule_generator",
    "save_steering",
    "scripted_generator",
    "steering_edits",
    "strategy_from_name",
    "strategy_table",
    "unpadded",
]
