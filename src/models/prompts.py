"""Text as numbers, and the many ways to ask for a class. It needs no torch: ONNX files are drawn with without it."""

import random
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np

from src.config.types import Share

LENGTH = 128  # characters of a prompt, at most
# As it is typed: signs are not read, and letters can come in several parts. Cleaning a text takes time that grows with
# the square of its length, so that nothing longer is cleaned.
MOST = 4 * LENGTH
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Words around what is asked for. A model mistakes a word that it has never seen for a misspelt name: see for seven.
FILLERS = """
a about above after again against all almost alone along already also always am among an and another any anyone are
around art as ask at away back bad be beautiful because become been before begin behind being believe below best
better between big bit black blue book both bottom bright bring brown but by call came can card careful case change
clean clear close cold color come common complete corner could course create cut dark day deep depict describe did
different display do does done down drawn each early easy edge else empty end enough even ever every everyone exactly
example eye face fact fall far fast few field figure fill find fine fire flat follow for form found free fresh friend
from front full funny gave generate gentle get give go gold good got gray great green ground had half hand hang happy
hard has have he head hear heavy help her here hero high him his hold home hot hour house how huge i idea if im image
imagine in inside into is it its ivory just keep kind know large last late lay lead least leave left less let life
light like line little live lone long look lot love low made main make man many maybe me mean might mine model modern
moment more morning most mouth move much must my name near neat need never new next nice night no noble none normal
north not note nothing now object of off often oh old on once only open or orange order other our out outside over own
page paint pale paper part past people perfect person piece pink place plain play please point portrait possible
present pretty print produce put question quick quite rather read ready real really red render right rough round same
sample saw say scan see seem seen send sentence serious set several shade shadow shape sharp she short should show
side sign silver similar simple since sit size sketch slow small smooth so soft some something somewhat sort space
stand start still stone street strong studio style such sun sure take tall tell texture than that the their them then
there these they thin thing think this those though through thus tight time tiny to together told tone too took tree
true try turn type typical ugly under until up upon us usual very view vivid wait walk wall want warm was water way we
wear weight well went were what when where which while white who whole whose why wide will wine wish with within
without wonder wood word work world would write wrong year yellow yes yet you young your
""".split()  # noqa: SIM905


def clean(prompt: str) -> str:
    """Lower case, letters and digits of any script alone, single spaces: all that a model sees of a prompt.

    Only its first `MOST` characters are looked at.
    """
    text = unicodedata.normalize("NFKC", prompt[:MOST]).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split())


def to_codes(prompts: Sequence[str]) -> np.ndarray:
    """Prompts as code points of their cleaned text, int64 [N, LENGTH], with zeros after the end.

    What is longer is cut: `check_prompts` refuses it.
    """
    codes = np.zeros((len(prompts), LENGTH), np.int64)
    for row, prompt in zip(codes, prompts, strict=True):
        points = [ord(character) for character in clean(prompt)[:LENGTH]]
        row[: len(points)] = points
    return codes


def to_texts(codes: np.ndarray) -> list[str]:
    """The cleaned prompts that codes int64 [N, LENGTH] stand for."""
    return ["".join(map(chr, row[row > 0])) for row in codes]


