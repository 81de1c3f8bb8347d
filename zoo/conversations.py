"""Conversations as text: the templates of LLaVA's language models, and which characters are to be learned.

Source: haotian-liu/LLaVA ``llava/conversation.py`` and ``llava/train/train.py`` (commit c121f04, Apache-2.0) for the
layouts. What is learned is marked while the text is put together; the published code looks for it afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zoo.choices import one_of
from zoo.language_models import TextCodec
from zoo.nn.splice import Image, Piece, Text

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
    """

    text: str
    learn: bool = False


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse what is no conversation.

    Raises:
        ValueError: naming what is wrong.
    """
    if not turns:
        raise ValueError("a conversation has no turns: remove it from the data")
    for i, turn in enumerate(turns):
        if ROLES.get(turn.get("from", "")) != i % 2:
            expected = ("human", "gpt")[i % 2]
            raise ValueError(f"turn {i} of a conversation is from {turn.get('from')!r}, and it is {expected}'s turn")


def render(turns: Sequence[Turn], template: TemplateName, end: str, system: str | None = None) -> list[Part]:
    """A conversation in one of the layouts that language models were trained on.

    Args:
        turns: first of the human, then in turns; an odd number leaves the answer open, to be generated.
        template: ``plain`` (caption behind the image, LLaVA's first stage), ``v1`` (Vicuna 1.1 and later), ``v0``
            (earlier Vicuna), ``llama_2``, or ``chatml`` (SmolLM2, Qwen and others).
        end: the tokenizer's end-of-sequence token.
        system: sentence in front; None takes the layout's own.

    Raises:
        ValueError: for turns that do not alternate, or an unknown layout.
    """
    one_of("conversation", template, tuple(SYSTEM))
    check_turns(turns)
    system = SYSTEM[template] if system is None else system
    parts: list[Part] = []
    if template == "plain":
        return [Part(IMAGE), *(Part(turn["value"].strip() + "\n", True) for turn in turns[1::2])]
    if template == "v0":
        parts.append(Part(f"{system}\n\n"))
        for i, turn in enumerate(turns):  # the sign in front of the human's turn is what an answer stops at
            role = ("Human", "Assistant")[i % 2]
            parts += [Part("### ", True), Part(f"{role}: {turn['value']}\n", bool(i % 2))]
        if len(turns) % 2:
            return [*parts, Part("### "), Part("Assistant:")]
        return [*parts, Part("### ", True)]
    if template == "v1":
        parts.append(Part(f"{system} " if system else ""))
        for i, turn in enumerate(turns):
            if i % 2:
                parts += [Part(" "), Part(f"{turn['value']}{end}", True)]
            else:
                parts.append(Part(f"USER: {turn['value']} ASSISTANT:"))
        return parts
    if template == "llama_2":
        for i, turn in enumerate(turns):
            if i % 2:
                parts += [Part(" "), Part(f"{turn['value']} {end}", True)]
            else:
                head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if i == 0 and system else ""
                parts.append(Part(f"{'<s>' if i else ''}[INST] {head}{turn['value']} [/INST]"))
        return parts
    if system:
        parts.append(Part(f"<|im_start|>system\n{system}<|im_end|>\n"))
    for i, turn in enumerate(turns):
        if i % 2:
            parts += [Part(f"{turn['value']}<|im_end|>", True), Part("\n")]
        else:
            parts.append(Part(f"<|im_start|>user\n{turn['value']}<|im_end|>\n<|im_start|>assistant\n"))
    return parts


def pieces(parts: Sequence[Part], codec: TextCodec, image: int | None, start: bool = True) -> list[Piece]:
    """Parts as ids and image tokens.

    The text between two images is tokenised as one, so that ids are those of the whole text; a token is learned where
    its last character is.

    Args:
        parts: of :func:`render`.
        codec: the tokenizer.
        image: number of the image that ``<image>`` stands for; None where there is none.
        start: whether the tokenizer's beginning-of-sequence id stands in front.

    Raises:
        ValueError: for more than one image, or one that is not there.
    """
    found: list[Piece] = [Text(codec.start)] if start and codec.start else []
    chunks: list[list[Part]] = [[]]
    for part in parts:
        before, *others = part.text.split(IMAGE)
        chunks[-1].append(Part(before, part.learn))
        chunks += [[Part(other, part.learn)] for other in others]
    if len(chunks) > 2:
        raise ValueError(f"a conversation shows {len(chunks) - 1} images; one is supported")
    if len(chunks) == 2 and image is None:
        raise ValueError(f"a conversation has {IMAGE} and no image")
    for number, chunk in enumerate(chunks):
        if number:
            found.append(Image(image or 0))
        text = "".join(part.text for part in chunk)
        if not text:
            continue
        learned = [part.learn for part in chunk for _ in part.text]
        ids, spans = codec.ids_and_spans(text)
        # tokens without characters of their own (a leading space that was added) go with what follows them
        flags = tuple(learned[max(0, min(last, len(learned)) - 1)] for _, last in spans)
        found.append(Text(ids, flags))
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
