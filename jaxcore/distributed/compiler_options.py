"""Compiler options: none by default, the candidates worth trying, and the ones that must not pass.

Options are passed per program (``compile(compiler_options=...)``): scoped, and an unknown name is an error.
In ``XLA_FLAGS`` or ``LIBTPU_INIT_ARGS`` an unknown flag kills the process at start, so flags that circulate
and no longer exist are named here and refused with a sentence instead. An option becomes a default only with
a measurement: chip, versions, step time before and after, equal loss curve.
"""

import dataclasses
import os
from collections.abc import Mapping, MutableMapping

__all__ = [
    "CANDIDATES",
    "MULTISLICE_INIT_ARGS",
    "CandidateOption",
    "add_multislice_init_args",
    "check_compiler_options",
    "check_flag_environment",
]


@dataclasses.dataclass(frozen=True)
class CandidateOption:
    """A compiler option worth measuring: its values, the chips, what it does and what was seen."""

    name: str
    value: object
    chips: tuple[str, ...]
    effect: str
    state: str


CANDIDATES: tuple[CandidateOption, ...] = (
    CandidateOption(
        "xla_jf_spmd_threshold_for_windowed_einsum_mib",
        1000000,
        ("v5e", "v5p", "v6e"),
        "matmuls that overlap their own collective, above this size",
        "default acts like 0 (on); a very large number turns it off",
    ),
    CandidateOption(
        "xla_tpu_scoped_vmem_limit_kib",
        98304,
        ("v5p", "v6e"),
        "scratch memory per operation",
        "acts like 16384 (v5e, v5p) or 32768 (v6e); 98304 cost up to four times the temporaries",
    ),
    CandidateOption(
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
        True,
        ("v5e", "v5p", "v6e"),
        "overlaps the gradient reduction",
        "documented off; no difference in the programs tried",
    ),
    CandidateOption(
        "xla_should_allow_loop_variant_parameter_in_chain",
        "enabled",
        ("v5e", "v5p", "v6e"),
        "pipelines parameter gathers across scan steps, with the next two",
        "off; set all three or none",
    ),
    CandidateOption("xla_should_add_loop_invariant_op_in_chain", "enabled", ("v5e", "v5p", "v6e"), "see above", "off"),
    CandidateOption("xla_tpu_enable_ici_ag_pipelining", True, ("v5e", "v5p", "v6e"), "see above", "off"),
    CandidateOption(
        "xla_latency_hiding_scheduler_rerun",
        5,
        ("v5e", "v5p", "v6e"),
        "trades speed for memory",
        "only after an out-of-memory",
    ),
)

_REFUSED = {
    "xla_tpu_spmd_rng_bit_generator_unsafe": "random bits would depend on the sharding",
    "xla_tpu_enable_latency_hiding_scheduler": "it is on by default",
}

_RETIRED_GPU_FLAGS = (
    "xla_gpu_enable_async_all_reduce",
    "xla_gpu_enable_async_all_gather",
    "xla_gpu_enable_async_reduce_scatter",
    "xla_gpu_enable_async_collectives",
    "xla_gpu_enable_triton_softmax_fusion",
    "xla_gpu_enable_pipelined_collectives",
    "xla_gpu_enable_nccl_per_stream_comms",
    "xla_gpu_enable_custom_fusions",
    "xla_gpu_enable_address_computation_fusion",
    "xla_gpu_lhs_enable_gpu_async_tracker",
    "xla_gpu_enable_cudnn_gemm_fusion",
    "xla_gpu_graph_level",
    "xla_gpu_simplify_all_fp_conversions",
)

MULTISLICE_INIT_ARGS = (
    "--megascale_graph_hang_threshold=10m",
    "--megascale_error_reporter_abort_on_hang=true",
)
"""Several slices: wait 10 instead of 5 minutes, then abort rather than hang. Only libtpu's own flags can
say it."""


def check_compiler_options(options: Mapping[str, object]) -> None:
    """Refuses options that break a promise of this project.

    Raises:
      ValueError: naming the option and the reason.
    """
    for name in options:
        if name in _REFUSED:
            raise ValueError(f"compiler option {name} is refused: {_REFUSED[name]}; leave it out")


def check_flag_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses flags in ``XLA_FLAGS`` that would abort the process without a useful word.

    Raises:
      ValueError: a retired GPU flag, or a TPU flag (which aborts every backend when it stands in XLA_FLAGS).
    """
    for flag in environment.get("XLA_FLAGS", "").split():
        name = flag.lstrip("-").partition("=")[0]
        if name in _RETIRED_GPU_FLAGS:
            raise ValueError(f"XLA_FLAGS has --{name}, which no longer exists and would abort the process; remove it")
        if name.startswith(("xla_tpu_", "megascale_")):
            raise ValueError(
                f"XLA_FLAGS has the TPU flag --{name}, which aborts the process; pass it as a compiler option instead"
            )


def add_multislice_init_args(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds `MULTISLICE_INIT_ARGS` to ``LIBTPU_INIT_ARGS``, except those the user has set."""
    present = environment.get("LIBTPU_INIT_ARGS", "")
    missing = [flag for flag in MULTISLICE_INIT_ARGS if flag.partition("=")[0] not in present]
    environment["LIBTPU_INIT_ARGS"] = " ".join([present, *missing]).strip()
