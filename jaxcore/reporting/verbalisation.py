"""Saliency maps in words: templates filled with what `saliency_search` finds, prompts for a language model, citations.

    runs = summarise_runs(scores, mask)[0]
    verbalise(runs, tokens)        "The word » wonderful « is most important for the prediction. ..."

Templates are faithful by construction (SMV-Templ of Feldhus et al. 2023); a generator reads better but need not be
faithful (SMV-GPT), so `cited_tokens`, `coverage_at_k` and `citation_precision` measure what its text rests on.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool
from numpy.typing import ArrayLike

from jaxcore.reporting.heatmaps import display_tokens, word_groups
from jaxcore.reporting.saliency_search import Snippet

Choices: TypeAlias = tuple[tuple[str, float], ...]
"""Expressions and how often each is drawn; without a key the first is taken."""

Generate: TypeAlias = Callable[[list[str]], list[str]]
"""Any language model: prompts in, one completion for each out."""

Objective = Literal["commonsense", "saliency"]

PLACEHOLDER = "{placeholder}"
"""What stands for the label in a text from which a reader is to guess it."""


@dataclass(frozen=True)
class TemplateSet:
    """Sentences and the expressions that fill them.

    Fields of a sentence: {kind} "word", "phrase" or "span"; {text} the tokens; {salience}; {prediction}; {percent} the
    coverage of the tokens in per cent.
    """

    most: str = "The {kind} » {text} « is most {salience} for {prediction}."
    also: str = "The {kind} » {text} « is also {salience}."
    nothing: str = "The attributions of this text contain no coherent values that could be named."
    word: Choices = (("word", 1.0),)
    phrase: Choices = (("phrase", 1.0),)
    span: Choices = (("span", 1.0),)
    most_salience: Choices = (("important", 1.0),)
    also_salience: Choices = (("salient", 1.0),)
    prediction: Choices = (("the prediction", 1.0),)

    def __post_init__(self) -> None:
        for name in ("word", "phrase", "span", "most_salience", "also_salience", "prediction"):
            choices = getattr(self, name)
            if not choices or any(weight <= 0 for _, weight in choices):
                raise ValueError(f"{name} must offer expressions with positive weights, got {choices}")


STUDY_TEMPLATES = TemplateSet()
"""The sentences of the human study."""

COVERAGE_TEMPLATES = TemplateSet(
    most="The {kind} » {text} « is most {salience} for {prediction} ({percent} % of the evidence).",
    also="The {kind} » {text} « is also {salience} ({percent} %).",
)
"""The same with the coverage of each run."""

VARIED_TEMPLATES = TemplateSet(
    word=(("word", 0.4), ("token", 0.3), ("feature", 0.3)),
    phrase=(("phrase", 0.5), ("span", 0.5)),
    span=(("span", 0.5), ("phrase", 0.5)),
    most_salience=(("important", 0.5), ("salient", 0.3), ("influential", 0.1), ("impactful", 0.1)),
    also_salience=(("important", 0.5), ("salient", 0.3), ("influential", 0.1), ("impactful", 0.1)),
    prediction=tuple(
        (words, 1 / 12)
        for words in (
            "the prediction", "this prediction", "the model's prediction", "what the model predicted",
            "the outcome", "the model's decision", "this decision", "the model's answer",
            "the predicted label", "the label it chose", "this classification", "the model's judgement",
        )
    ),
)  # fmt: skip
"""Synonyms with the weights of the paper's sampler; needs a key."""


def verbalise(
    runs: Sequence[Snippet],
    tokens: Sequence[str],
    *,
    templates: TemplateSet = STUDY_TEMPLATES,
    key: Array | None = None,
) -> str:
    """One sentence for each run: the first is "most important", the others "also salient".

    A run of one word (its subwords glued) is a "word", one with a full stop a "span", others a "phrase". Tokens stand
    between » and «; those characters in the text itself become › and ‹.

    Args:
        runs: of one text, most important first, as `summarise_runs` or `search_snippets` gives them.
        tokens: the tokens that the runs' indices count, with the tokenizer's subword marks ("##", "Ġ", "▁").
        templates: sentences and synonyms.
        key: a `jax.random.key` that draws synonyms; None takes the first of each.

    Raises:
        ValueError: a run without tokens, or with an index outside `tokens`.
    """
    if not runs:
        return templates.nothing
    _check_indices(runs, len(tokens))
    draws = [0.0] * (3 * len(runs)) if key is None else np.asarray(jax.random.uniform(key, (3 * len(runs),))).tolist()
    shown, groups = display_tokens(tokens), word_groups(tokens)
    sentences = []
    for rank, run in enumerate(runs):
        kind, salience, prediction = draws[3 * rank : 3 * rank + 3]
        template = templates.also if rank else templates.most
        sentences.append(
            template.format(
                kind=_chosen(getattr(templates, _kind(run, tokens, groups)), kind),
                text=_glued(shown, run.indices).replace("»", "›").replace("«", "‹"),
                salience=_chosen(templates.also_salience if rank else templates.most_salience, salience),
                prediction=_chosen(templates.prediction, prediction),
                percent=f"{100 * run.coverage:.0f}",
            )
        )
    return " ".join(sentences)


