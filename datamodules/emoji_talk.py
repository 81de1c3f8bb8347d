"""Conversations about emoji: questions whose answers are their names and kinds."""

from dataclasses import dataclass

import torch

from zoo.language.conversations import IMAGE, Turn

NAME = (
    "Which emoji is this?",
    "What does this emoji show?",
    "What can you see in this drawing?",
    "Give this drawing a name.",
    "How would you describe this picture?",
)
CATEGORY = ("Which kind of emoji is it?", "What is it about?", "Where in a list of emoji would you look for it?")
GROUP = ("Which smaller group does it belong to?", "What are its neighbours in a list of emoji called?")


@dataclass(frozen=True)
class Talk:
    """A conversation about each drawing: its name, and in training also its category or sub-category.

    Args:
        said: name, category and sub-category of each drawing of the catalogue.
        vary: draw the questions, and whether there is a second one; otherwise always the first question alone.
    """

    said: list[tuple[str, str, str]]
    vary: bool = False

    def __call__(self, index: int) -> list[Turn]:
        name, category, group = self.said[index]
        turns = _turns(f"{IMAGE}\n{self._one_of(NAME)}", name)
        if self.vary and _draw(2):
            kind, answer = ((CATEGORY, category), (GROUP, group))[_draw(2)]
            turns += _turns(self._one_of(kind), answer.replace("-", " "))
        return turns

    def _one_of(self, questions: tuple[str, ...]) -> str:
        return questions[_draw(len(questions)) if self.vary else 0]


def _turns(question: str, answer: str) -> list[Turn]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))
