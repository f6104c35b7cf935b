"""Takes rows out of a damaged SQLite file, page by page, without SQLite: https://www.sqlite.org/fileformat.html

Whatever looks like a row is only believed if its seal fits: nothing is made up. The head never reads a file this way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from headrace.head import rows

_LEAF = 0x0D
_INT_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def carved(data: bytes) -> Iterator[tuple[sa.Table, rows.Row]]:
    """Every row in `data`, the bytes of a state file, whose seal fits; with its table, and without the seal."""
    size = int.from_bytes(data[16:18], "big")
    size = 65536 if size == 1 else size if size >= 512 and size & (size - 1) == 0 else 4096
    free = _free_pages(data, size)
    for start in range(0, len(data), size):
        if start // size + 1 in free:
            continue
        for values in _cells(data, start, size):
            if (row := _sealed_row(values)) is not None:
                yield row


def _free_pages(data: bytes, size: int) -> set[int]:
    """The pages that the file lists as free: what is in them was deleted."""
    free: set[int] = set()
    trunk = int.from_bytes(data[32:36], "big")
    while trunk and trunk not in free:
        free.add(trunk)
        page = data[(trunk - 1) * size : trunk * size]
        count = min(int.from_bytes(page[4:8], "big"), size // 4 - 2)
        free |= {int.from_bytes(page[8 + 4 * n : 12 + 4 * n], "big") for n in range(count)}
        trunk = int.from_bytes(page[:4], "big")
    return free


def _cells(data: bytes, start: int, size: int) -> Iterator[Sequence[object]]:
    """The records of a page, if it is a leaf of a table."""
    page = data[start : start + size]
    head = 100 if start == 0 else 0
    if len(page) < head + 8 or page[head] != _LEAF:
        return
    for n in range(int.from_bytes(page[head + 3 : head + 5], "big")):
        at = int.from_bytes(page[head + 8 + 2 * n : head + 10 + 2 * n], "big")
        try:
            yield _record(_payload(data, page, at, size))
        except (IndexError, ValueError, struct.error):
            continue


def _payload(data: bytes, page: bytes, at: int, size: int) -> bytes:
    """A cell's record, with what of it is on overflow pages."""
    length, at = _varint(page, at)
    _, at = _varint(page, at)
    if length > len(data):
        raise ValueError("longer than the file")
    local = length
    if length > size - 35:
        least = (size - 12) * 32 // 255 - 23
        local = least + (length - least) % (size - 4)
        local = local if local <= size - 35 else least
    payload = page[at : at + local]
    following = int.from_bytes(page[at + local : at + local + 4], "big") if local < length else 0
    while following and len(payload) < length:
        overflow = data[(following - 1) * size : following * size]
        following = int.from_bytes(overflow[:4], "big")
        payload += overflow[4:]
        if len(overflow) < 4:
            break
    if len(payload) < length:
        raise ValueError("its end is missing")
    return payload[:length]


def _record(payload: bytes) -> list[object]:
    end, at = _varint(payload, 0)
    body = end
    values: list[object] = []
    while at < end:
        kind, at = _varint(payload, at)
        size = 8 if kind == 7 else _INT_SIZES.get(kind, (kind - 12) // 2 if kind >= 12 else 0)
        raw = payload[body : body + size]
        if len(raw) < size:
            raise ValueError("cut off")
        body += size
        if kind in _INT_SIZES:
            values.append(int.from_bytes(raw, "big", signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", raw)[0])
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind >= 12:
            values.append(raw.decode() if kind % 2 else raw)
        else:
            values.append(None)
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n in range(9):
        byte = data[at + n]
        if n == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n + 1
    raise AssertionError("unreachable")


def _sealed_row(values: Sequence[object]) -> tuple[sa.Table, rows.Row] | None:
    for table in rows.metadata.tables.values():
        for names in _orders(table):
            if len(names) != len(values):
                continue
            # SQLite keeps a whole number of a column of floats as an integer.
            row = {
                k: float(v) if isinstance(v, int) and isinstance(table.c[k].type, sa.Float) else v
                for k, v in zip(names, values, strict=True)
            }
            try:
                return table, {**_added(table), **rows.unsealed(table, row)}
            except (rows.Damaged, TypeError, ValueError):
                continue
    return None


def _added(table: sa.Table) -> dict[str, object]:
    """The columns that a table got later, with what older rows have there."""
    return {c: v for version in sorted(rows.ADDED) for t, c, v in rows.ADDED[version] if t == table.name}


def _orders(table: sa.Table) -> list[list[str]]:
    """The orders in which a file may have the columns: made at once, grown by a migration, and before that."""
    now, later = list(table.c.keys()), _added(table)
    first = [c for c in now if c not in later]
    return [now, [*first, *later], first] if later else [now]
