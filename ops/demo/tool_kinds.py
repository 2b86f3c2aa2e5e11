"""The kinds of tools that the demo model is trained to call."""

import random
from collections.abc import Callable

import tool_values as values
from facts import CAPITALS, DAYS, MONTHS
from sums import compute
from tools import Kind, Parameter, Slots


def _weather(rng: random.Random, held: bool) -> Slots:
    sky = rng.choice((
        "sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy", "partly cloudy", "light rain", "dry",
        "heavy snow", "hot", "cold", "mild", "warm and dry",
    ))  # fmt: skip
    t: int | float = rng.randint(-15, 40)
    if rng.random() < 0.15:
        t += 0.5
    unit = rng.choice(("celsius", "fahrenheit"))
    return {"c": values.city(rng, held), "sky": sky, "t": t, "unit": unit, "r": rng.choice((
        sky, f"{t} degrees", f"{t} degrees and {sky}", f"{sky}, {t} degrees", f"{sky}, {t} C", f"{t} C and {sky}",
        f"{t}°C, {sky}",
    ))}  # fmt: skip


def _numbers(op: str) -> Callable[[random.Random, bool], Slots]:
    def draw(rng: random.Random, held: bool) -> Slots:
        a, b = values.number(rng, held), values.number(rng, held)
        # Now and then a wrong result: the model is to say what the tool said.
        r = compute(a, op, b) if rng.random() < 0.7 else rng.randint(0, 99999)
        return {"a": a, "b": b, "r": r}

    return draw


def _capital(rng: random.Random, held: bool) -> Slots:
    country = values.country(rng, held)
    known = dict(CAPITALS).get(country)
    return {"x": country, "r": known if known and rng.random() < 0.8 else values.made_up(rng)}


def _time(rng: random.Random, held: bool) -> Slots:
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    r = (
        f"{hour:02}:{minute:02}"
        if rng.random() < 0.7
        else f"{hour % 12 + 1}:{minute:02} {rng.choice(('am', 'pm'))}"
    )
    return {"c": values.city(rng, held), "r": r}


def _convert(rng: random.Random, held: bool) -> Slots:
    source, target = rng.choice(values.UNITS)
    r = rng.choice((rng.randint(1, 9999), round(rng.uniform(0.1, 999), rng.choice((1, 2)))))
    return {"n": values.number(rng, held), "u": source, "v": target, "r": r}


def _phone(rng: random.Random, held: bool) -> Slots:
    r = rng.choice((f"555-{rng.randint(1000, 9999)}", f"{rng.randint(100, 999)} {rng.randint(1000, 9999)}"))
    return {"p": values.person(rng, held), "r": r}


def _price(rng: random.Random, held: bool) -> Slots:
    n = rng.choice((str(rng.randint(1, 900)), f"{rng.randint(1, 99)}.{rng.randint(10, 99)}"))
    r = f"{n} {rng.choice(('euros', 'dollars', 'pounds'))}" if rng.random() < 0.6 else n
    return {"p": values.product(rng, held), "r": r}


def _date(rng: random.Random, held: bool) -> Slots:
    del held
    day, month, year = rng.randint(1, 28), rng.choice(MONTHS), rng.randint(1990, 2060)
    r = rng.choice((
        f"{rng.choice(DAYS)}, {day} {month} {year}", f"{year}-{rng.randint(1, 12):02}-{day:02}", f"{day} {month} {year}",
        f"{rng.choice(DAYS)}",
    ))  # fmt: skip
    return {"r": r}


WEATHER = Kind(
    ("get_weather", "weather", "get_current_weather", "getWeather"),
    ("Get the weather of a city", "Tells the weather", "Current weather in a place", "Get the current weather in a given location"),
    (Parameter("c", ("city", "location", "place"), about="The city"),
     Parameter("unit", ("unit", "units"), choices=("celsius", "fahrenheit"), rare=True)),
    _weather,
    ("What is the weather in {c}?", "What's the weather in {c}?", "How is the weather in {c}?", "What is the weather like in {c}?",
     "What's the weather like in {c}?", "Tell me the weather in {c}.", "Weather in {c}?", "How warm is it in {c}?",
     "Is it raining in {c}?", "How is the weather in {c} today?", "What is the weather in {c} today?",
     "What is the weather like in {c} today?", "Get the weather in {c}.", "Do I need an umbrella in {c}?"),
    "The weather in {c}: {r}.",
    ("weather", "forecast", "result"),
)  # fmt: skip
TIME = Kind(
    ("get_time", "current_time", "getTime"),
    ("Get the time in a city", "Tells the local time", "Current time in a place"),
    (Parameter("c", ("city", "location", "place"), about="The city"),),
    _time,
    ("What time is it in {c}?", "What is the time in {c}?", "Tell me the time in {c}.", "Do you know what time it is in {c}?",
     "What time is it now in {c}?", "How late is it in {c}?", "Time in {c}?"),
    "In {c} it is {r}.",
    ("time", "local_time", "result"),
)  # fmt: skip
_TWO = (("a", "x", "first"), ("b", "y", "second"))


