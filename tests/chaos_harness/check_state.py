"""I1: what the head acknowledged it still knows, whatever killed it since. I6: nobody obeys a head of the past."""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos_harness.history import Event, Violation


@dataclass
class Register:
    """What a name may have as its value now: the last acknowledged one, or one whose fate nobody knows."""

    value: int | None = None
    maybe: list[int | None] = field(default_factory=list)

    def may_be(self, value: int | None) -> bool:
        return value == self.value or value in self.maybe


@dataclass
class State:
    violations: list[Violation] = field(default_factory=list)
    acknowledged: int = 0
    lost: int = 0
    stale: int = 0
    stale_accepted: int = 0


def check_state(admin: list[Event]) -> State:
    """Reads and writes are made by one client, one after another: a read sees all writes before it."""
    found = State()
    registers: dict[str, Register] = {}
    tries: dict[int, Event] = {}
    history: dict[str, list[Event]] = {}
    for e in admin:
        if e["ev"] == "read":
            _check_read(found, e, registers, history)
            continue
        if e["ev"] == "try":
            tries[e["number"]] = e
            # Until its answer comes it may have been done, or not; a read may come meanwhile.
            registers.setdefault(e["name"], Register()).maybe.append(e["value"])
        asked = tries[e["number"]]
        history.setdefault(asked["name"], []).append(e)
        register = registers[asked["name"]]
        if e["ev"] == "ack":
            found.acknowledged += 1
            registers[asked["name"]] = Register(asked["value"])
        elif e["ev"] == "refused":
            register.maybe.remove(asked["value"])
    return found


def _check_read(found: State, read: Event, registers: dict[str, Register], history: dict[str, list[Event]]) -> None:
    for name in {*registers, *read["values"]}:
        value = read["values"].get(name)
        register = registers.get(name)
        if register is None or not register.may_be(value):
            found.lost += 1
            known = f"acknowledged was {register.value}, open {register.maybe}" if register else "nobody wrote it"
            what = f"{name} is {value}; {known} (epoch {read['epoch']})"
            shown = (*history.get(name, [])[-6:], {k: v for k, v in read.items() if k != "values"})
            found.violations.append(Violation("I1", "forgotten", what, read["t"], shown))
        elif value != register.value:
            registers[name] = Register(value)  # now it is known


def check_commands(found: State, commands: list[Event]) -> None:
    for e in commands:
        if e["epoch"] < e["seen"]:
            found.stale += 1
            if e["accepted"]:
                found.stale_accepted += 1
                what = f"{e['to']} obeyed epoch {e['epoch']} after it had seen {e['seen']}"
                found.violations.append(Violation("I6", "stale", what, e["t"], (e,)))
