"""A small grammar of children's stories for the demo corpus."""

import random
from dataclasses import dataclass

HE = (
    "Tom", "Ben", "Max", "Sam", "Leo", "Finn", "Oscar", "Hugo", "Jack", "Otto", "Felix",
    "Theo", "Bruno", "Pip", "Rusty", "Milo", "Toby", "Noah", "Paul", "Karl", "Eddie", "Walter",
)  # fmt: skip
SHE = (
    "Anna", "Lily", "Mia", "Emma", "Rosa", "Clara", "Ella", "Nora", "Lucy", "Ruby", "Daisy",
    "Ivy", "Zoe", "Maya", "Luna", "Hazel", "Alice", "Sara", "Tilly", "Poppy", "Greta", "Martha",
)  # fmt: skip
NAMES = HE + SHE
KINDS = (
    "fox", "bear", "rabbit", "mouse", "cat", "dog", "owl", "frog", "duck", "hedgehog", "squirrel",
    "wolf", "lion", "elephant", "turtle", "horse", "goat", "pig", "penguin", "bee", "deer",
    "badger", "otter", "crow", "monkey", "tiger", "whale", "dragon", "robot", "boy", "girl",
    "king", "queen", "farmer", "baker", "sailor", "wizard", "princess", "knight", "giant",
    "snail", "donkey", "kitten", "puppy", "swan", "teacher", "painter", "child", "bird", "fish",
)  # fmt: skip
TRAITS = (
    "little", "brave", "clever", "shy", "kind", "curious", "hungry", "happy", "lonely", "old",
    "young", "quiet", "funny", "gentle", "lazy", "proud", "small", "friendly", "tired", "cheerful",
)  # fmt: skip
PLACES = (
    "in a green forest", "near a quiet lake", "on a high hill", "in a small village",
    "by the sea", "in a big city", "on a farm", "beside a river", "in a deep valley",
    "in an old castle", "on a small island", "at the edge of a wood", "in a warm garden",
    "under a big oak tree", "in a red house", "near a tall mountain", "in a sunny meadow",
    "behind an old mill", "in a little cottage", "close to the beach",
)  # fmt: skip
THINGS = (
    "red ball", "blue hat", "golden key", "kite", "warm scarf", "silver bell", "little boat",
    "toy train", "green umbrella", "drum", "lantern", "picture book", "wooden spoon", "teddy bear",
    "new shoe", "magic stone", "flute", "yellow cup", "map", "shiny coin", "basket", "paper star",
)  # fmt: skip
FOODS = (
    "apples", "berries", "nuts", "cakes", "carrots", "pears", "cookies", "plums", "honey cakes",
    "cherries", "warm bread", "pancakes",
)  # fmt: skip
SKILLS = (
    "swim", "sing", "dance", "paint", "bake bread", "climb trees", "fly a kite", "play the flute",
    "ride a bike", "read", "row a boat", "juggle", "skate", "grow flowers",
)  # fmt: skip
FEARS = (
    "the dark", "deep water", "loud thunder", "high bridges", "big dogs", "the cold wind",
    "strange noises", "the old cave",
)  # fmt: skip
BUILDS = (
    "a small boat", "a tree house", "a bridge", "a snowman", "a wooden cart", "a sand castle",
    "a birdhouse", "a new door", "a raft", "a warm nest",
)  # fmt: skip
SEARCHED = (
    "under the bed", "behind the door", "in the tall grass", "by the well", "under the old bench",
    "in the barn", "behind the big rock", "along the path", "near the bridge", "in the kitchen",
)  # fmt: skip
TRAPS = ("a deep hole", "a thorn bush", "a muddy ditch", "an old net", "a hollow tree")
TOOLS = ("a long rope", "a strong branch", "a ladder", "a wooden plank")
MORALS = (
    "a good friend is worth more than gold", "it is good to ask for help",
    "sharing makes everyone happy", "it is never too late to try again",
    "small steps lead to big things", "being kind is always right",
    "you are braver than you think", "patience brings sweet fruit", "two are stronger than one",
)  # fmt: skip
PROBLEMS = (
    "lost", "trap", "skill", "fear", "build", "share", "seed", "storm", "gift", "treasure",
    "quarrel", "visit",
)  # fmt: skip


