"""Parts of speech: the Penn tag of every token of a passage."""

import functools
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msrnn_jax.text.display import token_texts
from msrnn_jax.text.tokenizer import Tokenizer

NEWLINE, SPACE, SPECIAL = "newline", "space", "special"  # tokens that have no part of a word
_LETTER = r"[^\W\d_]"
_CLITIC = r"['’](?:s|S|d|m|ll|re|ve|D|M|LL|RE|VE)(?!\w)"
_NOT = r"[nN]['’][tT](?!\w)"
_SHORT = rf"(?:Mr|Mrs|Messrs|Dr|St|Rev|Hon|Gen|Col|Capt|Lieut|Prof|Jr|Sr|Esq|vol|etc|{_LETTER}(?:\.{_LETTER})+)\."

# Words in which an apostrophe stands for letters, in full. Of others that end in in' the g is missing.
_FULL = {"'em": "them", "'tis": "it", "'twas": "it", "'twill": "it", "'twould": "it", "'fore": "before"}
_FULL |= {"'bout": "about", "'cause": "because", "'til": "until", "'till": "until", "'round": "around"}
_FULL |= {"'un": "one", "'uns": "ones"}
_FULL |= {"an'": "and", "th'": "the", "o'": "of", "wi'": "with", "t'": "to", "ol'": "old", "mo'": "more"}
_ELIDED = "|".join(sorted((word[1:] for word in _FULL if word[0] == "'"), key=len, reverse=True))

# At every place the first that fits. Those that MARKS does not name are words for the tagger.
_WORDS = re.compile(
    rf"""
      (?P<short> \b{_SHORT} )
    | (?P<initial> \b[A-Z]\.(?=\s*[A-Z]) )
    | (?P<ordinal> \d+(?:st|nd|rd|th)\b )
    | (?P<number> \d+(?:[.,:/]\d+)*(?:s\b)? )
    | (?P<elided> (?<![\w'’])['’](?:{_ELIDED})(?=\b|[nN]['’][tT]) )
    | (?P<before_not> {_LETTER}+?(?={_NOT}) )
    | (?P<clitic> (?<=\w){_CLITIC} | (?<={_LETTER}){_NOT} )
    | (?P<word> {_LETTER}+(?:(?!{_CLITIC})['’-]{_LETTER}+)* )
    | (?P<possessive> (?<=[sS])['’](?=\s+\w) )
    | (?P<opening> [“‘`]+ | (?<![^\s(\[—_-])["']+(?=\S) )
    | (?P<closing> [”’"']+ )
    | (?P<currency> [$£€¥] )
    | (?P<hash> \# )
    | (?P<comma> , )
    | (?P<stop> [.?!](?!\.) )
    | (?P<pause> [:;…—–] | --+ | \.\.+ )
    | (?P<left> [(\[{{] )
    | (?P<right> [)\]}}] )
    | (?P<and> & )
    | (?P<percent> % )
    | (?P<symbol> \S )
    """,
    re.VERBOSE,
)
MARKS = {
    "ordinal": "JJ",
    "number": "CD",
    "possessive": "POS",
    "opening": "``",
    "closing": "''",
    "currency": "$",
    "hash": "#",
    "comma": ",",
    "stop": ".",
    "pause": ":",
    "left": "(",
    "right": ")",
    "and": "CC",
    "percent": "NN",
    "symbol": "SYM",
}


class Kind(NamedTuple):
    """What a tag means, in plain words."""

    name: str  # of its tokens, many of them
    example: str


TAGS = {
    "POS": Kind("possessive endings", "’s of Anna’s"),
    "''": Kind("closing quotes", "”"),
    "``": Kind("opening quotes", "“"),
    "newline": Kind("line breaks", "↵"),
    "space": Kind("spaces alone", "␣"),
    "special": Kind("start-of-text tokens", "<s>"),
    "$": Kind("currency signs", "£"),
    "#": Kind("number signs", "#"),
    "(": Kind("opening brackets", "("),
    ")": Kind("closing brackets", ")"),
    ".": Kind("full stops", ". or !"),
    ",": Kind("commas", ","),
    ":": Kind("colons, semicolons and dashes", ";"),
    "SYM": Kind("other marks", "*"),
    "NN": Kind("singular nouns", "ship"),
    "NNS": Kind("plural nouns", "ships"),
    "NNP": Kind("proper nouns", "London"),
    "NNPS": Kind("plural proper nouns", "Alps"),
    "CD": Kind("numbers", "three"),
    "DT": Kind("determiners", "the"),
    "PDT": Kind("words before a determiner", "all, in all the ships"),
    "WDT": Kind("wh-determiners", "which"),
    "PRP": Kind("personal pronouns", "she"),
    "PRP$": Kind("possessive pronouns", "her"),
    "WP": Kind("wh-pronouns", "who"),
    "WP$": Kind("possessive wh-pronouns", "whose"),
    "IN": Kind("prepositions", "of"),
    "TO": Kind("uses of the word to", "to"),
    "RP": Kind("particles", "up, in give up"),
    "CC": Kind("conjunctions", "and"),
    "EX": Kind("the word there", "there is"),
    "MD": Kind("modals", "could"),
    "VB": Kind("verbs, base form", "go"),
    "VBD": Kind("verbs, past", "went"),
    "VBG": Kind("verbs in -ing", "going"),
    "VBN": Kind("verbs, past participle", "gone"),
    "VBP": Kind("verbs, present", "go"),
    "VBZ": Kind("verbs, present, third person", "goes"),
    "JJ": Kind("adjectives", "old"),
    "JJR": Kind("adjectives, comparative", "older"),
    "JJS": Kind("adjectives, superlative", "oldest"),
    "RB": Kind("adverbs", "often"),
    "RBR": Kind("adverbs, comparative", "more often"),
    "RBS": Kind("adverbs, superlative", "most often"),
    "WRB": Kind("wh-adverbs", "when"),
    "UH": Kind("interjections", "oh"),
    "FW": Kind("foreign words", "vice versa"),
    "LS": Kind("marks of list items", "a)"),
}


