import json
import math
from types import SimpleNamespace

import optuna
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as theirs

from autotl.builtin import image_operations as ours
from autotl.builtin.image_operations import OPERATIONS
from autotl.engine.draws import Draws

SETTINGS = {
    "flip": {},
    "flip-rotate-zoom": {"degrees": 30.0, "zoom": 0.4},
    "basic": {
        "mirror": True,
        "upside_down": True,
        "quarter_turns": True,
        "degrees": 30.0,
        "min_area": 0.08,
        "shift": 0.25,
        "colour": 0.8,
        "erasing": 0.5,
    },
    "randaugment": {"operations": 3, "magnitude": 9},
    "trivialaugment": {"strength": 1.0},
}
LARGEST = 1 - 2**-24  # the largest float32 below 1


def noise(n, side, seed=0):
    """Images of noise; each channel has a range of its own, and one has a single value."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (255 * torch.rand(2, n, 3, 1, 1, generator=generator)).sort(0).values
    images = (low + (high - low + 1) * torch.rand(n, 3, side, side, generator=generator)).to(torch.uint8)
    images[0, 0] = 77
    return images


def smooth(n, side):
    """Images that change slowly from place to place, so that a small move is a small change."""
    place = torch.linspace(0, math.pi, side)
    waves = torch.stack([torch.sin(k * place)[:, None] * torch.cos((4 - k) * place) for k in (1, 2, 3)])
    return (127 + 100 * waves).to(torch.uint8).expand(n, -1, -1, -1).clone()


def draws(rows, seed=0):
    """A draw for some of 64 images: as the engine's, a row does not depend on the other images."""
    generator = torch.Generator().manual_seed(seed)
    return lambda count: torch.rand(64, count, generator=generator)[rows]


def exactly(*columns):
    """A draw that gives these columns, the same at each call: [N] each."""
    table = torch.stack([torch.as_tensor(column, dtype=torch.float32) for column in columns], dim=1)

    def draw(count):
        assert count == len(columns)
        return table

    return draw


def number_of(name):
    return [operation.change.__name__ for operation in OPERATIONS].index(name)


def choose(name):
    """The draw that chooses an operation: the middle of its share."""
    return (number_of(name) + 0.5) / len(OPERATIONS)


def apart(a, b):
    """The largest difference in grey levels."""
    return (a.int() - b.int()).abs().max().item()


@pytest.fixture
def build(host):
    return lambda name, **params: host.augmentations[name].item.build(params or SETTINGS[name])


BILINEAR = {"interpolation": v2.InterpolationMode.BILINEAR}


def sheared(image, x, y):
    shear = [math.degrees(math.atan(amount)) for amount in (x, y)]
    return theirs.affine(image, angle=0, translate=[0, 0], scale=1, shear=shear, center=[0, 0], **BILINEAR)


def moved(image, x, y):
    places = [int(share * image.shape[-1]) for share in (x, y)]
    return theirs.affine(image, angle=0, translate=places, scale=1, shear=[0, 0], **BILINEAR)


