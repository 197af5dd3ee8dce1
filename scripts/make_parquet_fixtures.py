#!/usr/bin/env python3
"""Writes tests/fixtures/parquet: the same records as pandas and pyarrow write them, by codec, encoding and layout.

    python scripts/make_parquet_fixtures.py

Needs pandas and pyarrow. `records.json` holds what a reader should see; the other files are Parquet.
"""
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "parquet"

RECORDS = [
    dict(question="What is 2 + 2?", answer="4", context=None, label=1, big=2**53 + 1, score=0.5, flag=True, nothing=None,
         tags=["maths", "easy"], meta=dict(id=7, note=None, lists=[[1, 2], []]),
         messages=[dict(role="user", content="2 + 2?"), dict(role="assistant", content="4")]),
    dict(question="Wie heißt „Straße“ auf 日本語? 🦀", answer="通り\nline \"two\"", context="", label=None, big=-1, score=None, flag=None, nothing=None,
         tags=[], meta=None, messages=[dict(role="system", content="Be brief."), dict(role="user", content="a\tb"), dict(role="assistant", content="")]),
    dict(question="", answer="x" * 300, context="same", label=-3, big=0, score=-1e-3, flag=False, nothing=None,
         tags=None, meta=dict(id=8, note="n", lists=None), messages=[]),
    dict(question="again", answer="x" * 300, context="same", label=2, big=None, score=3.0, flag=True, nothing=None,
         tags=["", "maths"], meta=dict(id=9, note="", lists=[[3]]), messages=[dict(role="user", content="hi"), dict(role="assistant", content=None)]),
]
SCHEMA = pa.schema([
    ("question", pa.string()), ("answer", pa.large_string()), ("context", pa.string()), ("label", pa.int8()), ("big", pa.int64()), ("score", pa.float64()),
    ("flag", pa.bool_()), ("nothing", pa.null()), ("tags", pa.list_(pa.string())),
    ("meta", pa.struct([("id", pa.uint32()), ("note", pa.string()), ("lists", pa.list_(pa.list_(pa.int32())))])),
    ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
])


def without_nulls(value):
    """Nulls inside structs are left out; those of columns and lists stay."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.glob("*"):
        old.unlink()
    table = pa.Table.from_pylist(RECORDS, schema=SCHEMA)

    def write(name, **options):
        pq.write_table(table, OUT / f"{name}.parquet", **options)

    for codec in ("none", "snappy", "gzip", "zstd", "lz4", "brotli"):
        write(codec, compression=codec)
    write("plain", compression="none", use_dictionary=False)
    write("v2_pages", compression="zstd", data_page_version="2.0")
    write("deltas", use_dictionary=False, data_page_version="2.0", column_encoding=dict(
        question="DELTA_BYTE_ARRAY", answer="DELTA_LENGTH_BYTE_ARRAY", label="DELTA_BINARY_PACKED", big="DELTA_BINARY_PACKED", score="BYTE_STREAM_SPLIT"))
    write("old_lists", use_compliant_nested_type=False, version="1.0")
    write("row_groups", row_group_size=1)
    # As pandas writes it without being asked for anything, with an index; a type for each column is its own guess.
    frame = pd.DataFrame([dict(r, tags=None if r["tags"] is None else list(r["tags"])) for r in RECORDS], index=[10, 11, 12, 13])
    frame["context"] = frame["context"].astype("category")
    frame["when"] = pd.Timestamp("2024-02-29T12:30:00")
    frame["price"] = [float("nan"), 1.5, float("inf"), None]
    frame["picture"] = [b"\xff\xd8\xff", b"text", None, b""]
    frame.to_parquet(OUT / "pandas.parquet")
    expected = [{k: (v if v is None else without_nulls(v)) for k, v in r.items()} for r in RECORDS]
    versions = dict(pandas=pd.__version__, pyarrow=pa.__version__)
    rows = ",\n".join("  " + json.dumps(r, ensure_ascii=False) for r in expected)
    (OUT / "records.json").write_text(f'{{"versions": {json.dumps(versions)}, "records": [\n{rows}\n]}}\n', encoding="utf-8")
    print(versions, {f.name: f.stat().st_size for f in sorted(OUT.iterdir())})


if __name__ == "__main__":
    main()
