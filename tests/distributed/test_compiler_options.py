import importlib.util
import sys

import pytest

from jaxcore.distributed import compiler_options as room


@pytest.mark.parametrize("flag", ["--xla_gpu_enable_async_all_gather=true", "--xla_gpu_graph_level=2"])
def test_retired_gpu_flags_are_named(flag):
    with pytest.raises(ValueError, match="no longer exists"):
        room.check_flag_environment({"XLA_FLAGS": f"--xla_dump_to=/tmp {flag}"})


def test_tpu_flags_do_not_belong_into_xla_flags():
    with pytest.raises(ValueError, match="compiler option"):
        room.check_flag_environment({"XLA_FLAGS": "--xla_tpu_scoped_vmem_limit_kib=1"})
    room.check_flag_environment({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
    room.check_flag_environment({})


def test_every_retired_flag_really_aborts_a_process(launch):
    """The refusal is right: a process with the flag dies without it. One flag stands for the list, jax
    says which."""
    job = launch(
        "import jax; jax.devices()",
        count=2,
        explicit=False,
        environments={
            0: {"XLA_FLAGS": " ".join(f"--{name}=true" for name in room._RETIRED_GPU_FLAGS)},
            1: {"XLA_FLAGS": "--xla_tpu_scoped_vmem_limit_kib=1"},
        },
    )
    assert all(code != 0 for code in job.wait())
    for name in room._RETIRED_GPU_FLAGS:
        assert name in job.errors(0)


def test_unsafe_options_are_refused():
    with pytest.raises(ValueError, match="depend on the sharding"):
        room.check_compiler_options({"xla_tpu_spmd_rng_bit_generator_unsafe": True})
    room.check_compiler_options({option.name: option.value for option in room.CANDIDATES})


def test_multislice_arguments_leave_the_users_alone():
    environment = {"LIBTPU_INIT_ARGS": "--megascale_graph_hang_threshold=3m"}
    room.add_multislice_init_args(environment)
    room.add_multislice_init_args(environment)
    assert environment["LIBTPU_INIT_ARGS"] == (
        "--megascale_graph_hang_threshold=3m --megascale_error_reporter_abort_on_hang=true"
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_candidates_are_accepted_by_this_libtpu(launch):
    """Each option on a trivial program, one that does not exist as the control, and the multislice flags."""
    job = launch(
        """
        import jax, jax.numpy as jnp
        from jaxcore.distributed import MeshConfig, compile_step, describe_topology, make_mesh, replicated
        from jaxcore.distributed.compiler_options import CANDIDATES
        described = describe_topology("v5e:2x2")
        mesh = make_mesh(MeshConfig(), described.devices)
        step = jax.jit(lambda x: x @ x, in_shardings=replicated(mesh), out_shardings=replicated(mesh))
        x = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)
        def accepted(options):
            try:
                return compile_step(step, (x,), mesh=mesh, compiler_options=options).executable is not None
            except jax.errors.JaxRuntimeError as error:
                return "No such compile option" not in str(error) and str(error)
        print("CONTROL", accepted({"xla_no_such_option": True}))
        for option in CANDIDATES:
            print(option.name, accepted({option.name: option.value}))
        """,
        explicit=False,
        environments={0: {"LIBTPU_INIT_ARGS": " ".join(room.MULTISLICE_INIT_ARGS)}},
    )
    assert job.wait(timeout=90) == [0], job.errors(0)[-2000:]
    verdicts = dict(line.split(" ", 1) for line in job.output(0).splitlines() if " " in line)
    assert verdicts.pop("CONTROL") == "False"
    assert verdicts == {option.name: "True" for option in room.CANDIDATES}, sys.version
