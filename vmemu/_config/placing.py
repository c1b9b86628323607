"""Where threads run: a word that says how they are placed, or CPUs for each role."""

from typing import Annotated, Any, Literal

from vmemu._config import wording, yamlfile
from vmemu._config.ranges import Found
from vmemu._config.section import Section
from vmemu._config.types import Means, validator
from vmemu._config.wording import refuse
from vmemu.cpulist import format_cpus, parse_cpus
from vmemu.model.fields import Field, PlainSerializer, PlainValidator, Tag, WithJsonSchema


def _cpus(value: Any) -> frozenset[int]:
    if isinstance(value, frozenset):
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise refuse(f"{wording.show(value)} is no list of CPUs", "write one such as 0-3,8")
    return parse_cpus(str(value))


CpuList = Annotated[
    frozenset[int],
    PlainValidator(validator(_cpus)),
    PlainSerializer(format_cpus),
    WithJsonSchema({"type": ["string", "integer"], "description": "CPUs, such as 0-3,8"}),
    Means("list of CPUs", format_cpus),
]


class CpuLists(Section):
    """CPUs for each role. The threads of one that is left out run wherever the run may."""

    vcpus: CpuList | None = Field(
        default=None,
        description="The guest's vCPUs, at the source too.",
        examples=["0-1"],
    )
    clients: CpuList | None = Field(
        default=None, description="The threads of the clients.", examples=["0-1"]
    )
    fault: CpuList | None = Field(
        default=None,
        description="The fault threads; the first takes urgent pages too.",
        examples=["0"],
    )
    urgent: CpuList | None = Field(
        default=None,
        description="What answers requests at the source; without preempt it pushes too,"
        " and sends pre-copy.",
        examples=["0"],
    )
    listen: CpuList | None = Field(
        default=None,
        description="What takes the pages of the main channel, those of pre-copy too.",
        examples=["1"],
    )
    push: CpuList | None = Field(
        default=None, description="The background push, and pre-copy; with preempt.", examples=["1"]
    )


def across_placement(data: Any) -> list[Found]:
    """CPUs for nobody: a mapping without any, for clients where there are none, and for the push
    where what answers requests does it."""
    lists = yamlfile.value_at(data, ("placement",))
    if not isinstance(lists, dict):
        return []
    named = [role for role, cpus in lists.items() if cpus is not None]
    if not named:
        remedy = "name some, such as {vcpus: 0-1, fault: 0}, or use none"
        return [(("placement",), "names no CPUs", remedy)]
    found: list[Found] = []
    if "clients" in named and not yamlfile.value_at(data, ("clients",)):
        remedy = "leave out clients, or add 'clients:' to the scenario"
        found.append((("placement", "clients"), "the scenario has no clients", remedy))
    preempt = yamlfile.value_at(data, ("migration", "postcopy", "preempt"))
    if "push" in named and preempt is False:
        what = "with 'preempt: false' what answers requests pushes too, and sends pre-copy"
        remedy = "name its CPUs for urgent, or leave out 'preempt: false'"
        found.append((("placement", "push"), what, remedy))
    return found


Words = Literal["auto", "colocate", "spread", "none"]


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "word"
    return "vcpus" if isinstance(value, dict | CpuLists) else None


Placing = Annotated[
    Annotated[Words, Tag("word")] | Annotated[CpuLists, Tag("vcpus")],
    wording.choice(
        _kind,
        "must be a word or a mapping of CPUs",
        "use auto, colocate, spread, none or {vcpus: 0-1, fault: 0, urgent: 0}",
    ),
]
