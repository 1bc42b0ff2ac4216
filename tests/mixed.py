"""A mixed set with a truth to be found: text, number, category and image tell a category and a number."""

import numpy as np

WORDS = {
    "good": ["fine", "great", "lovely"],
    "bad": ["poor", "broken", "awful"],
    "any": ["the", "shoe", "was", "very", "on", "monday"],
}


def rows(count: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [row(rng) for _ in range(count)]


def row(rng: np.random.Generator) -> dict:
    """`returned` follows the words and the brightness; `refund` the price and the shop."""
    mood, bright = rng.choice(["good", "bad"]), bool(rng.integers(2))
    words = [*rng.choice(WORDS["any"], rng.integers(2, 8)), *rng.choice(WORDS[mood], 2)]
    rng.shuffle(words)
    photo = rng.integers(0, 80, (12, 12), dtype=np.uint8)
    if bright:
        photo[3:9, 3:9] += 150
    price, shop = float(rng.normal(50, 15)), str(rng.choice(["north", "south", "west"]))
    return {
        "review": " ".join(words),
        "price": price,
        "shop": shop,
        "photo": photo,
        "returned": "yes" if (mood == "bad") or (bright and rng.random() < 0.5) else "no",
        "refund": 0.5 * price + {"north": 10.0, "south": 0.0, "west": -10.0}[shop] + float(rng.normal(0, 1)),
    }
