"""Stories on request, and questions about them."""

import random

from chat import Turns, held_out
from stories import article, cast, story

STORY_PLAIN = (
    "Tell me a story.", "Tell me a short story.", "Write a story.", "Please tell me a story.",
    "Can you tell me a story?", "I want to hear a story.", "Another story, please.",
    "Tell me another story.", "Tell me a bedtime story.", "Once upon a time",
)  # fmt: skip
STORY_ABOUT = (
    "Tell me a story about {}.", "Tell me a story about {}.", "Tell me a short story about {}.",
    "Write a story about {}.", "Write a short story about {}.", "A story about {}, please.",
    "Can you tell me a story about {}?", "Please tell a story about {}.", "Story about {}",
    "I would like a story about {}.", "Make up a story about {}.",
)  # fmt: skip


def told(rng: random.Random, held: bool) -> Turns:
    """A story on request, at times with questions about it."""
    while held_out((c := cast(rng)).key) != held:
        pass
    s = story(rng, c)
    who = article(c.kind)
    topic = rng.choice((
        who, who, who, article(f"{c.trait} {c.kind}"), f"{who} named {c.name}",
        f"{who} and {article(c.friend_kind)}", f"{who} who lives {c.place}",
        f"{c.name} the {c.kind}", f"{c.name} and {c.friend}", c.name,
    ))  # fmt: skip
    ask = rng.choice(STORY_PLAIN) if rng.random() < 0.2 else rng.choice(STORY_ABOUT).format(topic)
    turns = [(ask, s.text)]
    later = [
        (
            rng.choice((f"What is the name of the {c.kind}?", f"What was the {c.kind} called?")),
            f"The {c.kind} is called {c.name}.",
        ),
        (
            rng.choice((f"Who helped {c.name}?", "Who was the friend?", "Who is the friend?")),
            f"The friend is {c.friend} the {c.friend_kind}.",
        ),
        (
            rng.choice((f"Where does {c.name} live?", f"Where did the {c.kind} live?")),
            f"{c.name} lived {c.place}.",
        ),
        (
            rng.choice(("What is the moral of the story?", f"What did {c.name} learn?")),
            f"{c.name} learned that {s.moral}.",
        ),
    ]
    if rng.random() < 0.35:
        turns += rng.sample(later, rng.randint(1, 2))
    return turns
