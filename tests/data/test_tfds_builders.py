"""Our TFDS builders, written as ArrayRecord and read back at random with no TensorFlow on the machine."""

import importlib.util
import sys

import numpy as np
import pytest

from jaxcore.data import AuthorWorld, AuthorWorldConfig, Field, TfdsSource, open_source
from jaxcore.data.tfds_builders import (
    AuthorTextsBuilder,
    AuthorTextsBuilderConfig,
    AuthorWorldBuilder,
    AuthorWorldBuilderConfig,
)

WORLD = AuthorWorldConfig(num_training_authors=6, num_test_authors=3, document_length=40)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    config = AuthorWorldBuilderConfig(seed=4, documents_per_author=5, world=WORLD)
    builder = AuthorWorldBuilder(config=config, data_dir=folder)
    builder.download_and_prepare(file_format="array_record")
    return folder, builder


def test_world_is_written_and_read_without_tensorflow(prepared):
    _, builder = prepared
    source = TfdsSource(builder, "train")
    assert len(source) == 30 and len(TfdsSource(builder, "test")) == 15
    assert list(builder.data_path.glob("*.array_record-*"))
    world = AuthorWorld(WORLD, seed=4)
    fields = (
        Field("text"),
        Field("author"),
        Field("work"),
        Field("author_id", kind=int),
        Field("topic_id", kind=int),
    )
    records = [TfdsSource(builder, "train", fields=fields)[i] for i in range(30)]
    for record in records:
        words = [world.vocabulary.index(word) for word in record["text"].split()]
        assert len(words) == 40
        # Content words that the topic cannot produce would show a record whose topic is not its text's.
        assert (world.word_probabilities(record["author_id"], record["topic_id"])[words] > 0).all()
        assert record["author"] == f"author{record['author_id']:04d}"
        assert record["work"] == world.topic_names[record["topic_id"]]
    assert sorted(record["author_id"] for record in records) == sorted(list(range(6)) * 5)
    assert {TfdsSource(builder, "test", fields=fields)[i]["author_id"] for i in range(15)} == {6, 7, 8}
    if importlib.util.find_spec("tensorflow") is None:
        assert "tensorflow" not in sys.modules


def test_found_by_folder_name_and_spec(prepared):
    folder, builder = prepared
    expected = [TfdsSource(builder)[i] for i in range(30)]
    by_path = open_source(builder.data_path)
    by_spec = open_source(f"tfds:{builder.data_path}/train")
    by_name = open_source(f"tfds:author_world/{builder.builder_config.name}/train", data_dir=folder)
    for source in (by_path, by_spec, by_name):
        assert [source[i] for i in range(30)] == expected
    part = TfdsSource(builder, "train[:10]")
    assert [part[i] for i in range(len(part))] == expected[:10]
    with pytest.raises(IndexError):
        part[10]


def test_fingerprint_follows_split_and_seed(prepared, tmp_path):
    _, builder = prepared
    other = AuthorWorldBuilder(
        config=AuthorWorldBuilderConfig(seed=5, documents_per_author=5, world=WORLD), data_dir=tmp_path
    )
    other.download_and_prepare(file_format="array_record")
    prints = [TfdsSource(b, split).fingerprint() for b in (builder, other) for split in ("train", "test")]
    assert len(set(prints)) == 4
    assert TfdsSource(builder, "train").fingerprint() == prints[0]


def test_texts_are_packed_from_any_source(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    expected = {}
    for i in range(12):
        (texts / f"A{i % 3}_Book{i}.txt").write_text(f"naïve text {i}", encoding="utf-8")
        expected[f"Book{i}"] = {"text": f"naïve text {i}", "author": f"A{i % 3}", "work": f"Book{i}"}
    config = AuthorTextsBuilderConfig(name="books", path=str(texts))
    builder = AuthorTextsBuilder(config=config, data_dir=tmp_path / "tfds")
    builder.download_and_prepare(file_format="array_record")
    source = TfdsSource(builder, "train")
    assert {source[i]["work"]: source[i] for i in range(len(source))} == expected
    with pytest.raises(ValueError, match="author_texts needs texts"):
        AuthorTextsBuilder(data_dir=tmp_path / "none").download_and_prepare(file_format="array_record")


def test_errors_are_one_line_and_name_the_dataset(prepared, tmp_path):
    _, builder = prepared
    unprepared = AuthorWorldBuilder(data_dir=tmp_path)
    for make, message in [
        (lambda: TfdsSource(unprepared), r"author_world/seed0/1\.0\.0 is not prepared in .*array_record"),
        (lambda: TfdsSource(builder, "dev"), r"cannot be read .*splits: \['test', 'train'\]"),
        (
            lambda: TfdsSource(builder, fields=(Field("body"),)),
            r"no feature 'body' among \['author', .*'work'\]",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="documents_per_author"):
        AuthorWorldBuilderConfig(documents_per_author=0)


def test_config_names_tell_worlds_apart():
    assert AuthorWorldBuilderConfig().name == "seed0"
    assert AuthorWorldBuilderConfig(seed=7).name == "seed7"
    names = {AuthorWorldBuilderConfig(world=world).name for world in (WORLD, AuthorWorldConfig())}
    assert len(names) == 2
    assert np.all([name.startswith("seed0") for name in names])
