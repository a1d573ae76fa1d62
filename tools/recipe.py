"""List the shipped recipes, show one with its model size, layers and learning rates, or compare two."""

from typing import Any

import click

from golf.cli import echo_json, json_option, set_option


@click.group(epilog="Example: golf recipe show demo --set model.num_layers=6")
def command() -> None:
    """Look at recipes."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Name the shipped recipes.

    Example: golf recipe list
    """
    from golf.recipe import load_recipe, recipe_names

    described = {name: load_recipe(name).description for name in recipe_names()}
    if as_json:
        echo_json(described)
        return
    for name, description in described.items():
        click.echo(f"{name:<12}{description}")


@command.command(
    short_help="Print a recipe with its model size, layers and learning rates.",
    epilog="Example: golf recipe show demo --set schedule.iterations=1000",
)
@click.argument("recipe", metavar="NAME|FILE.toml")
@set_option
@json_option
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the resolved recipe, its parameter count, its layer schedule and its predicted learning rates."""
    import tomli_w

    from golf.recipe import load_recipe
    from golf.recipe_report import describe_recipe

    chosen = load_recipe(recipe, overrides)
    report = describe_recipe(chosen)
    if as_json:
        echo_json({"recipe": chosen.to_dict(), **report})
        return
    click.echo(tomli_w.dumps(chosen.to_dict()))
    _show(report)


@command.command(
    short_help="Print every value in which two recipes differ.", epilog="Example: golf recipe diff pr1787 pr1855"
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@json_option
def diff(first: str, second: str, as_json: bool) -> None:
    """Print every value in which two recipes differ, each a shipped name or a TOML file; `-` where a part is off."""
    from golf.recipe import load_recipe
    from golf.recipe_report import diff_recipes

    rows = diff_recipes(load_recipe(first), load_recipe(second))
    if as_json:
        echo_json([{"key": key, "first": one, "second": other} for key, one, other in rows])
        return
    if not rows:
        click.echo(f"{first} and {second} have the same values")
        return
    lines = [("key", first, second), *((key, _text(one), _text(other)) for key, one, other in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for key, one, other in lines:
        click.echo(f"{key:<{widths[0]}}  {one:<{widths[1]}}  {other}")


def _text(value: Any) -> str:
    import json

    return "-" if value is None else json.dumps(value)


def _show(report: dict[str, Any]) -> None:
    click.echo(f"# digest      {report['digest']}")
    click.echo(f"# parameters  {report['parameters']:,}")
    for state, layers in report["layers"].items():
        click.echo(f"# {state:<12}encoder {layers['encoder']}  decoder {layers['decoder']}")
    if report["unbuilt"]:
        click.echo(f"# not built   {', '.join(report['unbuilt'])}: recorded here; golf scores the plain way so far")
    for moment in report["schedule"]:
        rates = "  ".join(f"{key} {value:.4g}" for key, value in moment.items() if key != "at")
        click.echo(f"# {moment['at']:<12}{rates}")
