"""Conversations: labels against the published way of counting them, and what is cut off at every length."""

import importlib.util
import json
import random
from functools import cache
from pathlib import Path

import pytest
import torch

import zoo
from zoo.language.conversations import IMAGE, TEMPLATES, check_turns, put_image_first, render, to_pieces
from zoo.language.splice import IGNORED, Image, splice
from zoo.language.text_codec import PretrainedCodec
from zoo.language.tiny import character_tokenizer


def talk(*said):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(said)]


OLDER, NEWER = "a space in front of every stretch", "a space at the beginning"


@cache
def vocabulary(spaces):
    """That of LLaMA-2, which comes with a package, in the older and the newer way to treat spaces."""
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    folder = Path(next(iter(importlib.util.find_spec("wordllama").submodule_search_locations)))
    file = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
    if spaces == OLDER:
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **names)
    else:
        model = json.loads(file.read_text())["model"]
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)
    assert len(tokenizer) == 32000
    return PretrainedCodec(tokenizer)


@pytest.fixture(params=[OLDER, NEWER])
def llama(request):
    return vocabulary(request.param)


# ---------------------------------------------------------------- labels by counting


def with_image(tokenizer, text):
    """Ids as LLaVA joins them: the stretches around an image are tokenised apart, -200 stands between them."""
    found = [1]
    for number, stretch in enumerate(text.split(IMAGE)):
        found += [-200] * (number > 0) + tokenizer(stretch)["input_ids"][1:]
    return found


def counted(tokenizer, text, answer_sign, end):
    """Labels as LLaVA's training script counts them (v1, llama_2); None where its count does not add up."""
    whole = with_image(tokenizer, text)
    labels, at = [IGNORED, *whole[1:]], 1
    for turn in text.split(end):
        around = turn.split(answer_sign)
        if len(around) != 2:
            break
        known = len(with_image(tokenizer, around[0] + answer_sign)) - 2
        length = len(with_image(tokenizer, turn))
        if (
            at > 1
            and "[/INST]" not in answer_sign
            and tokenizer("x" + end + "USER")["input_ids"][-2:] != tokenizer("USER")["input_ids"][-2:]
        ):
            known, length = known - 1, length - 1  # newer treatment of spaces
        labels[at : at + known] = [IGNORED] * known
        at += length
    return (whole, labels) if at == len(whole) else (whole, None)


def text_of(turns, template):
    """The layouts once more, as plain strings; empty turns have no sign at their end."""
    system, text = TEMPLATES[template].system, ""
    for i, turn in enumerate(turns):
        said = turn["value"]
        if template == "v1":
            text += ("USER:", "ASSISTANT:")[i % 2] + (f" {said}" + (" ", "</s>")[i % 2] if said else "")
        elif said:
            text += f" {said} </s>" if i % 2 else ("<s>" if i else "") + f"[INST] {said} [/INST]"
    return f"{system} {text}" if template == "v1" else text


def ours(turns, template, codec):
    ids, labels = [], []
    for piece in to_pieces(render(put_image_first(turns), template, "</s>"), codec, 0):
        if isinstance(piece, Image):
            ids, labels = [*ids, -200], [*labels, IGNORED]
        else:
            ids += piece.ids
            labels += [i if learn else IGNORED for i, learn in zip(piece.ids, piece.flags(), strict=True)]
    return ids, labels


ANSWERS = (
    "3", "3 cats", "three", "A cat.", '"Quoted"', "'x'", "(a)", "...", "-5", "  two spaces", "behind  ", "0", "1", " 7",
    "\u00e9t\u00e9", "\u65e5\u672c\u8a9e", "\U0001f600 smile", "\n1. item\n2. item", "1,000.5", "$5", "#", "<b>",
    "\u00b2", "\tTab", "a\n", "\u3000wide", "\u00bd cup",
)  # fmt: skip
QUESTIONS = ("What?", "How many? 3", "<image>\nWhat?", "2", "\u65e5\u672c", "What <image>", "7 <image> 8", " x ")


def conversations():
    rng = random.Random(0)
    yield from ([q, a] for q in QUESTIONS for a in ANSWERS)
    for _ in range(150):
        said = []
        for _ in range(rng.choice([2, 3])):
            said += [rng.choice(QUESTIONS if IMAGE not in "".join(said) else QUESTIONS[:2]), rng.choice(ANSWERS)]
        yield said


@pytest.mark.parametrize(("template", "sign"), [("v1", " ASSISTANT: "), ("llama_2", "[/INST] ")])
def test_labels_are_those_that_llavas_training_counts(llama, template, sign):
    lone = 0
    for said in conversations():
        turns = talk(*said)
        whole, labels = counted(llama.tokenizer, text_of(put_image_first(turns), template), sign, "</s>")
        assert labels is not None, f"the published count fails for {said}"
        assert ours(turns, template, llama) == (whole, labels), said
        lone += labels.count(29871)
    assert lone > 100, "answers that begin with a digit learn the space in front of it"