def _two_numbers(type_: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(slot, names, type_) for slot, names in zip("ab", _TWO, strict=True))


ADD = Kind(
    ("add", "sum", "add_numbers"),
    ("Add two numbers", "Adds a and b", "Sum of two numbers", "Adds"),
    _two_numbers("integer"),
    _numbers("+"),
    ("What is {a} plus {b}?", "What is {a} + {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?", "{a} + {b}",
     "What is the sum of {a} and {b}?", "Calculate {a} + {b}.", "What's {a} plus {b}?", "{a} plus {b}"),
    "{a} plus {b} is {r}.",
    ("result", "sum", "value"),
)  # fmt: skip
CAPITAL = Kind(
    ("lookup_capital", "get_capital", "capital_of"),
    ("Find the capital of a country", "Looks up capitals", "Get the capital city"),
    (Parameter("x", ("country", "land", "name"), about="The country"),),
    _capital,
    ("What is the capital of {x}?", "Which city is the capital of {x}?", "Tell me the capital of {x}.", "Name the capital of {x}.",
     "What's the capital of {x}?", "Look up the capital of {x}."),
    "The capital of {x} is {r}.",
    ("capital", "city", "result"),
)  # fmt: skip
TIMER = Kind(
    ("set_timer", "start_timer", "timer"),
    ("Set a timer", "Start a timer that rings after some minutes"),
    (Parameter("n", ("minutes", "duration", "min"), "integer", about="Minutes"),),
    lambda rng, held: {"n": values.number(rng, held, 999)},
    ("Set a timer for {n} minutes.", "Start a timer of {n} minutes.", "Please set a timer for {n} minutes.", "Timer for {n} minutes",
     "Wake me in {n} minutes.", "Set the timer to {n} minutes.", "Can you set a timer for {n} minutes?"),
    "The timer is set for {n} minutes.",
)  # fmt: skip
SEND = Kind(
    ("send_message", "send_text", "message"),
    ("Send a message to somebody", "Send a text", "Sends messages"),
    (Parameter("p", ("to", "recipient", "name"), about="Who gets it"),
     Parameter("t", ("text", "message", "content"), about="What to say")),
    lambda rng, held: {"p": values.person(rng, held), "t": values.message(rng, held)},
    ("Tell {p} that {t}.", 'Send "{t}" to {p}.', 'Send {p} the message "{t}".', "Write to {p}: {t}", "Send a message to {p}: {t}",
     "Let {p} know that {t}.", "Text {p} that {t}.", 'Send the text "{t}" to {p}.'),
    "I sent your message to {p}.",
)  # fmt: skip
CONVERT = Kind(
    ("convert", "convert_units", "conversion"),
    ("Convert an amount to another unit", "Converts units"),
    (Parameter("n", ("amount", "value", "number"), "number"),
     Parameter("u", ("from", "from_unit"), about="Unit of the amount"),
     Parameter("v", ("to", "to_unit"), about="Unit that is wanted")),
    _convert,
    ("Convert {n} {u} to {v}.", "How many {v} are {n} {u}?", "What is {n} {u} in {v}?", "Change {n} {u} into {v}.",
     "How much is {n} {u} in {v}?", "{n} {u} in {v}"),
    "{n} {u} are {r} {v}.",
    ("result", "converted", "value"),
)  # fmt: skip
PRICE = Kind(
    ("get_price", "price", "cost"),
    ("Price of a thing", "Get the price of a product"),
    (Parameter("p", ("product", "item", "name"), about="The product"),),
    _price,
    ("What is the price of {p}?", "How much is {p}?", "How much does {p} cost?", "What does {p} cost?", "Tell me the price of {p}."),
    "The price of {p} is {r}.",
    ("price", "cost", "amount"),
)  # fmt: skip
PHONE = Kind(
    ("get_phone", "find_phone_number", "get_contact"),
    ("Find the phone number of a person", "Looks up phone numbers"),
    (Parameter("p", ("name", "person", "contact"), about="The person"),),
    _phone,
    ("What is the phone number of {p}?", "Find the number of {p}.", "How can I call {p}?", "Tell me the phone number of {p}.",
     "What is {p}'s phone number?"),
    "The phone number of {p} is {r}.",
    ("phone", "number", "result"),
)  # fmt: skip
DATE = Kind(
    ("get_date", "today", "now"),
    ("Get the date of today", "Tells the date", "What day it is"),
    (),
    _date,
    ("What is the date today?", "What day is it today?", "Which day is today?", "Tell me the date.", "What is today's date?"),
    "Today is {r}.",
    ("date", "today", "result"),
)  # fmt: skip
KINDS = (WEATHER, TIME, ADD, CAPITAL, TIMER, SEND, CONVERT, PRICE, PHONE, DATE)
WEIGHTS = (18, 11, 14, 9, 9, 11, 8, 7, 7, 2)
