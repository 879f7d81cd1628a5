"""Speed of a disagreement study: ours against Captum on torch, the same weights, instances and methods in one run.

    JAX_PLATFORMS=cpu python tests/benchmarks/disagreement_speed.py [--scale cpu|paper] [--instances 32] [--rounds 3]

32 instances explained by 11 methods, for a BiLSTM with additive attention and a DistilBERT-shaped transformer, as in
experiments/song_of_disagreement.py: the probability of class 1, attributed to word embeddings, baseline padding, its
numbers of steps and samples; then Kendall's tau-b of all pairs of methods per instance. Sizes are those of the study's
cpu preset, or the paper's. Ours runs method by method as separate programs; its time is printed with and without
compilation. Captum runs all instances at once where a method can (LIME, KernelSHAP and the rollout loop are its own or
the study's), at the batch of `--torch-rows` rows, which for models this small is its best. Tau comes from
scipy there. Agreement of the deterministic methods' numbers is printed: DeepLIFT differs where Captum has no rule
(the fused LSTM, functional activations: there it is gradient x (input - baseline)).
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcore.commands.console import keep_freed_memory

METHODS = (
    "attention", "saliency", "input_x_gradient", "smoothgrad", "integrated_gradients", "expected_gradients", "deeplift",
    "deepshap", "occlusion", "lime", "kernel_shap",
)  # fmt: skip
COMPARABLE = ("attention", "saliency", "input_x_gradient", "integrated_gradients", "occlusion")
"""Methods that draw nothing and follow one definition on both sides."""

STEPS, NOISE_SAMPLES, SHAP_SAMPLES, SURROGATE_SAMPLES, BASELINES = 50, 25, 5, 1000, 8
VOCABULARY = 500

SCALES = {
    "cpu": {"embedding": 32, "lstm": 32, "attention": 32, "hidden": 32, "layers": 4, "heads": 4},
    "paper": {"embedding": 300, "lstm": 128, "attention": 128, "hidden": 768, "layers": 6, "heads": 12},
}


def main() -> None:
    """Build both sides of both models, run the study in turn, print times and ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--scale", choices=list(SCALES), default="cpu")
    parser.add_argument("--instances", type=int, default=32)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-rows", type=int, default=800, help="rows of one forward pass of Captum")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    generator = np.random.default_rng(0)
    shape = options.instances, options.length
    ids, reference = (generator.integers(1, VOCABULARY, (n, shape[1])).astype(np.int32) for n in (shape[0], BASELINES))
    totals: dict[str, list[float]] = {"first": [], "ours": [], "Captum": []}
    for name, build in (("bilstm", build_bilstm), ("transformer", build_transformer)):
        torch_model, jax_model = build(SCALES[options.scale])
        peer, ours = CaptumStudy(torch_model, ids, reference, options.torch_rows), JaxStudy(jax_model, ids, reference)
        times = compare(name, ours, peer, options.rounds)
        for label, seconds in times.items():
            totals[label].append(seconds)
    first, again, theirs = (sum(totals[label]) for label in ("first", "ours", "Captum"))
    print(
        f"whole study: Captum {theirs:.1f} s, ours {again:.1f} s: {theirs / again:.1f} x; with compilation "
        f"{first:.1f} s: {theirs / first:.1f} x"
    )


def compare(name: str, ours: "JaxStudy", peer: "CaptumStudy", rounds: int) -> dict[str, float]:
    """Seconds of the first run of ours (with compilation), and medians of both sides, which take turns."""
    first, _, _ = timed(ours.run)
    print(f"{name}: first run {first:.2f} s", flush=True)
    runs = [(timed(ours.run), timed(peer.run)) for _ in range(rounds)]
    mine, theirs = runs[-1]
    median = {side: statistics.median(run[i][0] for run in runs) for i, side in enumerate(("ours", "Captum"))}
    print(f"  then {median['ours']:.2f} s; Captum {median['Captum']:.2f} s", flush=True)
    for method in METHODS:
        a, b = mine[1][method], theirs[1][method]
        close = f", largest difference {np.abs(a - b).max() / np.abs(b).max():.0e}" if method in COMPARABLE else ""
        print(f"  {method:22} ours {mine[2][method]:6.2f} s, Captum {theirs[2][method]:6.2f} s{close}")
    return {"first": first, **median}


def timed(study: Callable[[], tuple[dict[str, np.ndarray], dict[str, float]]]) -> tuple[float, Any, Any]:
    began = time.perf_counter()
    scores, seconds = study()
    return time.perf_counter() - began, scores, seconds


