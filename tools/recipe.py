"""List the shipped recipes, or show one with its model size, layer schedule and learning rates."""

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


@command.command(epilog="Example: golf recipe show demo --set schedule.iterations=1000")
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


def _show(report: dict[str, Any]) -> None:
    click.echo(f"# digest      {report['digest']}")
    click.echo(f"# parameters  {report['parameters']:,}")
    for state, layers in report["layers"].items():
        click.echo(f"# {state:<12}encoder {layers['encoder']}  decoder {layers['decoder']}")
    for moment in report["schedule"]:
        rates = "  ".join(f"{key} {value:.4g}" for key, value in moment.items() if key != "at")
        click.echo(f"# {moment['at']:<12}{rates}")
