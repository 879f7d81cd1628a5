"""Function transformations that look inside any JAX function by re-evaluating its jaxpr.

- `capture(f, names)` also returns the values that `f` names with `jax.ad_checkpoint.checkpoint_name`.
- `intervene(f, edits)` runs `f` with some of those values edited or replaced.
- `activation_names(f, *args)` lists what can be captured, with shapes.
- `trace`, `evaluate`, `Rules`, `bind`, `sites`, `activation_name` (jaxprs.py): the engine under them,
  "evaluate this jaxpr with these rules, descending into scan, remat, cond, ..."; every fact about jaxpr
  internals lives in that file.
"""

from jaxcore.transforms.capture import activation_names, capture
from jaxcore.transforms.intervene import intervene
from jaxcore.transforms.jaxprs import (
    Records,
    Rules,
    Traced,
    activation_name,
    bind,
    evaluate,
    sites,
    trace,
)

__all__ = [
    "Records",
    "Rules",
    "Traced",
    "activation_name",
    "activation_names",
    "bind",
    "capture",
    "evaluate",
    "intervene",
    "sites",
    "trace",
]