def test_labels_of_the_first_stage_are_all_that_follows_the_image(llama):
    for answer in ANSWERS:
        ids = with_image(llama.tokenizer, f"{IMAGE}{answer}\n")
        assert ours(talk(f"what is it? {IMAGE}", answer), "plain", llama) == (ids, [IGNORED, IGNORED, *ids[2:]])


def test_labels_of_vicuna_v0_are_those_that_llavas_training_counts(llama):
    """Every turn is tokenised by itself; of a human's, the first two tokens are learned: the sign."""
    for said in conversations():
        turns = put_image_first(talk(*said))
        rounds = [f"### {('Human', 'Assistant')[i % 2]}: {turn['value']}\n" for i, turn in enumerate(turns)]
        header = f"{TEMPLATES['v0'].system}\n\n"
        whole = with_image(llama.tokenizer, header + "".join(rounds) + "### ")
        at = len(with_image(llama.tokenizer, header))
        labels = [IGNORED] * at + whole[at:]
        for i, text in enumerate(rounds):
            length = len(with_image(llama.tokenizer, text))
            if i % 2 == 0:
                labels[at + 2 : at + length] = [IGNORED] * (length - 2)
            at += length
        labels = [IGNORED if i == -200 else label for i, label in zip(whole, labels, strict=False)]
        assert ours(turns, "v0", llama) == (whole, labels), said


@pytest.mark.parametrize(
    "said", [["q", ""], ["q", "a</s>b"], ["q", "x ASSISTANT: y"], ["", "a"], ["q", "a", "", "b"], ["q", "", "r", "b"]]
)
def test_where_the_published_count_fails_answers_are_learned_all_the_same(llama, said):
    text = text_of(talk(*said), "v1")
    whole, labels = counted(llama.tokenizer, text, " ASSISTANT: ", "</s>")
    found, learned = ours(talk(*said), "v1", llama)
    assert found == whole, "the text is the published one"
    answers = [a for a in said[1::2] if a]
    if said == ["q", "", "r", "b"]:
        assert labels == learned, "an empty answer in the middle becomes a part of the question"
    else:
        assert labels is None
    assert llama.tokenizer.decode([i for i in learned if i != IGNORED]).count("</s>") == "".join(
        f"{a}</s>" for a in answers
    ).count("</s>")


# ---------------------------------------------------------------- turns