class Word(NamedTuple):
    """A word or mark of a text."""

    start: int  # its first character
    end: int  # the one after its last
    tag: str


def tagger_version() -> str:
    """What tags depend on, beside the text, such as "textblob 0.20.1"; asked for before any work.

    Raises:
      ValueError: where it is missing.
    """
    try:
        return f"textblob {importlib.metadata.version('textblob')}"
    except importlib.metadata.PackageNotFoundError:
        message = "retention needs textblob, which is not installed: pip install textblob"
        raise ValueError(message) from None


def tag_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[str, ...]]:
    """The Penn tags of all words and marks that every token has a part of, in their order, each once.

    So the first is that of the word which holds its first character that is no space; one of several tokens that make
    up a character has that of this character. Tokens of nothing but spaces are "newline" where a line ends in them,
    else "space"; the one that begins a text is "special".
    """
    special = [token == tokenizer.bos for token in tokens]
    texts = ["" if skip else text for skip, text in zip(special, token_texts(tokenizer, tokens), strict=True)]
    text = "".join(texts)
    tag_at: list[str | None] = [None] * len(text)
    for word in tag_words(text):
        tag_at[word.start : word.end] = [word.tag] * (word.end - word.start)
    tags: list[tuple[str, ...]] = []
    start = 0
    for skip, piece in zip(special, texts, strict=True):
        end = start + len(piece) if piece else _next_character(text, start)
        found = tuple(dict.fromkeys(tag for tag in tag_at[start:end] if tag))
        tags.append((SPECIAL,) if skip else found or ((NEWLINE,) if "\n" in piece else (SPACE,)))
        start += len(piece)
    return tags


def _next_character(text: str, start: int) -> int:
    """The place after the first character from there on that is no space."""
    match = re.compile(r"\s*\S").match(text, start)
    return match.end() if match else start


def tag_words(text: str) -> list[Word]:
    """Every word and mark of an English text with its Penn tag.

    Words are split as in the Penn treebank: clitics apart (John 's, do n't), brackets, quotes and other marks apart,
    abbreviations with their full stop. Marks and numbers have the tag that the treebank gives them: quotes by the side
    of the word they stand on, an apostrophe after a plural s is a possessive if a word follows. Words have that of
    textblob's PatternTagger, which goes by the word alone: its lexicon, else its capital letter, else its suffix.
    """
    found = list(_split(text))
    sentences: list[list[str]] = [[]]  # the tagger looks past the capital letter of a first word
    for start, end, kind in found:
        if kind not in MARKS:
            sentences[-1].append(_spell(text[start:end]))
        elif kind == "stop":
            sentences.append([])
    tags = iter(_tagger()([sentence for sentence in sentences if sentence]))
    return [Word(start, end, MARKS.get(kind) or next(tags)) for start, end, kind in found]


def _split(text: str) -> list[tuple[int, int, str]]:
    """Where every word and mark begins and ends, and what it is by the names of the pattern.

    An apostrophe after a letter closes a single quote if one is open; else it stands for letters that are missing, and
    belongs to the word.
    """
    found: list[tuple[int, int, str]] = []
    is_open = False
    for match in _WORDS.finditer(text):
        start, end, kind = match.start(), match.end(), match.lastgroup or ""
        if kind == "opening":
            is_open = is_open or text[end - 1] in "'‘`"
        elif kind == "closing" and text[start] in "'’":
            follows = bool(found) and found[-1][1] == start and text[start - 1].isalpha() and found[-1][2] not in MARKS
            if follows and not is_open:
                first, _, before = found.pop()
                found.append((first, start + 1, before))
                start += 1
            is_open = False
        if start < end:
            found.append((start, end, kind))
    return found


def _spell(word: str) -> str:
    """A word as the tagger may know it."""
    word = word.replace("’", "'")
    if word.lower() == "n't":
        return word.lower()
    if word.lower() in _FULL:
        return _FULL[word.lower()]
    return word[:-1] + "g" if word.lower().endswith("in'") else word


@functools.cache
def _tagger() -> Callable[[Sequence[Sequence[str]]], list[str]]:
    """A function from sentences, lists of words, to the tags of all their words."""
    from textblob.en.taggers import PatternTagger  # two seconds, which only a run needs

    tagger = PatternTagger()

    def tag(sentences: Sequence[Sequence[str]]) -> list[str]:
        if not sentences:
            return []
        tagged = tagger.tag("\n".join(map(" ".join, sentences)), tokenize=False)
        assert len(tagged) == sum(map(len, sentences))
        return [tag for _, tag in tagged]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it reads its lexicon at the first word, and leaves it open
        tag([["a"]])
    return tag
