"""Pairs whose meaning and surface are known vectors: a world without words, to test how partners are selected.

Every item has a meaning z and a surface u, unit vectors; what is observed mixes both, and the surface dominates.
Anchors come with candidates of four kinds, and with a teacher that sees the meaning but is swayed by the surface.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxcore.data.pair_mining import AT_RANDOM, Candidates

_LATENT_WORLD = 401  # what the random stream is for: part of its key


@dataclasses.dataclass(frozen=True)
class LatentPairsConfig:
    """Sizes of the world; the defaults are those of debcse.md, experiment A."""

    num_anchors: int = 1500
    num_candidates: int = 48
    """Candidates of every anchor, K."""
    kinds: tuple[float, float, float, float] = (0.5, 0.1, 0.15, 0.25)
    """Shares of duplicates (near in meaning and surface), paraphrases (near in meaning), look-alikes (near in surface)
    and unrelated candidates."""
    latent_size: int = 8
    """Size of z and of u."""
    observed_size: int = 32
    surface_scale: float = 1.5
    """Weight of the surface in what is observed; that of the meaning is 1."""
    noise: float = 0.15
    """Standard deviation of the noise in every observed component."""
    nearness: float = 0.3
    """A vector near v is v + nearness x (Gaussian of about unit length), normalised."""
    teacher_bias: float = 0.25
    """The teacher's cosine is (cos z + bias cos u) / (1 + bias) ..."""
    teacher_noise: float = 0.05
    """... plus Gaussian noise of this standard deviation."""
    num_test_pairs: int = 2000

    def __post_init__(self) -> None:
        if self.num_anchors < 2 or self.num_candidates < 1 or self.num_test_pairs < 3 or self.latent_size < 2:
            raise ValueError(
                "latent.num_anchors and latent_size must be at least 2, num_candidates 1, num_test_pairs 3: got "
                f"{self.num_anchors}, {self.latent_size}, {self.num_candidates}, {self.num_test_pairs}"
            )
        if self.observed_size < 2 * self.latent_size:
            raise ValueError(
                f"latent.observed_size must hold meaning and surface, {2 * self.latent_size}: got {self.observed_size}"
            )
        if min(self.kinds) < 0 or abs(sum(self.kinds) - 1) > 1e-6:
            raise ValueError(f"latent.kinds must be four shares that sum to 1: got {self.kinds}")


@dataclasses.dataclass(frozen=True, eq=False)
class LatentPairs:
    """The world's data.

    Attributes:
        observations: [N (1 + K), observed] float32: the anchors, then anchor 0's candidates, anchor 1's, ...
        teacher: [N (1 + K), 2 latent] unit vectors whose cosine is the teacher's without its noise.
        candidates: row numbers of every anchor's candidates, with the teacher's noisy cosine as meaning and
            max(0, cos u) as surface.
        random_surface, random_meaning: the same of random pairs of anchors.
        test_first, test_second: [M, observed]; pairs whose two similarities are independent, uniform in [-1, 1].
        test_meaning, test_surface: [M] those similarities.
    """

    observations: Float[np.ndarray, "rows observed"]
    teacher: Float[np.ndarray, "rows two_latent"]
    candidates: Candidates
    random_surface: Float[np.ndarray, " pairs"]
    random_meaning: Float[np.ndarray, " pairs"]
    test_first: Float[np.ndarray, "tests observed"]
    test_second: Float[np.ndarray, "tests observed"]
    test_meaning: Float[np.ndarray, " tests"]
    test_surface: Float[np.ndarray, " tests"]


