"""The text task: its split, its vocabulary, and what it refuses."""

import math
import sys

import pytest
import torch
from scipy import stats

from qhelpers.tasks import manual_text, networks


@pytest.fixture
def tiny() -> networks.CharLSTM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return networks.CharLSTM(hidden=8).eval()


def test_each_topic_is_in_one_split() -> None:
    from pydoc_data.topics import topics

    lengths = sum(len(manual_text.text_corpus(split)) for split in manual_text.LAST_BUCKET)
    joins = 2 * (len(topics) - 3)  # a blank line between two topics of one split
    assert lengths == sum(len(topic) for topic in topics.values()) + joins


def test_a_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no split 'valid'"):
        manual_text.text_corpus("valid")  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the text of another Python differs")
def test_the_recorded_text_is_that_of_python_3_11_7() -> None:
    assert manual_text.is_recorded_text()


def test_unknown_characters_of_a_corpus_become_unk() -> None:
    assert manual_text.encode("ab€").tolist()[2] == manual_text.VOCABULARY.index(manual_text.UNKNOWN)


def test_a_prompt_with_an_unknown_character_is_refused(tiny: networks.CharLSTM) -> None:
    with pytest.raises(manual_text.TextError, match="lacks 'ï' \\(character 3 of the prompt 'naïve'\\)"):
        manual_text.generate(tiny, "naïve", 3)


def test_an_empty_prompt_is_refused(tiny: networks.CharLSTM) -> None:
    with pytest.raises(manual_text.TextError, match="The prompt is empty"):
        manual_text.generate(tiny, "", 3)


@pytest.mark.parametrize(("length", "temperature"), [(0, 1.0), (3, 0.0)])
def test_generation_needs_positive_numbers(tiny: networks.CharLSTM, length: int, temperature: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        manual_text.generate(tiny, "a", length, temperature)


def test_generation_repeats_with_the_same_seed(tiny: networks.CharLSTM) -> None:
    first = manual_text.generate(tiny, "if", 30, seed=1)
    assert first == manual_text.generate(tiny, "if", 30, seed=1)
    assert first != manual_text.generate(tiny, "if", 30, seed=2)
    assert manual_text.UNKNOWN not in first


def test_a_text_of_length_zero_cannot_be_measured(tiny: networks.CharLSTM) -> None:
    with pytest.raises(manual_text.TextError, match="0 characters are too few"):
        manual_text.bits_per_character(tiny, manual_text.encode(""))


def test_state_is_carried_over_from_call_to_call(tiny: networks.CharLSTM) -> None:
    codes = manual_text.encode(manual_text.text_corpus("test")[:400])
    short, long = (manual_text.character_bits(tiny, codes, streams=2, length=length) for length in (7, 400))
    torch.testing.assert_close(short, long)


def test_bits_refuse_training_mode(tiny: networks.CharLSTM) -> None:
    with pytest.raises(RuntimeError, match="training mode"):
        manual_text.bits_per_character(tiny.train(), manual_text.encode("to be or not to be, that is the question"))


def test_the_language_model_predicts_its_text() -> None:
    codes = manual_text.encode(manual_text.text_corpus("test"))[:8000]
    bits = manual_text.bits_per_character(networks.load_language_model(), codes)
    assert bits < (2.1 if manual_text.is_recorded_text() else 3.5)


def test_paired_values_agree_with_scipy() -> None:
    first, second = [2.0, 2.1, 2.2, 2.4, 2.0], [2.1, 2.15, 2.35, 2.38, 2.3]
    found = manual_text.paired_values(first, second)
    test = stats.ttest_rel(second, first)
    assert found.interval == pytest.approx((test.confidence_interval().low, test.confidence_interval().high))
    assert (found.lost, found.won, found.n) == (4, 1, 5)
    assert found.bound == pytest.approx(stats.ttest_rel(second, first, alternative="less").confidence_interval().high)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [([1.0], [1.0, 2.0], "same topics"), ([1.0], [2.0], "needs two topics"), ([1.0, 2.0], [1.0, 2.0], "equal values")],
)
def test_values_that_are_no_pairs_are_refused(first: list[float], second: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        manual_text.paired_values(first, second)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="A paired test needs numbers; at place 1 there is none"):
        manual_text.paired_values([1.0, wrong, 2.0], [1.0, 1.0, 1.0])


def test_equal_gaps_have_an_interval_without_width() -> None:
    assert manual_text.paired_values([1.0, 2.0, 3.0], [1.5, 2.5, 3.5]).interval == (0.5, 0.5)
