"""Many devices and many processes: everything between a configuration and a sharded, running program.

Joining the job
    process_start   `start`: the one call before a device is touched; laptop, pod, SLURM or explicit
    coordination    key-value store and barriers between processes
    grouped_lines   a file of results that all of them agree on, continued after a kill
    fingerprint     processes must run the same software, code and configuration
    preemption      `tick`: called by every loop; True when all processes agreed to save and stop
    watchdog        a process that stands still says where, and ends
    exit_codes      what the process tells whatever restarts it
    compilation_cache, compiler_options

Placing arrays
    mesh            `make_mesh`: axes replica, data, fsdp, tensor; checks on the batch
    sharding        logical axis names to mesh axes; global batches; values back on the host

Compiling for a pod without one
    ahead_of_time   `describe_topology`, `compile_step`: memory, FLOPs and collectives of a real TPU
    flops           FLOPs of a jaxpr, loops multiplied out; compiled_flops reads them from the executable
    collectives     collective operations of the executable (hlo_text parses it)
    chips           peaks, memory, link rates, topology names
    roofline        predicted step time, and the report that `compile` prints
"""

from jaxcore.distributed.ahead_of_time import CompiledStep, DescribedTopology, compile_step, describe_topology
from jaxcore.distributed.chips import CHIPS, Chip, Topology, chip_for_device_kind, parse_topology
from jaxcore.distributed.collectives import Collective, CollectiveTotal, read_collectives, total_by_kind
from jaxcore.distributed.compilation_cache import default_cache_dir, enable_compilation_cache
from jaxcore.distributed.coordination import BarrierTimeout, barrier
from jaxcore.distributed.exit_codes import ExitCode
from jaxcore.distributed.fingerprint import FingerprintMismatch, hash_config
from jaxcore.distributed.flops import RECOMPUTE_SCOPE, FlopCount, count_flops, count_jaxpr_flops
from jaxcore.distributed.grouped_lines import GroupedLines
from jaxcore.distributed.mesh import (
    AXES,
    BATCH_AXES,
    MeshConfig,
    batch_sharding,
    check_batch,
    make_mesh,
    num_batch_shards,
    replicated,
)
from jaxcore.distributed.preemption import Ticker, current_ticker, stop_watching, tick
from jaxcore.distributed.process_start import ProcessInfo, StartConfig, start
from jaxcore.distributed.roofline import (
    ContrastiveWorkload,
    Prediction,
    contrastive_parts,
    encoder_flops,
    format_report,
    format_weak_scaling,
    predict,
    predict_compiled,
)
from jaxcore.distributed.sharding import (
    DEFAULT_RULES,
    constrain_rows,
    gather_to_host,
    jit_on_mesh,
    replicated_rows,
    shard_local_batch,
    split_rows,
    tree_shardings,
    under_mesh,
)
from jaxcore.distributed.watchdog import Watchdog, WatchdogConfig

__all__ = [
    "AXES",
    "BATCH_AXES",
    "CHIPS",
    "DEFAULT_RULES",
    "RECOMPUTE_SCOPE",
    "BarrierTimeout",
    "Chip",
    "Collective",
    "CollectiveTotal",
    "CompiledStep",
    "ContrastiveWorkload",
    "DescribedTopology",
    "ExitCode",
    "FingerprintMismatch",
    "FlopCount",
    "GroupedLines",
    "MeshConfig",
    "Prediction",
    "ProcessInfo",
    "StartConfig",
    "Ticker",
    "Topology",
    "Watchdog",
    "WatchdogConfig",
    "barrier",
    "batch_sharding",
    "check_batch",
    "chip_for_device_kind",
    "compile_step",
    "constrain_rows",
    "contrastive_parts",
    "count_flops",
    "count_jaxpr_flops",
    "current_ticker",
    "default_cache_dir",
    "describe_topology",
    "enable_compilation_cache",
    "encoder_flops",
    "format_report",
    "format_weak_scaling",
    "gather_to_host",
    "hash_config",
    "jit_on_mesh",
    "make_mesh",
    "num_batch_shards",
    "parse_topology",
    "predict",
    "predict_compiled",
    "read_collectives",
    "replicated",
    "replicated_rows",
    "shard_local_batch",
    "split_rows",
    "start",
    "stop_watching",
    "tick",
    "total_by_kind",
    "tree_shardings",
    "under_mesh",
]
