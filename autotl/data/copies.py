"""Which images show the same picture, or nearly the same one: by what was decoded, whatever the files are.

A picture saved twice, as PNG and as BMP, has the same pixels under two file hashes. One saved as JPEG at two
qualities, or at two sizes, has nearly the same pixels. Both must stay on one side of a split, or the test asks for what
was learned by heart.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from autotl.data import images

FORMAT = 2
"""Counted up when something else is kept of a picture."""
SIDE = 16
"""Of the small grey copy that near-copies are compared by, in px."""
PICTURE = np.dtype([("pixels", "u1", 32), ("perceptual", "u1", 8), ("grey", "u1", (SIDE, SIDE)), ("peak", "<u2")])
"""What is kept of a picture: the SHA-256 of its size and pixels, its perceptual hash, a small grey copy, and its
`images.peak`."""

DISTANCE = 4
"""Near-copies differ in so many of 64 bits of their perceptual hashes at most: 200 photos saved again at JPEG quality
30 or at half their size differed in 0 to 4 bits, no two different ones in fewer than 11."""
CORRELATION = 0.99
"""The least correlation of their small grey copies: hashes alone take some handwritten digits for one another. Photos
saved again had 0.996 and more; of 1,797 digits no two had this under hashes so close."""
FLAT = 2.0
"""Grey levels. The standard deviation below which a picture is too even for its hash to say anything."""
LOOKED_AT = 16
"""With so many others, the next ones in order, each picture is compared where very many have alike hashes."""
_BANDS = [(start, min(64, start + 13)) for start in range(0, 64, 13)]
"""Of five parts of two hashes that differ in four bits, one is equal."""


def picture(image: Image.Image) -> np.ndarray:
    """What is kept of an upright image: one `PICTURE` as [298] uint8."""
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
    """For each of the pictures, [N] `PICTURE`, a word that those with the same pixels share."""
    return [row.tobytes().hex() for row in pictures["pixels"]]


def near(pictures: np.ndarray, labels: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of positions whose pictures are nearly the same, and not the same, under one label; the closest first.

    Under two labels they are no copies as far as a classifier goes: what tells the classes apart may be small.
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
    """[P] of the normalised grey copies, [N, D], of each pair, [P, 2]."""
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
    """The pairs that can be kept in one split; the closest come first and go first.

    `fixed` is the split of a picture that has one for good: pictures of two splits, and what would link them, stay
    apart. Where more than half of a class would be one cluster, as before a fixed camera, likeness says nothing about
    copies, and no split would be left to judge: that cluster is dissolved.
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
    """For each picture the number of its cluster: of those with the same word (`same`), and those that `pairs` link."""
    return connected(len(words), [*alike(words), *pairs]).tolist()


def alike(words: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Edges that link the positions of equal words."""
    first: dict[Hashable, int] = {}
    return [(first.setdefault(word, at), at) for at, word in enumerate(words)]


def connected(count: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """[count] numbers, the same for all that edges link, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.array(edges, np.intp).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), bool), (one, other)), shape=(count, count))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers
