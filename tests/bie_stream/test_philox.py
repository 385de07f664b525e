"""Philox against the known answers published with Random123 (kat_vectors, philox4x32-10)."""

import numpy as np
import pytest

from bie_stream.philox import key_of, philox, philox_word

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    k0, k1 = _words(key)
    assert philox(np.array([_words(counter)], np.uint64), (k0, k1)).tolist() == [_words(answer)]


def test_the_first_word_is_given_alone_to_compiled_functions() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (50, 4), dtype=np.uint64)
    key = 0xFFFFFFFF, 5
    alone = [philox_word(*counter, *map(np.uint64, key)) for counter in counters]
    np.testing.assert_array_equal(alone, philox(counters, key)[:, 0])


def test_each_counter_has_its_own_answer_whatever_stands_beside_it() -> None:
    counters = np.array([_words(counter) for counter, _, _ in KNOWN_ANSWERS] * 2, np.uint64)
    together = philox(counters, (1, 2))
    alone = [philox(counter[None], (1, 2))[0] for counter in counters]
    np.testing.assert_array_equal(together, alone)


def test_the_counter_is_left_as_it_was() -> None:
    counter = np.arange(8, dtype=np.uint64).reshape(2, 4)
    philox(counter, (3, 4))
    np.testing.assert_array_equal(counter, np.arange(8).reshape(2, 4))


def test_bits_are_even() -> None:
    counter = np.zeros((20_000, 4), np.uint64)
    counter[:, 0] = np.arange(20_000)
    words = philox(counter, key_of(0, 1))
    ones = ((words[:, :, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)  # five standard errors, for each of 128 bits


def test_streams_and_seeds_have_different_keys() -> None:
    keys = [key_of(seed, stream) for seed in (0, 1, 2**32, 2**40 + 1, -1) for stream in (1, 2)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= word < 2**32 for key in keys for word in key)
