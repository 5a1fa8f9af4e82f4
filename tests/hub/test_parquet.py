"""Tables are looked at before they are read: honest ones pass, however they were written."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyrec.data.saved_tables import read_saved, write_saved
from polyrec.hub.isolated import isolated
from polyrec.hub.parquet import check_table

ROWS = 5000


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "item_id": np.arange(ROWS),
            "price": rng.random(ROWS),
            "title": [f"title {n % 999} é" for n in range(ROWS)],
            "tags": [["a" * (n % 5), None] if n % 3 else None for n in range(ROWS)],
            "unknown": pa.nulls(ROWS),
            "new": rng.random(ROWS) > 0.5,
            "long": ["x" * 9000 if n == 3 else str(n) for n in range(ROWS)],
            "vector": pa.array(list(rng.random((ROWS, 4), dtype=np.float32)), pa.list_(pa.float32(), 4)),
            "genre": pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode(),
            "released": pa.array(np.arange(ROWS), pa.timestamp("us")),
            "code": pa.array([b"abc"] * ROWS, pa.binary(3)),
        }
    )


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_honest_tables_pass(table, tmp_path, version, compression, dictionary):
    """Prevents a catalog of more than one row group, or written by another tool, from being refused when it is loaded."""
    path = tmp_path / "items.parquet"
    options = {"data_page_version": version, "compression": compression, "use_dictionary": dictionary}
    pq.write_table(table, path, row_group_size=2000, write_page_index=dictionary, **options)
    assert check_table(path, "items", ids=True) == ROWS
    pq.write_table(table.slice(0, 0), path, **options)
    assert check_table(path, "items", ids=True) == 0


def test_a_table_may_fill_its_room_and_no_byte_more(tmp_path, monkeypatch):
    """Prevents a limit that is off by one value, and a sum of texts that ends before the last row group."""
    path = tmp_path / "items.parquet"

    def check(room: int, ids: bool = False) -> int:
        monkeypatch.setattr("polyrec.hub.parquet.allowance", lambda _: room)
        return check_table(path, "items.parquet", ids=ids)

    pq.write_table(pa.table({"title": ["a" * 100] * 1000}), path, row_group_size=400)
    assert check(100_000) == 1000
    for limit in (99_999, 80_000, 40_000):  # 1,000 texts; two groups; one group
        with pytest.raises(ValueError, match=f"texts repeat to more than {limit:,} bytes"):
            check(limit)
    pq.write_table(pa.table({"price": np.random.default_rng(0).random(1000)}), path, use_dictionary=False)
    size = pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    assert check(size) == 1000
    with pytest.raises(ValueError, match=f"would become 1,000 rows and {size:,} bytes"):
        check(size - 1)
    pq.write_table(pa.table({"new": [True] * 8000}), path)  # packed on disk, a byte each in memory
    assert check(8000) == 8000
    with pytest.raises(ValueError, match="8,000 rows and 8,000 bytes"):
        check(7999)
    monkeypatch.setattr("polyrec.hub.parquet._ROWS_PER_BYTE", 0)
    pq.write_table(pa.table({"new": [True] * (1 << 16)}), path)
    assert check(1 << 20, ids=True) == 1 << 16
    pq.write_table(pa.table({"new": [True] * ((1 << 16) + 1)}), path)
    assert check(1 << 20) == (1 << 16) + 1
    with pytest.raises(ValueError, match="65,537 rows"):
        check(1 << 20, ids=True)


def test_damaged_tables_are_refused_by_name(table, tmp_path):
    """Prevents errors of pyarrow and numpy that tell nobody which file to download again."""
    path = tmp_path / "items.parquet"
    pq.write_table(table.slice(0, 50), path)
    raw, rng = path.read_bytes(), random.Random(0)
    refused: list[str] = []
    pages = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    for _ in range(300):  # of the pages: pyarrow itself does not survive every change of a footer
        changed = bytearray(raw)
        for _ in range(3):
            changed[rng.randrange(4, pages)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            check_table(path, "items.parquet", ids=True)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all("items.parquet" in said for said in refused)


def test_no_changed_footer_ends_the_process(table, tmp_path):
    """pyarrow itself does not survive every change of a footer, which took the process along."""
    path, rng = tmp_path / "items.parquet", random.Random(1)
    write_saved(table.select(["item_id", "title", "tags"]).slice(0, 50), path)
    raw = path.read_bytes()
    begin = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    refused, wrong, whole = 0, 0, read_saved(path, "items")

    def read() -> bool:
        check_table(path, "items.parquet", ids=True)
        return read_saved(path, "items").equals(whole)

    for _ in range(30):
        changed = bytearray(raw)
        for _ in range(3):
            changed[rng.randrange(begin, len(raw) - 8)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            wrong += not isolated(read, "items.parquet", 1 << 32)
        except ValueError:
            refused += 1
    assert refused > 15
    assert wrong < 10  # names and types have no checksum of their own; the manifest has


def test_values_of_saved_tables_have_checksums(table, tmp_path):
    """A changed value in a run of an earlier version, or in a file that is read by itself, passed without a word."""
    path, rng = tmp_path / "items.parquet", random.Random(2)
    write_saved(table.select(["item_id", "price"]).slice(0, 500), path)
    raw, whole = path.read_bytes(), read_saved(path, "items")
    end, refused = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little"), 0
    for _ in range(100):
        changed = bytearray(raw)
        changed[rng.randrange(4, end)] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            check_table(path, "items.parquet", ids=True)
            assert read_saved(path, "items").equals(whole)
        except ValueError:
            refused += 1
    assert refused > 50


def test_values_that_grow_from_their_neighbours_are_refused(tmp_path):
    """Prevents a long text that is repeated by reference (delta encoding) from being unpacked before it is counted."""
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"t": ["a" * 1000] * 10}), path, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    with pytest.raises(ValueError, match="stored in a way that polyrec does not write"):
        check_table(path, "items.parquet", ids=False)
