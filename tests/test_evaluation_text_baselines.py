"""Baselines whose answers are texts: they know what they were given and nothing else."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from luban.evaluation.text_baselines import (
    copy,
    first_sentence,
    lead,
    nearest_row,
    text_baselines,
    translation_memory,
)
from luban.evaluation.text_metrics import chrf, rouge_l_by_row

TRAIN = (
    ["open the file", "save the file", "close the window", "print the page", "open a new window"],
    ["打开文件", "保存文件", "关闭窗口", "打印页面", "打开新窗口"],
)
VALIDATION = (["save this file", "close a window"], ["保存此文件", "关闭窗口"])


def test_a_text_seen_in_training_is_answered_as_there():
    found = translation_memory(TRAIN, VALIDATION, TRAIN[0][::-1])
    assert found.answers.tolist() == TRAIN[1][::-1] and found.settings["similarity"] == pytest.approx(1)


def test_the_nearest_is_found_among_new_texts():
    assert translation_memory(TRAIN, VALIDATION, ["please print the page now"]).answers.tolist() == ["打印页面"]
    assert translation_memory(TRAIN, ([], []), ["print page"]).answers.tolist() == ["打印页面"]
    assert translation_memory(TRAIN, VALIDATION, []).answers.tolist() == []


def test_edits_break_what_rare_words_mislead():
    """TF-IDF alone prefers the text that shares the rarest word; the fewest edits win where validation says so."""
    train = (
        ["set the colour of the cell to red", "zebra", *[f"set the size of the cell to {i}" for i in range(30)]],
        ["A", "Z", *["B"] * 30],
    )
    valid = (["set the size of the cell to zebra"] * 3, ["B"] * 3)
    found = translation_memory(train, valid, ["set the size of the cell to zebra"])
    assert found.answers[0] == "B"


def test_first_sentence():
    assert lead("One two. Three.") == "One two." and lead("v1.2 is here! Next") == "v1.2 is here!"
    assert lead("打开文件。然后保存。") == "打开文件。" and lead("  a b\nc") == "a b" and lead("") == ""
    assert lead("One two three. Four.", 2) == "One two" and lead("One two.", 5) == "One two."
    assert lead("打开文件。", 2) == "打开"


def test_validation_chooses_how_long_the_lead_is():
    inputs = [f"a tool number {i} that does this. It does more." for i in range(20)]
    found = first_sentence(
        (inputs, [f"a tool number {i}" for i in range(20)]), ["a tool number 99 that does this."], score=rouge_l_by_row
    )
    assert found.settings == {"words": 4} and found.answers.tolist() == ["a tool number 99"]
    assert first_sentence((inputs, [lead(x) for x in inputs]), inputs, score=rouge_l_by_row).settings["words"] in (0, 7)
    assert first_sentence(([], []), ["One. Two."]).answers.tolist() == ["One."]


def test_all_of_them_on_one_task():
    found = {b.name: b for b in text_baselines(TRAIN, VALIDATION, VALIDATION[0])}
    assert sorted(found) == ["copy", "first_sentence", "translation_memory"]
    assert all(len(b.answers) == 2 for b in found.values())
    assert (
        chrf(VALIDATION[1], found["translation_memory"].answers).value
        > chrf(VALIDATION[1], found["copy"].answers).value
    )
    assert copy(["x"]).answers.dtype == np.dtype(object)


def test_the_nearest_row_of_anything_answers():
    """Pictures, say: features instead of words. Brighter ones are nearer by their direction than by their distance."""
    rng = np.random.default_rng(0)
    train = rng.normal(size=(30, 8))
    answers = [f"picture {i}" for i in range(30)]
    found = nearest_row((csr_matrix(train), csr_matrix(train[:5] + 0.01), csr_matrix(train[7:9])), answers, answers[:5])
    assert found.answers.tolist() == ["picture 7", "picture 8"]
    brighter = train.mean(0) + 3 * (train - train.mean(0))
    found = nearest_row((csr_matrix(train), csr_matrix(brighter), csr_matrix(brighter[7:8])), answers, answers)
    assert found.settings["likeness"] == "cosine" and found.answers.tolist() == ["picture 7"]
    wide = csr_matrix(np.eye(30, 5000))
    assert nearest_row((wide, None, wide[3:5]), answers, []).answers.tolist() == ["picture 3", "picture 4"]
