"""Datasets of this project as TFDS builders: written as ArrayRecord and read back without TensorFlow.

Importing this file registers them, so that `tfds.builder("author_world/seed0")` finds them. Prepare one with
`builder.download_and_prepare(file_format="array_record")`; read it with `TfdsSource`. On a pod ArrayRecord is
the format to stream from a bucket: random access, sharded files, no TensorFlow.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxcore.data.array_cache import content_hash
from jaxcore.data.author_world import AuthorWorld, AuthorWorldConfig
from jaxcore.data.sources import open_source

_TEXT_FEATURES = {
    "text": tfds.features.Text(doc="The document, UTF-8."),
    "author": tfds.features.Text(doc="Name of its author."),
    "work": tfds.features.Text(doc="The work or topic it comes from; may be empty."),
}


@dataclasses.dataclass(kw_only=True)
class AuthorWorldBuilderConfig(tfds.core.BuilderConfig):
    """Which generated world is written, and how much of it. The name is derived where none is given."""

    name: str = ""
    seed: int = 0
    documents_per_author: int = 64
    world: AuthorWorldConfig = dataclasses.field(default_factory=AuthorWorldConfig)

    def __post_init__(self) -> None:
        if self.documents_per_author < 1:
            raise ValueError(f"documents_per_author is {self.documents_per_author}; it must be at least 1")
        if not self.name:
            same = self.world == AuthorWorldConfig() and self.documents_per_author == 64
            settings = content_hash(repr(self.world), str(self.documents_per_author))[:8]
            self.name = f"seed{self.seed}" if same else f"seed{self.seed}_{settings}"


class AuthorWorldBuilder(tfds.core.GeneratorBasedBuilder):
    """The generated-author world (eavae.md section 8) rendered as words: split train has the training
    authors, split test the unseen ones; `work` is the topic's name."""

    name = "author_world"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}
    url_infos = None  # nothing is downloaded; TFDS 4.9 looks for checksums with a package it does not require
    BUILDER_CONFIGS: ClassVar[list[AuthorWorldBuilderConfig]] = [AuthorWorldBuilderConfig()]

    def _info(self) -> tfds.core.DatasetInfo:
        integers = {"author_id": tfds.features.Scalar(np.int32), "topic_id": tfds.features.Scalar(np.int32)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Texts by generated authors whose style and topics are known.",
            features=tfds.features.FeaturesDict({**_TEXT_FEATURES, **integers}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        world = AuthorWorld(self.builder_config.world, self.builder_config.seed)
        return {
            "train": self._generate_examples(world, world.training_authors),
            "test": self._generate_examples(world, world.test_authors),
        }

    def _generate_examples(self, world: AuthorWorld, authors: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        """Documents author by author, each author from a stream of its own."""
        count = self.builder_config.documents_per_author
        for author in authors:
            rng = np.random.default_rng([self.builder_config.seed, int(author)])
            repeated = np.full(count, author)
            topics = world.sample_topics(repeated, rng)
            for number, words in enumerate(world.sample_documents(repeated, topics, rng)):
                topic = int(topics[number])
                yield (
                    int(author) * count + number,
                    {
                        "text": world.render(words),
                        "author": f"author{author:04d}",
                        "work": world.topic_names[topic],
                        "author_id": int(author),
                        "topic_id": topic,
                    },
                )


@dataclasses.dataclass(kw_only=True)
class AuthorTextsBuilderConfig(tfds.core.BuilderConfig):
    """Which texts are packed: `path` is anything `open_source` takes."""

    path: str = ""


class AuthorTextsBuilder(tfds.core.GeneratorBasedBuilder):
    """Any source of texts by author packed as ArrayRecord, for example a folder of books before a pod run.

    `AuthorTextsBuilder(config=AuthorTextsBuilderConfig(name="novels", path="novels/"), data_dir=...)`.
    """

    name = "author_texts"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}
    url_infos = None  # nothing is downloaded; TFDS 4.9 looks for checksums with a package it does not require

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Texts by author, packed from local files.",
            features=tfds.features.FeaturesDict(dict(_TEXT_FEATURES)),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        if not getattr(self.builder_config, "path", ""):
            raise ValueError("author_texts needs texts: pass config=AuthorTextsBuilderConfig(name=..., path=...)")
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        source = open_source(self.builder_config.path)
        for index in range(len(source)):
            yield index, {"work": "", **source[index]}
