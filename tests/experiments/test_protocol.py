"""Every module of `experiments` follows the protocol, and the check notices one that does not."""

import ast
import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest

import experiments
from experiments import protocol
from jaxcore.distributed import MeshConfig

PACKAGE = pathlib.Path(experiments.__file__).parent


@pytest.mark.parametrize("name", protocol.names())
def test_the_module_follows_the_protocol(name):
    assert protocol.violations(protocol.load(name)) == []


@pytest.mark.parametrize("name", protocol.names())
def test_the_module_imports_no_other_paper(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    others = {f"experiments.{other}" for other in protocol.names() if other != name}
    assert not others & {module for module in imported if module}


@pytest.mark.parametrize("name", protocol.names())
def test_the_smoke_program_lowers_without_data(name):
    module = protocol.load(name)
    config = dataclasses.replace(module.PRESETS["smoke"], mesh=MeshConfig(data=4, fsdp=2))
    program = module.build(config, jax.devices())
    assert "train" in program.steps
    for step in program.steps.values():
        step.function.lower(*step.arguments)


@pytest.mark.parametrize("name", protocol.names())
def test_claims_speak_of_variants_that_derive_from_their_preset(name):
    module = protocol.load(name)
    base = module.PRESETS[module.CLAIMS.preset]
    derived = {variant: derive(base) for variant, derive in module.CLAIMS.variants.items()}
    assert all(isinstance(config, module.Config) for config in derived.values())
    assert len({str(config) for config in derived.values()}) == len(derived), "two variants are the same run"


def test_what_a_module_lacks_is_named():
    empty = types.ModuleType("empty")
    assert "CLAIMS is missing" in protocol.violations(empty)
    star = protocol.load("star")
    broken = types.SimpleNamespace(**{name: getattr(star, name) for name in protocol.Experiment.__annotations__})
    broken.__doc__ = ""
    broken.PRESETS = {"smoke": star.PRESETS["cpu"]}
    problems = " ".join(protocol.violations(broken))
    assert "PRESETS has ['smoke']" in problems
    assert "PRESETS['smoke'] is not a Config with preset='smoke'" in problems
    assert "no docstring" in problems


def test_an_unknown_experiment_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown experiment 'starr': expected one of .*star"):
        protocol.load("starr")


def test_batches_are_checked_against_the_mesh_before_anything_is_compiled():
    mesh = protocol.checked_mesh(MeshConfig(data=4, fsdp=2), jax.devices(), 8, 16)
    assert dict(mesh.shape)["data"] == 4
    with pytest.raises(ValueError, match="12"):
        protocol.checked_mesh(MeshConfig(data=4, fsdp=2), jax.devices(), 8, 12)
    rows = protocol.abstract_rows(mesh, 16, {"ids": (5,), "labels": (), "kept": (5,)}, {"kept": jnp.bool_})
    assert {name: (row.shape, row.dtype.name) for name, row in rows.items()} == {
        "ids": ((16, 5), "int32"), "labels": ((16,), "int32"), "kept": ((16, 5), "bool")
    }  # fmt: skip
    assert rows["ids"].sharding.shard_shape((16, 5)) == (2, 5)


def test_results_say_what_was_run():
    config = types.SimpleNamespace(preset="smoke", seed=5)
    made = [
        protocol.results_of("star", config, started=0.0, steps=3, metrics={"m": 1.0}, params={"w": value})
        for value in (jnp.zeros(2), jnp.ones(2))
    ]
    assert (made[0].experiment, made[0].preset, made[0].seed, made[0].steps) == ("star", "smoke", 5, 3)
    assert made[0].seconds > 0 and made[0].samples == {} and made[0].versions["jax"] == jax.__version__
    assert made[0].params_digest != made[1].params_digest