def glue_tokens(tokens: Sequence[str], indices: Sequence[int] | None = None) -> str:
    """Tokens (all, or those of `indices`) as running text, subwords and punctuation joined to what they belong to.

    Reads BERT's "##ing", RoBERTa's "Ġword" (bytes decoded) and SentencePiece's "▁word"; the convention is told from all
    `tokens`. A gap between indices becomes " … ".
    """
    return _glued(display_tokens(tokens), range(len(tokens)) if indices is None else indices)


@dataclass(frozen=True)
class TextTask:
    """How a prompt speaks of a text and the model that classified it."""

    text_type: str = "text"
    model_type: str = "text classifier"
    label_form: str = "{label}"
    """The label in a sentence, such as "{label} topic"."""

    def label_text(self, label: str) -> str:
        """`label` in its form."""
        return self.label_form.replace("{label}", label)


MOVIE_REVIEW = TextTask("movie review", "sentiment analyzer", "{label} sentiment")
NEWS_ARTICLE = TextTask("news article", "topic classifier", "{label} topic")

_REQUESTS: dict[str, str] = {
    "commonsense": (
        "Explain briefly and in simple language, on the basis of the scores, why the {model} arrived at '{label}'."
    ),
    "saliency": (
        "Name briefly and in simple language the words or larger units that mattered most for '{label}', "
        "on the basis of the scores."
    ),
}


def prompt_for_generator(
    tokens: Sequence[str],
    scores: ArrayLike,
    label: str,
    *,
    task: TextTask = MOVIE_REVIEW,
    objective: Objective = "commonsense",
) -> str:
    """The instruction-based prompt: every token with its score, what the scores are, and the request.

    Subword marks are undone, tokens stay apart; scores have two decimals. Special tokens stay in (their score is 0).

    Args:
        tokens: of one text.
        scores: one per token, towards the predicted label.
        label: the predicted label, put in the task's form ("positive" becomes "positive sentiment").
        objective: "commonsense" asks why the label was predicted, "saliency" for the most important words.

    Raises:
        ValueError: no tokens, scores of another length or not finite, unknown objective.
    """
    if objective not in _REQUESTS:
        raise ValueError(f"objective must be one of {', '.join(_REQUESTS)}, got {objective!r}")
    values = np.asarray(scores, np.float64)
    if isinstance(tokens, str) or not len(tokens) or values.shape != (len(tokens),):
        raise ValueError(f"give tokens and one score for each: got {len(tokens)} tokens, scores of {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite: some are not")
    scored = " ".join(
        # + 0.0 turns the -0.00 that rounding leaves into 0.00
        f"{text} ({round(value, 2) + 0.0:.2f})"
        for (text, _), value in zip(display_tokens(tokens), values.tolist(), strict=True)
    )
    model, wanted = task.model_type, task.label_text(label)
    return "\n".join(
        (
            f"{task.text_type[:1].upper()}{task.text_type[1:]} with an importance score after each word: {scored}",
            "",
            f"A {model} has predicted the label '{wanted}' for this {task.text_type}.",
            "The score in parentheses after a word says how important the word was for this prediction.",
            "The scores were computed after the prediction was made.",
            f"The {model} could use the text only; it never saw the scores.",
            _REQUESTS[objective].replace("{model}", model).replace("{label}", wanted),
        )
    )


def verbalise_with(
    generate: Generate,
    tokens: Sequence[Sequence[str]],
    scores: Sequence[ArrayLike],
    labels: Sequence[str],
    *,
    task: TextTask = MOVIE_REVIEW,
    objective: Objective = "commonsense",
) -> list[str]:
    """Verbalisations of several maps by a language model: ``generate([prompt_for_generator(...), ...])``, stripped.

    Args:
        generate: takes the list of prompts, gives one text for each (one call: the generator batches as it likes).
        tokens, scores, labels: of each text; scores have the length of its tokens.

    Raises:
        ValueError: lengths that differ; a generator that gives another number of texts, or no strings.
    """
    if not len(tokens) == len(scores) == len(labels):
        raise ValueError(
            f"give one of each per text: got {len(tokens)} tokens, {len(scores)} scores, {len(labels)} labels"
        )
    prompts = [
        prompt_for_generator(*instance, task=task, objective=objective)
        for instance in zip(tokens, scores, labels, strict=True)
    ]
    texts = generate(prompts) if prompts else []
    listed = isinstance(texts, list | tuple)
    if not listed or len(texts) != len(prompts) or not all(isinstance(text, str) for text in texts):
        given = f"{len(texts)} of {sorted({type(text).__name__ for text in texts})}" if listed else type(texts).__name__
        raise ValueError(f"generate must give {len(prompts)} texts for {len(prompts)} prompts, a list: got {given}")
    return [text.strip() for text in texts]


