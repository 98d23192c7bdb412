"""Odd and damaged files: each is read or named with its reason; none hangs or is left out without a warning."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from fedbayes.data.pixels import square
from fedbayes.data.sources.image_folder import image_folder
from fedbayes.errors import DataError

SIZE = 16


def picture(mode="RGB", size=(40, 30)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).convert(mode)


def saved(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png_of_zeros(width, height):
    """A valid grey PNG whose pixels take a thousandth of their size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = b"\0" * (width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def flipped(content, seed):
    """Some bytes after the header changed."""
    rng, changed = random.Random(seed), bytearray(content)
    for _ in range(20):
        changed[rng.randrange(len(content) // 3, len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def with_chunk(kind, body, content=None):
    """A PNG with one more chunk before its pixels."""
    content = content or PNG
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content[:33] + chunk + content[33:]


def with_exif(kind, exif):
    """A picture whose file says `exif` about it."""
    return saved(picture(), kind, exif=exif)


FRAMES = [picture().rotate(90 * turn) for turn in range(3)]
JPEG, PNG = saved(picture(), "JPEG"), saved(picture(), "PNG")
TIFF, WEBP, GIF, BMP = (saved(picture(), kind) for kind in ("TIFF", "WEBP", "GIF", "BMP"))
SIXTEEN = Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40))

READABLE = {
    "sixteen_bit.png": saved(SIXTEEN, "PNG"),
    "sixteen_bit.tif": saved(SIXTEEN, "TIFF"),
    "cmyk.jpg": saved(picture("CMYK"), "JPEG"),
    "palette.png": saved(picture("P"), "PNG"),
    "palette_transparent.png": saved(picture("P"), "PNG", transparency=0),
    "grey_alpha.png": saved(picture("LA"), "PNG"),
    "lab.tif": saved(picture("LAB"), "TIFF"),
    "animated.gif": saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "animated.png": saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "pages.tif": saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
    "progressive.jpg": saved(picture(), "JPEG", progressive=True),
    "png_inside.jpg": PNG,
    "jpeg_inside.png": JPEG,
    "trailing.jpg": JPEG + b"<script>alert(1)</script>",
    "one_pixel.png": saved(picture(size=(1, 1)), "PNG"),
    "thin.png": saved(picture(size=(1, 900)), "PNG"),
    "ÄÖ \n'\"$(x).png": PNG,
}
UNREADABLE = {
    "range_unknown.tif": saved(picture("F"), "TIFF"),
    "more_than_16_bits.tif": saved(Image.new("I", (8, 8), 1_000_000), "TIFF"),
    "zero_bytes.jpg": b"",
    "text.png": b"this is no picture",
    "random.png": bytes(random.Random(0).randbytes(5000)),
    "header_alone.png": PNG[:33],
    "truncated.jpg": JPEG[: len(JPEG) // 2],
    "truncated.png": PNG[: len(PNG) // 2],
    "truncated.tif": TIFF[: len(TIFF) // 2],
    "damaged.png": flipped(PNG, 1),
    "huge.png": png_of_zeros(10_000, 10_000),
    "larger.png": png_of_zeros(20_000, 10_000),
    "claims_much.bmp": BMP[:18] + struct.pack("<ii", 2**30, 2**30) + BMP[26:],
    "vector.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n",
    "pickle.png": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
TURNED = ROTATED.tobytes()
DAMAGED_METADATA = {
    "exif.png": with_chunk(b"eXIf", b"not a TIFF file"),
    "exif_cut.png": with_chunk(b"eXIf", TURNED[6:14]),
    "exif_far.png": with_chunk(b"eXIf", b"II*\0" + struct.pack("<I", 2**31)),
    "exif_count.png": with_chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9),
    "exif.jpg": with_exif("JPEG", b"Exif\0\0garbage"),
    "exif_cut.jpg": with_exif("JPEG", TURNED[:12]),
    "exif_count.jpg": with_exif("JPEG", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9),
    "exif.webp": with_exif("WEBP", b"garbage"),
    "orientation_99.png": with_chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0"),
    "xmp.jpg": saved(picture(), "JPEG", xmp=b"<x:xmpmeta tiff:Orientation='" + b"9" * 50),
    "xmp.png": with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta"),
    "profile.png": with_chunk(b"iCCP", b"name\0\0" + b"no zlib stream"),
    "profile.jpg": saved(picture(), "JPEG", icc_profile=b"garbage"),
    "text.png": with_chunk(b"tEXt", b"no zero byte"),
    "resolution.png": with_chunk(b"pHYs", b"\xff" * 9),
}
"""Whole pixels beside damaged words about them."""


@pytest.fixture
def root(tmp_path):
    """Two classes of good pictures."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "good.png").write_bytes(PNG)
    return tmp_path


def unread(root, name, **settings):
    with pytest.raises(DataError) as caught:
        image_folder(str(root), SIZE, **settings)
    message = str(caught.value)
    assert f"cat/{name} cannot be read (" in message
    assert "data.on_error=skip" in message
    return message


@pytest.mark.parametrize("name", READABLE)
def test_odd_but_whole_pictures_are_read(root, name):
    (root / "cat" / name).write_bytes(READABLE[name])
    images = image_folder(str(root), SIZE)
    assert len(images) == 3
    pixels = images.images[images.names.index(f"cat/{name}")]
    assert pixels.shape == (3, SIZE, SIZE)
    if "one_pixel" not in name:
        assert pixels.float().std() > 1, "all of one colour: its values were cut off"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # from torchvision's reader
@pytest.mark.parametrize("name", DAMAGED_METADATA)
def test_damaged_metadata_leave_the_pixels_as_they_are(root, name):
    path = root / "cat" / name
    path.write_bytes(DAMAGED_METADATA[name])
    images = image_folder(str(root), SIZE)
    expected = square(default_loader(str(path)), SIZE)  # torchvision's reader, which knows no orientation
    assert np.array_equal(images.images[images.names.index(f"cat/{name}")], expected)


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_picture_is_named_or_skipped(root, name, caplog):
    (root / "cat" / name).write_bytes(UNREADABLE[name])
    unread(root, name)
    assert len(image_folder(str(root), SIZE, on_error="skip")) == 2
    assert f"1 images that cannot be read, the first cat/{name}" in caplog.text


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_give_a_picture_or_a_reason(root, seed):
    for kind, content in (("jpg", JPEG), ("gif", GIF), ("tif", TIFF), ("webp", WEBP), ("bmp", BMP)):
        (root / "cat" / f"x.{kind}").write_bytes(flipped(content, seed))
    assert 2 <= len(image_folder(str(root), SIZE, on_error="skip")) <= 7


@pytest.mark.timeout(20)
@pytest.mark.parametrize("target", ["x.png", "nothing.png", "y.png", "/dev/zero"])
def test_links_to_nowhere_to_each_other_and_to_endless_files_are_named(root, target):
    (root / "cat" / "x.png").symlink_to(target)
    if target == "y.png":
        (root / "cat" / target).symlink_to("x.png")
    assert ("not a regular file" in unread(root, "x.png")) == (target == "/dev/zero")


@pytest.mark.timeout(20)
def test_a_pipe_is_not_opened(root):
    os.mkfifo(root / "cat" / "pipe.png")
    assert "not a regular file" in unread(root, "pipe.png")


def test_a_file_that_may_not_be_read_is_named(root, monkeypatch):
    path = root / "cat" / "secret.png"
    path.write_bytes(PNG)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything: the system's answer to others, then
        image_open = Image.open

        def open_or_refuse(file, **settings):
            if Path(file) == path:
                raise PermissionError(13, "Permission denied", str(file))
            return image_open(file, **settings)

        monkeypatch.setattr(Image, "open", open_or_refuse)
    assert "Permission denied" in unread(root, "secret.png")


def test_a_folder_called_like_a_picture_is_a_folder(root):
    (root / "cat" / "folder.png").mkdir()
    assert len(image_folder(str(root), SIZE)) == 2
