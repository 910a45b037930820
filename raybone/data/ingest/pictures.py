"""Image files as counts: what a file says of its pixels is honoured, and what it cannot say is
flagged or refused.
"""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raybone.data.ingest.dicom.frames import NotTaken, counts_of
from raybone.types import Array

MOST_PIXELS = (
    1 << 25
)  # a film of 43 cm at 250 dots an inch has 1 << 24; checked before anything is decoded
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # no other decoder of Pillow is ever started
ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262  # TIFF 6.0 tags, the first of EXIF as well
WHITE_IS_ZERO = 0
TINT = 24  # of 255: colour beyond it is no noise of compression
TINTED = 0.001  # share of the pixels that may have it


def open_image(content: bytes) -> Image.Image:
    """A decoded image, turned as its EXIF orientation says.

    Raises:
        NotTaken: it is no image of ``FORMATS``, has several pages, or is damaged.
    """
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError
        pages = getattr(image, "n_frames", 1)
        if pages == 1:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except UnidentifiedImageError:
        raise NotTaken(
            f"is not an image of the kinds {', '.join(FORMATS)}; save it as one of them"
        ) from None
    except Image.DecompressionBombError:
        raise NotTaken("has more pixels than any scan; is it a slide or a poster?") from None
    except Exception as error:  # Pillow raises what its plugins raise
        raise NotTaken(
            f"is an image that is damaged or cut short ({type(error).__name__}); export it again"
        ) from None
    raise NotTaken(f"has {pages} pages, of which one only would be the scan")


def counts_of_image(content: bytes) -> tuple[Array, list[str]]:
    """An image file as counts uint16, shape (H, W), and flags.

    Grey is taken as it is, of 8, 16 or 32 bits, in one channel or three; transparent parts are air.
    Values of TIFF files are those stored, whatever the photometric interpretation; air at the
    border tells which way round they are, as for MONOCHROME1 (see ``turned``).

    Raises:
        NotTaken: it is no image that can be read, in colour, or holds no counts.
    """
    deep = _deep(content)
    if deep is None:
        values, opaque_HW = _channels(open_image(content))
    else:
        values, opaque_HW = deep
    if values.ndim == 3:
        values = _grey(values)
    flags = []
    if opaque_HW is not None and not (opaque_HW == opaque_HW.max()).all():
        values = values * (opaque_HW / float(opaque_HW.max()))
        flags.append("transparent")
    counts_HW = counts_of(values)
    turned_HW, how = turned(counts_HW)
    return turned_HW, flags + how


def turned(counts_HW: Array) -> tuple[Array, list[str]]:
    """A picture with dark uptake on a bright ground turned over, and the flag that says so.

    The border of a scan is air. Where nine tenths of it are in the brightest quarter, the picture
    is turned over; where half of it is bright, it is only flagged, as it may be a crop.
    """
    border_N = np.concatenate([counts_HW[0], counts_HW[-1], counts_HW[:, 0], counts_HW[:, -1]])
    low, high = float(counts_HW.min()), float(counts_HW.max())
    if float(np.percentile(border_N, 10)) > low + 0.75 * (high - low):
        whole = (
            255 if high <= 255 else int(high + low)
        )  # pictures of 8 bits are turned over within them
        return (whole - counts_HW.astype(np.int32)).astype(np.uint16), ["turned-over"]
    return counts_HW, ["bright-border"] if float(np.median(border_N)) > (low + high) / 2 else []


def _channels(image: Image.Image) -> tuple[Array, Array | None]:
    """Values (H, W) or (H, W, 3) as stored, and the alpha channel (H, W) or None."""
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode == "L"
    values = np.asarray(
        image
        if image.mode in ("L", "LA", "I", "F", "RGB", "RGBA") or image.mode.startswith("I;16")
        else image.convert("RGB")
    )
    if image.mode in ("LA", "RGBA"):
        return values[..., 0] if image.mode == "LA" else values[..., :3], values[..., -1]
    return 255 - values if inverted else values, None  # Pillow turns 8 bits over, and 16 bits not


def _deep(content: bytes) -> tuple[Array, Array | None] | None:
    """Channels of an image with several of 16 bits, of which Pillow keeps 8; None for others."""
    png = content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:26] in (
        b"\x10\x02",
        b"\x10\x04",
        b"\x10\x06",
    )
    if (
        png
        and int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
        > MOST_PIXELS
    ):
        return None  # for Pillow, which refuses it before it decodes
    if not png and not (content[:4] in (b"II*\0", b"MM\0*") and _several_deep(content)):
        return None
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise NotTaken("is an image that is damaged or cut short; export it again")
    if values.ndim == 2:
        return values, None
    return values[..., 2::-1], values[..., 3] if values.shape[2] == 4 else None


def _several_deep(content: bytes) -> bool:
    """Whether a TIFF file has several channels of more than 8 bits.

    Raises:
        NotTaken: it has, and is turned; OpenCV and Pillow differ there.
    """
    try:
        with Image.open(BytesIO(content), formats=("TIFF",)) as image:
            if image.width * image.height > MOST_PIXELS:
                return False
            bits = image.tag_v2.get(BITS, (8,))  # type: ignore[attr-defined]
            turn = image.tag_v2.get(ORIENTATION, 1)  # type: ignore[attr-defined]
    except UnidentifiedImageError:
        return True  # modes that Pillow does not know, such as grey of 16 bits with alpha
    except Exception:  # damaged: the reading that follows says so
        return False
    deep = len(bits) > 1 and max(bits) > 8
    if deep and turn != 1:
        raise NotTaken("is a TIFF file of several channels that is stored turned; save it upright")
    return deep


def _grey(values_HW3: Array) -> Array:
    """One channel of a grey picture in three.

    Raises:
        NotTaken: it is in colour, whose brightness is not uptake: red, the hottest of a rainbow, is
            darker than yellow.
    """
    if (values_HW3 == values_HW3[..., :1]).all():
        return np.asarray(values_HW3[..., 0])
    limit = TINT / 255 * (65535 if values_HW3.dtype.itemsize > 1 else 255)
    tint_HW = values_HW3.max(-1).astype(float) - values_HW3.min(-1)
    if float((tint_HW > limit).mean()) > TINTED:
        raise NotTaken("is a picture in colour, whose brightness is not uptake; export it in grey")
    return np.rint(values_HW3.astype(float) @ np.array([0.299, 0.587, 0.114]))
