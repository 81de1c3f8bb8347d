"""Conversations as text: the templates of LLaVA's language models, with the characters marked that are to be learned.

Source: haotian-liu/LLaVA ``llava/conversation.py`` and ``llava/train/train.py`` (commit c121f04, Apache-2.0) for the
layouts. Here the text to be learned is marked while it is put together. The published code searches for it afterwards;
both find the same tokens in every layout that the published code counts correctly (``plain``, ``v1``, ``llama_2``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zoo.choices import one_of
from zoo.language.splice import Image, Piece, Text
from zoo.language.text_codec import PretrainedCodec

IMAGE = "<image>"
Turn = dict[str, str]  # {"from": "human" or "gpt", "value": text}, as in LLaVA's files
TemplateName = Literal["plain", "v0", "v1", "llama_2", "chatml"]
ROLES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


@dataclass(frozen=True)
class Part:
    """A stretch of text.

    Args:
        text: may hold ``<image>``.
        learn: whether it is to be learned.
        answer: number of the answer that it belongs to. The space in front of an answer belongs to it and is not to be
            learned, except as a part of the first word where the vocabulary has words with their spaces.
        lead: number of characters in front of what is said: the name of the speaker.
    """

    text: str
    learn: bool = False
    answer: int | None = None
    lead: int = 0


@dataclass(frozen=True)
class Template:
    """The layout of a conversation, as a language model was trained on it.

    In all texts ``{}`` stands for what is said, ``{end}`` for the tokenizer's end-of-sequence token, and ``{system}``
    for ``system_block``, or for nothing where there is no system sentence.

    Args:
        question: text of a question.
        answer: parts of an answer, those of ``answer=0`` being counted as one of the answers.
        opening: parts in front of the first question.
        system: the default system sentence; none where it is empty.
        system_block: text of a system sentence, for which ``{system}`` stands in it.
        first_question: text of the first question; None for ``question``.
        empty_question: text of a later question without words; None for ``question``.
        skips_empty_answers: whether an answer without words is left out.
        unanswered: parts behind a last question that is yet to be answered.
    """

    question: str
    answer: tuple[Part, ...]
    opening: tuple[Part, ...] = ()
    system: str = ""
    system_block: str = "{system}"
    first_question: str | None = None
    empty_question: str | None = None
    skips_empty_answers: bool = False
    unanswered: tuple[Part, ...] = ()


CHAT = "A chat between a curious {} and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the {} questions."  # noqa: E501
SPACE = Part(" ", False, 0)
TEMPLATES: dict[str, Template] = {
    # the caption behind the image, LLaVA's first stage: the question is not shown
    "plain": Template(question="", opening=(Part(IMAGE),), answer=(Part("{}\n", True, 0),)),
    # Vicuna before 1.1: the sign in front of the human's turn is what an answer stops at, and belongs to it
    "v0": Template(
        opening=(Part("{system}\n\n"), Part("### ", True)),
        question="Human: {}\n",
        answer=(Part("### ", True), Part("Assistant: {}\n", True, 0), Part("### ", True, 0)),
        unanswered=(Part("### "), Part("Assistant:")),
        system=CHAT.format("human", "human's"),
    ),
    # Vicuna 1.1 and later
    "v1": Template(
        opening=(Part("{system}"),),
        question="USER: {} ASSISTANT:",
        empty_question="USER:ASSISTANT:",
        answer=(SPACE, Part("{}{end}", True, 0)),
        skips_empty_answers=True,
        system=CHAT.format("user", "user's"),
        system_block="{system} ",
    ),
    "llama_2": Template(
        question="<s>[INST] {} [/INST]",
        first_question="[INST] {system}{} [/INST]",
        empty_question="",
        answer=(SPACE, Part("{} {end}", True, 0)),
        skips_empty_answers=True,
        system_block="<<SYS>>\n{system}\n<</SYS>>\n\n",
    ),
    # SmolLM2, Qwen and others
    "chatml": Template(
        opening=(Part("{system}"),),
        question="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        answer=(Part("{}<|im_end|>", True, 0), Part("\n")),
        system_block="<|im_start|>system\n{system}<|im_end|>\n",
    ),
}


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse turns that do not alternate; an answer in front of the first question is allowed.

    Raises:
        ValueError: naming what is wrong.
    """
    if not turns:
        raise ValueError("a conversation has no turns: remove it from the data")
    kept = drop_leading_answer(turns)
    for i, turn in enumerate(kept):
        if ROLES.get(turn.get("from", "")) != i % 2:
            expected, at = ("human", "gpt")[i % 2], i + len(turns) - len(kept)
            raise ValueError(f"turn {at} of a conversation is from {turn.get('from')!r}, and it is {expected}'s turn")


def drop_leading_answer(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Leave out an answer in front of the first question, which answers nothing, as LLaVA's training does."""
    opens = len(turns) > 1 and ROLES.get(turns[0].get("from", "")) == 1
    return turns[1:] if opens else turns


def render(turns: Sequence[Turn], template: TemplateName, end: str, system: str | None = None) -> list[Part]:
    """Write a conversation in a layout that a language model was trained on.

    Args:
        turns: of the human and the model by turns; an odd number leaves the answer open, to be generated. An answer in
            front of the first question is left out.
        template: name of one of the :data:`TEMPLATES`.
        end: the tokenizer's end-of-sequence token.
        system: sentence in front; None takes the layout's own.

    Raises:
        ValueError: for turns that do not alternate, or an unknown layout.
    """
    one_of("conversation", template, tuple(TEMPLATES))
    check_turns(turns)
    layout = TEMPLATES[template]
    system = layout.system if system is None else system
    fields = {"end": end, "system": _fill(layout.system_block, {"system": system}) if system else ""}
    parts = [replace(part, text=_fill(part.text, fields)) for part in layout.opening]
    said = [turn["value"] for turn in drop_leading_answer(turns)]
    for i, value in enumerate(said):
        if i % 2 == 0:
            text = layout.question
            if i == 0 and layout.first_question is not None:
                text = layout.first_question
            elif not value and layout.empty_question is not None:
                text = layout.empty_question
            parts.append(Part(_fill(text, fields | {"": value})))
        elif value or not layout.skips_empty_answers:
            parts += [_of_answer(part, i // 2, fields | {"": value}) for part in layout.answer]
    return [*parts, *(layout.unanswered if len(said) % 2 else ())]


def _of_answer(part: Part, number: int, fields: Mapping[str, str]) -> Part:
    """A part of that answer; what stands in front of what is said is its lead."""
    answer = None if part.answer is None else number
    return Part(_fill(part.text, fields), part.learn, answer, max(0, part.text.find("{}")))


def _fill(text: str, fields: Mapping[str, str]) -> str:
    """Fill in a template in one pass, so that braces in what is said stay as they are."""
    return re.sub(r"\{(system|end|)\}", lambda found: fields[found[1]], text)


def to_pieces(parts: Sequence[Part], codec: PretrainedCodec, image: int | None, start: bool = True) -> list[Piece]:
    """Tokenise the parts of a conversation.

    The text between two images is tokenised in one go, so that the ids are those of the whole text. A token is learned
    if its last character is. A space in front of an answer is a token of its own where the answer begins with a sign
    that the vocabulary has no word for (digits in LLaMA's); it is learned like a space that is part of a word.

    Args:
        parts: of :func:`render`.
        codec: the tokenizer.
        image: index of the image that ``<image>`` stands for; None where there is none.
        start: put the tokenizer's beginning-of-sequence id in front.

    Raises:
        ValueError: for more than one image, or one that is not there.
    """
    found: list[Piece] = [Text(codec.start)] if start and codec.start else []
    chunks: list[tuple[str, list[tuple[bool, int | None]]]] = [("", [])]  # text, and of each character what it is
    for part in parts:
        learn = part.learn or (part.answer is not None and codec.joins_spaces)
        marks = [(learn, part.answer if part.learn and i >= part.lead else None) for i in range(len(part.text))]
        at = 0
        for number, stretch in enumerate(part.text.split(IMAGE)):
            if number:
                chunks.append(("", []))
                at += len(IMAGE)
            text, known = chunks[-1]
            chunks[-1] = (text + stretch, known + marks[at : at + len(stretch)])
            at += len(stretch)
    if len(chunks) > 2:
        raise ValueError(f"a conversation shows {len(chunks) - 1} images; one is supported")
    if len(chunks) == 2 and image is None:
        raise ValueError(f"a conversation has {IMAGE} and no image")
    for number, (text, marks) in enumerate(chunks):
        if number:
            found.append(Image(image or 0))
        if text:
            ids, spans = codec.ids_and_spans(text)
            # tokens without characters of their own (a leading space that was added) go with what follows them
            kinds = [marks[max(0, min(last, len(marks)) - 1)] for _, last in spans]
            found.append(Text(ids, tuple(learn for learn, _ in kinds), tuple(answer for _, answer in kinds)))
    return found


def put_image_first(turns: Sequence[Turn]) -> list[Turn]:
    """Move the image to the beginning of the turn that shows it, on a line of its own."""
    found = []
    for turn in turns:
        value = turn["value"]
        if IMAGE in value:
            value = f"{IMAGE}\n{value.replace(IMAGE, '').strip()}".rstrip() if value.count(IMAGE) == 1 else value
        found.append(dict(turn) | {"value": value})
    return found
