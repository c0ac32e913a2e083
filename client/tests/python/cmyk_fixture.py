"""Writes ../fixtures/data/cmyk.jpg: four-channel ink colours, as print workflows export them.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install pillow==13.0.0
    /tmp/venv/bin/python client/tests/python/cmyk_fixture.py
"""

import pathlib

from PIL import Image

out = pathlib.Path(__file__).parent.parent / "fixtures" / "data"
Image.new("CMYK", (8, 8), (10, 200, 30, 0)).save(out / "cmyk.jpg")