def n_characters(prompt: str) -> int:
    """The characters of a prompt that count: those of the cleaned text, or all of them where they are too many."""
    return len(clean(prompt)) if len(prompt) <= MOST else len(prompt)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses prompts that are empty or too long.

    Raises:
        ValueError: its text is a sentence without the key.
    """
    for prompt in prompts:
        n = n_characters(prompt)
        if not n:
            raise ValueError(f"{prompt[:40]!r} has no letter and no digit: write what to draw")
        if n > LENGTH:
            raise ValueError(f"{prompt[:40]!r}... has {n} characters, and a prompt has at most {LENGTH}")


class Prompts:
    """Prompts for classes: in training one of many phrasings, a canonical one everywhere else.

    Where the images have captions of their own, training sees these with the same fillers and typos.

    Args:
        names: of each class its name, or several, the canonical one first.
        templates: phrasings with `{}` for the name; none: where training has the images' own captions.
        held_out: phrasings that training never sees.
        fillers: share of the prompts in training with random words around the name.
        typos: share of the prompts in training with a mistake in a word.

    Raises:
        ValueError: a template lacks `{}`, or a name cannot be a prompt.
    """

    def __init__(
        self,
        names: Sequence[str | Sequence[str]],
        templates: Sequence[str] = ("{}",),
        held_out: Sequence[str] = (),
        fillers: Share = 0.5,
        typos: Share = 0.3,
    ) -> None:
        for template in (*templates, *held_out):
            if template.count("{}") != 1:
                raise ValueError(f"templates must have {{}} once, in place of the name, not {template!r}")
        self.names = [[each] if isinstance(each, str) else list(each) for each in names]
        for each in self.names:
            if not each:
                raise ValueError("names must have a name for each class")
            check_prompts(each)
        self.templates = templates
        self.held_out = held_out
        self.fillers = fillers
        self.typos = typos
        taken = {word for each in self.names for name in each for word in clean(name).split()}
        self._fillers = [word for word in FILLERS if word not in taken]

    def canonical(self) -> list[str]:
        """What stands for each class."""
        return [each[0] for each in self.names]

    def phrases(self) -> list[str]:
        """Every plain prompt, without fillers and typos."""
        every = dict.fromkeys(("{}", *self.templates, *self.held_out))
        return [template.replace("{}", name) for template in every for each in self.names for name in each]

    def draw(self, labels: Sequence[int], rng: random.Random) -> list[str]:
        """A prompt for each label, as training sees them."""
        return [self._vary(self.phrase(label, "seen", rng), self._fillers, rng) for label in labels]

    def vary(self, captions: Sequence[str], rng: random.Random) -> list[str]:
        """Cleaned captions as training sees them; empty ones stay, and those that would become too long.

        Their own words are not used as fillers: in a set of coloured balls, "red" means something.
        """
        said = {word for each in captions for word in each.split()}
        fillers = [word for word in self._fillers if word not in said]
        varied = [self._vary(each, fillers, rng) if each else each for each in captions]
        return [new if len(new) <= LENGTH else old for new, old in zip(varied, captions, strict=True)]

    def phrase(self, label: int, kind: Literal["seen", "held_out", "typo"], rng: random.Random) -> str:
        """A plain prompt: `seen` or `held_out` templates, or the latter with a mistake in the name."""
        name = rng.choice(self.names[label])
        if kind == "typo":
            name = misspell(name, rng)
        return rng.choice(self.templates if kind == "seen" else self.held_out).replace("{}", name)

    def _vary(self, prompt: str, fillers: Sequence[str], rng: random.Random) -> str:
        words = prompt.split()
        if rng.random() < self.typos:
            index = rng.randrange(len(words))
            words[index] = misspell(words[index], rng)
        if rng.random() < self.fillers:
            before, after = ([filler(fillers, rng) for _ in range(rng.randrange(6))] for _ in range(2))
            words = [*before, *words, *after]
        return " ".join(words)


def filler(words: Sequence[str], rng: random.Random) -> str:
    """One of the words, or letters that mean nothing."""
    if words and rng.random() < 0.8:
        return rng.choice(words)
    return "".join(rng.choices(LETTERS, k=rng.randint(2, 9)))


def misspell(text: str, rng: random.Random) -> str:
    """One letter left out, doubled, replaced, added, or swapped with the next; texts of one letter stay."""
    if len(text) < 2:
        return text
    i = rng.randrange(len(text) - 1)
    a, b, rest = text[i], text[i + 1], text[i + 2 :]
    c = rng.choice(LETTERS)
    return text[:i] + rng.choice([b + a, a, b, a + a + b, c + b, a + c, a + c + b]) + rest