class JaxStudy:
    """Our side: one program per method, kept between runs."""

    def __init__(self, model: tuple[Any, Any, Any], ids: np.ndarray, reference: np.ndarray):
        import jax.numpy as jnp

        self.predict, self.embed, self.weights = model
        self.embeddings, self.baselines = self.embed(jnp.asarray(ids)), self.embed(jnp.asarray(reference))
        self.padding, self.mask = self.embed(jnp.zeros((1, 1), jnp.int32))[0, 0], jnp.ones(ids.shape, bool)
        self.programs = {name: self.program(name) for name in METHODS}

    def program(self, name: str) -> Any:
        """embeddings -> token scores."""
        import jax

        from jaxcore.attribution import scores, token_scores

        score = scores.probability(self.predict, 1)
        counts = {
            "integrated_gradients": {"num_steps": STEPS}, "smoothgrad": {"num_samples": NOISE_SAMPLES},
            "expected_gradients": {"num_samples": SHAP_SAMPLES}, "lime": {"num_samples": SURROGATE_SAMPLES},
            "kernel_shap": {"num_samples": SURROGATE_SAMPLES},
        }.get(name, {})  # fmt: skip

        def explain(embeddings: Any, padding: Any, baselines: Any) -> Any:
            if name == "attention":
                return self.weights(embeddings)
            # The paper's Grad-SHAP draws from the one baseline, padding.
            drawn = baselines if name == "deepshap" else padding[None, None] + 0 * baselines[:1]
            return token_scores(
                name, score, embeddings, self.mask, key=jax.random.key(0), baseline=padding, baselines=drawn, **counts
            )

        return jax.jit(explain)

    def run(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Scores and seconds by method."""
        from jaxcore.attribution import agreement_matrix

        found, seconds = {}, {}
        for name, program in self.programs.items():
            began = time.perf_counter()
            found[name] = np.asarray(program(self.embeddings, self.padding, self.baselines))
            seconds[name] = time.perf_counter() - began
        agreement_matrix({name: np.abs(values) for name, values in found.items()}, np.ones(self.mask.shape, bool))
        return found, seconds


class CaptumStudy:
    """Captum's side; a torch model is (embeddings -> logits, embeddings -> attention, table of word vectors)."""

    def __init__(self, model: tuple[Any, Any, Any], ids: np.ndarray, reference: np.ndarray, rows: int):
        import torch

        self.module, self.weights, table = model
        self.rows = rows
        self.embeddings, self.baselines = (
            table[torch.as_tensor(a.astype(np.int64))].detach() for a in (ids, reference)
        )
        self.padding = table[0].expand_as(self.embeddings)

        class Probability(torch.nn.Module):
            def __init__(self, module: Any):
                super().__init__()
                self.module = module

            def forward(self, embeddings: Any) -> Any:
                return torch.softmax(self.module(embeddings), dim=1)

        self.score = Probability(self.module)

    def run(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Scores and seconds by method."""
        import scipy.stats

        found, seconds = {}, {}
        for name in METHODS:
            began = time.perf_counter()
            found[name] = self.explain(name).detach().numpy()
            seconds[name] = time.perf_counter() - began
        for a, b in itertools.combinations(found.values(), 2):
            for one, other in zip(np.abs(a), np.abs(b), strict=True):
                scipy.stats.kendalltau(one, other)
        return found, seconds

    def explain(self, name: str) -> Any:
        """Token scores of one method."""
        import captum.attr as attr
        import torch

        x, target = self.embeddings, {"target": 1}
        with_baseline = {"baselines": self.padding, **target}
        if name == "attention":
            with torch.no_grad():
                return self.weights(x)
        if name == "saliency":
            return attr.Saliency(self.score).attribute(x.clone().requires_grad_(), **target, abs=False).norm(dim=-1)
        if name == "input_x_gradient":
            gradient = attr.Saliency(self.score).attribute(x.clone().requires_grad_(), **target, abs=False)
            return (gradient * (x - self.padding)).sum(-1)
        if name == "smoothgrad":
            scale = 0.15 * (x.amax((1, 2)) - x.amin((1, 2))).mean().item()
            tunnel = attr.NoiseTunnel(attr.Saliency(self.score))
            return tunnel.attribute(x, nt_type="smoothgrad", nt_samples=NOISE_SAMPLES, stdevs=scale, **target).norm(
                dim=-1
            )
        if name == "integrated_gradients":
            return attr.IntegratedGradients(self.score).attribute(
                x, **with_baseline, n_steps=STEPS, internal_batch_size=self.rows
            ).sum(-1)  # fmt: skip
        if name == "expected_gradients":
            shap = attr.GradientShap(self.score)
            return shap.attribute(x, self.padding[:1], n_samples=SHAP_SAMPLES, stdevs=0.0, **target).sum(-1)
        if name == "deeplift":
            return attr.DeepLift(self.score).attribute(x, **with_baseline).sum(-1)
        if name == "deepshap":
            return attr.DeepLiftShap(self.score).attribute(x, self.baselines, **target).sum(-1)
        return self.perturb(name)

    def perturb(self, name: str) -> Any:
        """The methods that replace whole tokens; Captum's surrogates fit one example at a time."""
        import captum.attr as attr
        import torch

        count, length, _ = self.embeddings.shape
        tokens = torch.arange(length)[None, :, None].expand(1, length, self.embeddings.shape[-1])
        with torch.no_grad():
            if name == "occlusion":
                values = attr.FeatureAblation(self.score).attribute(
                    self.embeddings, baselines=self.padding, target=1, feature_mask=tokens,
                    perturbations_per_eval=min(max(self.rows // count, 1), length),
                )  # fmt: skip
                return values.mean(-1)
            surrogate = (attr.Lime if name == "lime" else attr.KernelShap)(self.score)
            values = [
                surrogate.attribute(
                    self.embeddings[row : row + 1], baselines=self.padding[row : row + 1], target=1,
                    feature_mask=tokens, n_samples=SURROGATE_SAMPLES, perturbations_per_eval=self.rows,
                )
                for row in range(count)
            ]  # fmt: skip
        return torch.cat(values).mean(-1)


def build_bilstm(sizes: dict[str, int]) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """The paper's BiLSTM in torch, and ours with its weights."""
    import jax.numpy as jnp
    import torch

    from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig

    class AdditiveBiLSTM(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word = torch.nn.Embedding(VOCABULARY, sizes["embedding"])
            self.lstm = torch.nn.LSTM(sizes["embedding"], sizes["lstm"], batch_first=True, bidirectional=True)
            self.inner = torch.nn.Linear(2 * sizes["lstm"], sizes["attention"])
            self.vector = torch.nn.Linear(sizes["attention"], 1, bias=False)
            self.output = torch.nn.Linear(2 * sizes["lstm"], 2)

        def read(self, embeddings: Any) -> tuple[Any, Any]:
            hidden, _ = self.lstm(embeddings)
            return hidden, torch.softmax(self.vector(torch.tanh(self.inner(hidden)))[..., 0], dim=1)

        def forward(self, embeddings: Any) -> Any:
            hidden, weights = self.read(embeddings)
            return self.output((weights[..., None] * hidden).sum(1))

    torch.manual_seed(0)
    module = AdditiveBiLSTM().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    state = {name: jnp.asarray(value.numpy()) for name, value in module.state_dict().items()}
    both = ("", "_reverse")
    params = {
        "word": state["word.weight"],
        "layer_0": {
            "kernel": jnp.stack([state[f"lstm.weight_ih_l0{side}"].T for side in both], axis=1),
            "recurrent_kernel": jnp.stack([state[f"lstm.weight_hh_l0{side}"].T for side in both]),
            "bias": jnp.stack([state[f"lstm.bias_ih_l0{side}"] + state[f"lstm.bias_hh_l0{side}"] for side in both]),
        },
        "attention": {
            "kernel": state["inner.weight"].T, "bias": state["inner.bias"], "vector": state["vector.weight"][0],
        },
        "output": {"kernel": state["output.weight"].T, "bias": state["output.bias"]},
    }  # fmt: skip
    model = RecurrentClassifier(
        RecurrentConfig(
            vocab_size=VOCABULARY, embedding_size=sizes["embedding"], hidden_size=sizes["lstm"],
            attention_size=sizes["attention"], num_classes=2,
        )
    )  # fmt: skip

    def output(embeddings: Any) -> Any:
        return model.apply({"params": params}, embeddings, method="classify")

    ours = (lambda e: output(e).logits, lambda ids: params["word"][ids], lambda e: output(e).attention_weights)
    return (module, lambda e: module.read(e)[1], module.word.weight), ours


def build_transformer(sizes: dict[str, int]) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """transformers' DistilBERT classifier, and ours read from its files."""
    import jax.numpy as jnp
    import torch
    import transformers

    from jaxcore.attribution import attention_rollout, attention_weights
    from jaxcore.models.classifier import load_classifier
    from jaxcore.transforms import intervene

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=sizes["hidden"], n_layers=sizes["layers"], n_heads=sizes["heads"],
        hidden_dim=4 * sizes["hidden"], max_position_embeddings=64, num_labels=2, initializer_range=0.15,
    )  # fmt: skip
    bert = transformers.DistilBertForSequenceClassification(config).eval()
    bert.set_attn_implementation("eager")
    for parameter in bert.parameters():
        parameter.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        bert.save_pretrained(folder)
        overrides = {"attention_implementation": "explicit"}
        model, params, _ = load_classifier(folder, config_overrides=overrides)
    words = params["encoder"]["embeddings"]["word"]

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, embeddings: Any) -> Any:
            return self.bert(inputs_embeds=embeddings).logits

    def rollout(embeddings: Any) -> Any:
        weights = bert(inputs_embeds=embeddings, output_attentions=True).attentions
        joint = torch.eye(embeddings.shape[1])
        for layer in weights:
            mixed = layer.mean(1) + torch.eye(embeddings.shape[1])
            joint = (mixed / mixed.sum(-1, keepdim=True)) @ joint
        return joint[:, 0]

    def predict(embeddings: Any) -> Any:
        ids = jnp.zeros(embeddings.shape[:2], jnp.int32)
        run = intervene(lambda: model.apply({"params": params}, ids), {"token_embeddings": embeddings})
        return run().logits  # type: ignore[union-attr]

    ours = (predict, lambda ids: words[ids], lambda e: attention_rollout(attention_weights(predict)(e)))
    return (Logits(), rollout, bert.distilbert.embeddings.word_embeddings.weight), ours


if __name__ == "__main__":
    keep_freed_memory()
    main()
