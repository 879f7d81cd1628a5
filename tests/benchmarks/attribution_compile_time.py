"""How long it takes to compile every attribution method for a BERT classifier: seconds per method, and their sum.

    JAX_PLATFORMS=cpu python tests/benchmarks/attribution_compile_time.py [--layers 12] [--batch 8] [--length 128]
        [--methods lime,...] [--unrolled]

All methods of `jaxcore.attribution.method_names`, each as one program of (parameters, token ids) -> token scores at
the method's own numbers of steps and samples, BERT-base shape, float32, layers scanned as they are by default (compiled
once, not twelve times); without methods that take no text of this length (exact Shapley values). The chunk is chosen
from the memory that one step or sample takes, so its small program is compiled too and counted. Processor seconds tell
more on a busy machine. No persistent cache is used. Nothing is run, and no parameter has a value.
"""

import argparse
import time
from typing import Any

import jax
from bert_tokens import BertTokens

from jaxcore.attribution.method_names import TOKEN_METHODS, find_method, method_names, token_task

GOAL = 60.0
"""Seconds for all methods together, on CPU."""


def main() -> None:
    """Compile each method and print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    for name, value in {"layers": 12, "hidden": 768, "batch": 8, "length": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--methods", default="", help="which, separated by commas; all by default")
    parser.add_argument("--unrolled", action="store_true", help="layers one after the other instead of a scan")
    options = parser.parse_args()
    texts = BertTokens(options.batch, options.length, options.layers, options.hidden, not options.unrolled)
    print(f"{'method':34}{'seconds':>10}{'of tracing':>12}{'processor':>11}{'temporaries':>14}")
    total, processor = 0.0, 0.0
    fitting = [
        name for name, method in TOKEN_METHODS.items() if options.length <= (method.max_tokens or options.length)
    ]
    for name in method_names(options.methods.split(",") if options.methods else fitting):
        traced, wall, used, temporary = compile_seconds(texts, name)
        total, processor = total + wall, processor + used
        print(f"{name:34}{wall:10.1f}{traced:12.1f}{used:11.1f}{temporary / 2**20:10,.0f} MiB", flush=True)
    print(f"{'all':34}{total:10.1f}{'':12}{processor:11.1f}, goal {GOAL:.0f} s")


def compile_seconds(texts: BertTokens, name: str) -> tuple[float, float, float, int]:
    """Seconds to trace and lower (the chunk's choice included), seconds and processor seconds in all, temporaries."""
    method = find_method(name)

    def explain(params: Any, ids: Any) -> Any:
        embeddings, baseline = texts.embeddings(params, ids)
        score = texts.score(params, ids)
        words = params["encoder"]["embeddings"]["word"]
        return method.compute(token_task(score, embeddings, ids != 0, jax.random.key(0), baseline, vocabulary=words))

    began, began_processor = time.perf_counter(), time.process_time()
    lowered = jax.jit(explain).lower(texts.abstract_params(), texts.abstract_ids())
    traced = time.perf_counter() - began
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    return traced, time.perf_counter() - began, time.process_time() - began_processor, temporary


if __name__ == "__main__":
    main()
