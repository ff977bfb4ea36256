"""What a text is written in: told by a byte order mark or by its letters, and turned into UTF-8.

Only a byte order mark is certain, so a text without one that is not UTF-8 is read only in the encoding that the user
names; what it looks like is said with the way out.
"""

import codecs
import unicodedata
from collections.abc import Iterable, Iterator

from isoflop.data.decompress import PIECE
from isoflop.data.text import utf8_boundary
from isoflop.errors import UserError

MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
NO_TEXT = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "mbcs", "oem"}
ICONV = {  # what iconv calls the encodings that Python has another name for
    "latin-1": "ISO-8859-1",
    "iso8859-2": "ISO-8859-2",
    "euc_jp": "EUC-JP",
    "euc_kr": "EUC-KR",
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
}
WESTERN_SIGNS = frozenset("“”‘’‚„…–—•«»‹›°§£€©®™·¿¡¢¥ª«º±²³¹¼½¾×÷\xa0\xad¨´¸")
FREQUENT = {  # what most of the characters outside ASCII are, in a text of that encoding; and how much of it
    "cp1251": ("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэф", 0.8),
    "koi8-r": ("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэф", 0.8),
    "cp1250": ("ąćęłńóśźżáčďéěíňřšťúůýžőűäöüßâîșțşţăľĺŕôŽŠŁŚĆŻČŘ„”“–", 0.8),
    "iso8859-2": ("ąćęłńóśźżáčďéěíňřšťúůýžőűäöüßâîșțşţăľĺŕôŽŠŁŚĆŻČŘ", 0.8),
    "cp1253": ("αοιετσνηυρπκμλςωάέήίόύώγδθχφβξζψ", 0.8),
    "shift_jis": ("のにはをたがでてとしれさいるかもなこあうえおきくけそちつまみめやよらりろわん。、ー「」", 0.3),
    "euc_jp": ("のにはをたがでてとしれさいるかもなこあうえおきくけそちつまみめやよらりろわん。、ー「」", 0.3),
    "euc_kr": ("이다의는에을가고한지도로하기사리를은", 0.2),
    "gb18030": ("的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学，。", 0.15),
    "big5": ("的一是不了在人有我他這中大來上國個到說們為子和你地出道也時年得就那要下以生會自著去之過家學，。", 0.15),
}


def check_encoding(name: str) -> None:
    """Refuse a name that is no encoding of text.

    Raises:
        UserError: naming some that are.
    """
    if not name:
        return
    try:
        found = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
        "".encode(name)  # base64, zlib and the like are no encodings of text
    except (LookupError, ValueError, UnicodeError):
        found = None
    if found is None or found.name in NO_TEXT or name.lower().replace("_", "-") in NO_TEXT:
        raise UserError(
            f"data.encoding = {name!r} is no encoding of text that Python knows; examples are latin-1, cp1252, "
            "utf-16-le, shift_jis, gb18030"
        )


def is_utf8_name(name: str) -> bool:
    return not name or codecs.lookup(name).name in ("utf-8", "utf-8-sig", "ascii")


def is_wide(name: str) -> bool:
    return codecs.lookup(name).name.startswith(("utf-16", "utf-32"))


def keeps_ascii(name: str) -> bool:
    """Whether every byte below 128 means in this encoding what it does in ASCII, wherever it stands alone."""
    plain = bytes(range(128))
    try:
        return plain.decode(name) == plain.decode("ascii")
    except UnicodeError:
        return False


def marked_encoding(head: bytes) -> str:
    """The encoding that a byte order mark at the beginning names, if what follows is text; else ""."""
    for mark, name in MARKS:
        if head.startswith(mark) and looks_like_text(decoded(head[:PIECE], name)):
            return name
    return ""


def guessed_encoding(head: bytes) -> str:
    """What a text that is not UTF-8 seems to be written in, "" if nothing fits."""
    head = head[:PIECE]
    if 0 in head:
        return next((name for name in WIDE if looks_like_text(decoded(head, name))), "")
    if looks_western(head):
        return "cp1252" if any(0x80 <= byte < 0xA0 for byte in head) else "latin-1"
    best, name = 1.0, ""
    for candidate, (frequent, share) in FREQUENT.items():
        text = decoded(head, candidate)
        outside = [character for character in text or "" if character > "\x7f"]
        found = sum(character in frequent for character in outside) / (share * max(len(outside), 1))
        if looks_like_text(text) and found >= best:
            best, name = found, candidate
    return name


def decoded(head: bytes, name: str) -> str | None:
    """A beginning in an encoding, without the character that its end may cut; None if it is not valid."""
    try:
        return codecs.getincrementaldecoder(name)().decode(head)
    except (UnicodeError, ValueError):
        return None


def looks_like_text(text: str | None) -> bool:
    """Whether hardly any of the characters are controls, unassigned, private or marks of damage."""
    if not text:
        return False
    odd = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r\f\v\x1b\x85" for c in text)
    odd += text.count("\ufffd") + text.count("\ufeff", 1)
    return 50 * odd <= len(text)


def looks_western(head: bytes) -> bool:
    """Whether a text is a Western European language in latin-1 or cp1252: few letters outside ASCII, within or next to
    words, and the signs of printed text."""
    text = decoded(head, "cp1252")
    if text is None or not looks_like_text(text):
        return False
    good = outside = 0
    padded = f" {text} "
    for before, character, after in zip(padded, padded[1:], padded[2:], strict=False):
        if character <= "\x7f":
            continue
        outside += 1
        if before.isalpha() and after.isalpha() and character not in "’\xad·":
            good += character.isalpha() and character not in "ªº"
        else:
            good += character.isalpha() or character in WESTERN_SIGNS
    letters = sum(character.isalpha() for character in text)
    return outside > 0 and good >= 0.9 * outside and outside <= 0.35 * max(letters, 1)


def way_out(name: str, unpack: str, inside: bool) -> str:
    """What can be done about a text in the encoding `name`; FILE stands for its path.

    Args:
        unpack: the command that unpacks the file, "" if it is not compressed.
        inside: the text is in an archive or a stream, where no command reaches it.
    """
    setting = f"read it with --set data.encoding={name}"
    if inside:
        return setting
    convert = f"iconv -f {ICONV.get(name, name.upper())} -t UTF-8"
    return f"{setting}, or convert it: {f'{unpack} FILE | {convert}' if unpack else f'{convert} FILE'} > NEW"


def to_utf8(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Blocks of UTF-8. What is no text in `name` becomes a byte that is not valid UTF-8 either, so that the reader
    skips and counts its piece.

    Where ASCII stands for itself, the first block with another byte decides: it is UTF-8 all the same, or `name`.
    """
    codecs.register_error("isoflop-marked", marked)
    decoder = codecs.getincrementaldecoder(name)("isoflop-marked")
    undecided, held = keeps_ascii(name), b""
    source = iter(blocks)
    for block in source:
        if undecided:
            whole, held = held + block, b""
            cut = utf8_boundary(whole)
            if whole[:cut].isascii():
                held = whole[cut:]
                yield whole[:cut]
                continue
            if is_utf8(whole[:cut]):
                yield whole
                yield from source
                return
            undecided, block = False, whole
        yield decoder.decode(block).encode("utf-8", "surrogateescape")
    yield decoder.decode(held, True).encode("utf-8", "surrogateescape")


def marked(error: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that are no text: it is written as the byte 0xFF, which no UTF-8 has."""
    return "\udcff", error.end if isinstance(error, UnicodeDecodeError) else 0


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
