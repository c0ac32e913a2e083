"""What Pillow makes of small pictures resized: the oracle of client/tests/data_resize.rs.

Pillow's filters widen with the scale, as torchvision's do with antialias. Regenerate with

    pip install pillow==13.0.0 numpy
    python client/tests/python/resize_golden.py
"""

import json
import pathlib

import numpy
from PIL import Image

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
out = pathlib.Path(__file__).parent.parent / "fixtures" / "resize"
out.mkdir(exist_ok=True)
draw = numpy.random.default_rng(7)
golden = {}
# Noise is the worst case. The grey levels leave room for a cubic filter to overshoot; the colours do
# not, so that Pillow clamps them between its two passes.
for name, shape, low, high in [("grey", (37, 23), 64, 192), ("colour", (19, 41, 3), 0, 256)]:
    picture = Image.fromarray(draw.integers(low, high, shape, dtype=numpy.uint8))
    picture.save(out / f"{name}.png")
    for kind, resample in FILTERS.items():
        # Down in both directions, and up where the picture is smaller.
        for side in (8, 32):
            resized = numpy.asarray(picture.resize((side, side), resample))
            # Channel planes, as the backbone takes them.
            planes = resized if resized.ndim == 2 else resized.transpose(2, 0, 1)
            golden[f"{name} {kind} {side}"] = planes.tobytes().hex()
(out / "golden.json").write_text(json.dumps(golden, indent=0) + "\n")
