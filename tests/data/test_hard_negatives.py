"""Hard negatives: what a step uses depends on the step alone; resumable; gated; errors come out; nothing lingers."""

import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcore.data.hard_negatives import (
    HardNegativeBatches,
    HardNegativeConfig,
    HardNegativeMiner,
    MiningStopped,
    draw_negatives,
)
from jaxcore.data.sentence_batches import sentence_batches
from jaxcore.distributed import MeshConfig, batch_sharding, jit_on_mesh, make_mesh
from jaxcore.losses import info_nce
from jaxcore.training import (
    LoopConfig,
    OptimizerConfig,
    Preempted,
    create_state,
    fit,
    make_train_step,
    one_shot_gradients,
    open_run_directory,
    params_digest,
)

NUM_ROWS, WIDTH, DIM = 96, 6, 8
WORDS = np.random.default_rng(0).integers(0, 40, (NUM_ROWS, WIDTH)).astype(np.int32)
WORDS[1] = WORDS[0]
CONFIG = HardNegativeConfig(num_negatives=2, num_neighbours=5, refresh_every=4, max_similarity=0.95, batch_size=16)
OPTIMIZER = optax.sgd(0.05)


def initialize(key):
    return {"table": jax.random.normal(key, (40, DIM))}


def encode(params, ids):
    return params["table"][ids].mean(-2)


def make_steps(mesh):
    def loss(params, batch, key):
        anchors = encode(params, batch["input_ids"])
        return info_nce(
            anchors, anchors + 0.01, temperature=0.1, negatives=encode(params, batch["negative_input_ids"]), mesh=mesh
        )

    state = create_state(initialize, OPTIMIZER, mesh, seed=0)
    embed = jit_on_mesh(
        lambda params, batch: encode(params, batch["input_ids"]), mesh, out_shardings=batch_sharding(mesh)
    )
    return state, make_train_step(one_shot_gradients(loss), OPTIMIZER, state, mesh), embed


class Rows:
    """The corpus as an array whose reading `before_read` may hold up (not the launch of programs, which is a lock)."""

    def __init__(self, before_read):
        self._before_read = before_read

    def __len__(self):
        return NUM_ROWS

    def __getitem__(self, index):
        if threading.current_thread().name.startswith("hard-negatives"):
            self._before_read()
        return WORDS[index]


class Recording:
    """Batches that remember which negatives they handed out."""

    def __init__(self, batches):
        self._batches, self.seen = batches, []

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._batches)
        self.seen.append((batch["example_ids"], batch["negative_input_ids"]))
        return batch

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, state):
        self._batches.set_state(state)


def train(path, *, num_steps=18, resume=False, config=CONFIG, mesh_config=None, slow=0.0, tick=lambda step: False):
    mesh = make_mesh(mesh_config or MeshConfig(data=8))
    state, step, embed = make_steps(mesh)
    run = open_run_directory(path, OptimizerConfig(), resume=resume)
    batches = sentence_batches(
        WORDS, batch_size=8, seed=3, process_index=jax.process_index(), process_count=jax.process_count()
    )
    rows = {"input_ids": Rows(lambda: time.sleep(slow))}
    miner = HardNegativeMiner(embed, rows, config=config, mesh=mesh, directory=path / "neighbours", seed=5)
    try:
        with miner:
            recording = Recording(HardNegativeBatches(batches, miner))
            loop = LoopConfig(checkpoint_every=0)
            state = fit(
                state, miner.watch(step), recording, num_steps=num_steps, mesh=mesh, run=run, loop=loop, tick=tick
            )
    finally:
        run.close()
        batches.close()
    return params_digest(state.params), recording.seen


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("mining") / "run"
    return path, *train(path)


def neighbours_of(params, config=CONFIG):
    """By brute force in float64."""
    vectors = np.asarray(params["table"], np.float64)[WORDS].mean(1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = np.round(unit @ unit.T, 9)  # rows 0 and 1 are equal: a tie is a tie
    cosine[np.eye(NUM_ROWS, dtype=bool) | (cosine > config.max_similarity)] = -np.inf
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : config.num_neighbours]
    return np.where(np.isfinite(np.take_along_axis(cosine, order, 1)), order, -1)


