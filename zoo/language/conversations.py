"""Conversations as text: the templates of LLaVA's language models, and which characters are to be learned.

Source: haotian-liu/LLaVA ``llava/conversation.py`` and ``llava/train/train.py`` (commit c121f04, Apache-2.0) for the
layouts. What is learned is marked while the text is put together; the published code looks for it afterwards, and both
find the same tokens in every layout that it counts rightly (``plain``, ``v1``, ``llama_2``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo.choices import one_of
from zoo.language.splice import Image, Piece, Text
from zoo.language.text_codec import PretrainedCodec

IMAGE = "<image>"
Turn = dict[str, str]  # {"from": "human" or "gpt", "value": text}, as in LLaVA's files
TemplateName = Literal["plain", "v0", "v1", "llama_2", "chatml"]
CHAT = "A chat between a curious {} and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the {} questions."  # noqa: E501
SYSTEM: dict[str, str] = {
    "plain": "",
    "v0": CHAT.format("human", "human's"),
    "v1": CHAT.format("user", "user's"),
    "llama_2": "",
    "chatml": "",
}
ROLES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


@dataclass(frozen=True)
class Part:
    """A stretch of text.

    Args:
        text: may hold ``<image>``.
        learn: whether it is to be learned.
        answer: number of the answer that it belongs to. What does not have to be learned of an answer is the space in
            front of it, which goes with the answer's first word where the vocabulary has words with their spaces.
        lead: characters of an answer's text that come before what is said: the name of who says it.
    """

    text: str
    learn: bool = False
    answer: int | None = None
    lead: int = 0


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse what is no conversation. One that begins with an answer is: see :func:`from_the_question`.

    Raises:
        ValueError: naming what is wrong.
    """
    if not turns:
        raise ValueError("a conversation has no turns: remove it from the data")
    kept = from_the_question(turns)
    for i, turn in enumerate(kept):
        if ROLES.get(turn.get("from", "")) != i % 2:
            expected, at = ("human", "gpt")[i % 2], i + len(turns) - len(kept)
            raise ValueError(f"turn {at} of a conversation is from {turn.get('from')!r}, and it is {expected}'s turn")


def from_the_question(turns: Sequence[Turn]) -> Sequence[Turn]:
    """A conversation without an answer at its beginning, which answers nothing: LLaVA's training leaves it out too."""
    opens = len(turns) > 1 and ROLES.get(turns[0].get("from", "")) == 1
    return turns[1:] if opens else turns


def render(turns: Sequence[Turn], template: TemplateName, end: str, system: str | None = None) -> list[Part]:
    """A conversation in one of the layouts that language models were trained on.

    Args:
        turns: of the human and the model by turns; an odd number leaves the answer open, to be generated. An answer in
            front of the first question is left out.
        template: ``plain`` (caption behind the image, LLaVA's first stage), ``v1`` (Vicuna 1.1 and later), ``v0``
            (earlier Vicuna), ``llama_2``, or ``chatml`` (SmolLM2, Qwen and others).
        end: the tokenizer's end-of-sequence token.
        system: sentence in front; None takes the layout's own.

    Raises:
        ValueError: for turns that do not alternate, or an unknown layout.
    """
    one_of("conversation", template, tuple(SYSTEM))
    check_turns(turns)
    said = [turn["value"] for turn in from_the_question(turns)]
    return LAYOUTS[template](said, end, SYSTEM[template] if system is None else system)


def _plain(said: Sequence[str], end: str, system: str) -> list[Part]:
    return [Part(IMAGE), *(Part(f"{answer}\n", True, i) for i, answer in enumerate(said[1::2]))]


def _v0(said: Sequence[str], end: str, system: str) -> list[Part]:
    """The sign in front of the human's turn is what an answer stops at: it belongs to the answer before it."""
    parts = [Part(f"{system}\n\n")]
    for i, value in enumerate(said):
        if i % 2:
            role = "Assistant: "
            parts += [Part("### ", True), Part(f"{role}{value}\n", True, i // 2, len(role))]
        else:
            parts += [Part("### ", True, i // 2 - 1 if i else None), Part(f"Human: {value}\n")]
    if len(said) % 2:
        return [*parts, Part("### "), Part("Assistant:")]
    return [*parts, Part("### ", True, len(said) // 2 - 1)]


def _v1(said: Sequence[str], end: str, system: str) -> list[Part]:
    """A turn without words has no sign at its end, as published."""
    parts = [Part(f"{system} " if system else "")]
    for i, value in enumerate(said):
        if i % 2 == 0:
            parts.append(Part(f"USER: {value} ASSISTANT:" if value else "USER:ASSISTANT:"))
        elif value:
            parts += [Part(" ", False, i // 2), Part(f"{value}{end}", True, i // 2)]
    return parts


def _llama_2(said: Sequence[str], end: str, system: str) -> list[Part]:
    """A turn without words is left out, as published."""
    parts = []
    for i, value in enumerate(said):
        if i % 2 == 0:
            head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if i == 0 and system else ""
            if value or not i:
                parts.append(Part(f"{'<s>' if i else ''}[INST] {head}{value} [/INST]"))
        elif value:
            parts += [Part(" ", False, i // 2), Part(f"{value} {end}", True, i // 2)]
    return parts


def _chatml(said: Sequence[str], end: str, system: str) -> list[Part]:
    parts = [Part(f"<|im_start|>system\n{system}<|im_end|>\n")] if system else []
    for i, value in enumerate(said):
        if i % 2:
            parts += [Part(f"{value}<|im_end|>", True, i // 2), Part("\n")]
        else:
            parts.append(Part(f"<|im_start|>user\n{value}<|im_end|>\n<|im_start|>assistant\n"))
    return parts


LAYOUTS: dict[str, Callable[[Sequence[str], str, str], list[Part]]] = {
    "plain": _plain, "v0": _v0, "v1": _v1, "llama_2": _llama_2, "chatml": _chatml,
}  # fmt: skip


def pieces(parts: Sequence[Part], codec: PretrainedCodec, image: int | None, start: bool = True) -> list[Piece]:
    """Parts as ids and image tokens.

    The text between two images is tokenised as one, so that ids are those of the whole text; a token is learned where
    its last character is. A space in front of an answer is a token of its own where the answer begins with a sign that
    vocabularies have no word for (digits in LLaMA's): it is learned like the space that is part of a word.

    Args:
        parts: of :func:`render`.
        codec: the tokenizer.
        image: number of the image that ``<image>`` stands for; None where there is none.
        start: whether the tokenizer's beginning-of-sequence id stands in front.

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


def image_first(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation with its image at the beginning of the turn that shows it, on a line of its own."""
    found = []
    for turn in turns:
        value = turn["value"]
        if IMAGE in value:
            value = f"{IMAGE}\n{value.replace(IMAGE, '').strip()}".rstrip() if value.count(IMAGE) == 1 else value
        found.append(dict(turn) | {"value": value})
    return found
