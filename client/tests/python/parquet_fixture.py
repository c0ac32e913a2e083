"""Writes ../fixtures/manifests: manifests in Parquet as pyarrow and pandas save them, each beside the CSV that pandas
makes of the same table, and some that are refused. Regenerate with

    pip install pyarrow==26.0.1 pandas==3.0.6 numpy==2.4.6
    python client/tests/python/parquet_fixture.py
"""

import datetime
import pathlib

import pandas
import pyarrow
import pyarrow.parquet

out = pathlib.Path(__file__).parent.parent / "fixtures" / "manifests"
out.mkdir(exist_ok=True)
files = [f"{index}.png" for index in range(6)]

# Classes: a dictionary of texts, patients as whole numbers, and columns that nobody asks for.
classes = pandas.DataFrame(
    {
        "file": files,
        "patient": pandas.array([7, 7, 8, 9, 10, 11], dtype="Int64"),
        "label": pandas.Categorical(["ill", "healthy", "ill", "ill", "healthy", "healthy"]),
        "embedding": [[0.5, float(index)] for index in range(6)],
        "seen": [datetime.datetime(2024, 1, 1 + index) for index in range(6)],
        "raw": [bytes([index, 255]) for index in range(6)],
    }
)
# Survival: reals, booleans and a nullable text.
survival = pandas.DataFrame(
    {
        "file": files,
        "patient": ["a", "ä", "c", " d ", "e", "f"],
        "time": [1.0, 2.5, 0.125, 3e10, 12.0, 1e-3],
        "event": [True, False, False, True, True, False],
        "bag": ["x", "x", "y", "y", "z", "z"],
    }
)
# Several labels or none of them, missing ones among them; reals as names of patients.
several = pandas.DataFrame(
    {
        "file": files,
        "patient": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "label": ["a;b", None, "b", "a", None, ""],
    }
)
# Numbers as classes, in the narrow types that pandas makes of them.
numbers = pandas.DataFrame({"file": files, "PatientID": [0.1, 0.5, 2, 3, 4, 5], "label": [0, 1, 1, 0, 1, 0]})
numbers = numbers.astype({"PatientID": "float32", "label": "uint8"})

for name, table in [("classes", classes), ("survival", survival), ("several", several), ("numbers", numbers)]:
    table.to_csv(out / f"{name}.csv", index=False)
    table.to_parquet(out / f"{name}-pandas.parquet", index=False)
    arrow = pyarrow.Table.from_pandas(table)
    for codec, options in [
        ("none", {"use_dictionary": False, "row_group_size": 4}),
        ("zstd", {"data_page_version": "2.0"}),
        ("gzip", {"data_page_version": "2.0", "use_dictionary": False}),
        ("snappy", {"version": "1.0", "row_group_size": 1, "write_statistics": False}),
    ]:
        pyarrow.parquet.write_table(arrow, out / f"{name}-{codec}.parquet", compression=codec, **options)

# Refused.
plain = pyarrow.table({"file": files, "patient": files, "label": ["ill"] * 6})
for codec in ["brotli", "lz4"]:
    pyarrow.parquet.write_table(plain, out / f"refused-{codec}.parquet", compression=codec)
for name, values in [
    ("list", [["ill"]] * 6),
    ("record", [{"label": "ill"}] * 6),
    ("bytes", [b"ill"] * 6),
    ("date", [datetime.date(2024, 1, 1)] * 6),
    ("time", [datetime.datetime(2024, 1, 1)] * 6),
    ("decimal", pyarrow.array([1] * 6).cast(pyarrow.decimal128(20))),
    ("null", ["ill", None, "healthy", "ill", "ill", "ill"]),
]:
    table = pyarrow.table({"file": files, "patient": files, "label": values})
    pyarrow.parquet.write_table(table, out / f"refused-{name}.parquet")
pyarrow.parquet.write_table(
    plain, out / "refused-delta.parquet", use_dictionary=False, column_encoding={"label": "DELTA_BYTE_ARRAY"}
)
# Two million rows and one more, of one byte.
many = pyarrow.table({"file": pyarrow.array(["x"]).take(pyarrow.array([0] * 2_000_001))})
pyarrow.parquet.write_table(many, out / "refused-rows.parquet", compression="zstd", row_group_size=3_000_000)
