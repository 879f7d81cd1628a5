"""Speed of attribution on a BERT classifier: ours, Captum on torch, and the matrix products alone, in one run.

    python tests/benchmarks/attribution_speed.py [--layers 12] [--batch 8] [--length 128] [--steps 50] [--samples 500]
        [--methods integrated_gradients,occlusion,deep_lift,lime,kernel_shap] [--rounds 3] [--output-tokens first]

BERT-base shape by default, float32, random weights (the same on both sides), attributions to the word embeddings of the
predicted class's logit, baseline the padding token's embedding. Captum runs at its best setting of those that `--torch-
batches` lists (rows of one forward pass); `--default` tries its default too, which for integrated gradients needs the
memory of all steps at once. Contenders take turns; medians of wall time are printed. The floor is the time of the
matrix products that the method needs (a forward pass: F; with a gradient with respect to the embeddings: 2 F) at the
rate that XLA's own products of the same shapes reach in the same rounds. The classifier reads the first token alone, so
that ours leaves the others out of the last block (`--output-tokens all` does not, and has a higher floor). Numbers are
compared too: the largest difference over the largest attribution. LIME and KernelSHAP draw their own samples on each
side, and Captum has no DeepLIFT rule for the functions inside a BERT: there only times compare.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcore.commands.console import keep_freed_memory

METHODS = ("integrated_gradients", "occlusion", "deep_lift", "lime", "kernel_shap")


def main() -> None:
    """Parse the command line, build both sides, time them in turn, print medians and ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS), help="which, separated by commas")
    for name, value in {"layers": 12, "hidden": 768, "batch": 8, "length": 128, "steps": 50, "samples": 500}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-batches", default="8,16,32", help="rows of one forward pass to try for Captum")
    parser.add_argument("--default", action="store_true", help="try Captum's default setting too")
    parser.add_argument("--output-tokens", default="first", choices=("first", "all"), help="of our last block")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    names = options.methods.split(",")
    if unknown := set(names) - set(METHODS):
        sys.exit(f"unknown methods {sorted(unknown)}: expected some of {', '.join(METHODS)}")
    with tempfile.TemporaryDirectory() as folder:
        peer = TorchSide(options, folder)
        ours = JaxSide(options, folder)
    for name in names:
        compare(name, ours, peer, options)


def forward_flops(options: argparse.Namespace, rows: int) -> float:
    """Multiply-adds, counted as two, of the matrix products of one forward pass over `rows` texts."""
    tokens, hidden = rows * options.length, options.hidden
    keys_and_values, rest = tokens * 2 * hidden**2, 10 * hidden**2 + 2 * options.length * hidden
    queries = {"all": tokens, "first": rows}[options.output_tokens]
    whole, last = keys_and_values + tokens * rest, keys_and_values + queries * rest
    return 2.0 * ((options.layers - 1) * whole + last)


def passes(name: str, options: argparse.Namespace) -> float:
    """Forward passes over the whole batch that the method needs, a gradient counted as one more."""
    return {
        "integrated_gradients": 2 * options.steps,
        "occlusion": options.length + 1,
        "deep_lift": 3,  # both halves forward, one backward
        "lime": options.samples,
        "kernel_shap": options.samples,
    }[name]


class JaxSide:
    """Our methods, jitted once over (embeddings, baseline)."""

    def __init__(self, options: argparse.Namespace, folder: str):
        import jax
        import jax.numpy as jnp

        from jaxcore.attribution import scores, token_groups
        from jaxcore.models.classifier import load_classifier
        from jaxcore.transforms import intervene

        overrides = {
            "scan_layers": False,
            "attention_implementation": "explicit",
            "output_tokens": options.output_tokens,
        }
        model, params, _ = load_classifier(folder, config_overrides=overrides)
        ids = jnp.asarray(token_ids(options))
        words = params["encoder"]["embeddings"]["word"]
        self.options, self.embeddings, self.baseline = options, words[ids], words[0]

        def predict(embeddings: Any) -> Any:
            run = intervene(lambda: model.apply({"params": params}, ids), {"token_embeddings": embeddings})
            return run().logits

        self.score = scores.logit(predict, jax.jit(lambda e: scores.predicted_classes(predict, e))(self.embeddings))
        self.groups = token_groups(jnp.ones(ids.shape, bool))

    def method(self, name: str) -> Callable[[], Any]:
        import jax

        from jaxcore import attribution

        key, options = jax.random.key(0), self.options
        baseline, groups = {"baseline": self.baseline}, {"groups": self.groups}
        explain: Callable[[Any], Any] = {
            "integrated_gradients": lambda e: attribution.integrated_gradients(
                self.score, e, **baseline, num_steps=options.steps
            ),
            "occlusion": lambda e: attribution.feature_ablation(self.score, e, **baseline, **groups),
            "deep_lift": lambda e: attribution.deep_lift(self.score, e, **baseline),
            "lime": lambda e: attribution.lime(self.score, e, key, **baseline, **groups, num_samples=options.samples),
            "kernel_shap": lambda e: attribution.kernel_shap(
                self.score, e, key, **baseline, **groups, num_samples=options.samples
            ),
        }[name]
        began = time.perf_counter()
        compiled = jax.jit(explain).lower(self.embeddings).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
        print(f"  ours: compiled in {time.perf_counter() - began:.1f} s, temporaries {temporary:,.0f} MiB")
        return lambda: np.asarray(compiled(self.embeddings))

    def product(self) -> Callable[[], Any]:
        """One matrix product of the feed-forward shape, the most of an encoder's work."""
        import jax

        rows = self.options.batch * self.options.length
        left = jax.random.normal(jax.random.key(1), (rows, self.options.hidden))
        right = jax.random.normal(jax.random.key(2), (self.options.hidden, 4 * self.options.hidden))
        run = jax.jit(lambda a, b: a @ b).lower(left, right).compile()
        return lambda: [run(left, right).block_until_ready() for _ in range(8)]

    def product_flops(self) -> float:
        return 8 * 2.0 * self.options.batch * self.options.length * 4 * self.options.hidden**2


