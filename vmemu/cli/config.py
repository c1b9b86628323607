"""``vmemu config``: what a scenario can say, and what a given one does say."""

from __future__ import annotations

import click


@click.group()
def config() -> None:
    """What a scenario can say, and what a given one does say."""


@config.command()
def schema() -> None:
    """Print the JSON schema of a scenario, for editors and other programs."""
    import json

    from vmemu import scenario_reference as reference

    click.echo(json.dumps(reference.schema(), indent=1))


@config.command()
@click.argument("field", metavar="FIELD")
def explain(field: str) -> None:
    """Explain a field or a section, such as guest.trace.map."""
    from vmemu import scenario_reference as reference

    click.echo(reference.explain(field).rstrip("\n"))


@config.command()
@click.argument("scenario_file", metavar="SCENARIO.yaml")
@click.option("--seed", type=int, metavar="N", help="In the place of the scenario's seed.")
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="In the place of the scenario's value, such as guest.vcpus=4; may be repeated.",
)
def show(scenario_file: str, seed: int | None, overrides: tuple[str, ...]) -> None:
    """Print the effective configuration, all defaults and overrides in it, as YAML.

    It can be run again, from any directory.
    """
    from vmemu._config import dump
    from vmemu.config import load, split_override

    click.echo(dump.to_yaml(load(scenario_file, map(split_override, overrides), seed)), nl=False)
