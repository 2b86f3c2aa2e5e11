"""Tables of plain facts that the demo corpus turns into questions and answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact: phrasings with the slots {x} and {y}, and its (x, y) pairs."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Parse "x: y, x: y" into pairs; keeps the tables below readable."""
    out = []
    for item in text.split(","):
        x, _, y = item.partition(":")
        out.append((x.strip(), y.strip()))
    return tuple(out)


def _both(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Add the mirror image of every pair of a symmetric relation."""
    return pairs + tuple((y, x) for x, y in pairs)


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August",
    "September", "October", "November", "December",
)  # fmt: skip
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth",
    "ninth", "tenth", "eleventh", "twelfth",
)  # fmt: skip

CAPITALS = _pairs(
    "France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon,"
    "England: London, Scotland: Edinburgh, Wales: Cardiff, Ireland: Dublin,"
    "Norway: Oslo, Sweden: Stockholm, Finland: Helsinki, Denmark: Copenhagen,"
    "Iceland: Reykjavik, Austria: Vienna, Switzerland: Bern, Belgium: Brussels,"
    "the Netherlands: Amsterdam, Poland: Warsaw, Hungary: Budapest, Greece: Athens,"
    "Turkey: Ankara, Russia: Moscow, Ukraine: Kyiv, Romania: Bucharest,"
    "Bulgaria: Sofia, Serbia: Belgrade, Croatia: Zagreb, Slovenia: Ljubljana,"
    "Slovakia: Bratislava, the Czech Republic: Prague, Estonia: Tallinn, Latvia: Riga,"
    "Lithuania: Vilnius, Egypt: Cairo, Kenya: Nairobi, Morocco: Rabat, Ghana: Accra,"
    "Nigeria: Abuja, Ethiopia: Addis Ababa, Tunisia: Tunis, Senegal: Dakar,"
    "Japan: Tokyo, China: Beijing, India: New Delhi, South Korea: Seoul,"
    "Thailand: Bangkok, Vietnam: Hanoi, Nepal: Kathmandu, Indonesia: Jakarta,"
    "Iran: Tehran, Iraq: Baghdad, Mongolia: Ulaanbaatar, Canada: Ottawa,"
    "the United States: Washington, Mexico: Mexico City, Cuba: Havana, Brazil: Brasilia,"
    "Argentina: Buenos Aires, Chile: Santiago, Peru: Lima, Colombia: Bogota,"
    "Uruguay: Montevideo, Ecuador: Quito, Australia: Canberra, New Zealand: Wellington"
)

RELATIONS: dict[str, Relation] = {
    "capital": Relation(
        (
            "What is the capital of {x}?",
            "What is the capital city of {x}?",
            "Which city is the capital of {x}?",
            "Tell me the capital of {x}.",
            "Name the capital of {x}.",
            "Do you know the capital of {x}?",
            "Can you tell me the capital of {x}?",
            "What's the capital of {x}?",
        ),
        ("The capital of {x} is {y}.",),
        CAPITALS,
    ),
    "country": Relation(
        (
            "{x} is the capital of which country?",
            "Which country has the capital {x}?",
            "What country is {x} the capital of?",
            "Of which country is {x} the capital?",
        ),
        ("{x} is the capital of {y}.",),
        tuple((y, x) for x, y in CAPITALS),
    ),
    "colour": Relation(
        (
            "What colour is {x}?",
            "What color is {x}?",
            "Which colour is {x}?",
            "Tell me the colour of {x}.",
            "Do you know what colour {x} is?",
        ),
        ("The colour of {x} is {y}.",),
        _pairs(
            "the sky: blue, the sea: blue, grass: green, a leaf: green, a frog: green,"
            "the sun: yellow, a banana: yellow, a lemon: yellow, a strawberry: red,"
            "a tomato: red, a cherry: red, blood: red, a fire engine: red, snow: white,"
            "milk: white, a cloud: white, a swan: white, a raven: black, coal: black,"
            "the night: black, a carrot: orange, a pumpkin: orange, chocolate: brown,"
            "a brown bear: brown, wood: brown, an elephant: grey, a mouse: grey,"
            "a plum: purple, a pig: pink, a flamingo: pink, gold: yellow, a fox: orange"
        ),
    ),
    "opposite": Relation(
        (
            "What is the opposite of {x}?",
            "What's the opposite of {x}?",
            "Tell me the opposite of {x}.",
            "Which word is the opposite of {x}?",
            "Can you name the opposite of {x}?",
        ),
        ("The opposite of {x} is {y}.",),
        _both(
            _pairs(
                "hot: cold, big: small, fast: slow, happy: sad, day: night, up: down,"
                "left: right, open: closed, old: new, light: dark, hard: soft, wet: dry,"
                "full: empty, high: low, early: late, loud: quiet, rich: poor, near: far,"
                "strong: weak, clean: dirty, long: short, good: bad, true: false,"
                "first: last, thick: thin, inside: outside, hello: goodbye, yes: no"
            )
        ),
    ),
    "sound": Relation(
        (
            "What does {x} say?",
            "What sound does {x} make?",
            "Which sound does {x} make?",
            "Do you know what {x} says?",
        ),
        ("We say that {x} goes {y}.",),
        _pairs(
            "a cow: moo, a dog: woof, a cat: meow, a sheep: baa, a duck: quack,"
            "a pig: oink, a horse: neigh, a lion: roar, a bee: buzz, a snake: hiss,"
            "an owl: hoot, a frog: ribbit, a mouse: squeak, a rooster: cock-a-doodle-doo,"
            "a wolf: howl, a crow: caw"
        ),
    ),
    "baby": Relation(
        (
            "What is a baby {x} called?",
            "What do you call a baby {x}?",
            "What is the name for a young {x}?",
            "How do we call a young {x}?",
        ),
        ("A baby {x} is called a {y}.",),
        _pairs(
            "dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, bear: cub,"
            "pig: piglet, duck: duckling, goose: gosling, hen: chick, frog: tadpole,"
            "kangaroo: joey, deer: fawn, goat: kid, swan: cygnet, lion: cub"
        ),
    ),
    "home": Relation(
        ("Where does {x} live?", "What is the home of {x}?", "Tell me where {x} lives."),
        ("We can say that {x} lives in {y}.",),
        _pairs(
            "a bee: a hive, a bird: a nest, a fox: a den, a rabbit: a burrow,"
            "a horse: a stable, a spider: a web, a fish: the water, a bear: a cave,"
            "a lion: the savanna, a penguin: the cold south, a camel: the desert,"
            "a monkey: the trees, a whale: the ocean, a frog: a pond, a dog: a kennel"
        ),
    ),
    "legs": Relation(
        (
            "How many legs does {x} have?",
            "How many legs has {x} got?",
            "Tell me how many legs {x} has.",
        ),
        ("The number of legs that {x} has is {y}.",),
        _pairs(
            "a dog: 4, a cat: 4, a horse: 4, a cow: 4, a fox: 4, an elephant: 4,"
            "a spider: 8, an ant: 6, a bee: 6, a butterfly: 6, a bird: 2, a hen: 2,"
            "a person: 2, a penguin: 2, a snake: 0, a fish: 0, a crab: 10"
        ),
    ),
    "count": Relation(
        (
            "How many {x} are there?",
            "Tell me how many {x} there are.",
            "What is the number of {x}?",
        ),
        ("There are {y} {x}.",),
        _pairs(
            "days in a week: 7, months in a year: 12, hours in a day: 24,"
            "minutes in an hour: 60, seconds in a minute: 60, days in a year: 365,"
            "weeks in a year: 52, seasons in a year: 4, letters in the alphabet: 26,"
            "planets in our solar system: 8, sides of a triangle: 3, sides of a square: 4,"
            "wheels on a car: 4, wheels on a bicycle: 2, fingers on one hand: 5,"
            "colours in a rainbow: 7, years in a century: 100, eggs in a dozen: 12"
        ),
    ),
    "day after": Relation(
        (
            "Which day comes after {x}?",
            "What day comes after {x}?",
            "What is the day after {x}?",
            "What day follows {x}?",
        ),
        ("The day after {x} is {y}.",),
        tuple((d, DAYS[(i + 1) % 7]) for i, d in enumerate(DAYS)),
    ),
    "day before": Relation(
        (
            "Which day comes before {x}?",
            "What day comes before {x}?",
            "What is the day before {x}?",
        ),
        ("The day before {x} is {y}.",),
        tuple((d, DAYS[i - 1]) for i, d in enumerate(DAYS)),
    ),
    "month after": Relation(
        (
            "Which month comes after {x}?",
            "What month comes after {x}?",
            "What is the month after {x}?",
        ),
        ("The month after {x} is {y}.",),
        tuple((m, MONTHS[(i + 1) % 12]) for i, m in enumerate(MONTHS)),
    ),
    "month before": Relation(
        (
            "Which month comes before {x}?",
            "What month comes before {x}?",
            "What is the month before {x}?",
        ),
        ("The month before {x} is {y}.",),
        tuple((m, MONTHS[i - 1]) for i, m in enumerate(MONTHS)),
    ),
    "month": Relation(
        (
            "What is the {x} month of the year?",
            "Which month is the {x} month?",
            "Name the {x} month of the year.",
        ),
        ("The {x} month of the year is {y}.",),
        tuple(zip(ORDINALS, MONTHS, strict=True)),
    ),
    "planet": Relation(
        (
            "What is the {x} planet from the sun?",
            "Which planet is the {x} from the sun?",
            "Name the {x} planet from the sun.",
        ),
        ("The {x} planet from the sun is {y}.",),
        tuple(zip(ORDINALS[:8], PLANETS, strict=True)),
    ),
    "superlative": Relation(
        ("What is {x}?", "Can you tell me what {x} is?", "Tell me what {x} is."),
        ("It is {y}.", "That is {y}."),
        _pairs(
            "the largest planet: Jupiter, the smallest planet: Mercury,"
            "the red planet: Mars, the planet with big rings: Saturn,"
            "the planet we live on: Earth, the largest ocean: the Pacific Ocean,"
            "the highest mountain: Mount Everest, the largest animal: the blue whale,"
            "the tallest animal: the giraffe, the fastest land animal: the cheetah,"
            "the king of the animals: the lion, the coldest season: winter,"
            "the hottest season: summer, the star closest to us: the sun,"
            "the first letter of the alphabet: the letter A,"
            "the last letter of the alphabet: the letter Z"
        ),
    ),
    "source": Relation(
        ("Where does {x} come from?", "Who gives us {x}?", "Tell me where {x} comes from."),
        ("We get {x} from {y}.",),
        _pairs(
            "milk: cows, honey: bees, wool: sheep, bread: wheat, wine: grapes,"
            "paper: trees, rain: clouds, light: the sun, silk: silkworms, cheese: milk,"
            "chocolate: cocoa beans, sand: old rocks"
        ),
    ),
    "job": Relation(
        ("What does {x} do?", "What is the job of {x}?", "Tell me what {x} does."),
        ("The job of {x} is to {y}.",),
        _pairs(
            "a baker: bake bread, a teacher: teach children, a doctor: help sick people,"
            "a farmer: grow food, a pilot: fly planes, a cook: make meals,"
            "a painter: paint pictures, a gardener: care for plants, a sailor: sail ships,"
            "a firefighter: put out fires, a writer: write books, a singer: sing songs,"
            "a miller: grind wheat, a shepherd: look after sheep, a tailor: make clothes"
        ),
    ),
}  # fmt: skip
