"""Add or change a sentence of the catalogue, keeping it sorted: `python scripts/sentence.py ID "TEXT" [ID "TEXT" ...]`.

Safe when several people's scripts run at once. With no arguments it sorts the file.
"""

import fcntl
import json
import sys
from pathlib import Path

PATH = Path(__file__).parent.parent / "luban" / "messages" / "en.json"


def main(arguments: list[str]) -> None:
    with open(PATH, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sentences = json.load(file)
        for id, text in zip(arguments[::2], arguments[1::2], strict=True):
            sentences[id] = text
        text = json.dumps(dict(sorted(sentences.items())), indent=1, ensure_ascii=False) + "\n"
        file.seek(0)
        file.write(text)
        file.truncate()


if __name__ == "__main__":
    main(sys.argv[1:])
