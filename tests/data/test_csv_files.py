"""Text files: what pandas.read_csv reads is what we read, and codes keep their digits."""

import io
import warnings

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec import PolyRecProcessor, TaskConfig
from polyrec.data.arrays import numbers
from polyrec.data.csv_files import _end_of_line, read_csv
from polyrec.data.tables import read_table

cells = st.one_of(
    st.sampled_from(
        ["", "NA", "nan", "null", "None", "n/a", "-NaN", "x", "é", "0", "1", "-3", "true", "False", "1e400"]
    ),
    st.sampled_from(["1.5", "2.", ".5", "1e-05", "12E4", "inf", "007", "+7", " 7", "7 ", " 1.5", "0x1F", "1_0", "-0"]),
    st.sampled_from(["9223372036854775807", "2020-01-01", "12:30", "a|b", "1,5"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r", exclude_categories=("Cs", "Cc")), max_size=4),
    st.sampled_from(["a\nb", 'say "x"', "a;b", "\t"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=6), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"])
)
def test_a_csv_is_what_pandas_reads(tmp_path_factory, rows, separator, end):
    """Prevents an empty cell from becoming a value, and quotes, signs and line breaks from moving cells."""
    written = io.StringIO(newline="")
    pd.DataFrame([["k", *row] for row in rows], columns=["k", "one", "two"]).to_csv(
        written, index=False, sep=separator, lineterminator=end, quotechar='"'
    )
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(written.getvalue().encode())
    expected = pd.read_csv(path, sep=separator)
    found = read_table(path, "x")
    assert found.column_names == list(expected.columns)
    assert found.num_rows == len(expected)
    for name in expected.columns:
        ours, theirs = found[name].combine_chunks(), expected[name]
        assert ours.is_null(nan_is_null=True).to_pylist() == theirs.isna().tolist()
        known, wanted = ours.drop_null().to_pylist(), theirs.dropna().tolist()
        if pd.api.types.is_numeric_dtype(theirs) and not pd.api.types.is_bool_dtype(theirs):
            # Numbers, or texts of the same numbers where they may be codes.
            assert [float(v) for v in known] == [float(v) for v in wanted]
            assert pa.types.is_string(ours.type) or not pa.types.is_floating(ours.type) or theirs.dtype == float
        elif pa.types.is_floating(ours.type):  # 1,5, which is a number where no comma separates
            assert separator != ","
            assert known == [float(v.replace(",", ".")) for v in wanted]
        else:
            assert known == wanted


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("encoding", "separator"),
    [("utf-8-sig", ","), ("latin-1", ";"), ("utf-16", "\t"), ("cp1252", "|"), ("utf-8", ";"), ("utf-16-be", ",")],
)
def test_encoding_and_separator_are_found(tmp_path, encoding, separator):
    """Prevents one column named `a;b`, a mark of byte order in a name, and titles with signs for accents."""
    text = f"user_id{separator}title{separator}price\n1{separator}Amélie{separator}4.5\n2{separator}{separator}3.25\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_table(write(tmp_path / "x.csv", text, encoding), "x")
    assert found.to_pydict() == {"user_id": [1, 2], "title": ["Amélie", None], "price": [4.5, 3.25]}


def test_guesses_are_told(tmp_path):
    """Prevents a wrong guess of the encoding, and columns left out, from passing without a word."""
    with pytest.warns(UserWarning, match=r"x.csv is not UTF-8 and is read as Latin-1 .*'Amélie'.* save it as UTF-8"):
        read_csv(write(tmp_path / "x.csv", "a,b\nAmélie,2\n", "latin-1"), "items")
    with pytest.warns(UserWarning, match="items: column 1 of the csv has no name"):
        assert read_csv(write(tmp_path / "y.csv", ",a\n0,5\n1,6\n"), "items").to_pydict() == {"a": [5, 6]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n映画,2\n".encode("shift-jis"), "neither UTF-8 nor Latin-1 .*: save it as UTF-8"),
        ("a,b\nпривет,2\n".encode("cp1251"), "neither UTF-8 nor Latin-1"),
        ("a,b\néé,2\nàà,".encode() + b"\xe9", "UTF-8 in most places but not in all"),
        (b"a;b\n1;2\n3\n", r"header has 2 cells, separated by semicolon, but there is a row of 1: 3\)"),
        (b"a,b\n1,2,3\n", "a row of 3: 1,2,3"),
        (b"", "x.csv is empty"),
        (b"a,a\n1,2\n", "column 'a' occurs more than once"),
        (b"a,b\n", "no rows"),
        (b"a,b", "no rows"),
    ],
)
def test_unreadable_text_is_named(tmp_path, content, message):
    """Prevents a foreign encoding from becoming signs, and a row of other length from being padded."""
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(path, "interactions")


def test_codes_keep_their_digits(tmp_path):
    """Prevents 007 and 7, 12E4 and 120000, and numbers beyond 64 bits from becoming one item."""
    text = "code,large,energy,hour,n,padded\n007,18446744073709551616,12E4,00,1, 5\n7,1,120000,23,2, 6\n,,,,,\n"
    found = read_table(write(tmp_path / "x.csv", text), "x")
    assert found.slice(0, 2).to_pydict() == {
        "code": ["007", "7"],
        "large": ["18446744073709551616", "1"],
        "energy": ["12E4", "120000"],
        "hour": ["00", "23"],
        "n": [1, 2],
        "padded": [" 5", " 6"],
    }
    assert numbers(found["large"].combine_chunks(), "x")[:2].tolist() == [2.0**64, 1.0]


def test_indented_cells_and_decimal_commas(tmp_path):
    """Prevents `a, b` from having a column ` b`, and 4,5 of a German export from being a category."""
    assert read_table(write(tmp_path / "x.csv", "a, b, c\n1, 5, NA\n2, 07, x\n"), "x").to_pydict() == {
        "a": [1, 2],
        "b": ["5", "07"],
        "c": [None, "x"],
    }
    german = read_table(write(tmp_path / "y.csv", "a;b;c\n1;4,5;1,000\n2;3,25;2,000\n"), "x")
    assert german.to_pydict() == {"a": [1, 2], "b": [4.5, 3.25], "c": ["1,000", "2,000"]}
    with pytest.raises(ValueError, match=r"'1,000' but is used as a number \(row 0\): write decimals with a point"):
        numbers(pa.concat_arrays([german["c"].combine_chunks(), pa.nulls(1, pa.string())]), "column 'c'")


def test_a_missing_id_is_refused_and_a_missing_category_is_missing(tmp_path):
    """Prevents a user '' with the events of everybody whose id is missing, and a category ''."""
    events = write(tmp_path / "x.csv", "user_id,item_id,timestamp,device\nu1,a,1,tv\n,b,2,\nu2,c,3,tv\n")
    tasks = [TaskConfig("next_item", "retrieval")]
    with pytest.raises(ValueError, match=r"'user_id' \(user id\) has no value in row 1"):
        PolyRecProcessor.fit(events, tasks=tasks)
    events.write_text(events.read_text().replace("\n,b", "\nu1,b"))
    processor = PolyRecProcessor.fit(events, tasks=tasks, columns={"context": ["device"]})
    assert processor.event_encoders["candidate"]["device"].vocabulary == ["tv"]
    with pytest.raises(ValueError, match="row 1"):
        PolyRecProcessor.fit({"user_id": ["a", " "], "item_id": [1, 2], "timestamp": [1, 2]}, tasks=tasks)


@pytest.mark.parametrize("quoted", [False, True])
def test_a_sample_has_whole_rows_from_several_places(tmp_path, quoted):
    """Prevents cut rows, rows that count twice, and a sample of a file's beginning alone."""
    frame = pd.DataFrame({"n": range(30_000), "text": ['x, "y"\nz' if quoted else "word"] * 30_000})
    frame.to_csv(tmp_path / "x.csv", index=False)
    for table in (read_table(tmp_path / "x.csv", "x", rows=1_001), read_table(tmp_path / "x.csv", "x", rows=90_000)):
        found = table.to_pandas()
        assert found["n"].is_unique
        assert found.equals(frame.iloc[found["n"]].reset_index(drop=True))
    assert len(found) == 30_000
    few = read_table(tmp_path / "x.csv", "x", rows=1_001)["n"].to_numpy()
    assert 400 < len(few) < 2_000
    assert few[0] == 0
    assert quoted or few[-1] == 29_999
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=1_000)
    rows = read_table(tmp_path / "x.parquet", "x", rows=800)["n"].to_numpy()
    assert (len(rows), rows[0], rows[-1]) == (800, 0, 29_099)


def test_an_empty_line_ends_where_it_begins():
    """Prevents the line after an empty one from being shown as the one at fault."""
    assert [_end_of_line(b"\nab\nc", n) for n in range(3)] == [1, 4, None]


def test_files_of_recbole(tmp_path):
    """Prevents a column "user_id:token" that nobody names, and a title that ends so from losing its end."""
    (tmp_path / "log.inter").write_text("user_id:token\titem_id:token\trating:float\n1\t2\t4.5\n")
    assert read_table(tmp_path / "log.inter", "interactions").to_pydict() == {
        "user_id": [1],
        "item_id": [2],
        "rating": [4.5],
    }
    (tmp_path / "log.txt").write_text("user_id item:token\n1,2\n".replace(" ", ","))
    assert read_table(tmp_path / "log.txt", "interactions").column_names == ["user_id", "item:token"]
