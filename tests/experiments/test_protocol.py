"""Every module of `experiments` follows the protocol, and the check notices one that does not."""

import ast
import dataclasses
import pathlib
import types

import jax
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
