"""jaxcore: contrastive training and attribution in JAX, on a laptop, one GPU or a TPU pod.

The rooms, bottom to top; a room imports only rooms above it in this list:

- ``jaxcore.distributed``  meshes, sharding rules, process start, ahead-of-time compilation
- ``jaxcore.transforms``   ``capture`` and ``intervene``: looking inside and editing any JAX function
- ``jaxcore.models``       Flax modules, their configs, and published weights
- ``jaxcore.losses``       contrastive objectives: arrays in, scalar out
- ``jaxcore.attribution``  explanation methods and measures of their faithfulness
- ``jaxcore.data``         sources, tokenisation, input pipelines
- ``jaxcore.training``     state, jitted step, loop, checkpoints, metrics
- ``jaxcore.evaluation``   authorship, verification, clustering, statistics and claims
- ``jaxcore.reporting``    HTML reports, heatmaps, plots, tables
"""

from jaxcore.compiler_bugs import avoid_wrong_fusions

avoid_wrong_fusions()
