"""Finding copies and near-copies: images with the same, or nearly the same, decoded pixels.

A picture saved twice, as PNG and as BMP, has the same pixels under two file hashes. One saved as JPEG at two
qualities, or at two sizes, has nearly the same pixels: a near-copy. Both must stay in one split, or the test measures
memorised images.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from autotl.data import images

FORMAT = 2
"""Incremented when `PICTURE` changes."""
SIDE = 16
"""Side of the small grey copy by which near-copies are compared, in px."""
PICTURE = np.dtype([("pixels", "u1", 32), ("perceptual", "u1", 8), ("grey", "u1", (SIDE, SIDE)), ("peak", "<u2")])
"""What is stored of a picture: the SHA-256 of its size and pixels, its perceptual hash, a small grey copy, and its
`images.peak`."""

DISTANCE = 4
"""Near-copies differ in at most this many of 64 bits of their perceptual hashes: 200 photos saved again at JPEG quality
30 or at half their size differed in 0 to 4 bits, different photos in 11 or more."""
CORRELATION = 0.99
"""The least correlation of their small grey copies, because hashes alone confuse some handwritten digits. Photos saved
again had 0.996 and more; no two of 1,797 digits had both such close hashes and this correlation."""
FLAT = 2.0
"""Grey levels. Below this standard deviation a picture is too uniform to compare by its hash."""
LOOKED_AT = 16
"""Each picture is compared with at most this many others, the next ones in order, that share a part of its hash."""
_BANDS = [(start, min(64, start + 13)) for start in range(0, 64, 13)]
"""If two hashes differ in four bits, at least one of these five parts is equal."""


def picture(image: Image.Image) -> np.ndarray:
    """The stored `PICTURE` of an upright image, as [298] uint8."""
    from imagehash import phash

    kept = np.zeros(1, PICTURE)
    kept["peak"] = peak = images.peak(image)
    grey = images.in_bytes(image, images.depth(peak)).convert("L")
    small = grey.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BOX)
    pixels = hashlib.sha256(b"%d x %d " % image.size)
    pixels.update(image.tobytes())
    kept["pixels"] = np.frombuffer(pixels.digest(), np.uint8)
    kept["perceptual"] = np.packbits(phash(small).hash)
    kept["grey"] = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))
    return kept.view(np.uint8).reshape(-1)


def same(pictures: np.ndarray) -> list[str]:
    """For each of the pictures, [N] `PICTURE`, a string that pictures with the same pixels share."""
    return [row.tobytes().hex() for row in pictures["pixels"]]


def near(pictures: np.ndarray, labels: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of positions of near-copies, without exact copies, under one label; the closest first.

    Pairs under two labels are not included: the difference between the classes may be that small.
    """
    _, label = np.unique(np.asarray(labels, str), return_inverse=True)
    bits = np.unpackbits(pictures["perceptual"], axis=1)
    grey = pictures["grey"].reshape(len(pictures), SIDE * SIDE).astype(np.float32)
    grey -= grey.mean(1, keepdims=True)
    uneven = np.flatnonzero(grey.std(1) >= FLAT)
    grey /= np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)
    found = [np.empty((0, 2), np.intp)]
    for pairs in _candidates(bits, label, uneven):
        pairs = pairs[(bits[pairs[:, 0]] != bits[pairs[:, 1]]).sum(1) <= DISTANCE]
        equal = (pictures["pixels"][pairs[:, 0]] == pictures["pixels"][pairs[:, 1]]).all(1)
        pairs = pairs[~equal & (_correlation(grey, pairs) >= CORRELATION)]
        found.append(np.sort(pairs, axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    closest = np.argsort(-_correlation(grey, pairs), kind="stable")
    return [(one, other) for one, other in pairs[closest].tolist()]


def _correlation(grey: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[P] correlations of the normalised grey copies, [N, D], of each pair, [P, 2]."""
    found: np.ndarray = np.einsum("nd,nd->n", grey[pairs[:, 0]], grey[pairs[:, 1]])
    return found


def _candidates(bits: np.ndarray, label: np.ndarray, among: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of positions, [P, 2], under one label that share a part of their hashes."""
    for start, end in _BANDS:
        part = bits[:, start:end] @ (1 << np.arange(end - start)) + (label << end - start)
        order = among[np.argsort(part[among], kind="stable")]
        for step in range(1, min(LOOKED_AT, len(order) - 1) + 1):
            shared = part[order[step:]] == part[order[:-step]]
            if not shared.any():
                break
            yield np.stack([order[:-step][shared], order[step:][shared]], axis=1)


def keepable(
    pairs: Sequence[tuple[int, int]], labels: Sequence[str], fixed: Sequence[str | None]
) -> list[tuple[int, int]]:
    """The pairs that can be kept in one split; `pairs` come with the closest first, which take precedence.

    `fixed` is the split of a picture that cannot change: pictures of two splits, and pairs that would link them, stay
    apart. A cluster with more than half of a class, as from a fixed camera, is dissolved: similar images need not be
    copies there, and too few images would be left for the other splits.
    """
    at, kept = list(fixed), []
    for first, second in pairs:
        if at[first] is None or at[second] is None or at[first] == at[second]:
            at[first] = at[second] = at[first] or at[second]
            kept.append((first, second))
    clusters = connected(len(labels), kept)
    count = np.bincount(clusters)
    of_class = Counter(labels)
    return [pair for pair in kept if count[clusters[pair[0]]] * 2 <= of_class[labels[pair[0]]]]


def clusters(words: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The cluster number of each picture: pictures with the same word of `same`, or linked by `pairs`, share one."""
    return connected(len(words), [*links(words), *pairs]).tolist()


def units(pictures: Sequence[Hashable], groups: Iterable[str | None]) -> np.ndarray:
    """[N] the same number for images that share a picture or a group, directly or through others; None is no group."""
    own = (at if group is None else group for at, group in enumerate(groups))  # without a group it is one of its own
    return connected(len(pictures), [*links(pictures), *links(own)])


def links(words: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Edges that link the positions of equal words."""
    first: dict[Hashable, int] = {}
    return [(first.setdefault(word, at), at) for at, word in enumerate(words)]


def connected(count: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """[count] component numbers, the same for positions that edges link, directly or indirectly."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.array(edges, np.intp).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), bool), (one, other)), shape=(count, count))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers
