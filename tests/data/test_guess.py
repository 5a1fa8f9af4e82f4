"""User, item and time among the columns of other people's logs, and what is never guessed."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyrec.data.guess import Ambiguous, find_columns
from polyrec.data.tables import read_table

N = 120
_random = np.random.default_rng(0)
_user = _random.permutation(np.arange(N) % 12) + 1
_item = _random.integers(0, 15, N)
_day = pd.date_range("2024-01-01 09:30:00", periods=N, freq="7h")
_brand = np.array(["acme", "bolt", "core"])[_item % 3]
# What a column holds; every case below names some of them.
HOLDS = {
    "user": _user,
    "user_text": [f"u-{u}" for u in _user],
    "user2": _random.permutation(np.arange(N) % 12) + 1,
    "item": _item + 100,
    "item2": _random.integers(0, 15, N) + 500,
    "item_name": [f"thing {i}" for i in _item],
    "sku": [f"A{i:03d}B" for i in _item],
    "brand": _brand,
    "seconds": _day.astype("int64") // 10**6 if _day.unit == "us" else _day.astype("int64") // 10**9,
    "ms": (_day.astype("int64") // (10**3 if _day.unit == "us" else 10**6)),
    "iso": _day.strftime("%Y-%m-%dT%H:%M:%S"),
    "day": _day.strftime("%Y-%m-%d"),
    "dotted": _day.strftime("%d.%m.%Y"),
    "us_clock": _day.strftime("%m/%d/%Y %H:%M"),
    "utc": _day.strftime("%Y-%m-%d %H:%M:%S UTC"),
    "compact": _day.strftime("%Y%m%d").astype(int),
    "clock": _day.strftime("%H:%M"),
    "month_day": _day.strftime("%m%d").astype(int),
    "twisted": [["3/4/2024", "4/3/2024", "5/6/2024", "6/5/2024"][n % 4] for n in range(N)],  # day or month first?
    "stars": _random.integers(1, 6, N),
    "flag": _random.integers(0, 2, N),
    "words": np.array(["view", "addtocart", "transaction"])[_random.integers(0, 3, N)],
    "action": _random.integers(0, 4, N),
    "row": np.arange(N),
    "hash": [f"{n * 7919:08x}" for n in range(N)],
    "price": np.round(_random.uniform(1, 90, N), 2),
    "quantity": _random.integers(1, 40, N),
    "zip": (10_000 + 37 * _user),
    "rank": _random.integers(1, 21, N),
    "text": [f"a sentence about {n}" for n in range(N)],
    "rare": [n if n % 30 == 0 else None for n in range(N)],
    "basket": np.arange(N) // 3,
}  # fmt: skip

# (columns and what they hold, expected user, item, time, further expectations)
CASES = [
    ("user:user item:item ts:seconds stars:stars", "user item ts"),
    ("timestamp:ms visitorid:user event:words itemid:item transactionid:rare", "visitorid itemid timestamp"),
    ("session_id:user product:item_name date:day", "session_id product date"),
    ("customer_id:user sku:sku quantity:quantity price:price invoice_date:us_clock", "customer_id sku invoice_date"),
    ("userId:user movieId:item rating:stars timestamp:seconds", "userId movieId timestamp"),
    ("review_id:hash user_id:user_text business_id:item stars:stars useful:quantity text:text date:day",
     "user_id business_id date"),  # Yelp
    ("reviewerID:user_text asin:sku overall:stars unixReviewTime:seconds reviewTime:day",
     "reviewerID asin unixReviewTime"),  # Amazon: the finer of two times that agree
    ("impression_id:row user_id:user time:us_clock news_id:item clicked:flag", "user_id news_id time"),  # MIND
    ("user_id:user item_id:item cat_id:item2 seller_id:item2 brand_id:brand time_stamp:month_day action_type:action",
     "user_id item_id time_stamp"),  # Tmall
    ("userid:user_text timestamp:iso artist:brand track:item", "userid track timestamp"),  # Last.fm
    ("event_time:utc event_type:words product_id:item category_id:item2 brand:brand price:price user_id:user "
     "user_session:basket", "user_id product_id event_time"),
    ("Invoice:basket StockCode:sku Description:item_name Quantity:quantity InvoiceDate:us_clock Price:price "
     "Customer ID:user Country:brand", "Customer ID StockCode InvoiceDate"),
    ("user_id#token:user item_id#token:item rating#float:stars timestamp#float:seconds",
     "user_id item_id timestamp"),  # RecBole, # stands for :, whose types are read as none of the name
    ("KundenNr:user Artikelnummer:sku Bestelldatum:dotted Menge:quantity", "KundenNr Artikelnummer Bestelldatum"),
    ("id_client:user code_article:sku date_achat:day quantité:quantity", "id_client code_article date_achat"),
    ("utilisateur:user_text livre:item note:stars horodatage:iso", "utilisateur livre horodatage"),
    ("id:row uid:user song:item played_at:iso", "uid song played_at"),  # a row number called id
    ("user_id:user item_count:quantity movie:item rank:rank zip_code:zip ts:seconds", "user_id movie ts"),
    ("member:user member_name:user_text item:item item_name:item_name when:iso", "member item when"),  # ids and names
    ("user:user movie:item_shared movieId:item ts:iso", "user movieId ts"),  # two films of one title
    ("user:user item:item date:compact hour:clock", "user item date"),
    ("user:user item:item day:day time:clock", "user item day"),  # a time of day alone is no time
    ("order_id:basket product_id:item order_date:day", "order_id product_id order_date"),  # baskets without a customer
    ("user_id:user user_location:zip poi:item created_at:iso birth_date:compact", "user_id poi created_at"),
    ("k1:user item:item t:iso price:price zip:zip", "k1 item t"),  # the only column of ids that is left
    ("sessionId:user userId:rare itemId:item timeframe:quantity eventdate:day", "sessionId itemId eventdate"),  # Diginetica
    ("t_dat:day customer_id:user_text article_id:sku price:price sales_channel_id:flag", "customer_id article_id t_dat"),
    ("session:user aid:item ts:ms type:action", "session aid ts"),  # Otto
    ("userId:user venueId:item venueCategoryId:brand latitude:price timezoneOffset:zip utcTimestamp:twitter",
     "userId venueId utcTimestamp"),  # Foursquare
    ("user_id:user gmap_id:sku name:user_text time:ms rating:stars text:text", "user_id gmap_id time"),  # Google Local
    ("author:user_text subreddit:item_name created_utc:seconds", "author subreddit created_utc"),  # Reddit
    ("user:user time_stamp:seconds adgroup_id:item pid:flag_word clk:flag", "user adgroup_id time_stamp"),  # Alibaba
    ("id_usuario:user id_producto:sku fecha:dotted importe:price", "id_usuario id_producto fecha"),
    ("member_id:user content_id:item date:day date_time:iso", "member_id content_id date_time"),  # the finer of two
    ("reader:user book:item author:item_writer added:iso", "reader book added"),
    ("user:user content_ref:item watch_time:seconds started_at:iso", "user content_ref started_at"),
    ("k1:user item:item x2:item_writer t:iso", "k1 item t"),  # what each item has one of is no user
    ("k1:basket item:item t:basket_time", "k1 item t"),  # one time for all lines of a basket
]  # fmt: skip
UNDECIDED = [
    ("customer_id:user visitor_id:user2 product:item ts:iso", "user", "--user customer_id or --user visitor_id"),
    ("user:user product_id:item article:item2 ts:iso", "item", "--item product_id or --item article"),
    ("user:user item:item order_date:iso ship_date:month_later", "time", "--time order_date or --time ship_date"),
    ("user:user item:item date:twisted", "time format", "--time-format %d/%m/%Y or --time-format %m/%d/%Y"),
    ("a:user_text b:item_name c:iso", "user", "--user a or --user b"),
    ("user:user item:item started_at:iso finished_at:hours_later", "time", "--time started_at or --time finished_at"),
    ("user:user traid:item x9:item2 ts:iso", "item", "--item traid or --item x9"),
]
HOLDS["hours_later"] = (_day + pd.Timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%S")
HOLDS["item_shared"] = [f"thing {max(i, 3)}" for i in _item]
HOLDS["twitter"] = _day.strftime("%a %b %d %H:%M:%S +0000 %Y")
HOLDS["flag_word"] = np.array(["a_1", "b_2"])[_item % 2]
HOLDS["item_writer"] = np.array(["ann", "ben", "cy", "di"])[_item % 4]
HOLDS["user_born"] = (pd.Timestamp("1980-01-01") + pd.to_timedelta(_user * 99, unit="D")).strftime("%Y-%m-%d")
HOLDS["basket_time"] = _day[np.arange(N) // 3].strftime("%Y-%m-%dT%H:%M:%S")
HOLDS["once"] = [1_700_000_000] * N
HOLDS["month_later"] = (_day + pd.Timedelta(days=40)).strftime("%Y-%m-%d")


def table_of(columns, folder):
    """The columns of a case as a csv, read as one."""
    pairs = [text.split(":") for text in columns.replace("Customer ID", "Customer~ID").split(" ")]
    values = {name.replace("~", " ").replace("#", ":"): HOLDS[kind] for name, kind in pairs}
    pd.DataFrame(values).to_csv(folder / "log.csv", index=False)
    return read_table(folder / "log.csv", "interactions")


@pytest.mark.parametrize(("columns", "expected"), CASES, ids=[c[0].split(" ")[0] + str(n) for n, c in enumerate(CASES)])
def test_columns_are_found(columns, expected, tmp_path):
    """Prevents a model of the wrong columns: a category as the item, a row number as the user, a price as a time."""
    found = find_columns(table_of(columns, tmp_path), "log.csv")
    wanted = expected.replace("Customer ID", "Customer~ID").split(" ")
    assert [found.user, found.item, found.time] == [name.replace("~", " ").replace("#", ":") for name in wanted]


@pytest.mark.parametrize(("columns", "role", "fix"), UNDECIDED, ids=[role for _, role, _ in UNDECIDED])
def test_two_equal_readings_are_never_guessed(columns, role, fix, tmp_path):
    """Prevents that one of two columns that would do alike is taken in silence."""
    table = table_of(columns, tmp_path)
    with pytest.raises(Ambiguous) as error:
        find_columns(table, "log.csv")
    assert (error.value.role, fix in str(error.value)) == (role, True), str(error.value)
    flag, answer = fix.split(" or ")[1].split(" ")
    if role == "time format":
        found = find_columns(table, "log.csv", time_format=answer)
        assert found.reading.format == answer
    else:
        found = find_columns(table, "log.csv", {flag.removeprefix("--"): answer})  # one answer is enough
        assert getattr(found, role) == answer


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("user:user item:item time:clock", "'time' is called a time but holds none .*--time none if the order"),
        ("ts:iso price:price stars:stars", "no column is surely the user .*--user"),
        ("customer_id:row item:item date:day", "'customer_id' seems to be the user but is another one in every row"),
        ("196:user 242:item 3:stars 881250949:seconds", "the first line is no header but a row .'196', '242'"),
    ],
)
def test_what_is_missing_is_named(columns, message, tmp_path):
    """Prevents that the order of lines is taken for time, or a row for a header, without a word."""
    with pytest.raises(ValueError, match=message):
        find_columns(table_of(columns, tmp_path), "log.csv")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("uid:user song:item play_count:quantity", "no column of times: .* a set, .*; say --time row if the lines"),
        ("uid:user song:item price:price", "no column of times: .*; say --time row if the lines"),
        ("uid:user song:item seq:row", "'seq' grows from row to row of a 'uid': say --time seq if it is the order"),
        ("user:user item:item birth_date:user_born", "no column of times: .*; each user has one 'birth_date'"),
        ("user:user item:item timestamp:once", "'timestamp' has one value: the events of a user are a set"),
    ],
)
def test_the_order_of_lines_is_no_time_unless_somebody_says_so(columns, reason, tmp_path):
    """Prevents that the order of lines is taken for time without a word, and one time for all from hiding everything."""
    table = table_of(columns, tmp_path)
    found = find_columns(table, "log.csv")
    assert (found.time, found.reading) == (None, None)
    assert re.search(reason, found.reasons["time"]), found.reasons["time"]
    stated = find_columns(table, "log.csv", {"time": "row"})
    assert (stated.time, stated.reading) == ("__row__", None)
    dated = table_of("user:user item:item ts:seconds", tmp_path)
    assert find_columns(dated, "log.csv", {"time": "none"}).time is None
    assert find_columns(dated.rename_columns(["user", "item", "row"]), "log.csv", {"time": "row"}).time == "row"


def test_times_are_read_as_pandas_reads_them(tmp_path):
    """Prevents days and months from changing places, and a thousandfold of milliseconds."""
    for kind, written in {
        "ms": None,
        "dotted": "%d.%m.%Y",
        "us_clock": "%m/%d/%Y %H:%M",
        "utc": "%Y-%m-%d %H:%M:%S UTC",
    }.items():
        reading = find_columns(table_of(f"user:user item:item time:{kind}", tmp_path)).reading
        assert (reading.format, reading.unit) == (written, "ms" if kind == "ms" else "s")
        stamps = pd.to_datetime(pd.Series(_day)).dt.floor(
            {"ms": "s", "dotted": "D"}.get(kind, "min" if "clock" in kind else "s")
        )
        expected = (stamps - pd.Timestamp(0)).dt.total_seconds()
        np.testing.assert_array_equal(reading.seconds, expected)


def test_of_two_readings_the_one_in_the_order_of_the_file_is_read():
    """Prevents a needless question, or the third of May as the fifth of March, where the lines stand in order of time."""
    days = pd.to_datetime([f"2024-{month:02d}-{day:02d}" for month in (3, 4, 5) for day in range(1, 13)])
    for written, expected in ((days.strftime("%d/%m/%Y"), "%d/%m/%Y"), (days.strftime("%m/%d/%Y"), "%m/%d/%Y")):
        log = pa.table({"user": np.arange(36) % 6, "item": np.arange(36) % 9, "date": list(written)})
        reading = find_columns(log).reading
        assert reading.format == expected
        np.testing.assert_array_equal(reading.seconds, (days - pd.Timestamp(0)).total_seconds())
        with pytest.raises(Ambiguous, match="--time-format"):  # ten lines could be in order by chance
            find_columns(log.slice(0, 10))


def test_the_key_of_an_items_table_is_the_item(tmp_path):
    """Prevents a question that the items table answers, and a flag without effect."""
    table = table_of("user:user product_id:item article:item2 ts:iso", tmp_path)
    assert find_columns(table, keys={"item": ["article", "title"]}).item == "article"
    with pytest.raises(ValueError, match=r"no column 'artikel' \(--item\).*did you mean 'article'"):
        find_columns(table, given={"item": "artikel"})
