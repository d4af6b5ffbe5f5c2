"""The least number of calls that prove an answer, found by trying all ways, with the tools themselves."""

import asyncio
import re
from itertools import chain

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolContext
from aepo_lightning.errors import ToolError
from tests.support.deep_search_reader import Library, answer

URL = re.compile(r"http://[\w.]+/\d+")
CONTEXT = ToolContext(question=Question(question_id="q", messages=(), answers=("x",)), call_index=0)


class Tries:
    """All sequences of searches for one name and of opened addresses, from what a question says."""

    def __init__(self, search, browse, names):
        self.search, self.browse, self.names = search, browse, names
        self.shown = {}

    def call(self, action):
        """Return the pages or beginnings of pages that a call shows."""
        if action not in self.shown:
            self.shown[action] = asyncio.run(self._call(*action))
        return self.shown[action]

    async def _call(self, tool, argument):
        if tool == "search":
            found = await self.search({"query": argument}, CONTEXT)
            return frozenset(piece.split("\n", 1)[1] for piece in found.split("\n\n"))
        try:
            return frozenset([f"{argument}\n{await self.browse({'url': argument}, CONTEXT)}"])
        except ToolError:
            return frozenset()

    def actions(self, question, seen):
        text = "\n".join([question, *seen])
        words = set(re.findall(r"\w+", text))
        named = [name for name in self.names if words.issuperset(name.split()) and name in text]
        return [("search", name) for name in named] + [("browse", url) for url in sorted(set(URL.findall(text)))]

    def least(self, question, right, most):
        """Return the least number of calls after which the answer follows from what was shown; None if above `most`."""
        reached, depth = {frozenset()}, 0
        while depth < most:
            depth += 1
            following = set()
            for seen in reached:
                for action in self.actions(question, seen):
                    after = seen | self.call(action)
                    if after != seen and after not in following:
                        if self.is_proven(question, right, after):
                            return depth
                        following.add(after)
            reached = following
        return None

    def is_proven(self, question, right, seen):
        library = Library()
        for page in sorted(seen):
            library.read(page.split("\n", 1)[1])
        return answer(question, library.settle()) == right


def all_names(pages):
    return sorted(set(chain(page.title for page in pages if page.is_listed)))
