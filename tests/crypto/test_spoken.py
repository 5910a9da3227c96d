"""Fingerprints in words: BIP 39's own vectors, and what is misheard."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.crypto.spoken import _words, check_heard, in_words
from cachefl_secure.errors import ConfigError

# Those of 128 bits in vectors.json of BIP 39's reference implementation (github.com/trezor/python-mnemonic).
BIP_39 = {
    "00000000000000000000000000000000": "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about",
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f": "legal winner thank year wave sausage worth useful legal winner thank yellow",
    "80808080808080808080808080808080": "letter advice cage absurd amount doctor acoustic avoid letter advice cage above",
    "ffffffffffffffffffffffffffffffff": "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong",
    "7dce4ed2284c9134d026608ab684c05c": "lava include region explain simple omit dog slot melt reflect copy reward",
    "5baf069620eff15c71dd97c9a6ee328f": "forum join pitch dove yellow purchase shuffle real situate danger million bunker",
    "63deb1e7f0c3de56f4ab43c9d2ae6c86": "glow void ketchup thunder digital clock sport half six nice open artefact",
    "00641669f095b433a304ed0f953f28eb": "about camera omit thrive forget border metal oval auto prepare sketch stomach",
}

HEX = "7dce4ed2284c9134d026608ab684c05c"
SIXTEEN_BYTES = st.binary(min_size=16, max_size=16)


def groups_of(digits: str) -> str:
    return " ".join(digits[at : at + 4] for at in range(0, 32, 4))


def heard(text: str, digits: str = HEX) -> None:
    check_heard(text, groups_of(digits), where=("invite.toml", "key"), otherwise="do not join")


def slow_words(entropy: bytes) -> str:
    """BIP 39: eleven bits a word, the last four of the 132 from SHA-256."""
    bits = f"{int.from_bytes(entropy):0128b}" + f"{hashlib.sha256(entropy).digest()[0]:08b}"[:4]
    words = _words().wordlist
    return " ".join(words[int(bits[at : at + 11], 2)] for at in range(0, 132, 11))


@pytest.mark.parametrize(("digits", "words"), BIP_39.items())
def test_the_words_are_those_of_bip_39(digits: str, words: str) -> None:
    assert in_words(groups_of(digits)) == words
    heard(words, digits)


@given(SIXTEEN_BYTES)
def test_words_are_eleven_bits_each_and_a_checksum(entropy: bytes) -> None:
    digits = entropy.hex()
    assert in_words(groups_of(digits)) == slow_words(entropy)
    for form in (slow_words(entropy), digits, groups_of(digits)):
        heard(form, digits)


@pytest.mark.parametrize(
    "said",
    [
        BIP_39[HEX].upper(),
        "  " + BIP_39[HEX].replace(" ", " \n ") + " ",
        BIP_39[HEX].replace(" ", "-"),
        groups_of(HEX).upper(),
        groups_of(HEX).replace(" ", "-"),
        " ".join(HEX),
    ],
)
def test_spaces_hyphens_and_case_do_not_matter(said: str) -> None:
    heard(said)


def test_four_letters_tell_the_words_apart() -> None:
    words = _words().wordlist
    assert len(words) == len({word[:4] for word in words}) == 2048


def test_a_misheard_word_is_told_as_such_or_as_another_fingerprint() -> None:
    """A sixth of the 12 x 2,047 words that one can be taken for: the checksum finds 15 of 16, comparing finds the rest."""
    said, words, told = BIP_39[HEX].split(), _words().wordlist, [0, 0]
    for place in range(12):
        for word in words[place % 6 :: 6]:
            if word == said[place]:
                continue
            with pytest.raises(ConfigError) as refused:
                heard(" ".join([*said[:place], word, *said[place + 1 :]]))
            told[refused.value.reason.startswith("these twelve words are no fingerprint")] += 1
    assert sum(told) > 4000
    assert 0.92 < told[True] / sum(told) < 0.955


def test_words_in_another_order_are_refused() -> None:
    said = BIP_39[HEX].split()
    for first in range(11):
        swapped = said.copy()
        swapped[first : first + 2] = swapped[first + 1], swapped[first]
        with pytest.raises(ConfigError):
            heard(" ".join(swapped))


@pytest.mark.parametrize("place", range(32))
def test_a_misread_digit_is_another_fingerprint(place: int) -> None:
    other = HEX[:place] + ("0" if HEX[place] != "0" else "1") + HEX[place + 1 :]
    with pytest.raises(ConfigError) as refused:
        heard(other)
    assert (refused.value.file, refused.value.field) == ("invite.toml", "key")
    assert groups_of(HEX) in refused.value.reason
    assert BIP_39[HEX] in refused.value.reason
    assert "do not join" in refused.value.reason


@pytest.mark.parametrize(
    "said", ["", " ", "yes", HEX[:-1], HEX + "0", BIP_39[HEX] + " zoo", " ".join(BIP_39[HEX].split()[:11])]
)
def test_what_is_neither_words_nor_digits_is_told_so(said: str) -> None:
    with pytest.raises(ConfigError, match="eight groups of four hex digits, or twelve words"):
        heard(said)


TOKENS = st.one_of(
    st.sampled_from(["zoo", "wrong", "Lava", "ＺＯＯ", "zoo\u00a8", "\u2100", "\ufdfa"]), st.text(max_size=6)
)


@given(st.one_of(st.text(max_size=100), st.lists(TOKENS, min_size=12, max_size=12).map(" ".join)))
@settings(max_examples=100)
def test_any_text_is_refused_with_a_sentence_and_nothing_else(said: str) -> None:
    with pytest.raises(ConfigError):
        heard(said)
