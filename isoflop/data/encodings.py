"""The encoding of a text: detected by its byte order mark or guessed from its letters, and converted to UTF-8.

Only a byte order mark is certain. Text without one that is not UTF-8 is read only in an encoding that the user names;
else the guess is reported, with advice.
"""

import codecs
import unicodedata
from collections.abc import Iterable, Iterator

from isoflop.data.decompress import PIECE
from isoflop.data.utf8 import is_utf8, utf8_boundary
from isoflop.errors import UserError

MARKS = (  # UTF-32 first: its mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
NO_TEXT = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "mbcs", "oem"}
ICONV = {  # iconv's names of encodings that Python names differently
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
FREQUENT = {  # the most frequent characters outside ASCII in text of that encoding, and their share of them
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
    """Refuse a name that is not a text encoding.

    Raises:
        UserError: naming some that are.
    """
    if not name:
        return
    try:
        codec = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
        "".encode(name)  # fails for base64, zlib and the like, which are not text encodings
    except (LookupError, ValueError, UnicodeError):
        codec = None
    if codec is None or codec.name in NO_TEXT or name.lower().replace("_", "-") in NO_TEXT:
        raise UserError(
            f"data.encoding = {name!r} is not an encoding of text that Python knows; examples are latin-1, cp1252, "
            "utf-16-le, shift_jis, gb18030"
        )


def is_utf8_name(name: str) -> bool:
    return not name or codecs.lookup(name).name in ("utf-8", "utf-8-sig", "ascii")


def is_wide(name: str) -> bool:
    return codecs.lookup(name).name.startswith(("utf-16", "utf-32"))


def keeps_ascii(name: str) -> bool:
    """Whether every byte below 128 that stands alone is the same character in this encoding as in ASCII."""
    plain = bytes(range(128))
    try:
        return plain.decode(name) == plain.decode("ascii")
    except UnicodeError:
        return False


def marked_encoding(head: bytes) -> str:
    """The encoding of the byte order mark at the start, if text follows; else ""."""
    for mark, name in MARKS:
        if head.startswith(mark) and looks_like_text(decoded(head[:PIECE], name)):
            return name
    return ""


def guessed_encoding(head: bytes) -> str:
    """The likely encoding of a text that is not UTF-8; "" if none fits."""
    head = head[:PIECE]
    if 0 in head:
        return next((name for name in WIDE if looks_like_text(decoded(head, name))), "")
    if looks_western(head):
        return "cp1252" if any(0x80 <= byte < 0xA0 for byte in head) else "latin-1"
    best, name = 1.0, ""
    for candidate, (frequent, share) in FREQUENT.items():
        text = decoded(head, candidate)
        outside = [character for character in text or "" if character > "\x7f"]
        score = sum(character in frequent for character in outside) / (share * max(len(outside), 1))
        if looks_like_text(text) and score >= best:
            best, name = score, candidate
    return name


def decoded(head: bytes, name: str) -> str | None:
    """The first bytes decoded, without a character that is cut off at the end; None if they are invalid."""
    try:
        return codecs.getincrementaldecoder(name)().decode(head)
    except (UnicodeError, ValueError):
        return None


def looks_like_text(text: str | None) -> bool:
    """Whether at most 2 % of the characters are controls, unassigned, private or replacement characters."""
    if not text:
        return False
    odd = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r\f\v\x1b\x85" for c in text)
    odd += text.count("\ufffd") + text.count("\ufeff", 1)
    return 50 * odd <= len(text)


def looks_western(head: bytes) -> bool:
    """Whether a text looks like a Western European language in latin-1 or cp1252: few letters outside ASCII, in or next
    to words, and typographic signs."""
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
    """Advice for reading a text in the encoding `name`; FILE stands for its path.

    Args:
        unpack: the command that unpacks the file, "" if it is not compressed.
        inside: the text is in an archive or a stream, which commands cannot convert.
    """
    setting = f"read it with --set data.encoding={name}"
    if inside:
        return setting
    convert = f"iconv -f {ICONV.get(name, name.upper())} -t UTF-8"
    return f"{setting}, or convert it: {f'{unpack} FILE | {convert}' if unpack else f'{convert} FILE'} > NEW"


def to_utf8(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Blocks of UTF-8. Bytes that are invalid in `name` become a byte that is not valid UTF-8 either, so that the
    reader skips and counts their piece.

    If the encoding keeps ASCII, the first block with another byte decides whether the text is in fact UTF-8, or `name`.
    """
    codecs.register_error("isoflop-marked", as_invalid_byte)
    decoder = codecs.getincrementaldecoder(name)("isoflop-marked")
    undecided, remainder = keeps_ascii(name), b""
    source = iter(blocks)

    for block in source:
        if undecided:
            text, remainder = remainder + block, b""
            cut = utf8_boundary(text)
            if text[:cut].isascii():
                remainder = text[cut:]
                yield text[:cut]
                continue
            if is_utf8(text[:cut]):
                yield text
                yield from source
                return
            undecided, block = False, text
        yield decoder.decode(block).encode("utf-8", "surrogateescape")
    yield decoder.decode(remainder, True).encode("utf-8", "surrogateescape")


def as_invalid_byte(error: UnicodeError) -> tuple[str, int]:
    """The replacement for invalid bytes: it is written as the byte 0xFF, which never occurs in UTF-8."""
    return "\udcff", error.end if isinstance(error, UnicodeDecodeError) else 0
