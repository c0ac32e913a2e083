"""What timm's evaluation transform makes of a small picture: the oracle of `crop_pct` in client/tests/data_resize.rs.
Regenerate with

    pip install timm==1.0.31 torch==2.9.0 pillow==13.0.0 numpy
    python client/tests/python/crop_golden.py
"""

import json
import pathlib

import numpy
from PIL import Image
from timm.data import create_transform

out = pathlib.Path(__file__).parent.parent / "fixtures" / "resize"
draw = numpy.random.default_rng(11)
golden = {}
MEAN, STD = (numpy.array(of).reshape(3, 1, 1) for of in [(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)])
# Odd sides, upright and lying; the levels leave room for a cubic filter to overshoot.
for name, shape in [("wide", (37, 61, 3)), ("high", (53, 30, 3))]:
    Image.fromarray(draw.integers(64, 192, shape, dtype=numpy.uint8)).save(out / f"{name}.png")
    for interpolation in ("bilinear", "bicubic"):
        for side, crop_pct in [(8, 0.9), (16, 0.875), (17, 1.0), (24, 0.95)]:
            transform = create_transform(
                (3, side, side), interpolation=interpolation, crop_pct=crop_pct,
                mean=MEAN.ravel().tolist(), std=STD.ravel().tolist(),
            )
            numbers = transform(Image.open(out / f"{name}.png").convert("RGB")).numpy()
            levels = ((numbers * STD + MEAN) * 255).round().astype(numpy.uint8)
            # The levels are all that there is to the numbers.
            assert numpy.allclose(numbers, (levels / 255 - MEAN) / STD, atol=1e-5)
            golden[f"{name} {interpolation} {side} {crop_pct}"] = levels.tobytes().hex()
(out / "crop.json").write_text(json.dumps(golden, indent=0) + "\n")
