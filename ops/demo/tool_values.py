"""Values that users name and calls must copy: cities, people, texts and the like, one in ten kept out of training.

Most are made up from syllables or put together from parts: a model that has seen each value only once or twice has to
learn to copy, and can copy what it has never seen.
"""

import random
import zlib
from collections.abc import Callable

from facts import CAPITALS, DAYS
from stories import FOODS, HE, KINDS, SHE, THINGS, article

HELD_VALUE_ONE_IN = 10


def _items(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(separator))


CITIES = tuple(city for _, city in CAPITALS) + _items(
    "New York, Los Angeles, Chicago, Houston, Boston, Seattle, Denver, Miami, Dallas, Portland, San Francisco,"
    "San Diego, Las Vegas, New Orleans, Toronto, Montreal, Vancouver, Calgary, Hamburg, Munich, Cologne, Frankfurt,"
    "Stuttgart, Leipzig, Dresden, Bremen, Hanover, Lyon, Marseille, Nice, Bordeaux, Toulouse, Lille, Nantes, Milan,"
    "Naples, Turin, Venice, Florence, Bologna, Genoa, Palermo, Barcelona, Valencia, Seville, Bilbao, Malaga, Granada,"
    "Porto, Braga, Manchester, Liverpool, Leeds, Bristol, York, Oxford, Cambridge, Glasgow, Aberdeen, Belfast, Cork,"
    "Galway, Bergen, Gothenburg, Malmo, Turku, Aarhus, Salzburg, Graz, Linz, Zurich, Geneva, Basel, Antwerp, Ghent,"
    "Bruges, Rotterdam, Utrecht, Krakow, Gdansk, Lodz, Brno, Ostrava, Debrecen, Cluj, Varna, Split, Istanbul, Izmir,"
    "Odessa, Lviv, Kazan, Mumbai, Chennai, Kolkata, Delhi, Pune, Lahore, Karachi, Dhaka, Colombo, Osaka, Kyoto, Nagoya,"
    "Sapporo, Kobe, Busan, Incheon, Shanghai, Shenzhen, Wuhan, Chengdu, Hong Kong, Singapore, Manila, Cebu, Sydney,"
    "Melbourne, Perth, Brisbane, Adelaide, Hobart, Auckland, Lagos, Kano, Mombasa, Durban, Cape Town, Casablanca,"
    "Marrakesh, Fez, Alexandria, Luxor, Dubai, Doha, Riyadh, Amman, Beirut, Tel Aviv, Haifa, Baghdad, Basra, Sao Paulo,"
    "Salvador, Recife, Fortaleza, Cordoba, Rosario, Mendoza, Valparaiso, Cusco, Medellin, Cali, Guadalajara, Monterrey,"
    "Puebla, Cancun, Havana, Kingston, San Juan, Panama City, Guatemala City, Honolulu, Anchorage, Phoenix, Atlanta"
)  # fmt: skip
COUNTRIES = tuple(country for country, _ in CAPITALS) + _items(
    "Bolivia, Paraguay, Venezuela, Guyana, Panama, Costa Rica, Nicaragua, Honduras, Guatemala, Jamaica, Haiti, Algeria,"
    "Libya, Sudan, Chad, Niger, Mali, Angola, Zambia, Botswana, Namibia, Uganda, Rwanda, Somalia, Mozambique, Malta,"
    "Cyprus, Albania, Moldova, Belarus, Georgia, Armenia, Jordan, Lebanon, Israel, Yemen, Oman, Qatar, Kuwait, Pakistan,"
    "Bangladesh, Myanmar, Laos, Cambodia, Malaysia, Singapore, Philippines, Taiwan, Fiji, Samoa, Tonga"
)
PEOPLE = HE + SHE + _items(
    "John, Mary, Peter, Susan, David, Laura, Mark, Julia, Robert, Helen, James, Linda, Kevin, Diana, Simon, Olivia, Henry,"
    "Sofia, George, Amelia, Arthur, Grace, Victor, Irene, Steve, Carol, Bob, Jane, Frank, Kate, Ahmed, Fatima, Chen, Wei,"
    "Yuki, Hiro, Priya, Raj, Carlos, Lucia, Pablo, Elena, Ivan, Olga, Lars, Ingrid, Pierre, Camille, Giulia, Marco, Mehmet,"
    "Ayse, Omar, Layla, Dmitri, Nadia, Stefan, Monika, Jan, Eva, Mum, Dad, Grandma, my sister, my brother"
)  # fmt: skip
_STARTS = _items(
    "Ba Be Bo Bra Bri Ca Co Cu Da De Do Dra Du El Fa Fe Fi Ga Go Gra Gu Ha He Ho Hu Ja Jo Ka Ke Ko Kra La Le Li Lo Lu Ma Me"
    " Mi Mo Na Ne No Or Pa Pe Po Pra Qua Ra Re Ri Ro Sa Se Si So Sta Ste Ta Te Tha Ti To Tra Ul Va Ve Vi Vo Wa We Wi Ya Yo"
    " Za Ze Zo Al An Ar As Is Os Um Sha Che Chi Phi Gle Pla Sko Swe",
    " ",
)
_MIDDLES = _items(
    "ba be bi da de di do fa ga go ka ke ki ko la le li lo lu ma me mi mo na ne ni no pa pe ra re ri ro ru sa se si so sta ta"
    " te ti to tra va ve vi za ze lla nde rra nta mbo sso ndi rto lwa",
    " ",
)
_ENDS = _items(
    "burg ville ton ford dam stad ia a o is ur en in on us ana ino ello etta ova grad port field ham by mouth wick sk nia ra"
    " la na ta do no ro lo ne le th ck rd ng st m n r s l",
    " ",
)
UNITS = (
    ("miles", "kilometers"), ("kilometers", "miles"), ("pounds", "kilograms"), ("kilograms", "pounds"),
    ("inches", "centimeters"), ("centimeters", "inches"), ("feet", "meters"), ("meters", "feet"), ("dollars", "euros"),
    ("euros", "dollars"), ("euros", "yen"), ("liters", "gallons"), ("gallons", "liters"), ("ounces", "grams"),
    ("grams", "ounces"), ("hours", "minutes"), ("days", "hours"), ("pounds", "dollars"), ("francs", "euros"),
    ("kilometers", "meters"), ("yards", "meters"), ("cups", "liters"), ("weeks", "days"), ("dollars", "pounds"),
)  # fmt: skip
_DOINGS = (
    "dinner is ready", "I am late", "the train is late", "I will be home soon", "we meet at {n}", "the {thing} is here",
    "I found the {thing}", "please buy {food}", "we need {food}", "I bought {n} {food}", "the meeting is on {day}",
    "I will call on {day}", "the {animal} is in the garden", "thank you for the {thing}", "I like the {food}",
    "see you on {day}", "the {animal} ate the {food}", "I am in {city}", "we are going to {city}", "{name} is here",
    "call {name} back", "the door is open", "happy birthday", "good night", "I miss you", "the {thing} is broken",
)  # fmt: skip


