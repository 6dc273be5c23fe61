"""Pictures of other programs are read as a viewer shows them: bits, transparency, rotation, several pages, limits."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from genkit import media
from genkit.errors import ArtifactError
from genkit.media import limits
from genkit.media.canvas import read_mask, read_still
from genkit.media.read_image import check_image

RAMP = np.array([[0, 16640, 33280, 49920, 65535]], np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    assert media.read_image(tmp_path / name).frames[0, 0].tolist() == [[v] * 3 for v in (0, 65, 129, 194, 255)]
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(every).save(tmp_path / name)
    wanted = np.rint(every.astype(float) * 255 / 65535)
    assert np.array_equal(media.read_image(tmp_path / name).frames[0, :, :, 0], wanted)


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG from raw rows, for forms that Pillow does not write."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bits_of_colour_and_their_transparent_one(tmp_path):
    (tmp_path / "rgb.png").write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 65535, 33000, 0)))
    assert media.read_image(tmp_path / "rgb.png").frames[0, 0, 0].tolist() == [255, 128, 0]
    rows = b"\0" + struct.pack(">2H", 1000, 60000)
    (tmp_path / "key.png").write_bytes(png(2, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000))))
    assert media.read_image(tmp_path / "key.png").frames[0, 0].tolist() == [[255] * 3, [233] * 3]


def cut_outs():
    """The same black dot on nothing, in every form of transparency, over hidden colours that must not show."""
    alpha = np.zeros((4, 4), np.uint8)
    alpha[1:3, 1:3] = 255
    for number, hidden in enumerate([(0, 0, 0), (0, 255, 0), (255, 255, 255)]):
        pixels = np.empty((4, 4, 4), np.uint8)
        pixels[..., :3], pixels[..., 3] = hidden, alpha
        pixels[1:3, 1:3, :3] = 0
        yield f"rgba{number}.png", Image.fromarray(pixels), {}
        yield f"rgba{number}.webp", Image.fromarray(pixels), {"lossless": True, "exact": True}
        yield f"rgba{number}.tif", Image.fromarray(pixels), {}
    yield "grey.png", Image.fromarray(np.stack([np.where(alpha, 0, 99).astype(np.uint8), alpha], -1)), {}
    palette = Image.fromarray(np.where(alpha, 1, 0).astype(np.uint8), "L").convert("P")
    palette.putpalette([0, 255, 0, 0, 0, 0])
    yield "palette.png", palette, {"transparency": 0}
    yield "palette.gif", palette, {"transparency": 0}
    yield (
        "key.png",
        Image.fromarray(np.where(alpha[..., None], 0, [9, 200, 9]).astype(np.uint8)),
        {"transparency": (9, 200, 9)},
    )


def test_transparent_parts_are_white_whatever_colour_they_hide(tmp_path):
    wanted = np.full((4, 4, 3), 255, np.uint8)
    wanted[1:3, 1:3] = 0
    for name, image, extra in cut_outs():
        image.save(tmp_path / name, **extra)
        read = media.read_image(tmp_path / name)
        assert np.array_equal(read.frames[0], wanted), name
        assert read.told == (f"the transparent parts of {name} were laid on white",)


def test_opaque_pictures_stay_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    for name, image in (
        ("rgb.png", Image.fromarray(pixels)),
        ("rgba.png", Image.fromarray(pixels).convert("RGBA")),
        ("rgb.webp", Image.fromarray(pixels)),
        ("rgb.tif", Image.fromarray(pixels)),
        ("rgb.bmp", Image.fromarray(pixels)),
    ):
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        read = media.read_image(tmp_path / name)
        assert np.array_equal(read.frames, pixels[None]) and read.told == () and read.fps is None
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(media.read_image(tmp_path / "grey.png").frames[0], pixels[..., :1].repeat(3, -1))
    Image.fromarray(pixels[..., 0] > 99).save(tmp_path / "bits.png")
    assert np.array_equal(media.read_image(tmp_path / "bits.png").frames[0, ..., 0], (pixels[..., 0] > 99) * 255)


def test_prints_colours_are_turned_into_light(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    red = media.read_image(tmp_path / "red.jpg").frames[0, 4, 4]
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


def test_of_several_pictures_the_first_is_taken(tmp_path):
    pages = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for name, form in (("pages.tif", "TIFF"), ("pair.mpo", "MPO")):
        pages[0].save(tmp_path / name, format=form, save_all=True, append_images=pages[1:])
        read = media.read_image(tmp_path / name)
        assert read.frames.shape == (1, 6, 8, 3) and read.frames[0, 3, 4, 0] > 240
        assert read.told == (f"{name} holds 3 pictures; the first was taken",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_camera_says_which_side_is_up(tmp_path, form):
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a", format=form, exif=exif)
    assert media.read_image(tmp_path / "a").frames.shape == (1, 8, 4, 3)


def test_pixels_that_are_not_square_are_widened(tmp_path):
    rows = (b"\0" + bytes(24)) * 4
    (tmp_path / "a.png").write_bytes(png(8, 4, 8, 2, rows, (b"pHYs", struct.pack(">IIB", 1, 2, 0))))
    read = media.read_image(tmp_path / "a.png")
    assert read.frames.shape == (1, 4, 16, 3) and "not square" in read.told[0]
    Image.new("RGB", (8, 4)).save(tmp_path / "b.png", dpi=(72, 72))
    assert media.read_image(tmp_path / "b.png").frames.shape == (1, 4, 8, 3)


@pytest.mark.parametrize("values", [np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)])
def test_numbers_without_a_white_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ArtifactError, match="save it with 8 or 16 bits"):
        media.read_image(tmp_path / "a.tif")


def test_a_small_file_of_very_many_frames_is_not_decoded_whole(tmp_path, monkeypatch):
    frames = [Image.new("L", (1, 1), n % 256) for n in range(300)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=20)
    assert len(media.read_image(tmp_path / "a.gif").frames) == 300
    assert len(media.read_image(tmp_path / "a.gif", 2).frames) == 2
    monkeypatch.setattr(limits, "FRAMES", 100)
    with pytest.raises(ArtifactError, match="at least 101 frames of 1x1"):
        media.read_image(tmp_path / "a.gif")
    monkeypatch.setattr(limits, "FRAMES", 1000)
    monkeypatch.setattr(limits, "BYTES", 3 * 50)
    with pytest.raises(ArtifactError, match="at least 51 frames"):
        media.read_image(tmp_path / "a.gif")


def test_a_picture_that_promises_too_many_pixels_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000, 8, 2, b"\0"))
    with pytest.raises(ArtifactError, match="cannot read|pixels"):
        media.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "webm", "avi", "flv", "mpeg", "asf"])
def test_a_clip_in_place_of_a_picture_is_told_as_one_whatever_its_name(tmp_path, kind):
    import av

    codec = {"webm": "libvpx", "mpeg": "mpeg1video", "asf": "msmpeg4v3", "flv": "flv"}.get(kind, "mpeg4")
    with av.open(str(tmp_path / "a.png"), "w", format={"mkv": "matroska"}.get(kind, kind)) as container:
        stream = container.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    for read in (media.read_image, check_image, read_still, lambda path, what: read_mask(path, (32, 32), what=what)):
        with pytest.raises(ArtifactError, match="cannot read --it .*a.png as an image: it is a clip; give a picture"):
            read(tmp_path / "a.png", what="--it")


@pytest.mark.parametrize(
    "start", [b"", b"hello", bytes(64), b"\0\0\0\x18ftypcrx \0\0\0\1", b"RIFF\0\0\0\0WAVE", b"%PDF-1.7"]
)
def test_other_files_are_told_as_unknown(tmp_path, start):
    (tmp_path / "a.mp4").write_bytes(start)
    with pytest.raises(ArtifactError, match="--it .*a.mp4 as an image: it is none that is known; give a PNG"):
        check_image(tmp_path / "a.mp4", "--it")


def test_a_picture_is_one_whatever_its_name(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.mp4", format="PNG")
    check_image(tmp_path / "a.mp4", "--it")
