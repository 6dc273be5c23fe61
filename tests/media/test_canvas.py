"""Pictures on a model's canvas, masks from files of every kind, and pasting that leaves the rest bit for bit."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from genkit.errors import ArtifactError, UsageError
from genkit.media.canvas import Canvas, Mask, Window, paste, read_mask, read_still


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(height, width, top, left, bottom, right):
    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    return inside


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (30, 41), (64, 64), (65, 3)])
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_padding_and_cropping_give_the_picture_back_bit_for_bit(size, multiple):
    picture = noise(*size)
    canvas = Canvas.of(picture, multiple, least=(16, 16))
    assert canvas.padded.shape[0] % multiple == 0 and canvas.padded.shape[1] % multiple == 0
    assert np.array_equal(canvas.padded[: size[0], : size[1]], picture)
    assert np.array_equal(canvas.crop(canvas.padded[None])[0], picture)
    assert bool(canvas.told) == (canvas.size != size)


def test_the_margin_is_the_mirror_image_of_picture_and_mask():
    picture, inside = noise(10, 10), box(10, 10, 0, 8, 10, 10)
    canvas = Canvas.of(picture, 8)
    assert canvas.size == (16, 16)
    assert np.array_equal(canvas.padded[:10, 10:], picture[:, 8:2:-1])
    assert np.array_equal(canvas.pad(inside)[:10, 10:], inside[:, 8:2:-1]) and canvas.pad(inside).dtype == bool


def test_only_a_longest_side_scales_and_it_is_said():
    picture = noise(40, 100)
    canvas = Canvas.of(picture, 8, longest=50)
    assert canvas.inner == (20, 50) and canvas.size == (24, 56) and "50x20" in canvas.told[0]
    assert canvas.crop(canvas.padded).shape == picture.shape
    assert canvas.pad(box(40, 100, 7, 7, 8, 8)).any()  # a single pixel is not lost
    assert Canvas.of(picture, 8, longest=100).inner == (40, 100)
    with pytest.raises(UsageError):
        canvas.crop(picture)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_pictures_of_all_modes_are_read_as_rgb(tmp_path):
    rgb = Image.fromarray(noise(6, 9))
    grey16 = Image.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9) * 1000)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    layers = rgb.copy()
    layers.putalpha(Image.fromarray(np.where(np.arange(54).reshape(6, 9) % 2, 255, 0).astype(np.uint8)))
    files = {
        "cmyk": saved(tmp_path, rgb.convert("CMYK"), "cmyk.tif"),
        "sixteen": saved(tmp_path, grey16, "sixteen.png"),
        "palette": saved(tmp_path, rgb.quantize(16), "palette.png"),
        "bit": saved(tmp_path, rgb.convert("1"), "bit.png"),
        "alpha": saved(tmp_path, layers, "alpha.png"),
        "animated": saved(
            tmp_path, rgb, "animated.gif", save_all=True, append_images=[Image.fromarray(noise(6, 9, 1))]
        ),
    }
    for name, path in files.items():
        still = read_still(path)
        assert still.pixels.shape == (6, 9, 3) and still.pixels.dtype == np.uint8, name
        assert bool(still.told) == (name in ("alpha", "animated")), name
    assert (read_still(files["alpha"]).pixels[0, 0] == 255).all()
    assert "the first was taken" in read_still(files["animated"]).told[0]
    assert read_still(files["sixteen"]).pixels[-1, -1, 0] == round(53000 / 257)
    turned = saved(tmp_path, rgb, "turned.png", exif=exif)
    assert np.array_equal(read_still(turned).pixels, np.rot90(np.asarray(rgb), -1))


def bomb(path, width=20_000, height=20_000):
    """A PNG whose header promises many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("read", [read_still, lambda path, **options: read_mask(path, (8, 8), **options)])