def article(noun: str) -> str:
    """Return the noun with its indefinite article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


@dataclass(frozen=True)
class Cast:
    """Who and where: all that a question about the story can ask for."""

    name: str
    kind: str
    trait: str
    friend: str
    friend_kind: str
    place: str
    problem: str
    thing: str
    he: str
    his: str
    him: str

    @property
    def key(self) -> str:
        """What decides whether the story is held out."""
        return f"story {self.kind} {self.place} {self.problem}"


@dataclass(frozen=True)
class Story:
    """A told story with its cast and its moral."""

    cast: Cast
    paragraphs: tuple[str, ...]
    moral: str

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


def cast(rng: random.Random) -> Cast:
    """Draw a hero, a friend, a place and a problem."""
    kind, friend_kind = rng.sample(KINDS, 2)
    female = rng.random() < 0.5
    if kind in ("boy", "king", "wizard", "knight"):
        female = False
    elif kind in ("girl", "queen", "princess"):
        female = True
    name = rng.choice(SHE if female else HE)
    friend_female = rng.random() < 0.5
    if friend_kind in ("boy", "king", "wizard", "knight"):
        friend_female = False
    elif friend_kind in ("girl", "queen", "princess"):
        friend_female = True
    friend = rng.choice([n for n in (SHE if friend_female else HE) if n != name])
    he, his, him = ("she", "her", "her") if female else ("he", "his", "him")
    return Cast(
        name, kind, rng.choice(TRAITS), friend, friend_kind, rng.choice(PLACES),
        rng.choice(PROBLEMS), rng.choice(THINGS), he, his, him,
    )  # fmt: skip


def _middle(rng: random.Random, c: Cast) -> tuple[list[str], list[str]]:
    """Return the sentences of the problem and those of its solution."""
    one = rng.choice
    n, he, his, him = c.name, c.he, c.his, c.him
    big_he = he.capitalize()
    friend = f"{c.friend} the {c.friend_kind}"
    match c.problem:
        case "lost":
            a, b = rng.sample(SEARCHED, 2)
            return [
                one(
                    (
                        f"One day {n} lost {his} {c.thing}.",
                        f"One morning {n} could not find {his} {c.thing}.",
                    )
                ),
                f"{big_he} looked {a}, but it was not there.",
                one((f"{n} felt very sad.", f"Then {he} began to cry.")),
            ], [
                one((f"Then {friend} came along.", f"Soon {he} met {friend}.")),
                f'"I will help you look," said {c.friend}.',
                f"Together they looked {b}, and there was the {c.thing}!",
            ]
        case "trap":
            return [
                f"One day {n} went for a walk and fell into {one(TRAPS)}.",
                f'"Help! Help!" called {n}, but nobody came for a long time.',
            ], [
                f"At last {friend} heard {him}.",
                f'"Do not worry," said {c.friend}. {c.friend} brought {one(TOOLS)}.',
                f"{big_he} held on tight, and soon {he} was free.",
            ]
        case "skill":
            s = one(SKILLS)
            return [
                f"{n} wanted to learn to {s}.",
                one(
                    (
                        f"{big_he} tried once, but it went wrong.",
                        f"{big_he} tried and tried, but it was hard.",
                    )
                ),
            ], [
                f'{friend} saw this and said, "I can show you how to {s}."',
                f"They practised every {one(('morning', 'evening', 'day'))}.",
                f"After {one(('three', 'five', 'seven', 'ten'))} days {n} could {s} very well.",
            ]
        case "fear":
            f = one(FEARS)
            return [
                f"{n} was afraid of {f}.",
                one(
                    (
                        f"Every night {he} hid under {his} blanket.",
                        f"When the others played, {he} stayed at home.",
                    )
                ),
            ], [
                f'One evening {friend} said, "I was afraid of {f} too. Take my hand."',
                f"They went out together, step by step, and {n} saw that it was not so bad.",
                f"After that {he} was not afraid of {f} any more.",
            ]
        case "build":
            b = one(BUILDS)
            return [
                f"One day {n} wanted to build {b}.",
                f"{big_he} worked all morning, but it fell apart.",
                f'"I will never do it," said {n}.',
            ], [
                f'Then {friend} came and said, "Let us build it together."',
                f"{n} brought the {one(('wood', 'nails', 'stones'))}, and {c.friend} helped.",
                f"In the evening they had built {b}, and it was strong.",
            ]
        case "share":
            f = one(FOODS)
            return [
                f"One day {n} had a big basket of {f}.",
                f"On the way home {he} met {friend}, who was very hungry.",
                f'"I have nothing to eat," said {c.friend}.',
            ], [
                f"{n} thought for a moment, and then {he} gave {c.friend} half of the {f}.",
                "They sat down in the sun and ate together.",
            ]
        case "seed":
            p = one(("an apple tree", "a sunflower", "a rose", "a giant pumpkin", "a bean plant"))
            return [
                f"One spring {n} found a tiny seed and put it into the ground.",
                f"Every day {he} gave it water, but nothing happened.",
                f'"Be patient," said {friend}.',
            ], [
                f"{n} waited and waited, and one morning there was a little green leaf.",
                f"By summer it had become {p}, and everyone came to see it.",
            ]
        case "storm":
            return [
                f"One night there was a big storm, and the wind broke the roof of {n}'s home.",
                f"{n} was cold and wet.",
            ], [
                f"{big_he} walked through the rain and knocked at the door of {friend}.",
                f'"Come in and get warm," said {c.friend}.',
                f"They drank hot {one(('tea', 'soup', 'milk'))}, and in the morning they mended the roof.",
            ]
        case "gift":
            return [
                f"Tomorrow was the birthday of {friend}, and {n} had no gift.",
                f"{big_he} had no money, so {he} did not know what to do.",
            ], [
                f"Then {he} had an idea: {he} made {article(c.thing)} with {his} own hands.",
                f'"This is the best gift of all," said {c.friend}.',
            ]
        case "treasure":
            return [
                f"One day {n} found an old map in a bottle.",
                f'"Let us look for the treasure," {he} said to {friend}.',
                (
                    f"They walked over {one(('hills', 'fields', 'stones'))} and through "
                    f"{one(('the woods', 'a dark cave', 'cold water'))}."
                ),
            ], [
                "At the end of the path there was a wooden box.",
                f"In the box they found {article(c.thing)} and a letter.",
                'The letter said, "The real treasure is the friend beside you."',
            ]
        case "quarrel":
            return [
                f"One day {n} and {friend} both wanted the same {c.thing}.",
                f'"It is mine!" said {n}. "No, it is mine!" said {c.friend}.',
                "They did not speak for a whole day.",
            ], [
                f"In the evening {n} felt lonely and went to see {c.friend}.",
                f'"I am sorry," said {n}. "I am sorry too," said {c.friend}.',
                "From then on they played with it together.",
            ]
        case _:
            return [
                f"{n} wanted to visit {friend}, who lived far away.",
                f"{big_he} packed some {one(FOODS)} and started to walk.",
                f"But soon {he} came to a crossroads and did not know the way.",
            ], [
                f"{one(('An old woman', 'A wise owl', 'A little bird'))} showed {him} the path.",
                f"In the evening {n} saw the light in the window of {c.friend}.",
                f'"I am so glad that you came," said {c.friend}.',
            ]  # fmt: skip


def story(rng: random.Random, c: Cast) -> Story:
    """Tell one story about the cast: opening, problem, solution, ending."""
    one = rng.choice
    who = article(f"{c.trait} {c.kind}")
    opening = one((
        f"Once upon a time there was {who} named {c.name}.",
        f"Once there was {who} called {c.name}.",
        f"Long ago there lived {who} named {c.name}.",
        f"There was once {who} whose name was {c.name}.",
    ))  # fmt: skip
    home = one((
        f"{c.name} lived {c.place}.",
        f"{c.he.capitalize()} lived {c.place}.",
        f"{c.he.capitalize()} had a home {c.place}.",
    ))  # fmt: skip
    problem, solution = _middle(rng, c)
    moral = one(MORALS)
    ending = one((
        f"{c.name} was very happy, and the two stayed friends for ever.",
        f'"Thank you, {c.friend}," said {c.name}, and they both laughed.',
        f"That night {c.name} slept well and dreamed of the next day.",
        f"{c.name} smiled all the way home.",
        "And they lived happily ever after.",
    ))  # fmt: skip
    lesson = one((f"{c.name} learned that {moral}.", f"From that day {c.name} knew that {moral}."))
    return Story(
        c,
        (f"{opening} {home}", " ".join(problem), " ".join((*solution, ending)), lesson),
        moral,
    )