def test_an_answer_in_front_of_the_first_question_is_left_out():
    turns = talk("", "what?", "a cat")[1:]
    opened = [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]
    assert [turn["from"] for turn in turns] == ["gpt", "human"]
    check_turns(opened)
    for template in TEMPLATES:
        assert render(opened, template, "</s>") == render(opened[1:], template, "</s>")
    for bad, sentence in (
        (opened[:1], "turn 0 of a conversation is from 'gpt', and it is human's turn"),
        ([opened[0], opened[0], opened[1]], "turn 1 of a conversation is from 'gpt', and it is human's turn"),
        ([*opened, opened[0]], "turn 3 of a conversation is from 'gpt', and it is human's turn"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_turns(bad)


# ---------------------------------------------------------------- what is cut off


def by_loops(said, template, codec, most):
    """Labels, and how many answers lost all or some, from the text and the places of the answers in it."""
    text, places = {"v0": f"{TEMPLATES['v0'].system}\n\n", "v1": f"{TEMPLATES['v1'].system} "}.get(template, ""), []
    learned = []  # places of what is learned and belongs to no answer
    for i, value in enumerate(said):
        if template == "plain":
            if i % 2:
                places.append((len(text), len(text) + len(value) + 1))
                text += f"{value}\n"
        elif template == "v0":
            if i:
                places[-1:] = [(*places[-1], (len(text), len(text) + 4))] if i % 2 == 0 else places[-1:]
            if i % 2 or i == 0:
                learned.append((len(text), len(text) + 4))
            text += "### "
            if i % 2:
                learned.append((len(text), len(text) + len("Assistant: ")))
                text += "Assistant: "
                places.append((len(text), len(text) + len(value) + 1))
                text += f"{value}\n"
            else:
                text += f"Human: {value}\n"
        elif i % 2 == 0:
            text += {
                "v1": f"USER: {value} ASSISTANT:",
                "llama_2": f"{'<s>' if i else ''}[INST] {value} [/INST]",
                "chatml": f"<|im_start|>user\n{value}<|im_end|>\n<|im_start|>assistant\n",
            }[template]
        else:
            end = {"v1": "</s>", "llama_2": " </s>", "chatml": "<|im_end|>"}[template]
            if template != "chatml":
                if codec.tokenizer.vocab_size > 1000:
                    learned.append((len(text), len(text) + 1))
                text += " "
            places.append((len(text), len(text) + len(value) + len(end)))
            text += value + end + ("\n" if template == "chatml" else "")
    if template == "v0":
        places[-1] = (*places[-1], (len(text), len(text) + 4))
        text += "### "
    found = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, lasts = found["input_ids"], [max(0, last - 1) for _, last in found["offset_mapping"]]
    front = len(codec.start)

    def stretches(place):
        return [place[:2], *place[2:]]

    labels, left, whole = [IGNORED] * front, [0] * len(places), [0] * len(places)
    for position, (token, last) in enumerate(zip(ids, lasts, strict=True)):
        owner = [n for n, place in enumerate(places) for start, end in stretches(place) if start <= last < end]
        labels.append(token if owner or any(start <= last < end for start, end in learned) else IGNORED)
        for n in owner:
            whole[n] += 1
            left[n] += position + front < most
    lost = sum(n == 0 for n in left)
    return labels[:most], lost, sum(0 < n < m for n, m in zip(left, whole, strict=True))


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", [OLDER, NEWER, "characters"])
def test_answers_that_are_cut_off_are_counted_at_every_length(template, rounds, kind):
    codec = PretrainedCodec(character_tokenizer()) if kind == "characters" else vocabulary(kind)
    said = ["What is it?", "3 cats", "Why?", "Who knows why.", "So?", "(no)"][: 2 * rounds]
    parts = render(talk(*said), template, "</s>")
    parts = [part for part in parts if part.text != IMAGE]  # the plain layout has one always
    sample = to_pieces(parts, codec, None)
    length = sum(len(piece.ids) for piece in sample)
    seen = set()
    for most in [*range(1, length, 3 if kind == "characters" else 1), length]:
        found = splice([sample], None, lambda ids: torch.zeros(*ids.shape, 2), max_length=most)
        labels, lost, partly = by_loops(said, template, codec, most)
        assert found.labels[0].tolist() == labels, (template, most)
        assert (found.answers, found.cut, found.partly_cut) == (rounds, lost, partly), (template, most)
        assert found.cut_share == (lost + partly) / rounds
        seen.add((lost, partly))
    assert {(rounds, 0), (0, 0)} <= seen
    assert any(partly for _, partly in seen)
    assert len({lost for lost, _ in seen}) == rounds + 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_likelihoods_are_of_whole_captions_or_refused(template):
    system = "Look." if template in ("v0", "v1") else None
    settings = {"conversation": template, "system": system, "question": "what?", "vision": "tiny_random"}
    image = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)
    refused, scored = 0, []
    captions = ["a red cat", "a red dog"]
    torch.manual_seed(0)
    model = zoo.create_model("llava_tiny", **settings).eval()
    tokens = model.encode(image)
    whole = model._read(tokens.embeddings, [model._about(caption) for caption in captions]).embeds.shape[1]
    for most in range(20, whole + 5, 5):
        model.max_length = most
        if most < whole:
            with pytest.raises(ValueError, match="max_length cuts 2 captions off"):
                model.log_likelihood(tokens, captions)
            refused += 1
        else:
            scored.append(model.log_likelihood(tokens, captions))
    assert refused
    assert scored
    for found in scored:
        torch.testing.assert_close(found, scored[-1])
        assert (found[0] - found[1]).abs() > 1e-3, "two captions are not equally likely"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_batch_without_any_answer_left_is_refused(template):
    torch.manual_seed(0)
    model = zoo.create_model("llava_tiny", conversation=template, system="", vision="tiny_random")
    turns = talk(f"{IMAGE}\nwhat?", "a cat", "why?", "because")
    batch = {"image": torch.rand(2, 3, 32, 32), "conversation": [turns, turns[:2]]}
    shares = []
    for most in range(17, 180, 5):
        model.max_length = most
        spliced = model._read(model.language_inputs(batch["image"]), batch["conversation"])
        if spliced.cut < 3:
            shares.append(round(model.losses(batch)["answers_cut_off"].item(), 6))
        else:
            with pytest.raises(ValueError, match="all answers are cut off; raise max_length"):
                model.losses(batch)
    assert shares[0] > shares[-1] == 0
    assert len(set(shares)) > 2
    assert sorted(shares, reverse=True) == shares


def test_questions_are_never_cut_off():
    model = zoo.create_model("llava_tiny", conversation="v1", system="", max_length=60, vision="tiny_random")
    image = torch.rand(1, 3, 32, 32)
    turns = talk(f"{IMAGE}\n{'what is this?' * 8}")
    batch = model._read(model.language_inputs(image), [turns], "left")
    words = model.language.text.ids("".join(part.text for part in render(turns, "v1", "</s>", "")).replace(IMAGE, ""))
    assert batch.mask.sum() == len(model.language.text.start) + len(words) + model.spec.num_tokens > 60
    assert len(model.answer(image, [turns], max_new_tokens=2)) == 1
    with pytest.raises(ValueError, match="more than the 256 positions of this language model"):
        model.answer(image, ["what is this? " * 20], max_new_tokens=2)


@pytest.mark.parametrize("template", TEMPLATES)
def test_braces_in_what_is_said_stay_as_they_are(template):
    said = "what is {} {end} {system}?"
    turns = [{"from": "human", "value": said}, {"from": "gpt", "value": f"so {said}"}]
    text = "".join(part.text for part in render(turns, template, "</s>", system="{} {end}"))
    assert text.count(said) == (1 if template == "plain" else 2)
    assert ("{} {end}" in text.replace(said, "")) == (template != "plain")
