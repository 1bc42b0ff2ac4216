"""Tests read English sentences, whatever the language of the machine is; a test of another one says so itself."""

import os

os.environ["LUBAN_LANG"] = "en"
