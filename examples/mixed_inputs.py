"""Text, a number and a picture in one model with two answers, from plain Python rows. `python examples/mixed_inputs.py`."""

import numpy as np

import luban

rng = np.random.default_rng(0)


def row() -> dict:
    """A shoe: it comes back when the review grumbles; its refund follows the price, its photo tells the colour."""
    bad, dark, price = bool(rng.integers(2)), bool(rng.integers(2)), float(rng.normal(60, 20))
    photo = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8) + (0 if dark else 140)
    words = rng.choice(["awful", "broken", "poor"] if bad else ["lovely", "great", "fine"], 2)
    return {
        "review": f"the shoes were {words[0]} and {words[1]}",
        "price": price,
        "photo": photo.astype(np.uint8),
        "returned": "yes" if bad else "no",
        "refund": price * (0.9 if dark else 0.5) + float(rng.normal(0, 2)),
    }


model = luban.train(
    [row() for _ in range(300)],
    target=["returned", "refund"],
    types={"review": "text"},
    size="nano",
    epochs=12,
    rate=5e-3,
)
for name, output in model.reports["evaluate"].numbers["outputs"].items():
    print(name, {k: round(m["value"], 3) for k, m in output["metrics"].items() if m["value"] is not None})
print(model.predict([row() for _ in range(2)]))
