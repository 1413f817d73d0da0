"""Pairs of a key and a value as JSON, and back.

to json: name=ann; age=31; city=rome                    {"name": "ann", "age": 31, "city": "rome"}
from json: {"name": "ann", "age": 31, "city": "rome"}   name=ann; age=31; city=rome
"""

import json
from random import Random

from .example import Example

KEYS = (
    "name age city color size kind owner street code level group team role rank score price stock "
    "weight height width depth year month day hour room floor phone pet fruit drink food sport "
    "song book job car tool plant shape"
).split()
WORDS = (
    "ann bob carl dora emil fay gus hana ivan june kim leo mia nils olga paul quinn rosa sam tess "
    "rome oslo paris lima cairo delhi tokyo berlin madrid vienna red blue green black white brown "
    "small large round flat soft hard cat dog horse bird fish frog apple grape lemon melon tea "
    "milk juice water bread rice soup tennis chess golf piano drum flute oak rose fern iron wood "
    "glass gold north south east west"
).split()


def _pairs(rng: Random) -> tuple[str, str]:
    """Two to six pairs, as text and as JSON; half the values are words, half 10 to 99."""
    keys = rng.sample(KEYS, rng.randint(2, 6))
    pairs = {key: rng.choice(WORDS) if rng.random() < 0.5 else rng.randint(10, 99) for key in keys}
    return "; ".join(f"{key}={value}" for key, value in pairs.items()), json.dumps(pairs)


def to_json(rng: Random) -> Example:
    text, encoded = _pairs(rng)
    return Example("to_json", f"to json: {text}", encoded)


def from_json(rng: Random) -> Example:
    text, encoded = _pairs(rng)
    return Example("from_json", f"from json: {encoded}", text)