def test_each_step_uses_the_neighbours_of_the_parameters_it_should(finished):
    """Training is done again by hand, with parameters kept from every step, and neighbours by brute force."""
    _, digest, seen = finished
    mesh = make_mesh(MeshConfig(data=8))
    state, step, _ = make_steps(mesh)
    lists, groups = {}, np.arange(NUM_ROWS)
    for number, (ids, negatives) in enumerate(seen):
        if number % 4 == 0:
            lists[number] = neighbours_of(jax.tree.map(np.asarray, state.params))
        used = lists.get(4 * (number // 4 - 1))
        expected = draw_negatives(used, ids, groups, num=2, seed=5, step=number)
        np.testing.assert_array_equal(negatives, WORDS[expected])
        if used is not None:
            assert all(set(chosen) <= set(used[anchor]) for chosen, anchor in zip(expected, ids, strict=True))
        batch = {"input_ids": WORDS[ids], "negative_input_ids": WORDS[expected]}
        batch["attention_mask"] = np.ones_like(WORDS[ids])
        state, _ = step(state, jax.device_put(batch, batch_sharding(mesh)))
    assert params_digest(state.params) == digest
    assert (lists[0] != lists[16]).any(), "training must move the neighbours for this test to mean something"


def test_the_speed_of_mining_and_the_devices_do_not_matter(finished, tmp_path):
    _, digest, seen = finished
    slow_digest, slow_seen = train(tmp_path / "slow", slow=0.02)
    assert slow_digest == digest
    _, one_device = train(tmp_path / "fsdp", mesh_config=MeshConfig(data=2, fsdp=4))
    for (ids, negatives), *others in zip(seen, slow_seen, one_device, strict=True):
        for other_ids, other_negatives in others:
            np.testing.assert_array_equal(other_ids, ids)
            np.testing.assert_array_equal(other_negatives, negatives)


TWO_PROCESSES = """
    import pathlib, sys
    from jaxcore.distributed import start
    start()
    sys.path.insert(0, {tests!r})
    import test_hard_negatives as mining
    import numpy as np
    digest, seen = mining.train(pathlib.Path({path!r}))
    np.savez(f"seen_{{mining.jax.process_index()}}.npz", *[part for pair in seen for part in pair])
    print(digest)
"""


def test_two_processes_mine_and_draw_what_one_does(finished, tmp_path, launch):
    """Sums over processes round in another order, so parameters agree to rounding, and what is drawn exactly."""
    path, _, seen = finished
    script = TWO_PROCESSES.format(tests=str(pathlib.Path(__file__).parent), path=str(tmp_path / "run"))
    four_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"}
    job = launch(script, count=2, environments={0: four_devices, 1: four_devices})
    assert job.wait(120) == [0, 0], job.errors(0)[-2000:]
    digests = {job.output(rank).split()[-1] for rank in range(2)}
    assert len(digests) == 1, "both processes must end with the same parameters"
    halves = [list(np.load(job.folder / f"seen_{rank}.npz").values()) for rank in range(2)]
    for step, (ids, negatives) in enumerate(seen):
        np.testing.assert_array_equal(np.concatenate([half[2 * step] for half in halves]), ids)
        np.testing.assert_array_equal(np.concatenate([half[2 * step + 1] for half in halves]), negatives)
    for refresh in (path / "neighbours").iterdir():
        np.testing.assert_array_equal(np.load(refresh), np.load(tmp_path / "run" / "neighbours" / refresh.name))


@pytest.mark.parametrize("stop_after", [4, 6, 13])
def test_a_resumed_run_ends_like_an_uninterrupted_one(stop_after, finished, tmp_path):
    _, digest, seen = finished
    with pytest.raises(Preempted):
        train(tmp_path / "run", slow=0.01, tick=lambda done: done == stop_after)
    resumed_digest, resumed = train(tmp_path / "run", resume=True)
    assert resumed_digest == digest and len(resumed) == 18 - stop_after
    np.testing.assert_array_equal(resumed[-1][1], seen[-1][1])


def test_a_resumed_run_without_its_refreshes_says_so(tmp_path):
    with pytest.raises(Preempted):
        train(tmp_path / "run", tick=lambda done: done == 9)
    for file in (tmp_path / "run" / "neighbours").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="no refresh of step 4 at"):
        train(tmp_path / "run", resume=True)


def test_mining_goes_on_while_training_does():
    """The step after the refresh was started does not wait: it is done while the embedding still hangs."""
    mesh = make_mesh(MeshConfig())
    state, step, embed = make_steps(mesh)
    gate = threading.Event()

    def hang():
        assert gate.wait(20)

    with HardNegativeMiner(embed, {"input_ids": Rows(hang)}, config=CONFIG, mesh=mesh, directory="unused") as miner:
        miner._write = lambda *_: None
        watched = miner.watch(step)
        batch = {"input_ids": WORDS[:8], "negative_input_ids": WORDS[:16].reshape(8, 2, WIDTH)}
        before = neighbours_of(jax.tree.map(np.asarray, state.params))
        for _ in range(3):
            state, metrics = watched(state, jax.device_put(batch, batch_sharding(mesh)))
        assert np.isfinite(float(metrics["loss"])) and not miner._pending[0].done()
        gate.set()
        np.testing.assert_array_equal(miner.neighbours(4), before)  # of the parameters three steps ago


def test_errors_of_a_refresh_are_raised_by_the_next_step_or_the_hand_over():
    mesh = make_mesh(MeshConfig())
    state, step, _ = make_steps(mesh)

    def broken(params, batch):
        raise RuntimeError("no such word")

    batch = {"input_ids": WORDS[:8], "negative_input_ids": WORDS[:16].reshape(8, 2, WIDTH)}
    with HardNegativeMiner(broken, {"input_ids": WORDS}, config=CONFIG, mesh=mesh, directory="unused") as miner:
        watched = miner.watch(step)
        state, _ = watched(state, jax.device_put(batch, batch_sharding(mesh)))
        with pytest.raises(RuntimeError, match="no such word"):
            miner.neighbours(4)
        with pytest.raises(RuntimeError, match="no such word"):
            watched(state, jax.device_put(batch, batch_sharding(mesh)))


def test_closing_stops_the_thread_between_batches(tmp_path):
    mesh = make_mesh(MeshConfig())
    state, _, embed = make_steps(mesh)
    calls = []

    def slow(params, batch):
        calls.append(1)
        time.sleep(0.1)
        return embed(params, batch)

    miner = HardNegativeMiner(slow, {"input_ids": WORDS}, config=CONFIG, mesh=mesh, directory=tmp_path)
    miner.start_refresh(0, state.params)
    time.sleep(0.15)
    miner.close()
    assert 1 <= len(calls) < 6 and not list(tmp_path.iterdir())
    with pytest.raises(MiningStopped):
        miner.neighbours(4)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hard-negatives")]


def test_draws_follow_the_gate_and_fall_back_to_other_groups():
    neighbours = np.array([[3, 4, -1], [-1, -1, -1], [4, -1, -1], [0, 1, 2], [0, 1, 2]])
    groups = np.array([0, 0, 1, 2, 3])
    counts = np.zeros((5, 5), int)
    for step in range(600):
        drawn = draw_negatives(neighbours, np.arange(5), groups, num=2, seed=0, step=step)
        assert (groups[drawn] != groups[:, None]).all()
        assert set(drawn[0]) == {3, 4} and 4 in drawn[2] and drawn[3][0] != drawn[3][1]
        for row, chosen in enumerate(drawn):
            np.add.at(counts[row], chosen, 1)
    np.testing.assert_allclose(counts[3] / 600, [2 / 3, 2 / 3, 2 / 3, 0, 0], atol=0.08)
    np.testing.assert_allclose(counts[1, 2:] / 1200, [1 / 3] * 3, atol=0.06)
    part = draw_negatives(neighbours, np.array([3, 1]), groups, num=2, seed=0, step=599)
    np.testing.assert_array_equal(part, drawn[[3, 1]])  # whatever else is in the process's batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"refresh_every": 0}, "refresh_every must be at least 1"),
        ({"max_similarity": 1.5}, "is a cosine"),
        ({"num_negatives": 17}, "17 negatives cannot be drawn from 16"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HardNegativeConfig(**change)


def test_bad_corpora_are_refused(tmp_path):
    mesh = make_mesh(MeshConfig())
    make = lambda rows, **options: HardNegativeMiner(  # noqa: E731
        lambda p, b: jnp.zeros(()), rows, mesh=mesh, directory=tmp_path, **{"config": CONFIG, **options}
    )
    with pytest.raises(ValueError, match="arrays of one length"):
        make({"a": WORDS, "b": WORDS[1:]})
    with pytest.raises(ValueError, match="5 neighbours need more than 4 sentences"):
        make({"a": WORDS[:4]})
    with pytest.raises(ValueError, match=r"groups must be \[96\]"):
        make({"a": WORDS}, groups=np.zeros(3))
    with pytest.raises(ValueError, match="does not divide over 8"):
        make({"a": WORDS}, config=HardNegativeConfig(batch_size=12))
    with pytest.raises(ValueError, match="one group"):
        draw_negatives(None, np.arange(2), np.zeros(4), num=1, seed=0, step=0)