def test_pictures_beyond_the_limit_and_broken_files_are_refused_in_one_line(tmp_path, read):
    small = saved(tmp_path, Image.fromarray(noise(20, 20)), "small.png")
    with pytest.raises(ArtifactError, match="20x20 pixels, allowed: 300"):
        read(small, pixels=300)
    for path, data in ((tmp_path / "a.png", b""), (tmp_path / "b.png", b"no image"), (tmp_path / "c.png", None)):
        path.write_bytes(small.read_bytes()[:60] if data is None else data)
        with pytest.raises(ArtifactError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="pixels"):
        read(bomb(tmp_path / "bomb.png"))
    with pytest.raises(ArtifactError, match="9000x9000"):  # below Pillow's own limit
        read(bomb(tmp_path / "large.png", 9000, 9000), pixels=80_000_000)


def test_masks_are_read_from_brightness_and_from_opacity(tmp_path):
    inside = box(8, 10, 2, 3, 5, 7)
    grey = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))
    red = Image.merge("RGB", (grey, Image.new("L", grey.size), Image.new("L", grey.size)))
    strokes = Image.new("RGBA", grey.size, (0, 0, 0, 0))
    strokes.paste((0, 0, 0, 255), mask=grey)  # black paint on a transparent layer
    opaque = grey.convert("RGBA")
    for name, image in (("grey", grey), ("bit", grey.convert("1")), ("red", red), ("layer", strokes), ("rgba", opaque)):
        path = saved(tmp_path, image, f"{name}.png")
        assert np.array_equal(read_mask(path, (8, 10)).inside, inside), name
        assert np.array_equal(read_mask(path, (8, 10), invert=True).inside, ~inside), name
    sixteen = Image.fromarray(np.where(inside, 60000, 20000).astype(np.uint16))
    assert np.array_equal(read_mask(saved(tmp_path, sixteen, "sixteen.png"), (8, 10)).inside, inside)
    assert "what is not transparent" in read_mask(tmp_path / "layer.png", (8, 10)).told[0]
    assert np.array_equal(read_mask(tmp_path / "layer.png", (8, 10), channel="brightness").inside, ~inside)
    with pytest.raises(UsageError, match="no transparent parts"):
        read_mask(tmp_path / "grey.png", (8, 10), channel="alpha")


def test_masks_of_another_size_empty_and_full_ones(tmp_path):
    black, white = (saved(tmp_path, Image.new("L", (10, 8), value), f"{value}.png") for value in (0, 255))
    with pytest.raises(UsageError, match="has 10x8 pixels and the picture 12x8"):
        read_mask(black, (8, 12))
    with pytest.raises(UsageError, match="marks nothing.*invert it"):
        read_mask(black, (8, 10))
    with pytest.raises(UsageError, match="leave inverting out"):
        read_mask(white, (8, 10), invert=True)
    assert read_mask(white, (8, 10)).full and "nothing of it is kept" in read_mask(white, (8, 10)).told[0]
    dot = Image.new("L", (10, 8))
    dot.putpixel((4, 4), 255)
    with pytest.raises(UsageError, match="nothing is left"):
        read_mask(saved(tmp_path, dot, "dot.png"), (8, 10), grow=-1)
    for options in ({"grow": 10_000}, {"feather": -1}, {"channel": "green"}):
        with pytest.raises(UsageError, match="allowed"):
            read_mask(white, (8, 10), **options)


def test_growing_makes_an_octagon_and_shrinking_undoes_it_inside():
    dot = Mask(box(21, 21, 10, 10, 11, 11))
    grown = dot.grown(4).inside
    assert grown[10, 6] and grown[10, 14] and grown[12, 12] and not grown[6, 6] and not grown[10, 5]
    assert np.array_equal(grown, grown[::-1]) and np.array_equal(grown, grown.T)
    square = Mask(box(21, 21, 5, 5, 16, 16))
    assert np.array_equal(square.grown(-2).inside, box(21, 21, 7, 7, 14, 14)) and dot.grown(0).inside.sum() == 1
    full = Mask(np.ones((5, 5), bool))
    assert full.grown(-3).full  # the edge of the picture is no border


