"""Records in files of other people: JSON, JSONL, CSV and TSV, in UTF-8 or what says that it is not, nothing lost.

A line ends where a line ends: at a line feed, a carriage return or both. What else Unicode breaks lines at (U+2028,
U+2029, U+0085) may stand in any text.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.image_files import shown

TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
SEPARATORS = (",", ";", "\t", "|")
_SAID = re.compile(r"sep=([,;\t|])\s*$")
_BLANK = " \t\r\n\ufeff"  # what JSON takes for blank, and a byte-order mark where files were joined


@dataclass
class Records:
    """The records of a file.

    Args:
        file: as given.
        content: of JSON; a list of records of the other kinds.
        lines: where each record begins, where records have lines.
    """

    file: Path
    content: Any
    lines: list[int] | None = None

    @property
    def is_table(self) -> bool:
        """True for a table, in which all values are text and a missing value is empty text."""
        return self.file.suffix.lower() in TABLES

    def where(self, number: int, what: str = "record") -> str:
        """Name of a record in messages."""
        line = f", line {self.lines[number]}," if self.lines else ""
        return f"{what} {number} of {shown(self.file)}{line}"


def read_records(file: Path) -> Records:
    """The content of a JSON, JSONL, CSV or TSV file, by its ending in small letters or capitals.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: naming the file and the line that cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no annotation file {shown(file)}")
    ending, text = file.suffix.lower(), read_text(file)
    if not text.strip(_BLANK):
        raise ValueError(f"{shown(file)} is empty")
    if ending in TABLES:
        found = list(_rows(text, file, _separator(text, "\t" if ending == ".tsv" else ",")))
    elif ending in LINES:
        lines = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)
        found = [(i, _json(line, f"{shown(file)}, line {i},")) for i, line in lines if line.strip(_BLANK)]
    else:
        return Records(file, _json(text, shown(file), known=ending == ".json"))
    return Records(file, [record for _, record in found], [line for line, _ in found])


def read_text(file: Path) -> str:
    """A file in UTF-8, or in UTF-16 or UTF-32 where its first bytes show that.

    Bytes that are no UTF-8 are kept as Python keeps those of file names, which such bytes may well be; in words they
    are refused later, by :func:`check_words`.

    Raises:
        ValueError: naming the first byte that belongs to no character.
    """
    data = file.read_bytes()
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown(file)} is not {encoding.upper()}: byte {error.start:,}, 0x{data[error.start]:02x}, belongs to no "
            f"character: save it as UTF-8"
        ) from error


def check_words(text: str, where: str) -> None:
    """Refuse what is no text.

    Args:
        text: words that a model is to read.
        where: name of the record.

    Raises:
        ValueError: for bytes of another encoding, and for halves of characters.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            raise ValueError(
                f"{where} holds the byte 0x{code - 0xDC00:02x}, which is not UTF-8, at {_around(text, error.start)}: "
                f"save the file as UTF-8, as iconv -f latin1 -t utf-8 OLD > NEW does for Western European texts"
            ) from error
        raise ValueError(
            f"{where} holds half a character, {shown(text[error.start])}: write the whole one, or remove it"
        ) from error


def _around(text: str, at: int) -> str:
    return f"'{shown(text[max(0, at - 15) : at + 15])}'"


def _separator(text: str, usual: str) -> str:
    """The separator of a table, taken from its header; spreadsheets of many countries write semicolons into .csv."""
    header = next(line for line in io.StringIO(text, newline=None) if line.strip(_BLANK))
    if said := _SAID.match(header):
        return said[1]
    return max((usual, *SEPARATORS), key=lambda sign: (header.count(sign) > 0, sign == usual, header.count(sign)))


def _rows(text: str, file: Path, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and content of each row of a table."""
    # strict, because a quote that is never closed would swallow the rows behind it
    reader, line = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 0
    names: list[str] = []
    while True:
        start = line + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{shown(file)}, line {start}, cannot be read: {error}; put a text with quotes, separators or line "
                f"ends in quotes, and double the quotes inside it"
            ) from error
        line = reader.line_num
        if row is None:
            return
        if not any(field.strip() for field in row):
            continue
        if not names:
            if start == 1 and row == ["sep=", ""]:  # a note to spreadsheets
                continue
            names = [name.strip() for name in row]
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise ValueError(f"{shown(file)} has two columns {shown(twice[0])!r}: rename or remove one")
            continue
        if beyond := [field for field in row[len(names) :] if field]:
            raise ValueError(
                f"{shown(file)}, line {start}, has {len(row)} fields and the header has {len(names)}, so that "
                f"{shown(beyond[0])!r} belongs to none: put a text that holds the separator in quotes"
            )
        yield start, {name: field for name, field in zip(names, row, strict=False) if name}


def _json(text: str, where: str, known: bool = True) -> Any:
    try:
        return json.loads(text.strip(_BLANK), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        hint = "; if every line is a record, let its name end in .jsonl" if error.msg == "Extra data" else ""
        hint = hint if known else "; a table has to end in .csv or .tsv, a file of one record per line in .jsonl"
        raise ValueError(f"{where} is no JSON: {error.msg} at {place}{hint}") from error
    except RecursionError:
        raise ValueError(f"{where} is no JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where} is no JSON that can be read: {str(error).partition(';')[0]}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # the first of two would be lost
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has {next(n for n in names if names.count(n) > 1)!r} twice")
    return found
