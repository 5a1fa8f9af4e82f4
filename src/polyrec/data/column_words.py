"""What names of columns say in other people's tables: which words stand for a user, an item, a time or feedback."""

from __future__ import annotations

import re


def words_of(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


_WORDS = {
    "user": (
        "user usr uid customer cust client visitor member person people reader listener viewer player reviewer rater "
        "buyer shopper consumer subscriber learner student patient guest passenger profile fullvisitor msno "
        "kunde kunden nutzer benutzer leser utilisateur usager usuario cliente utente",
        "account author household session sess sid sitzung device cookie browser",
        "order basket invoice transaction purchase cart bestellung warenkorb rechnung commande facture panier",
    ),
    "item": (
        "item iid product prod article sku stock book isbn asin movie mid film song track trackid track_uri news video "
        "vid game recipe business venue poi restaurant hotel listing job ad content show episode podcast app beer "
        "anime joke photo question course offer coupon goods good document doc clip place skill exercise problem "
        "artikel produkt buch spiel filme ware produit livre chanson producto articulo prodotto articolo",
        "artist album seller author brand shop store channel publisher playlist parent_asin location page url post "
        "thread story paper art",
        "category cat genre topic theme department kategorie categorie",
    ),
    "time": (
        "timestamp time times ts datetime date unixtime unix eventtime t dt when moment created zeit zeitpunkt "
        "zeitstempel datum uhrzeit heure jour horodatage fecha hora orario",
        "day at on",
    ),
    "rating": (
        "rating stars star score grade vote overall mark evaluation bewertung sterne punkte note etoiles puntuacion "
        "voto calificacion",
    ),
    "event": (
        "event action behavior behaviour interaction activity act type aktion ereignis evenement evento accion "
        "activite",
        "name id user kind",
    ),
    "count": (
        "count cnt plays listens playcount listencount quantity qty scrobbles "
        "menge anzahl quantite cantidad stueck pieces",
    ),
    "duration": (
        "watchtime playtime playduration dwelltime dwell readtime readingtime listeningtime watchduration viewduration "
        "timespent playedtime watchseconds watchms playms playseconds msplayed secondsplayed minutesplayed hours "
        "hoursplayed playhours viewtime staytime sehdauer lesezeit",
    ),
}
# Words of a name that say it is about a role, and not the role itself: `item_count`, `user_age`, `movie_title`.
_ABOUT = words_of(
    "count cnt counts number_of total sum avg average mean median max min num nb n price cost amount rank ranking "
    "position pos slot age gender sex zip zipcode postal postcode plz country city state region language lang category "
    "cat subcategory brand genre genres title name desc description text size weight lat lon latitude longitude email "
    "phone address year month week weekday hour minute birthday group segment level status type kind class flag image "
    "img color colour model version propensity probability prob weight fold split train test order_no line lines row "
    "tags keywords features vector embedding length len duration share ratio pct percent preis prix precio"
)
_NAMES = words_of("name title uri slug label titel nom titre login nick nickname handle")
_AFFIXES = words_of(
    "id ids no nr nummer number numero num key code hash hashed uuid guid pk sk idx index ref the fk enc encoded anon "
    "anonymous masked unique original orig raw"
)
# What a time may be of without being the time of the event.
_OTHER_TIMES = words_of(
    "birth born release released publish published publication register registered registration signup join joined "
    "expiry expires expiration update updated modified delivery shipped last first geburt"
)
_SUFFIX = re.compile(r"(?<=[a-z]{3})(ids?|nr|nummer|number|no|num|code|key|hash|uuid)$")
_TIME_END = re.compile(r"(timestamp|datetime|time|date|datum|zeit|zeitpunkt)$")
_SETS = {role: [words_of(words) for words in tiers] for role, tiers in _WORDS.items()}

POSITIVE_FLAGS = words_of("click clicked clicks clk view viewed watch watched play played read opened open")
EXPOSURES = words_of("impression impressions show shown exposure exposed display displayed served delivered")
VIEWS = words_of(
    "view pv click clicks detail details play listen read visit pageview product_view detail_product_view watch open"
)
AGAINST = words_of(
    "return returned refund refunded dislike unlike hate skip skipped remove removed remove_from_cart cancel cancelled "
    "canceled unfavorite unfollow block report hide ask create upload negative retoure storno"
)
ACTIONS = words_of(
    "buy purchase purchased cart addtocart add_to_cart add transaction checkout order ordered like favorite fav "
    "bookmark wishlist share follow comment download install subscribe rate complete start stop finish"
)
# Words of a column that lists what was before.
HISTORIES = words_of(
    "history histories hist historical sequence seq list prefix previous prev prior past before clicked viewed watched "
    "bought recent verlauf historie historique historial"
)
GENERIC = words_of("type kind name act activity id user")  # words of names that may be of events, or of anything
# Numbers of few values that are no feedback.
NOT_FEEDBACK = words_of(
    "rank ranking position pos slot age price preis prix hour month weekday week year day zip zipcode postal plz index "
    "row line fold split train test weekend holiday rand random mobile size level group segment version gender"
)


def tokens(name: str) -> list[str]:
    """The words of a column's name, in lower case; types of RecBole's files (`user_id:token`) are left out.

    Example:
        >>> tokens("userId"), tokens("Customer ID"), tokens("item_id:token")
        (['user', 'id'], ['customer', 'id'], ['item', 'id'])
    """
    name = re.sub(r":(token|float|token_seq|float_seq)$", "", name.strip())
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    accents = str.maketrans("äöüéèêàâçñíóáúôîïë", "aoueeeaacnioauoiie")
    return [word for word in re.split(r"[^a-z0-9]+", name.lower().translate(accents)) if word]


def strength(role: str, name: str) -> float:
    """How surely a name means a role ("user", "item", "time" ...): 3 by a common word, less by a rarer one, 0 not.

    Example:
        >>> [strength("user", name) for name in ("visitorid", "session_id", "user_age", "song")]
        [3.0, 2.0, 0.0, 0.0]
        >>> [strength("item", name) for name in ("ArtikelNr", "movie_title", "item_count", "category_id")]
        [3.0, 1.5, 0.0, 1.0]
    """
    words = tokens(name)
    if role == "time":
        return _time_strength(words)
    joined, tiers = "".join(words), _SETS[role]
    if role == "duration":
        return 3.0 * any(word in joined for word in tiers[0])
    if role == "event":
        return 3.0 * bool(set(words) & tiers[0] and set(words) <= tiers[0] | tiers[1])
    if role in ("rating", "count"):
        said = joined in tiers[0] or (len(words) > 1 and words[-1] in tiers[0] - {"count", "cnt"})
        return 3.0 * (said and not set(words) & {"avg", "average", "mean", "num", "total", "item", "id"})
    if (whole := _tier(tiers, joined)) or (whole := _tier(tiers, _SUFFIX.sub("", joined))):
        return whole
    named = any(w in _NAMES for w in words[1:])
    kept = [w for w in words if w not in _AFFIXES and not (named and w in _NAMES)]
    if not kept or "of" in kept or words[0] in ("num", "nb", "n", "no"):
        return 0.0
    about = kept[:-1] if _tier(tiers, kept[-1]) == 1.0 else kept
    if any(w in _ABOUT for w in about):
        return 0.0
    found = _tier(tiers, kept[-1]) or _tier(tiers, _SUFFIX.sub("", kept[-1])) or _tier(tiers, "".join(kept))
    other = "item" if role == "user" else "user"
    if found and any(_tier(_SETS[other], w) == 3.0 for w in kept[:-1]):
        found = min(found, 1.0)  # `user_location`
    return found / 2 if named else found


def stem(name: str) -> str:
    """A name without the words that make an id of it.

    Example:
        >>> stem("movieId"), stem("movie")
        ('movie', 'movie')
    """
    return "".join(word for word in tokens(name) if word not in _AFFIXES)


def is_about(name: str) -> bool:
    """Whether a name says that its values are of something, such as a price or a count, and no ids."""
    return any(word in _ABOUT for word in tokens(name))


def _time_strength(words: list[str]) -> float:
    joined = "".join(words)
    if not words or strength("duration", joined) or words[-1] in ("spent", "zone"):
        return 0.0
    first, second = _SETS["time"]
    found = 3.0 if joined in first or any(w in first or _TIME_END.search(w) for w in words) else 0.0
    found = found or 2.0 * (words[-1] in second)
    return 1.0 if found and any(w in _OTHER_TIMES for w in words) else found


def _tier(tiers: list[frozenset[str]], word: str) -> float:
    plural = word[:-1] if len(word) > 3 and word.endswith("s") else word
    return next((float(3 - n) for n, tier in enumerate(tiers) if word in tier or plural in tier), 0.0)