def held_value(value: str) -> bool:
    """Tell whether training never asks a tool about the value."""
    return zlib.crc32(f"value {value}".encode()) % HELD_VALUE_ONE_IN == 0


def _kept(rng: random.Random, held: bool, draw: Callable[[random.Random], str]) -> str:
    while held_value(value := draw(rng)) != held:
        pass
    return value


def made_up(rng: random.Random) -> str:
    """Return a made-up proper name of two to four syllables."""
    middles = "".join(rng.choice(_MIDDLES) for _ in range(rng.choices((0, 1, 2), (40, 45, 15))[0]))
    name = rng.choice(_STARTS) + middles + rng.choice(_ENDS)
    if rng.random() < 0.06:
        name = f"{rng.choice(('New', 'Old', 'San', 'Port', 'Saint', 'Lake', 'North', 'South'))} {name}"
    return name


def _named(real: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(real) if rng.random() < 0.45 else made_up(rng)


def _filled(forms: tuple[str, ...]) -> Callable[[random.Random], str]:
    def draw(rng: random.Random) -> str:
        food, food2 = rng.sample(FOODS, 2)
        return rng.choice(forms).format(
            n=rng.randint(2, 12), thing=rng.choice(THINGS), food=food, food2=food2, day=rng.choice(DAYS),
            animal=rng.choice(KINDS[:22]), city=_CITY(rng), name=_PERSON(rng),
        )  # fmt: skip

    return draw


_CITY, _COUNTRY, _PERSON = _named(CITIES), _named(COUNTRIES), _named(PEOPLE)
_MESSAGE = _filled(_DOINGS)


def city(rng: random.Random, held: bool) -> str:
    """Return a city, real or made up."""
    return _kept(rng, held, _CITY)


def country(rng: random.Random, held: bool) -> str:
    """Return a country, real or made up."""
    return _kept(rng, held, _COUNTRY)


def person(rng: random.Random, held: bool) -> str:
    """Return a person's name, real or made up."""
    return _kept(rng, held, _PERSON)


def message(rng: random.Random, held: bool) -> str:
    """Return a text to send."""
    return _kept(rng, held, _MESSAGE)


def product(rng: random.Random, held: bool) -> str:
    """Return a thing that has a price."""
    return _kept(
        rng,
        held,
        lambda r: article(r.choice(THINGS)) if r.random() < 0.6 else f"{made_up(r)} {r.choice(FOODS)}",
    )


def number(rng: random.Random, held: bool, top: int = 9999) -> int:
    """Return a number of one to four digits."""
    while True:
        n = rng.randint(1, rng.choice([t for t in (20, 99, 999, 9999) if t <= top]))
        if held_value(str(n)) == held or n < 10:
            return n
