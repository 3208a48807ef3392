"""Splits are stratified and repeatable, and never divide images that belong together."""

import hashlib
import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from autotl.data.split import SPLITS, Member, assign, divisions
from autotl.errors import DataError


def sha(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def members(given="train", start=0, **classes):
    """The given number of members of each class, all different."""
    return [
        Member(sha(f"{label}{n}"), label, given)
        for label, count in classes.items()
        for n in range(start, start + count)
    ]


def counts(some, splits):
    found = Counter(zip((member.label for member in some), splits, strict=True))
    return {label: tuple(found[label, split] for split in SPLITS) for label in {m.label for m in some}}


def assert_nothing_is_divided(some, splits):
    homes = {}
    for member, split in zip(some, splits, strict=True):
        assert homes.setdefault(member.sha, split) == split
        if member.group is not None:
            assert homes.setdefault(("group", member.group), split) == split


def test_shares_of_each_class():
    some = members(a=100, b=1000)
    # test 20 %, val 20 % of the rest, early_stop 15 % of what remains.
    assert counts(some, assign(some, seed=0)) == {"a": (54, 10, 16, 20), "b": (544, 96, 160, 200)}


@pytest.mark.parametrize("smallest", [3, 4, 5, 10, 18])
def test_a_small_class_is_in_train_val_and_test(smallest):
    some = members(a=smallest, b=200)
    train, early_stop, val, test = counts(some, assign(some, seed=1))["a"]
    assert min(train, val, test) >= 1 and early_stop == 0


def test_no_early_stop_split_unless_every_class_has_three_images_in_it():
    for least in range(3, 60):
        some = members(a=least, b=100)
        splits = counts(some, assign(some, seed=2))
        assert (splits["a"][1] >= 3) == (splits["b"][1] >= 3) == (splits["b"][1] > 0)
        if least >= 30:
            assert splits["a"][1] >= 3


def test_the_split_depends_on_the_seed_alone():
    some = members(a=50, b=80)
    by_sha = dict(zip((m.sha for m in some), assign(some, seed=0), strict=True))
    shuffled = random.Random(0).sample(some, len(some))
    assert [by_sha[m.sha] for m in shuffled] == assign(shuffled, seed=0)
    assert list(by_sha.values()) != assign(some, seed=1)


def test_order_does_not_matter_with_groups_and_duplicates():
    rng = random.Random(3)
    some = [Member(sha(n), "a", group=f"g{n // 3}" if n % 2 else None) for n in range(150)]
    some += [*some[:40], *members(b=60)]
    reference = dict(zip(some, assign(some, seed=0), strict=True))
    for _ in range(5):
        rng.shuffle(some)
        assert [reference[m] for m in some] == assign(some, seed=0)


@pytest.mark.parametrize("seed", range(20))
def test_duplicates_and_groups_are_never_divided(seed):
    rng = random.Random(seed)
    some = []
    for n in range(400):
        label = rng.choice("abc")
        # Groups may span classes; a picture may be in two groups of the same class.
        group = f"g{rng.randrange(80)}" if rng.random() < 0.3 else None
        some.append(Member(sha(f"{label}{n if rng.random() < 0.8 else rng.randrange(400)}"), label, group=group))
    splits = assign(some, seed=seed)
    assert_nothing_is_divided(some, splits)
    for label, (train, early_stop, val, test) in counts(some, splits).items():
        total = train + early_stop + val + test
        assert 0.1 < test / total < 0.3, label
        assert 0.05 < val / total < 0.25, label


def test_a_picture_in_two_groups_joins_them():
    shared = sha("shared")
    some = [Member(shared, "a", group="p"), Member(shared, "a", group="q")]
    some += [Member(sha(f"{group}{n}"), "a", group=group) for group in "pq" for n in range(3)]
    some += members(a=40, b=40)
    splits = assign(some, seed=0)
    assert len({split for m, split in zip(some, splits, strict=True) if m.group}) == 1


def test_groups_larger_than_the_share():
    some = [Member(sha(f"{label}{n}"), label, group=f"{label}{n % 3}") for label in "ab" for n in range(30)]
    splits = assign(some, seed=0)
    assert_nothing_is_divided(some, splits)
    assert counts(some, splits) == {"a": (10, 0, 10, 10), "b": (10, 0, 10, 10)}


def test_given_splits_are_kept_and_only_missing_ones_split_off():
    some = members(a=50, b=50) + members("test", 50, a=4, b=4)
    splits = assign(some, seed=0)
    assert [m.given == "test" for m in some] == [split == "test" for split in splits]
    assert counts(some, splits) == {"a": (34, 6, 10, 4), "b": (34, 6, 10, 4)}

    some += members("val", 60, a=5)
    splits = assign(some, seed=0)
    assert [m.given == "val" for m in some] == [split == "val" for split in splits]
    assert counts(some, splits) == {"a": (42, 8, 5, 4), "b": (42, 8, 0, 4)}


@pytest.mark.parametrize(("count", "least", "given"), [(2, 3, []), (1, 3, []), (1, 2, ["test"]), (1, 2, ["val"])])
def test_a_class_that_is_too_small(count, least, given):
    some = members(a=50, tiny=count)
    for split in given:
        some += members(split, 50, a=10)
    with pytest.raises(
        DataError, match=rf"^Class 'tiny' is too small.*: it has {count} of at least {least} images.*Add"
    ):
        assign(some, seed=0)


def test_with_val_and_test_given_one_image_is_enough():
    some = members(a=50, tiny=1) + members("val", 50, a=9) + members("test", 60, a=9)
    assert assign(some, seed=0)[50] == "train"


def test_duplicates_and_groups_count_once():
    some = members(b=50) + [Member(sha("one"), "a")] * 5 + [Member(sha(n), "a", group="g") for n in range(5)]
    with pytest.raises(DataError, match=r"'a' is too small.*: it has 2 of at least 3 images"):
        assign(some, seed=0)


def test_groups_with_too_many_classes():
    # Each class is in three groups, yet three splits with all classes cannot be made of these four.
    some = [
        Member(sha(f"{label}{group}"), label, group=group)
        for group, labels in {"p": "abc", "q": "ab", "r": "ac", "s": "bc"}.items()
        for label in labels
    ]
    for seed in range(5):
        with pytest.raises(DataError, match="cannot be divided between test, val and train: it has too few groups"):
            assign(some, seed=seed)


def test_a_group_that_was_given_two_splits():
    some = members(a=9, b=9)
    some += [Member(sha("x"), "a", "test", "patient 1"), Member(sha("y"), "a", "train", "patient 1")]
    with pytest.raises(DataError, match=r"2 images of group 'patient 1' must be in one split.*test, train.*one split"):
        assign(some, seed=0)


# A stored split


def stored(some, **options):
    splits = assign(some, seed=0, **options)
    return splits, dict(zip((m.sha for m in some), splits, strict=True))


def test_known_images_keep_their_split_and_new_ones_join_train():
    old = members(a=50, b=50)
    before, previous = stored(old)
    splits = assign(members(a=70, b=60, c=5), seed=9, previous=previous)
    after = dict(zip((m.sha for m in members(a=70, b=60, c=5)), splits, strict=True))
    assert [after[m.sha] for m in old] == before
    assert {after[m.sha] for m in members(a=70, b=60, c=5) if m.sha not in previous} == {"train"}


def test_new_images_that_are_given_a_split_get_it():
    old = members(a=50, b=50) + members("test", 50, a=5, b=5)
    _, previous = stored(old)
    new = members("test", 80, a=3) + members("val", 90, b=2) + members(start=100, a=4)
    assert assign(old + new, seed=0, previous=previous)[len(old) :] == ["test"] * 3 + ["val"] * 2 + ["train"] * 4


def test_a_stored_split_overrides_a_given_one():
    old = members(a=50, b=50)
    before, previous = stored(old)
    moved = [Member(m.sha, m.label, "test") if at == before.index("train") else m for at, m in enumerate(old)]
    assert assign(moved, seed=0, previous=previous) == before


def test_a_new_member_of_a_stored_group_follows_it():
    old = [*members(a=50, b=50), *(Member(sha(f"g{n}"), "a", group=f"g{n}") for n in range(30))]
    before, previous = stored(old)
    home = before[50:]
    assert "test" in home
    new = [Member(sha(f"new{n}"), "a", group=f"g{n}") for n in range(100, 130)]
    new = [Member(m.sha, "a", group=f"g{n}") for n, m in enumerate(new)]
    assert assign(old + new, seed=0, previous=previous)[len(old) :] == before[100:]


def test_a_group_that_joins_images_stored_in_different_splits():
    old = members(a=50, b=50)
    _, previous = stored(old)
    tied = [Member(m.sha, m.label, group="all") if m.label == "a" else m for m in old]
    with pytest.raises(DataError, match=r"50 images of group 'all'.*Start a new study"):
        assign(tied, seed=0, previous=previous)


def test_the_stored_split_of_other_data():
    _, previous = stored(members(a=50, b=50))
    with pytest.raises(DataError, match=r"No image is left in test, val: of 80 images 0 are among the 100"):
        assign(members(start=1000, a=40, b=40), seed=0, previous=previous)


def divided(some, count, seed=0):
    """The study's own splits, and `count` further divisions."""
    own = assign(some, seed=seed)
    given = [replace(member, given=split) for member, split in zip(some, own, strict=True)]
    return own, list(islice(divisions(given, seed=seed), count))


def test_further_divisions_keep_the_test_split_and_the_shares_and_judge_on_all_other_images():
    some = members(a=100, b=50)
    own, further = divided(some, 9)
    judged = Counter(at for splits in (own, *further[:4]) for at, split in enumerate(splits) if split == "val")
    assert set(judged) == {at for at, split in enumerate(own) if split != "test"} and set(judged.values()) == {1}
    for splits in further:
        assert counts(some, splits) == counts(some, own)
        assert all((one == "test") == (other == "test") for one, other in zip(splits, own, strict=True))
    twice = Counter(at for splits in (own, *further) for at, split in enumerate(splits) if split == "val")
    assert set(twice.values()) == {2}
    assert len({tuple(splits) for splits in further}) == 9
    assert divided(some, 9) == (own, further) and divided(some, 9, seed=1)[1] != further


def test_further_divisions_divide_no_group_and_no_copies():
    draw = random.Random(0)
    some = [replace(member, group=f"{member.label}{draw.randrange(20)}") for member in members(a=60, b=60)]
    some += some[:10]
    for splits in divided(some, 6)[1]:
        assert_nothing_is_divided(some, splits)
        assert {"a", "b"} == {member.label for member, split in zip(some, splits, strict=True) if split == "val"}


def test_a_division_that_would_lack_a_class_is_the_one_before():
    # The only unit of class b outside the test split is in val, where it is needed, and it cannot be in train, too.
    some = members(a=20, given="train") + members("val", start=20, a=5, b=1) + members("test", start=30, a=5, b=1)
    (splits,) = islice(divisions(some, seed=0), 1)
    assert splits == [member.given for member in some]