BOTH_WAYS = (-0.9, -0.31, 0.0, 0.44, 0.99)
TORCHVISION = {
    # operation: (torchvision's, amounts, by how many grey levels they may differ)
    "identity": (lambda image, _: image, [0], 0),
    "shear_x": (lambda image, amount: sheared(image, amount, 0), BOTH_WAYS, 1),
    "shear_y": (lambda image, amount: sheared(image, 0, amount), BOTH_WAYS, 1),
    "translate_x": (lambda image, share: moved(image, share, 0), BOTH_WAYS, 0),
    "translate_y": (lambda image, share: moved(image, 0, share), BOTH_WAYS, 0),
    "rotate": (lambda image, degrees: theirs.rotate(image, degrees, **BILINEAR), (-135.0, -8.0, 0.0, 30.0, 90.0), 1),
    "brightness": (lambda image, amount: theirs.adjust_brightness(image, 1 + amount), BOTH_WAYS, 0),
    "saturation": (lambda image, amount: theirs.adjust_saturation(image, 1 + amount), BOTH_WAYS, 1),
    "contrast": (lambda image, amount: theirs.adjust_contrast(image, 1 + amount), BOTH_WAYS, 1),
    "sharpness": (lambda image, amount: theirs.adjust_sharpness(image, 1 + amount), BOTH_WAYS, 1),
    "posterize": (lambda image, bits: theirs.posterize(image, 8 - round(bits)), (0, 1, 2.6, 6), 0),
    "solarize": (lambda image, levels: theirs.solarize(image, 256 - levels), (1, 100, 200, 256), 0),
    # torchvision divides by a rounded number and so may miss by one what Pillow's whole numbers give
    "autocontrast": (lambda image, _: theirs.autocontrast(image), [0], 1),
    "equalize": (lambda image, _: theirs.equalize(image), [0], 0),
}


@pytest.mark.parametrize("side", [8, 33])
@pytest.mark.parametrize("name", TORCHVISION)
def test_an_operation_is_torchvisions_with_an_amount_for_each_image(name, side):
    reference, amounts, tolerance = TORCHVISION[name]
    images = noise(4 * len(amounts), side)
    amounts = list(amounts) * 4
    expected = torch.stack([reference(image, amount) for image, amount in zip(images, amounts, strict=True)])
    result = getattr(ours, name)(images, torch.tensor(amounts, dtype=torch.float32))
    assert apart(result, expected) <= tolerance
    assert (result != expected).float().mean() < 0.05
    if side > 8 and name != "identity":  # by Pillow's rule, equalize leaves images of so few pixels
        assert apart(expected, images) > 20


def test_autocontrast_reaches_both_ends_of_the_range():
    images = noise(16, 16)[1:]
    result = ours.autocontrast(images, torch.zeros(15))
    assert (result.amin((2, 3)) == 0).all() and (result.amax((2, 3)) == 255).all()


@pytest.mark.parametrize(("space", "side"), [(v2.RandAugment, 331), (v2.TrivialAugmentWide, 224)])
def test_the_largest_amounts_are_torchvisions(space, side):
    """At the sizes of image that the papers' pixels are of."""
    names = dict.fromkeys(space._AUGMENTATION_SPACE)
    assert [name.replace("Color", "Saturation").lower() for name in names] == [
        operation.change.__name__.replace("_", "") for operation in OPERATIONS
    ]
    for operation, (magnitudes, signed) in zip(OPERATIONS, space._AUGMENTATION_SPACE.values(), strict=True):
        name = operation.change.__name__
        amount = operation.randaugment if space is v2.RandAugment else operation.trivialaugment
        strongest = magnitudes(31, side, side)
        strongest = 0 if strongest is None else float(strongest[-1])
        if name.startswith("translate"):
            strongest /= side
        elif name == "posterize":
            strongest = 8 - strongest
        elif name == "solarize":
            strongest = 256 * (1 - strongest)
        assert (amount, operation.signed) == (pytest.approx(strongest), signed), name


@pytest.mark.parametrize("side", [8, 33, 64])
@pytest.mark.parametrize("name", SETTINGS)
def test_an_image_does_not_depend_on_the_others_in_its_batch(build, name, side):
    images = noise(64, side)
    transform = build(name)
    together = transform(images, draws(range(64)))
    for rows in ([17], [63], [0, 5, 40], list(range(63, -1, -1)), list(range(1, 64, 2))):
        assert torch.equal(transform(images[rows], draws(rows)), together[rows])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("n", "side"), [(64, 8), (5, 2), (3, 1), (0, 8)])