def test_weights_rise_inwards_and_reach_one_in_thin_parts():
    mask = Mask(box(40, 40, 10, 10, 30, 30), feather=4)
    weights = mask.weights()
    assert np.allclose(weights[20, 9:16], [0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert np.array_equal(weights > 0, mask.inside)
    thin = Mask(box(40, 40, 10, 10, 13, 40), feather=8).weights()
    assert np.allclose(thin[9:14, 25], [0, 0.5, 1, 0.5, 0])
    assert np.array_equal(Mask(mask.inside).weights(), mask.inside.astype(np.float32))
    assert (Mask(np.ones((4, 4), bool), feather=3).weights() == 1).all()


def test_a_feather_too_wide_for_the_mask_is_told(tmp_path):
    """It leaves little of what is made anew, and nothing in the result says why."""
    path = saved(tmp_path, Image.fromarray(np.where(box(40, 40, 10, 10, 30, 30), 255, 0).astype(np.uint8)), "box.png")
    for feather, told in ((0, False), (2, False), (8, True), (1000, True)):
        lines = read_mask(path, (40, 40), feather=feather).told
        assert any("is wholly new" in line for line in lines) == told, feather


@pytest.mark.parametrize("feather", [0, 3, 100])
def test_pasting_keeps_everything_outside_bit_for_bit(feather):
    picture, made, mask = noise(30, 50), noise(30, 50, 1), Mask(box(30, 50, 5, 0, 20, 30), feather)
    pasted = paste(picture, made, mask)
    assert np.array_equal(pasted[~mask.inside], picture[~mask.inside]) and pasted.dtype == np.uint8
    whole = mask.weights() == 1
    assert whole.any() and np.array_equal(pasted[whole], made[whole])
    assert np.array_equal(paste(picture, made[None], mask)[0], pasted)


def test_a_union_marks_what_any_mask_marks():
    one, two = Mask(box(8, 8, 0, 0, 2, 2), 1, ("a",)), Mask(box(8, 8, 1, 1, 4, 4), 3, ("b",))
    both = Mask.union([one, two])
    assert np.array_equal(both.inside, one.inside | two.inside) and both.feather == 3 and both.told == ("a", "b")
    with pytest.raises(UsageError):
        Mask.union([one, Mask(box(9, 8, 0, 0, 1, 1))])


@pytest.mark.parametrize(
    "where, context, least, wanted",
    [
        ((10, 20, 20, 40), 5, (1, 1), (5, 15, 20, 30)),
        ((10, 20, 20, 40), None, (1, 1), (0, 10, 30, 40)),  # half of 20
        ((10, 20, 20, 40), 0, (32, 32), (0, 14, 32, 32)),
        ((0, 0, 4, 4), 2, (8, 8), (0, 0, 8, 8)),  # at the corner: it moves
        ((46, 56, 50, 60), 2, (8, 8), (42, 52, 8, 8)),
        ((10, 20, 20, 40), 500, (64, 64), (0, 0, 50, 60)),  # never beyond the picture
    ],
)
def test_a_window_holds_the_mask_and_its_surroundings(where, context, least, wanted):
    inside = box(50, 60, *where)
    window = Window.around(inside, context, least)
    assert (window.top, window.left, window.height, window.width) == wanted
    assert window.cut(inside).sum() == inside.sum()
    picture = noise(50, 60)
    even = Window.around(inside, context, least, multiple=16)
    assert even.cut(inside).sum() == inside.sum() and even.height in (16, 32, 48, 50) and even.width in (16, 32, 48, 60)
    changed = window.put(picture, window.cut(noise(50, 60, 1)))
    assert np.array_equal(window.cut(changed), window.cut(noise(50, 60, 1)))
    assert (changed != picture).any(-1).sum() <= window.height * window.width and picture is not changed
