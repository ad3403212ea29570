"""Learns a tokenizer of CLIP's kind: byte-level byte-pair encoding with marked ends of words.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (arXiv
1508.07909), over bytes as in GPT-2.
"""

import collections
import itertools
from collections.abc import Iterable
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

_END_OF_WORD = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def learn_tokenizer(texts: Iterable[str], *, num_merges: int, max_length: int) -> Any:
    """Learn at most `num_merges` merges, those that shorten the texts most.

    Returns a transformers `CLIPTokenizer` with 514 + merges tokens, laid out as CLIP's: bytes,
    bytes that end a word, merges, start, end. `max_length` of a text is kept in its own settings.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + _END_OF_WORD for letter in alphabet)]
    words = _count_words(texts, _tokenizer(tokens, [], max_length))
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for parts, count in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged = {_merge(parts, best): count for parts, count in words.items()}
        words = collections.Counter(merged)
    # Two ways to build one token need only one entry.
    tokens = list(dict.fromkeys([*tokens, *map("".join, merges)]))
    return _tokenizer(tokens, merges, max_length)


def _tokenizer(tokens: list[str], merges: list[tuple[str, str]], max_length: int) -> Any:
    vocabulary = {token: index for index, token in enumerate([*tokens, _START, _END])}
    # Pairs are what its tokenizers library takes; the annotation knows only lines of text.
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)  # type: ignore[arg-type]


def _count_words(texts: Iterable[str], tokenizer: Any) -> collections.Counter[tuple[str, ...]]:
    """Count the words as the tokenizer itself splits them, each as a row of its bytes."""
    backend = tokenizer.backend_tokenizer
    words: collections.Counter[tuple[str, ...]] = collections.Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            words[*word[:-1], word[-1] + _END_OF_WORD] += 1
    return words


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(parts):
        step = 2 if parts[index : index + 2] == pair else 1
        merged.append("".join(parts[index : index + step]))
        index += step
    return tuple(merged)
