"""One module per paper. Each reads like its paper and exposes the same few names, so that one command runs them all.

The protocol (checked over every module by ``tests/experiments/test_protocol.py``; types in
`experiments.protocol`):

``PAPER``    `Paper`: title, year, what it claims in a sentence, what a run needs.
``Config``   a frozen dataclass of plain typed fields (nested dataclasses welcome) that holds everything a run
             depends on. It has ``preset: str``, ``seed: int`` and ``mesh: MeshConfig``; ``__post_init__`` refuses
             what cannot work.
``PRESETS``  ``{"smoke", "cpu", "gpu", "pod"} -> Config``: seconds, for tests; minutes on two cores with embedded data,
             the default; one accelerator; the paper's scale.
``build``    ``build(config, devices=None) -> Program``: the mesh and every jitted step with abstract inputs, so
             that any of them can be compiled for any topology without data.
``run``      ``run(config, run_dir, *, resume=False, tick=...) -> Results``: train, evaluate, report.
``CLAIMS``   `jaxcore.evaluation.Claims`: what must hold, between which variants, by what margin and test.

A module imports jaxcore and `experiments.protocol`, never another paper: what two papers share moves into jaxcore.
"""