def test_shape_and_type_stay_and_the_input_is_not_changed(build, name, n, side):
    images = noise(max(n, 1), side)[:n]
    before = images.clone()
    result = build(name)(images, draws(range(n)))
    assert (result.shape, result.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_memory_layout_changes_nothing(build, name):
    images = noise(64, 16)
    rows = range(64)
    expected = build(name)(images, draws(rows))
    assert torch.equal(build(name)(images.contiguous(memory_format=torch.channels_last), draws(rows)), expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_decide_everything(build, name):
    images = noise(64, 16)
    rows = range(64)
    first = build(name)(images, draws(rows))
    torch.manual_seed(1)
    assert torch.equal(build(name)(images, draws(rows)), first)
    assert not torch.equal(build(name)(images, draws(rows, seed=1)), first)


@pytest.mark.parametrize(
    ("name", "at_least"),
    [("flip", 2), ("flip-rotate-zoom", 64), ("basic", 64), ("randaugment", 60), ("trivialaugment", 40)],
)
def test_copies_of_an_image_are_changed_differently(build, name, at_least):
    copies = noise(2, 32)[1:].expand(64, -1, -1, -1)
    results = build(name)(copies, draws(range(64)))
    assert len(results.flatten(1).unique(dim=0)) >= at_least


def test_flip_mirrors_left_to_right_below_one_half(build):
    images = noise(3, 9)
    result = build("flip")(images, exactly([0.0, 0.49, 0.5]))
    assert torch.equal(result[:2], images[:2].flip(3))
    assert torch.equal(result[2], images[2])


def test_no_rotation_and_no_zoom_leave_the_flip(build):
    images = noise(64, 33)
    chance, turn, zoom = draws(range(64))(3).unbind(1)
    result = build("flip-rotate-zoom", degrees=0, zoom=0)(images, exactly(chance, turn, zoom))
    assert torch.equal(result, build("flip")(images, exactly(chance)))


@pytest.mark.parametrize(("turn", "angle"), [(0.0, -20), (0.25, -10), (LARGEST, 20)])
@pytest.mark.parametrize(("seen", "scale"), [(0.0, 1 / 0.75), (0.5, 1), (LARGEST, 1 / 1.25)])
def test_rotation_and_zoom_are_torchvisions_inside_the_image(build, turn, angle, seen, scale):
    images = noise(2, 64)
    result = build("flip-rotate-zoom", degrees=20, zoom=0.25)(images, exactly([0.9] * 2, [turn] * 2, [seen] * 2))
    # torchvision's `affine` turns clockwise
    expected = theirs.affine(images, angle=-angle, translate=[0, 0], scale=scale, shear=[0, 0], **BILINEAR)
    assert apart(result[..., 16:48, 16:48], expected[..., 16:48, 16:48]) <= 1


def test_rotation_and_zoom_show_no_border(build):
    images = torch.full((64, 3, 16, 16), 200, dtype=torch.uint8)
    assert (build("flip-rotate-zoom")(images, draws(range(64))) == 200).all()


def test_basic_is_searched_only_if_the_user_names_it(host):
    by_default = {entry.name for entry in host.augmentations if getattr(entry.item, "by_default", True)}
    assert by_default == {"none", *SETTINGS} - {"basic"}


def test_basic_draws_its_whole_range(host):
    augmentation, trial = host.augmentations["basic"].item, optuna.create_study().ask()
    params = augmentation.suggest(trial, SimpleNamespace(data=SimpleNamespace(harmful=frozenset())))
    assert trial.params == {f"basic.{key}": value for key, value in params.items()}
    assert set(params) == set(SETTINGS["basic"])
    for key, strongest in SETTINGS["basic"].items():
        kind = trial.distributions[f"basic.{key}"]
        ends = kind.choices if isinstance(strongest, bool) else (kind.low, kind.high)
        assert strongest in ends and {0, 1} & set(ends)  # from nothing to the strongest


@pytest.mark.parametrize("operation", ["mirroring", "turning upside down", "quarter turns", "rotation", "crops"])
def test_basic_does_not_draw_an_operation_that_harmful(host, operation):
    augmentation, trial = host.augmentations["basic"].item, optuna.create_study().ask()
    data = SimpleNamespace(harmful=frozenset({operation}))
    (missing,) = set(SETTINGS["basic"]) - set(augmentation.suggest(trial, SimpleNamespace(data=data)))
    assert augmentation.MEASURED[missing] == operation
    assert set(augmentation.operations()) == set(augmentation.MEASURED.values())


def test_the_operations_to_measure_change_every_image(host):
    image = noise(2, 9)[1:]
    found = host.augmentations["basic"].item.operations()
    assert torch.equal(found["mirroring"](image, None), image.flip(3))
    assert torch.equal(found["turning upside down"](image, None), image.flip(2))
    assert torch.equal(found["quarter turns"](image, exactly([0.4])), image.rot90(1, (2, 3)))
    assert torch.equal(found["quarter turns"](image, exactly([0.5])), image.rot90(3, (2, 3)))
    for name, operation in found.items():
        changed = operation(noise(64, 32), draws(range(64)))
        assert (changed != noise(64, 32)).flatten(1).any(1).all(), name


def chosen(**changes):
    """A draw of `basic` for one image, in which all is as in the original except for these numbers."""
    names = "mirror upside_down quarter turn area aspect place_x place_y shift_x shift_y brightness contrast saturation"
    usual = dict.fromkeys([*names.split(), "erased", "erased_area", "erased_aspect", "erased_x", "erased_y"], 0.5)
    usual |= {"mirror": 0.9, "upside_down": 0.9, "quarter": 0.0, "area": 0.0, "erased": 0.9}
    return exactly(*([value] for value in (usual | changes).values()))


def test_basic_without_strength_changes_nothing(build):
    images = noise(64, 33)
    assert torch.equal(build("basic", degrees=0)(images, draws(range(64))), images)


def test_basic_mirrors_and_turns(build):
    image = noise(2, 9)[1:]
    both = build("basic", mirror=True, upside_down=True)
    assert torch.equal(both(image, chosen(mirror=0.4)), image.flip(3))
    assert torch.equal(both(image, chosen(upside_down=0.4)), image.flip(2))
    assert torch.equal(both(image, chosen(mirror=0.5, upside_down=0.5)), image)
    for times in range(4):
        turned = build("basic", quarter_turns=True)(image, chosen(quarter=(times + 0.5) / 4))
        assert torch.equal(turned, image.rot90(times, (2, 3)))
    rotated = build("basic", degrees=30)(smooth(1, 64), chosen(turn=0.75))
    expected = theirs.rotate(smooth(1, 64), 15, **BILINEAR)
    assert apart(rotated[..., 16:48, 16:48], expected[..., 16:48, 16:48]) <= 1


def test_basic_shifts_by_a_share_of_the_side(build):
    """A quarter of the largest shift, 0.25 of 8 px, is one pixel after the other half of the range."""
    image = noise(2, 8)[1:]
    result = build("basic", shift=0.25)(image, chosen(shift_x=0.75))
    assert torch.equal(result, torch.cat([image[..., 1:], image[..., -1:]], 3))
    result = build("basic", shift=0.25)(image, chosen(shift_y=0.0))
    assert torch.equal(result, torch.cat([image[..., :2, :].flip(2), image[..., :-2, :]], 2))


def test_basic_enlarges_a_crop(build):
    """A quarter of the area at the upper left is enlarged twice; its lower and right edge see the pixels beyond."""
    image = noise(2, 8)[1:]
    result = build("basic", min_area=0.25)(image, chosen(place_x=0.0, place_y=0.0))
    larger = theirs.resize(image[..., :4, :4], [8, 8], antialias=False, **BILINEAR)
    assert apart(result[..., :7, :7], larger[..., :7, :7]) <= 1
    assert torch.equal(build("basic", min_area=0.25)(image, chosen(area=LARGEST)), image)


def test_basic_changes_colours(build):
    image = noise(2, 8)[1:]
    result = build("basic", colour=0.4)(image, chosen(brightness=0.0, contrast=0.75, saturation=1.0))
    for change, amount in ((ours.brightness, -0.4), (ours.contrast, 0.2), (ours.saturation, 0.4)):
        image = change(image, torch.tensor([amount]))
    assert torch.equal(result, image)


@pytest.mark.parametrize(("place", "where"), [(0.0, slice(0, 4)), (0.5, slice(3, 7)), (LARGEST, slice(6, 10))])
def test_basic_erases_a_rectangle_with_the_mean_colour(build, place, where):
    """0.16 of the area is 4 x 4 of 10 x 10 px."""
    image = noise(2, 10)[1:]
    area = (0.1601 - 0.02) / 0.38
    erased = chosen(erased=0.49, erased_area=area, erased_x=place, erased_y=0.0)
    expected = image.clone()
    expected[..., 0:4, where] = image.double().mean((2, 3), keepdim=True).floor().to(torch.uint8)
    assert torch.equal(build("basic", erasing=0.5)(image, erased), expected)
    assert torch.equal(build("basic", erasing=0.5)(image, chosen(erased=0.5)), image)


def test_basic_erases_shares_between_those_of_the_paper(build):
    """Which are 0.02 and 0.4: 0.21 on average."""
    white = torch.full((64, 3, 40, 40), 255, dtype=torch.uint8)
    white[:, :, :, :20] = 0
    changed = (build("basic", erasing=1.0)(white, draws(range(64))) % 255 > 0).float().mean().item()
    assert changed == pytest.approx(0.21, abs=0.04)


@pytest.mark.parametrize(("aspect", "width"), [(0.0, 0.433), (0.5, 0.5), (LARGEST, 0.577)])
def test_the_sides_of_a_crop_have_at_most_four_to_three(build, aspect, width):
    """Of a quarter of the area."""
    ramp = torch.arange(200).to(torch.uint8).expand(1, 3, 200, 200)
    for turned in (ramp, ramp.transpose(2, 3)):
        seen = build("basic", min_area=0.25)(turned, chosen(aspect=aspect if turned is ramp else 1 - aspect)).int()
        assert (seen.max() - seen.min()).item() == pytest.approx(200 * width, abs=2)


@pytest.mark.parametrize("name", [operation.change.__name__ for operation in OPERATIONS])
def test_the_draws_choose_operation_strength_and_sign(build, name):
    operation = OPERATIONS[number_of(name)]
    images = noise(3, 16)
    which, signs = [choose(name)] * 3, [0.2, 0.49, 0.5]
    directions = torch.tensor([-1, -1, 1]) if operation.signed else torch.ones(3)

    result = build("randaugment", operations=1, magnitude=5)(images, exactly(which, signs))
    expected = operation.change(images, directions * 0.5 * torch.tensor(float(operation.randaugment)))
    assert torch.equal(result, expected)

    shares = torch.tensor([0.2, 0.5, LARGEST])
    result = build("trivialaugment", strength=0.5)(images, exactly(which, shares, signs))
    expected = operation.change(images, directions * (0.5 * shares * operation.trivialaugment))
    assert torch.equal(result, expected)


def test_every_operation_has_the_same_share_of_the_draws(build):
    count = len(OPERATIONS)
    images = noise(2 * count, 16)
    which = [draw for k in range(count) for draw in (k / count + 1e-6, (k + 1) / count - 1e-6)]
    which[-1] = LARGEST
    result = build("randaugment", operations=1, magnitude=10)(images, exactly(which, [0.9] * 2 * count))
    for index, operation in enumerate(OPERATIONS):
        rows = slice(2 * index, 2 * index + 2)
        assert torch.equal(result[rows], operation.change(images[rows], torch.full((2,), float(operation.randaugment))))


def test_randaugment_applies_as_many_operations_as_requested(build):
    images = noise(64, 16)
    thrice, once = (Draws(0, 0, torch.arange(64)) for _ in range(2))
    result = images
    for _ in range(3):
        result = build("randaugment", operations=1, magnitude=9)(result, once)
    assert torch.equal(build("randaugment", operations=3, magnitude=9)(images, thrice), result)


@pytest.mark.parametrize("name", [name for name in TORCHVISION if name not in ("autocontrast", "equalize")])
def test_strength_0_changes_nothing(build, name):
    images = noise(4, 33)
    images[1] = 255
    which, some = [choose(name)] * 4, [0.1, 0.3, 0.6, 0.9]
    assert torch.equal(build("randaugment", operations=1, magnitude=0)(images, exactly(which, some)), images)
    assert torch.equal(build("trivialaugment", strength=0)(images, exactly(which, some, some)), images)
    assert torch.equal(build("trivialaugment", strength=1)(images, exactly(which, [0.0] * 4, some)), images)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flip-rotate-zoom", [{"degrees": degrees, "zoom": 0} for degrees in (0, 5, 15, 30)]),
        ("flip-rotate-zoom", [{"degrees": 0, "zoom": zoom} for zoom in (0, 0.1, 0.2, 0.4)]),
        ("basic", [{"degrees": degrees} for degrees in (0, 5, 15, 30)]),
        ("basic", [{"min_area": area} for area in (1, 0.6, 0.3, 0.08)]),
        ("basic", [{"shift": shift} for shift in (0, 0.05, 0.1, 0.25)]),
        ("basic", [{"colour": colour} for colour in (0, 0.2, 0.4, 0.8)]),
        ("basic", [{"erasing": share} for share in (0, 0.1, 0.2, 0.5)]),
        ("randaugment", [{"operations": 2, "magnitude": magnitude} for magnitude in (1, 4, 7, 10)]),
        ("randaugment", [{"operations": operations, "magnitude": 5} for operations in (1, 2, 3)]),
        ("trivialaugment", [{"strength": strength} for strength in (0.25, 0.5, 0.75, 1)]),
    ],
)
def test_a_stronger_setting_changes_images_more(build, name, settings):
    images = smooth(64, 32)
    mirrored = build("flip")(images, lambda _: draws(range(64))(3)[:, :1]) if name == "flip-rotate-zoom" else images
    changes = [
        (build(name, **params)(images, draws(range(64))).float() - mirrored.float()).abs().mean().item()
        for params in settings
    ]
    assert changes == sorted(changes)
    assert changes[-1] > 1.5 * changes[0]


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("flip", {}),
        ("flip-rotate-zoom", {"degrees": (0, 30), "zoom": (0, 0.4)}),
        ("randaugment", {"operations": (1, 3), "magnitude": (1, 10)}),
        ("trivialaugment", {"strength": (0.25, 1)}),
    ],
)
def test_parameters_are_plain_and_carry_the_augmentations_name(host, name, ranges):
    augmentation = host.augmentations[name].item
    trial = optuna.create_study().ask()
    params = augmentation.suggest(trial, None)
    assert trial.params == {f"{name}.{key}": value for key, value in params.items()}
    assert {key: (kind.low, kind.high) for key, kind in trial.distributions.items()} == {
        f"{name}.{key}": both for key, both in ranges.items()
    }
    read = json.loads(json.dumps(params))
    assert read == params
    images, rows = noise(8, 16), range(8)
    assert torch.equal(augmentation.build(read)(images, draws(rows)), augmentation.build(params)(images, draws(rows)))
    for end in (0, 1):
        fixed = {f"{name}.{key}": both[end] for key, both in ranges.items()}
        at_end = augmentation.suggest(optuna.trial.FixedTrial(fixed), None)
        assert augmentation.build(at_end)(images, draws(rows)).shape == images.shape
