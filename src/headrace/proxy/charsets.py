"""The charsets that a text may come in. Each is one whose decoder takes milliseconds for any megabytes of any bytes."""

from __future__ import annotations

from collections.abc import Mapping


def _table() -> Mapping[str, str]:
    found = dict.fromkeys(("utf-8", "utf8"), "utf-8")
    found |= dict.fromkeys(("us-ascii", "ascii"), "ascii")
    found |= {"utf-16": "utf-16", "utf-16le": "utf-16-le", "utf-16be": "utf-16-be"}
    parts = [n for n in range(1, 17) if n != 12]  # there is no twelfth
    found |= {f"iso-8859-{n}": f"iso8859-{n}" for n in parts} | {f"iso8859-{n}": f"iso8859-{n}" for n in parts}
    found |= dict.fromkeys(("latin1", "latin-1"), "iso8859-1")
    found |= {f"{name}{n}": f"cp{n}" for n in range(1250, 1259) for name in ("windows-", "cp")}
    found |= {"koi8-r": "koi8-r", "koi8-u": "koi8-u"}
    found |= {"shift-jis": "shift_jis", "sjis": "shift_jis", "windows-31j": "cp932", "euc-jp": "euc_jp"}
    found |= {"gb2312": "gbk", "gbk": "gbk", "gb18030": "gb18030", "big5": "big5", "euc-kr": "cp949"}
    return found


CODECS = _table()
"""Python's codec by name in lower case, with "-" for "_". Nothing else of Python's can be named by a client."""

KNOWN = (
    "utf-8, us-ascii, utf-16, iso-8859-1 to -16, windows-1250 to -1258, koi8-r, koi8-u, shift_jis, euc-jp, euc-kr,"
    " gb18030 and big5"
)


def codec_of(charset: str) -> str | None:
    """The codec of a charset's name; None if it is not taken."""
    return CODECS.get(charset.lower().replace("_", "-"))