def mask_label(text: str, label: str, *, task: TextTask = MOVIE_REVIEW, placeholder: str = PLACEHOLDER) -> str:
    """`text` with every mention of the label (in its form, or bare, in any case) replaced, so that it cannot leak."""
    forms = sorted({form for form in (task.label_text(label), label) if form}, key=len, reverse=True)
    if not forms:
        raise ValueError("label is empty: give the label whose mentions are to be replaced")
    pattern = "|".join(rf"(?<!\w){re.escape(form)}(?!\w)" for form in forms)
    return re.sub(pattern, lambda _: placeholder, text, flags=re.IGNORECASE)


def cited_strings(text: str) -> list[str]:
    """What a verbalisation cites: what stands between » and «, or, where there is none, between quotation marks.

    Placeholders of the label are no citation. Apostrophes within words open and close nothing.
    """
    label = re.escape(PLACEHOLDER)
    text = re.sub(rf"""["'“‘]{label}["'”’]|{label}""", "", text)  # a quotation mark alone still opens or closes one
    found = re.findall(r"»([^«»]+)«", text)
    if not found:
        found = [next(filter(None, match.groups()), "") for match in _QUOTED.finditer(text)]
    return [trimmed for cited in found if (trimmed := " ".join(cited.split()).strip())]


_QUOTED = re.compile(
    r""""([^"]+)"|“([^”]+)”|(?<![\w])'((?:[^'\n]|(?<=\w)'(?=\w))+)'(?!\w)|‘((?:[^’\n]|(?<=\w)’(?=\w))+)’(?!\w)"""
)


def cited_tokens(text: str, tokens: Sequence[str]) -> Bool[np.ndarray, " time"]:
    """Which tokens `text` cites: those whose word, or whose own characters, stand in a citation, in any case.

    A text that mentions "punctuation" cites every token without a letter or digit. Words outside citations (stop
    words, say) count for nothing.
    """
    cited: set[str] = set()
    for string in cited_strings(text):
        lowered = string.lower()
        cited.update(re.findall(r"\w+|[^\w\s]", lowered), lowered.split())
    groups, shown = word_groups(tokens), display_tokens(tokens)
    words: dict[int, str] = {}
    for group, (piece, _) in zip(groups, shown, strict=True):
        words[group] = words.get(group, "") + piece.strip().lower()
    marks = "punctuation" in text.lower()
    return np.array(
        [
            piece.strip().lower() in cited or words[group] in cited or (marks and not any(map(str.isalnum, piece)))
            for group, (piece, _) in zip(groups, shown, strict=True)
        ],
        bool,
    )


@dataclass(frozen=True)
class Citations:
    """How many strings a text cites, and which of them the source does not hold."""

    total: int
    absent: tuple[str, ...] = ()

    @property
    def precision(self) -> float:
        """Share found in the source; NaN without citations."""
        return (self.total - len(self.absent)) / self.total if self.total else float("nan")


def check_citations(text: str, source: str) -> Citations:
    """Look up everything that `text` cites in `source`: verbatim, but for case, spaces and punctuation at the ends."""
    cited = [string for raw in cited_strings(text) if (string := raw.lower().strip(" .,;:"))]
    known = " ".join(source.lower().split())
    return Citations(len(cited), tuple(string for string in cited if string not in known))


def citation_precision(text: str, source: str) -> float:
    """Share of the strings cited in `text` that occur in `source` (see `check_citations`); NaN if it cites nothing."""
    return check_citations(text, source).precision


def _kind(run: Snippet, tokens: Sequence[str], groups: Sequence[int]) -> str:
    if len({groups[index] for index in run.indices}) == 1:
        return "word"
    return "span" if any(tokens[index].strip("Ġ▁ ") == "." for index in run.indices) else "phrase"


def _glued(shown: Sequence[tuple[str, str]], indices: Sequence[int]) -> str:
    return "".join(_spaced(shown, indices)).strip()


def _spaced(shown: Sequence[tuple[str, str]], indices: Sequence[int]) -> Iterator[str]:
    previous = None
    for index in indices:
        text, before = shown[index]
        if previous is not None:
            yield " … " if index != previous + 1 else " " if before else ""
        yield text
        previous = index


def _chosen(choices: Choices, draw: float) -> str:
    """The expression in whose share of the total weight `draw`, in [0, 1), falls."""
    bounds = np.cumsum([weight for _, weight in choices])
    return choices[min(int(np.searchsorted(bounds, draw * bounds[-1], side="right")), len(choices) - 1)][0]


def _check_indices(runs: Sequence[Snippet], count: int) -> None:
    for run in runs:
        if not run.indices or min(run.indices) < 0 or max(run.indices) >= count:
            raise ValueError(f"a run names the tokens {run.indices}, but there are {count}: give the map's own tokens")