def generate_latent_pairs(config: LatentPairsConfig, *, seed: int) -> LatentPairs:
    """The world of a seed.

        x = [z; scale u; 0] Q + noise,   Q a random rotation

    Source: debcse.md, experiment A.
    """
    rng = np.random.default_rng([seed, _LATENT_WORLD])
    count, num, size = config.num_anchors, config.num_candidates, config.latent_size
    rotation = np.linalg.qr(rng.normal(size=(config.observed_size, config.observed_size)))[0]
    meaning, surface = (_unit(rng.normal(size=(count, size))) for _ in range(2))
    kind = rng.choice(4, size=(count, num), p=config.kinds)
    of_candidates = [
        np.where(
            np.isin(kind, near)[..., None], _near(latent, num, config, rng), _unit(rng.normal(size=(count, num, size)))
        )
        for latent, near in ((meaning, (0, 1)), (surface, (0, 2)))
    ]
    cosines = [
        np.einsum("nd,nkd->nk", own, other) for own, other in zip((meaning, surface), of_candidates, strict=True)
    ]
    swayed = (cosines[0] + config.teacher_bias * cosines[1]) / (1 + config.teacher_bias)
    meanings, surfaces = (
        np.concatenate([own, other.reshape(-1, size)])
        for own, other in zip((meaning, surface), of_candidates, strict=True)
    )
    random = [_random_cosines(meaning, surface, config, rng)[index] for index in (0, 1)]
    first, second, test_cosines = _test_pairs(config, rng)
    return LatentPairs(
        observations=_observe(meanings, surfaces, rotation, config, rng),
        teacher=_unit(np.concatenate([meanings, np.sqrt(config.teacher_bias) * surfaces], 1)).astype(np.float32),
        candidates=Candidates(
            ids=(count + np.arange(count * num)).reshape(count, num).astype(np.int32),
            meaning=(swayed + config.teacher_noise * rng.normal(size=swayed.shape)).astype(np.float16),
            surface=np.clip(cosines[1], 0, 1).astype(np.float16),
            length_gap=np.zeros((count, num), np.float16),
            source=np.full((count, num), AT_RANDOM, np.int8),
        ),
        random_meaning=random[0],
        random_surface=random[1],
        test_first=_observe(first[0], first[1], rotation, config, rng),
        test_second=_observe(second[0], second[1], rotation, config, rng),
        test_meaning=test_cosines[0],
        test_surface=test_cosines[1],
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _near(vectors: np.ndarray, count: int, config: LatentPairsConfig, rng: np.random.Generator) -> np.ndarray:
    shape = (len(vectors), count, vectors.shape[1])
    return _unit(vectors[:, None] + config.nearness * rng.normal(size=shape) / np.sqrt(vectors.shape[1]))


def _observe(
    meaning: np.ndarray, surface: np.ndarray, rotation: np.ndarray, config: LatentPairsConfig, rng: np.random.Generator
) -> Float[np.ndarray, "rows observed"]:
    latent = np.zeros((len(meaning), config.observed_size))
    latent[:, : config.latent_size] = meaning
    latent[:, config.latent_size : 2 * config.latent_size] = config.surface_scale * surface
    return (latent @ rotation + config.noise * rng.normal(size=latent.shape)).astype(np.float32)


def _random_cosines(
    meaning: np.ndarray, surface: np.ndarray, config: LatentPairsConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Teacher's cosine and surface similarity of random pairs of different anchors."""
    first = rng.integers(len(meaning), size=20_000)
    second = (first + rng.integers(1, len(meaning), size=first.shape)) % len(meaning)
    of_meaning, of_surface = ((x[first] * x[second]).sum(1) for x in (meaning, surface))
    swayed = (of_meaning + config.teacher_bias * of_surface) / (1 + config.teacher_bias)
    return swayed + config.teacher_noise * rng.normal(size=swayed.shape), np.clip(of_surface, 0, 1)


def _test_pairs(config: LatentPairsConfig, rng: np.random.Generator) -> tuple[list, list, list]:
    """Meanings and surfaces of the two sides, and their cosines: each cosine is drawn, then a vector that has it."""
    first, second, cosines = [], [], []
    for _ in range(2):
        vectors = _unit(rng.normal(size=(config.num_test_pairs, config.latent_size)))
        cosine = rng.uniform(-1, 1, config.num_test_pairs)
        other = rng.normal(size=vectors.shape)
        other = _unit(other - (other * vectors).sum(1, keepdims=True) * vectors)
        first.append(vectors)
        second.append(cosine[:, None] * vectors + np.sqrt(1 - cosine**2)[:, None] * other)
        cosines.append(cosine)
    return first, second, cosines
