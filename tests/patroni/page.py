"""The files and commands of docs/patroni.md, for which an HTML comment before each code block gives a name."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/patroni.md"
BLOCK = re.compile(r"(?:^ *<!-- (?P<name>\S+) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.M | re.S)


class Page:
    def __init__(self):
        self.blocks = {}
        self.used = set()
        for block in BLOCK.finditer(PAGE.read_text()):
            if block["language"] and not block["name"]:
                raise SystemExit(f"{PAGE}: a {block['language']} block has no name: {block['text'].splitlines()[0]}")
            if block["name"]:
                self.blocks[block["name"]] = block["text"].replace("\n" + block["indent"], "\n").removeprefix(block["indent"])

    def text(self, name):
        self.used.add(name)
        return self.blocks[name]

    def must_be_used_up(self):
        unused = self.blocks.keys() - self.used
        if unused:
            raise AssertionError(f"the page has blocks that the test does not run: {', '.join(sorted(unused))}")
