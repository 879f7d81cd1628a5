"""Compilers that give wrong numbers, and how the project keeps clear of them.

jaxlib 0.10.2 on CPU: in ``(sum(x * y, -1) * w)[..., None] * y``, where y and w lack x's leading dimension and x holds
more than about 2^20 numbers, all rows but the first are wrong, by several per cent and without a word. That is the
derivative of a layer norm under `jax.vmap`, hence the gradient of every target but the first in attribution for
generation. Its fusions of reductions into YNNPACK are at fault; 0.10.0, 0.10.1, 0.11.2 and 0.12.0.1 are right. With
matrix products alone handed to YNNPACK 0.10.2 is right too.

This module imports neither JAX nor NumPy: it runs before both.
"""

import importlib.metadata
import os
import sys
import warnings
from collections.abc import MutableMapping

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_RIGHT = f"{_FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def avoid_wrong_fusions(environment: MutableMapping[str, str] = os.environ, version: str | None = None) -> None:
    """Add to ``XLA_FLAGS`` what makes jaxlib 0.10.2 right on CPU; leave other versions and a given flag alone.

    XLA reads its flags when JAX first computes; where that has happened, a warning says what to do instead.

    Args:
        environment: where ``XLA_FLAGS`` stands.
        version: of jaxlib; by default the installed one.
    """
    flags = environment.get("XLA_FLAGS", "")
    if (version or importlib.metadata.version("jaxlib")) != "0.10.2" or _FLAG in flags:
        return
    environment["XLA_FLAGS"] = f"{flags} {_RIGHT}".strip()
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        warnings.warn(
            "JAX computed before jaxcore was imported, and jaxlib 0.10.2 gives wrong numbers on CPU (see "
            f"jaxcore.compiler_bugs): import jaxcore first, or start with XLA_FLAGS={_RIGHT}",
            stacklevel=2,
        )
