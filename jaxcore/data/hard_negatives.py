"""Hard negatives mined by the encoder that is being trained, while it is being trained.

At step k R (R = `refresh_every`) the parameters are copied; in the background the corpus is embedded with the copy and
every sentence's nearest neighbours are found, while training goes on. The result is used from step (k + 1) R on, which
waits for it if need be: so which neighbours a step uses depends on the step alone, never on how fast anything was.

    miner = HardNegativeMiner(embed, rows, config=..., mesh=mesh, directory=run_dir / "neighbours", seed=seed)
    with miner:
        batches = HardNegativeBatches(batches, miner)
        state = fit(state, miner.watch(train_step), batches, ...)

With several processes the refresh runs inside the step that starts it, with the same result: all processes must launch
the same programs in the same order, which threads of their own do not promise.
"""

import concurrent.futures
import dataclasses
import pathlib
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, Shaped, UInt

from jaxcore.data.evaluation_batches import evaluation_batches
from jaxcore.data.pair_mining import nearest_by_meaning
from jaxcore.distributed import check_batch, gather_to_host, shard_local_batch

Batch = Mapping[str, Shaped[np.ndarray, "rows ..."]]


@dataclasses.dataclass(frozen=True)
class HardNegativeConfig:
    """How hard negatives are mined and drawn."""

    num_negatives: int = 1
    """Negatives of every anchor in a batch."""
    num_neighbours: int = 16
    """Nearest sentences kept, of which a batch draws."""
    refresh_every: int = 100
    """Steps between refreshes, R. Until step R negatives are drawn at random."""
    max_similarity: float = 0.9
    """False-negative gate: a sentence of larger cosine is taken for a paraphrase, and never a negative."""
    batch_size: int = 256
    """Sentences embedded at once, over all devices."""
    block: int = 1024
    """Rows and columns of a block of the search."""

    def __post_init__(self) -> None:
        for name in ("num_negatives", "num_neighbours", "refresh_every", "batch_size", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if not -1 <= self.max_similarity <= 1:
            raise ValueError(f"max_similarity is a cosine in [-1, 1]: got {self.max_similarity}")
        if self.num_negatives > self.num_neighbours:
            raise ValueError(
                f"{self.num_negatives} negatives cannot be drawn from {self.num_neighbours} neighbours; keep more"
            )


class MiningStopped(Exception):
    """The miner was closed while it worked."""


class HardNegativeMiner:
    """Keeps the neighbour lists of a corpus fresh; see the module's text.

    A refresh is written to ``directory/refresh_STEP.npy`` (int32 [N, num_neighbours], -1 where the gate left fewer), so
    a resumed run reads what the killed one used.
    """

    def __init__(
        self,
        embed: Callable[[Any, Any], jax.Array],
        rows: Mapping[str, Shaped[np.ndarray, "sentences ..."]],
        *,
        config: HardNegativeConfig,
        mesh: Mesh,
        directory: pathlib.Path | str,
        groups: Int[np.ndarray, " sentences"] | None = None,
        seed: int = 0,
    ) -> None:
        """Nothing is computed yet.

        Args:
            embed: jitted; ``(params, batch of rows) -> [rows, dim]``.
            rows: the corpus: arrays [N, ...] that every process holds.
            config: sizes.
            mesh: of `embed`; the search spreads over it too.
            directory: where refreshes are written; one folder that all processes see.
            groups: [N] >= 0, equal for sentences that are never each other's negatives; by default only a sentence
                itself is not its own.
            seed: of the draws.

        Raises:
            ValueError: arrays of different lengths, a corpus not larger than the neighbours asked for, a batch that
                the mesh does not divide.
        """
        sizes = {name: len(array) for name, array in rows.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"rows must be arrays of one length, at least one: got {sizes}")
        self.num_rows = next(iter(sizes.values()))
        if self.num_rows <= config.num_neighbours:
            raise ValueError(
                f"{config.num_neighbours} neighbours need more than {self.num_rows} sentences; keep fewer neighbours"
            )
        if groups is not None and np.shape(groups) != (self.num_rows,):
            raise ValueError(f"groups must be [{self.num_rows}]: got {np.shape(groups)}")
        check_batch(mesh, config.batch_size, jax.process_count())
        self.config, self.rows, self.seed = config, dict(rows), seed
        self.groups = np.arange(self.num_rows) if groups is None else np.asarray(groups)
        self._embed, self._mesh, self._directory = embed, mesh, pathlib.Path(directory)
        self._launching = threading.Lock()  # devices must see the programs of both threads in one order
        self._stopping = threading.Event()
        self._pending: dict[int, concurrent.futures.Future] = {}
        self._lists: dict[int, Int[np.ndarray, "sentences k"]] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "hard-negatives")

    def __enter__(self) -> "HardNegativeMiner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the refresh under way at its next batch, and end the thread. Its lists are not written."""
        self._stopping.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def watch(self, train_step: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
        """`train_step` that starts a refresh whenever its state stands at a multiple of R.

        The first call reads the state's step; from then on steps are counted, so that the device is never waited for.
        An error of a refresh is raised by the next step.
        """
        position: list[int] = []

        def watched(state: Any, batch: Any) -> tuple[Any, Any]:
            step = position.pop() if position else int(jax.device_get(state.step))
            position.append(step + 1)
            self._raise_errors()
            if step % self.config.refresh_every == 0:
                self.start_refresh(step, state.params)
            with self._launching:
                return train_step(state, batch)

        return watched

    def start_refresh(self, step: int, params: Any) -> None:
        """Mine with a copy of `params`, for the steps from ``step + refresh_every`` on."""
        if step in self._pending or step in self._lists:
            return
        snapshot = jax.tree.map(jnp.copy, params)  # the training step donates its own
        if jax.process_count() > 1:
            with jax.transfer_guard("allow"):  # the training loop forbids transfers around its step
                self._lists[step] = self._mine(step, snapshot)
        else:
            self._pending[step] = self._thread.submit(self._mine, step, snapshot)

    def neighbours(self, step: int) -> Int[np.ndarray, "sentences k"] | None:
        """The lists that `step` uses: those of the refresh started at ``R (step // R - 1)``, waited for if need be;
        None before step R.

        Raises:
            ValueError: that refresh was neither started by this process nor written by an earlier one.
            Exception: whatever the refresh raised.
        """
        started = (step // self.config.refresh_every - 1) * self.config.refresh_every
        if started < 0:
            return None
        for old in [known for known in self._lists if known < started]:
            del self._lists[old]
        return self._result(started)

    def wait(self) -> None:
        """Until every refresh started is on disk: what a checkpoint must do before it is worth resuming."""
        for started in list(self._pending):
            self._result(started)

    def _result(self, started: int) -> Int[np.ndarray, "sentences k"]:
        if started in self._pending:
            self._lists[started] = self._pending[started].result()
            del self._pending[started]
        if started not in self._lists:
            path = self._path(started)
            if not path.exists():
                raise ValueError(
                    f"no refresh of step {started} at {path}: resume with the folder of the run that wrote it, "
                    "or start anew"
                )
            self._lists[started] = np.load(path, allow_pickle=False)
        return self._lists[started]

    def _raise_errors(self) -> None:
        for future in self._pending.values():
            if future.done() and (error := future.exception()) is not None:
                raise error

    def _path(self, started: int) -> pathlib.Path:
        return self._directory / f"refresh_{started}.npy"

    def _mine(self, step: int, params: Any) -> Int[np.ndarray, "sentences k"]:
        vectors = self._embed_corpus(params)
        with self._launching:
            found = nearest_by_meaning(
                vectors,
                self.config.num_neighbours,
                groups=self.groups,
                max_similarity=self.config.max_similarity,
                block=self.config.block,
                mesh=self._mesh if self._mesh.size > 1 else None,
            )
        lists = np.asarray(gather_to_host(found.indices), np.int32)
        self._check_stopping()
        if jax.process_index() == 0:
            self._write(step, lists)
        return lists

    def _embed_corpus(self, params: Any) -> Shaped[np.ndarray, "sentences dim"]:
        """One batch on the devices at a time: training steps get their turn in between."""
        parts = []
        for batch in evaluation_batches(
            self.rows,
            batch_size=self.config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ):
            self._check_stopping()
            inputs = shard_local_batch(self._mesh, {name: batch[name] for name in self.rows})
            with self._launching:
                embedded = self._embed(params, inputs)
            parts.append(gather_to_host(embedded))
        return np.concatenate(parts)[: self.num_rows]

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise MiningStopped("the miner was closed before its refresh was done")

    def _write(self, step: int, lists: Int[np.ndarray, "sentences k"]) -> None:
        """Whole or not at all: a killed writer leaves nothing that could be taken for a refresh."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
            np.save(file, lists, allow_pickle=False)
        pathlib.Path(file.name).rename(self._path(step))


class HardNegativeBatches:
    """Batches of sentences with hard negatives beside every anchor.

    To each batch it adds, for every array of the miner's corpus, ``negative_NAME`` [rows, num_negatives, ...]: rows
    drawn from the neighbours of the anchor (``example_ids``), without repetition as long as there are enough, else at
    random from other groups. A draw depends on seed, step and anchor alone, not on the number of processes.
    """

    def __init__(self, batches: Any, miner: HardNegativeMiner) -> None:
        self._batches, self._miner = batches, miner

    def __iter__(self) -> "HardNegativeBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        step = self._batches.get_state()["step"]
        batch = dict(next(self._batches))
        ids = draw_negatives(
            self._miner.neighbours(step),
            batch["example_ids"],
            self._miner.groups,
            num=self._miner.config.num_negatives,
            seed=self._miner.seed,
            step=step,
        )
        taken = {f"negative_{name}": np.asarray(array[ids]) for name, array in self._miner.rows.items()}
        return {**batch, **taken}

    def get_state(self) -> dict[str, int]:
        """The position, once every refresh it may need is on disk."""
        self._miner.wait()
        return self._batches.get_state()

    def set_state(self, state: dict[str, int]) -> None:
        """Continue there."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Stop prefetching; the miner is closed by whoever opened it."""
        self._batches.close()


def draw_negatives(
    neighbours: Int[np.ndarray, "sentences k"] | None,
    anchors: Int[np.ndarray, " rows"],
    groups: Int[np.ndarray, " sentences"],
    *,
    num: int,
    seed: int,
    step: int,
) -> Int[np.ndarray, "rows num"]:
    """`num` negatives of every anchor, drawn uniformly from its neighbours by a hash of (seed, step, anchor).

    Places without a neighbour (-1, or none mined yet) get a random sentence of another group.

    Raises:
        ValueError: all sentences are of one group.
    """
    if np.all(groups == groups[0]):
        raise ValueError("all sentences are of one group; negatives need at least two")
    anchors = np.asarray(anchors, np.int64)
    chosen = np.full((len(anchors), num), -1, np.int64)
    if neighbours is not None:
        offered = neighbours[anchors].astype(np.int64)
        lots = _hashed(seed, step, anchors, offered.shape[1]).astype(np.float64)
        order = np.argsort(np.where(offered >= 0, lots, np.inf), axis=1, kind="stable")[:, :num]
        chosen = np.take_along_axis(offered, order, 1)
    attempt = 0
    while (bad := (chosen < 0) | (groups[chosen] == groups[anchors, None])).any():
        attempt += 1
        others = _hashed(seed, step, anchors, num, attempt) % np.uint64(len(groups))
        chosen = np.where(bad, others.astype(np.int64), chosen)
    return chosen


def _hashed(
    seed: int, step: int, anchors: Int[np.ndarray, " rows"], count: int, salt: int = 0
) -> UInt[np.ndarray, "rows count"]:
    """`count` well-mixed 64-bit numbers per anchor (splitmix64 over seed, salt, step, anchor, place)."""
    places = np.arange(count, dtype=np.uint64)
    mixed = np.zeros((1, 1), np.uint64)
    for part in (seed, salt, step, anchors.astype(np.uint64)[:, None], places[None, :]):
        mixed = _splitmix64(mixed ^ np.asarray(part, np.uint64))
    return mixed


def _splitmix64(x: UInt[np.ndarray, "..."]) -> UInt[np.ndarray, "..."]:
    """Steele et al. 2014."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
