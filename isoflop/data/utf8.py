"""UTF-8: recognises it, and finds the places where it may be cut."""


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def utf8_boundary(window: bytes | bytearray) -> int:
    """The largest length that does not end within a character (the complete length if the bytes are not UTF-8)."""
    for back in range(1, min(4, len(window)) + 1):
        byte = window[-back]
        if byte & 0xC0 != 0x80:
            width = 1 if byte < 0x80 else 2 if byte >> 5 == 6 else 3 if byte >> 4 == 14 else 4 if byte >> 3 == 30 else 1
            return len(window) - back if width > back else len(window)
    return len(window)


def begins_as_text(start: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 text, whose last character may be cut off. Nothing is not text."""
    return bool(start) and b"\0" not in start and is_utf8(start[: utf8_boundary(start)])
