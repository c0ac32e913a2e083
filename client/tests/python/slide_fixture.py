"""Writes ../fixtures/slides/{lossless.tif,aperio.svs,aperio-jp2k.svs,jp2k.svs,flat.tif}: pyramids as scanners and converters
save them, small and of known content. Regenerate with

    pip install tifffile==2026.3.3 imagecodecs numpy openslide-bin==4.0.1.2 openslide-python==1.4.7
    python client/tests/python/slide_fixture.py

The glass is (240, 240, 240). Tissue lies in x 128..512, y 64..320 and in x 640..704, y 448..512 of the
finest level; its colour at (x, y) is (200, x // 8, y // 8 + 64).
"""

import pathlib

import numpy
import tifffile

out = pathlib.Path(__file__).parent.parent / "fixtures" / "slides"
out.mkdir(exist_ok=True)
WIDTH, HEIGHT = 1000, 700
slide = numpy.full((HEIGHT, WIDTH, 3), 240, numpy.uint8)
y, x = numpy.mgrid[:HEIGHT, :WIDTH]
colour = numpy.stack([numpy.full_like(x, 200), x // 8, y // 8 + 64], -1).astype(numpy.uint8)
for left, top, right, bottom in [(128, 64, 512, 320), (640, 448, 704, 512)]:
    slide[top:bottom, left:right] = colour[top:bottom, left:right]


def smaller(factor):
    """Means of squares, the rest cut off."""
    h, w = HEIGHT // factor, WIDTH // factor
    cut = slide[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return cut.mean(axis=(1, 3)).round().astype(numpy.uint8)


levels = [slide, smaller(4), smaller(8)]
# Converters write resolution tags: 20,000 pixels a centimetre are 0.5 micrometres.
with tifffile.TiffWriter(out / "lossless.tif", bigtiff=True) as tif:
    for index, level in enumerate(levels):
        tif.write(
            level, tile=(128, 128), photometric="rgb", compression="zlib", metadata=None,
            resolution=(20_000 / [1, 4, 8][index],) * 2, resolutionunit="CENTIMETER",
            subfiletype=int(index > 0),
        )
# Aperio: the thumbnail second, in strips, label and macro last, and the resolution in words.
words = "Aperio Image Library v12.0.0\r\n1000x700 [0,0 1000x700] (256x256) JPEG/YCC Q=90|AppMag = 20|MPP = 0.5|Left = 1"
with tifffile.TiffWriter(out / "aperio.svs") as tif:
    colours = {"level": 92, "outcolorspace": "YCBCR"}
    jpeg = {"compression": "jpeg", "compressionargs": colours, "photometric": "rgb", "metadata": None}
    tif.write(slide, tile=(256, 256), subsampling=(1, 1), description=words, **jpeg)
    tif.write(smaller(8), rowsperstrip=16, photometric="rgb", compression="zlib", metadata=None)
    tif.write(levels[1], tile=(256, 256), subsampling=(1, 1), description=words, **jpeg)
    tif.write(numpy.zeros((64, 64, 3), numpy.uint8), photometric="rgb", compression="zlib", metadata=None)
# The same in JPEG 2000 without loss, which OpenSlide alone reads.
with tifffile.TiffWriter(out / "aperio-jp2k.svs") as tif:
    jp2k = {"compression": "aperio_jp2000_rgb", "photometric": "rgb", "metadata": None, "description": words}
    tif.write(slide, tile=(256, 256), **jp2k)
    tif.write(smaller(8), rowsperstrip=16, photometric="rgb", compression="zlib", metadata=None)
    tif.write(levels[1], tile=(256, 256), **jp2k)
with tifffile.TiffWriter(out / "jp2k.svs") as tif:
    for level in levels[:2]:
        tif.write(level[:128, :128], tile=(128, 128), photometric="rgb", compression="aperio_jp2000_rgb", metadata=None)
# Glass and nothing on it.
with tifffile.TiffWriter(out / "flat.tif") as tif:
    for size in (512, 128):
        tif.write(
            numpy.full((size, size, 3), 240, numpy.uint8), tile=(128, 128), photometric="rgb",
            compression="zlib", metadata=None, resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
        )

# OpenSlide, a second reader, must see the same as client/tests/data_slides.rs and data_openslide.rs do.
import openslide

for name, tolerance in [("lossless.tif", 0), ("aperio.svs", 6), ("aperio-jp2k.svs", 0)]:
    read = openslide.OpenSlide(out / name)
    assert read.properties["openslide.mpp-x"] == "0.5"
    assert read.level_dimensions[:2] == ((1000, 700), (250, 175))
    region = numpy.asarray(read.read_region((320, 64), 0, (64, 64)))[..., :3].astype(int)
    assert abs(region - slide[64:128, 320:384]).max() <= tolerance, name
