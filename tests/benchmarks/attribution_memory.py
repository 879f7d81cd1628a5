"""Memory of the longest attributions at BERT-base shape, against a budget of 2 GiB, and over simulated devices.

    JAX_PLATFORMS=cpu python tests/benchmarks/attribution_memory.py [--steps 10000] [--samples 100000] [--run 8]

Integrated gradients with 10,000 steps and KernelSHAP with 100,000 samples of 8 texts of 128 tokens, float32: the
programs are compiled for abstract parameters and the compiler's own account is printed: temporaries and outputs
against the budget, arguments (the parameters) apart. With `--run N`, N steps and 16 N samples run under the same
budget, and what they add to the process's peak of resident memory is printed beside the compiler's figure.

Then the instances are split over simulated devices, at a given chunk: temporaries per device on 1 and on 8 devices, and
on a small model the values too (largest difference over the largest value).
"""

import argparse
import functools
import os
import resource
from collections.abc import Callable
from typing import Any

DEVICES = 8
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from bert_tokens import BertTokens  # noqa: E402

from jaxcore.attribution import integrated_gradients, kernel_shap, token_groups  # noqa: E402
from jaxcore.distributed import MeshConfig, batch_sharding, jit_on_mesh, make_mesh, replicated  # noqa: E402


def main() -> None:
    """Print the compiler's account, the run's, and the devices'."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    for name, value in {"layers": 12, "hidden": 768, "batch": 8, "length": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--budget", type=int, default=2 * 2**30, help="bytes")
    parser.add_argument("--run", type=int, default=0, metavar="N", help="run N steps and 16 N samples too")
    options = parser.parse_args()
    texts = BertTokens(options.batch, options.length, options.layers, options.hidden)
    counts = {"integrated_gradients": options.steps, "kernel_shap": options.samples}
    for name, count in counts.items():
        within_budget(texts, name, count, options)
    for name in counts:
        per_device(texts, name)


def explanation(texts: BertTokens, name: str, **options: Any) -> Callable[[Any, Any], Any]:
    """(parameters, ids) -> attributions."""

    def explain(params: Any, ids: Any) -> Any:
        embeddings, baseline = texts.embeddings(params, ids)
        score = texts.score(params, ids)
        if name == "integrated_gradients":
            return integrated_gradients(score, embeddings, baseline=baseline, **options)
        groups = token_groups(jnp.ones(ids.shape, bool))
        return kernel_shap(score, embeddings, jax.random.key(0), baseline=baseline, groups=groups, **options)

    return explain


def count_option(name: str, count: int) -> dict[str, int]:
    return {"num_steps" if name == "integrated_gradients" else "num_samples": count}


def within_budget(texts: BertTokens, name: str, count: int, options: argparse.Namespace) -> None:
    """The compiler's account of the whole program, and on request the resident memory of a slice of it."""
    explain = explanation(texts, name, **count_option(name, count), memory_budget=options.budget)
    compiled = jax.jit(explain).lower(texts.abstract_params(), texts.abstract_ids()).compile()
    memory = compiled.memory_analysis()
    taken = memory.temp_size_in_bytes + memory.output_size_in_bytes
    verdict = "within" if taken <= options.budget else "BEYOND"
    print(
        f"{name}, {count:,}: temporaries {mebibytes(memory.temp_size_in_bytes)}, output "
        f"{mebibytes(memory.output_size_in_bytes)}: {verdict} the budget of {mebibytes(options.budget)}; arguments "
        f"(parameters) {mebibytes(memory.argument_size_in_bytes)}"
    )
    if options.run:
        part = options.run * (1 if name == "integrated_gradients" else 16)
        run_slice(texts, name, part, options.budget)


def run_slice(texts: BertTokens, name: str, count: int, budget: int) -> None:
    """Run so many steps or samples under the same budget, and say how far resident memory rises."""
    params, ids = texts.params(), jnp.asarray(texts.ids())
    explain = explanation(texts, name, **count_option(name, count), memory_budget=budget)
    compiled = jax.jit(explain).lower(params, ids).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    before = resident_peak()
    values = np.asarray(compiled(params, ids))
    if not np.isfinite(values).all():
        raise SystemExit(f"{name} gave values that are not finite")
    print(
        f"  {count} ran: the peak of resident memory rose by {mebibytes(resident_peak() - before)}, the compiler said "
        f"{mebibytes(temporary)}"
    )


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def per_device(texts: BertTokens, name: str) -> None:
    """Temporaries per device with the instances on one device and on eight; the values of a small model on both."""
    temporaries = {}
    for count in (1, DEVICES):
        program, split = on_devices(texts, name, count)
        ids = jax.ShapeDtypeStruct((texts.batch, texts.length), jnp.int32, sharding=split)
        memory = program.lower(texts.abstract_params(), ids).compile().memory_analysis()
        temporaries[count] = memory.temp_size_in_bytes
    small = BertTokens(batch=8, length=16, num_layers=2, hidden_size=64)
    params, values = small.params(), {}
    for count in (1, DEVICES):
        program, split = on_devices(small, name, count)
        values[count] = np.asarray(program(params, jax.device_put(small.ids(), split)))
    difference = np.abs(values[1] - values[DEVICES]).max() / np.abs(values[1]).max()
    print(
        f"{name}, {texts.batch} texts on 1 and {DEVICES} devices: temporaries per device "
        f"{mebibytes(temporaries[1])} and {mebibytes(temporaries[DEVICES])}, a share of "
        f"{temporaries[DEVICES] / temporaries[1]:.3f} (goal {1 / DEVICES}); values of a small model differ by "
        f"{difference:.1e}"
    )


def on_devices(texts: BertTokens, name: str, count: int) -> tuple[Any, Any]:
    """The program with the texts split over so many devices, and the sharding of the texts."""
    mesh = make_mesh(MeshConfig(data=count), jax.devices()[:count])
    split = batch_sharding(mesh)
    counts, chunk = (8, 2) if name == "integrated_gradients" else (512, 32)
    explain = explanation(texts, name, **count_option(name, counts), chunk_size=chunk)
    program = functools.partial(jit_on_mesh, mesh=mesh, in_shardings=(replicated(mesh), split), out_shardings=split)
    return program(explain), split


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
