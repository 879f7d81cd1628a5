"""STS files: rows as written, malformed ones by file and line, years put together, real folders counted."""

import numpy as np
import pytest

from jaxcore.data.graded_pairs import (
    GradedPairs,
    join_pairs,
    normalized,
    read_paraphrase_sentences,
    read_semeval_tsv,
    read_sick,
    read_sts_folder,
    read_stsb_csv,
)

SICK_HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
MSR_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"


def test_stsb_reads_quotes_commas_and_line_breaks_inside_sentences(tmp_path):
    file = tmp_path / "stsb_dev.csv"
    file.write_text('"A man, walking.","He said ""no""\nand left.",2.5\r\nb , c,5\r\n', encoding="utf-8")
    pairs = read_stsb_csv(file)
    assert pairs.first == ("A man, walking.", "b") and pairs.second == ('He said "no"\nand left.', "c")
    np.testing.assert_array_equal(pairs.gold, [2.5, 5.0])
    assert pairs.gold.dtype == np.float64 and len(pairs) == 2 and pairs.subset == ("", "")


def test_sick_reads_its_columns_by_name(tmp_path):
    file = tmp_path / "sick_test.txt"
    file.write_text(SICK_HEADER + "7\tone\ttwo\t3.3\tNEUTRAL\n", encoding="utf-8")
    pairs = read_sick(file)
    assert (pairs.first, pairs.second, pairs.gold.tolist()) == (("one",), ("two",), [3.3])


def test_semeval_keeps_scored_rows_and_gives_the_others_as_text(tmp_path):
    file = tmp_path / "2015_belief.test.tsv"
    # A lone quote is text, and the Unicode line separator does not end a row.
    file.write_text('4.5\t"open\tquote\n\tplain\u2028text\tmore\n 0 \tx\ty\n', encoding="utf-8")
    pairs, unlabelled = read_semeval_tsv(file, subset="belief")
    assert pairs.first == ('"open', "x") and pairs.second == ("quote", "y") and pairs.subset == ("belief",) * 2
    np.testing.assert_array_equal(pairs.gold, [4.5, 0.0])
    assert unlabelled == ("plain\u2028text", "more")


def test_paraphrases_are_text_only(tmp_path):
    file = tmp_path / "msr_paraphrase_train.tsv"
    file.write_text(MSR_HEADER + "1\t10\t11\tfirst one\tsecond one\r\n", encoding="utf-8")
    assert read_paraphrase_sentences(file) == ("first one", "second one")


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_stsb_csv, "a,b,3\nc,d\n", r"file:2: expected 3 columns, got 2"),
        (read_stsb_csv, 'a,"b\nb",3\nc,d,much\n', r"file:3: the score must be a number from 0 to 5, got 'much'"),
        (read_stsb_csv, "a,b,nan\n", r"file:1: the score must be a number"),
        (read_stsb_csv, "a,b,7\n", r"file:1: the score must be a number from 0 to 5, got '7'"),
        (read_stsb_csv, "a, ,3\n", r"file:1: a sentence is blank"),
        (read_stsb_csv, "", r"file holds no scored pairs"),
        (read_stsb_csv, b"caf\xe9,b,3\n", r"file: not UTF-8"),
        (read_sick, "a\tb\n", r"file:1: the header must name sentence_A"),
        (read_sick, SICK_HEADER + "7\tone\ttwo\t3.3\n", r"file:2: expected 5 tab-separated columns, got 4"),
        (read_semeval_tsv, "3\tone two\n", r"file:1: expected 3 tab-separated columns, got 2"),
        (read_semeval_tsv, "\tone\ttwo\n", r"file holds no scored pairs"),
        (read_paraphrase_sentences, MSR_HEADER, r"file holds no sentences"),
    ],
)
def test_malformed_files_are_named_with_their_line(read, content, message, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file at .*gone"):
        read_stsb_csv(tmp_path / "gone")


def folder_of(tmp_path, names):
    contents = {"csv": "a,b,1\nc,d,2\n", "tsv": "1\te\tf\n2\tg\th\n", "txt": SICK_HEADER + "1\ti\tj\t2\tX\n"}
    for name in names:
        text = MSR_HEADER + "1\t1\t2\tk\tl\n" if name.startswith("msr") else contents[name.rsplit(".", 1)[1]]
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_folder_is_read_as_tasks_and_incomplete_years_say_so(tmp_path):
    names = ["stsb_dev.csv", "stsb-en-test.csv", "sick_test.txt", "SICK_trial.txt", "msr_paraphrase_val.tsv"]
    names += ["2013_FNWN.test.tsv", "2013_OnWN.test.tsv", "2013_headlines.test.tsv", "2012_OnWN.test.tsv"]
    folder = read_sts_folder(folder_of(tmp_path, names))
    incomplete = "sts12 (without MSRpar, MSRvid, SMTeuroparl, SMTnews)"
    assert set(folder.tasks) == {"stsb_dev", "stsb_test", "sick_test", "sick_trial", "sts13", incomplete}
    assert folder.tasks["sts13"].subset == ("FNWN",) * 2 + ("OnWN",) * 2 + ("headlines",) * 2
    assert len(folder.notes) == 1 and "does not compare" in folder.notes[0]
    assert folder.unlabelled == ("k", "l")


def test_folders_without_sts_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder at"):
        read_sts_folder(tmp_path / "gone")
    (tmp_path / "other.csv").write_text("x")
    with pytest.raises(ValueError, match=r"no STS files in .*stsb_SPLIT.csv"):
        read_sts_folder(tmp_path)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"equally long: got \[1, 2, 1, 1\]"):
        GradedPairs(("a",), ("b", "c"), np.zeros(1), ("",))
    with pytest.raises(ValueError, match="no pairs to join"):
        join_pairs([])


def test_sentences_come_once_in_order_and_normalisation_folds_case_and_space():
    pairs = GradedPairs(("a", "c"), ("b", "a"), np.zeros(2), ("", ""))
    assert pairs.sentences() == ("a", "b", "c")
    assert normalized("  A  B\tc\n") == "a b c" == normalized("a b C")


def test_the_published_folder_has_the_published_numbers_of_pairs(shared_data):
    folder = read_sts_folder(shared_data / "sts")
    assert {name: len(pairs) for name, pairs in folder.tasks.items()} == {
        "stsb_train": 5749,
        "stsb_dev": 1500,
        "stsb_test": 1379,
        "sick_train": 4500,
        "sick_test": 4927,
        "sts12 (without MSRvid)": 2358,
        "sts13": 1500,
        "sts15": 3000,
    }
    unscored = 8500 - 3000  # rows of the 2015 files
    paraphrases = (1727 - 2) + (3578 - 2) + (502 - 2)  # lines of the three files, without header and end
    assert len(folder.unlabelled) == 2 * (unscored + paraphrases)
    sick = folder.tasks["sick_test"].gold
    assert sick.min() >= 1 and sick.max() == 5
    assert set(folder.tasks["sts15"].subset) == {
        "answers-forums",
        "answers-students",
        "belief",
        "headlines",
        "images",
    }