class TorchSide:
    """Captum on transformers' model; writes the model that our side reads."""

    def __init__(self, options: argparse.Namespace, folder: str):
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        torch.manual_seed(0)
        config = transformers.BertConfig(
            num_hidden_layers=options.layers, hidden_size=options.hidden, intermediate_size=4 * options.hidden,
            num_attention_heads=options.hidden // 64, num_labels=2, initializer_range=0.05,
        )  # fmt: skip
        self.model = transformers.BertForSequenceClassification(config).eval()
        self.model.save_pretrained(folder)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)  # Captum's time without the gradients that nobody asks for
        words = self.model.bert.embeddings.word_embeddings.weight
        self.options, self.words = options, words
        self.embeddings = words[torch.as_tensor(token_ids(options).astype(np.int64))].detach()
        self.baseline = words[0].expand_as(self.embeddings)
        with torch.no_grad():
            self.target = self.model(inputs_embeds=self.embeddings).logits.argmax(1)

    def method(self, name: str, rows: int | None) -> Callable[[], Any]:
        """`rows` of one forward pass; None = Captum's default."""
        import captum.attr
        import torch

        class Logits(torch.nn.Module):
            def __init__(self, model: Any):
                super().__init__()
                self.model = model

            def forward(self, embeddings: Any) -> Any:
                return self.model(inputs_embeds=embeddings).logits

        logits = Logits(self.model)
        batch, length = self.options.batch, self.options.length
        shared = {"baselines": self.baseline, "target": self.target}
        tokens = torch.arange(length)[None, :, None].expand(1, length, self.options.hidden)
        if name == "integrated_gradients":
            method = captum.attr.IntegratedGradients(logits)
            return lambda: method.attribute(
                self.embeddings, **shared, n_steps=self.options.steps, internal_batch_size=rows
            ).numpy()
        if name == "deep_lift":
            return lambda: captum.attr.DeepLift(logits).attribute(self.embeddings, **shared).detach().numpy()
        evaluations = {} if rows is None else {"perturbations_per_eval": max(rows // batch, 1)}
        if name == "occlusion":
            ablation = captum.attr.FeatureAblation(logits)

            def ablate() -> Any:
                with torch.no_grad():
                    return ablation.attribute(self.embeddings, **shared, feature_mask=tokens, **evaluations).numpy()

            return ablate
        surrogate = (captum.attr.Lime if name == "lime" else captum.attr.KernelShap)(logits)
        evaluations = {} if rows is None else {"perturbations_per_eval": rows}

        def one_by_one() -> Any:  # Captum fits one example at a time
            with torch.no_grad():
                return np.concatenate(
                    [
                        surrogate.attribute(
                            self.embeddings[row : row + 1], baselines=self.baseline[row : row + 1],
                            target=self.target[row : row + 1], feature_mask=tokens, n_samples=self.options.samples,
                            **evaluations,
                        ).numpy()
                        for row in range(batch)
                    ]
                )  # fmt: skip

        return one_by_one


def token_ids(options: argparse.Namespace) -> np.ndarray:
    """One batch of random ids, the same for both libraries."""
    return np.random.default_rng(0).integers(1000, 30000, (options.batch, options.length)).astype(np.int32)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def compare(name: str, ours: JaxSide, peer: TorchSide, options: argparse.Namespace) -> None:
    """Choose Captum's best setting, then time both and the products in turn."""
    print(f"{name}")
    mine, product = ours.method(name), ours.product()
    mine(), product()
    sizes = [None] if name == "deep_lift" else [int(size) for size in options.torch_batches.split(",")]
    sizes += [None] if options.default and None not in sizes else []
    tried = {rows: seconds(peer.method(name, rows))[0] for rows in sizes}
    best = min(tried, key=lambda rows: tried[rows])
    shown = ", ".join(f"{rows or 'default'} rows {value:.1f} s" for rows, value in tried.items())
    print(f"  Captum: {shown}")
    theirs = peer.method(name, best)
    times: dict[str, list[float]] = {"ours": [], "Captum": [], "product": []}
    for _ in range(options.rounds):
        for label, call in (("ours", mine), ("Captum", theirs), ("product", product)):
            taken, result = seconds(call)
            times[label].append(taken)
            if label == "ours":
                values = result
            elif label == "Captum":
                expected = result
    median = {label: statistics.median(taken) for label, taken in times.items()}
    rate = ours.product_flops() / median["product"]
    floor = passes(name, options) * forward_flops(options, options.batch) / rate
    print(
        f"  ours {median['ours']:.2f} s, Captum at its best {median['Captum']:.2f} s: "
        f"{median['Captum'] / median['ours']:.2f} x; floor {floor:.2f} s at {rate / 1e9:.0f} GFLOP/s: "
        f"{floor / median['ours']:.2f} of it"
    )
    if name in ("integrated_gradients", "occlusion"):
        print(f"  largest difference {np.abs(values - expected).max() / np.abs(expected).max():.1e} of the largest")


if __name__ == "__main__":
    keep_freed_memory()
    main()
