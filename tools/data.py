"""Prepare, fetch, audit and make data sets: token shards, byte sidecar, manifest."""

from pathlib import Path
from typing import Any

import click

from golf.cli import echo_json, force_option, json_option


@click.group(epilog="Example: golf data prepare my.jsonl --tokenizer t.model --out data/mine")
def command() -> None:
    """Make and check the shards that training and evaluation read."""


@command.command(
    short_help="Tokenize text of your own into shards.",
    epilog="Example: golf data prepare a.jsonl.xz b.jsonl --tokenizer t.model --out data/mine --val-docs 50000",
)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path), help="SentencePiece model.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--val-docs",
    type=click.IntRange(min=1),
    help="The first so many documents are for validation; excludes --val-fraction.",
)
@click.option(
    "--val-fraction",
    type=float,
    help="The first such share of them is; excludes --val-docs.  [default: 0.05, at most 50,000]",
)
@click.option(
    "--transform",
    type=click.Choice(["auto", "none", "caseops"]),
    default="auto",
    show_default=True,
    help="How text is rewritten before it is tokenized; auto: caseops if the tokenizer has the four case operators.",
)
@click.option(
    "--shard-tokens",
    type=click.IntRange(min=1),
    default=100_000_000,
    show_default=True,
    help="Size at which the next shard begins; no document is cut.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Read only the first so many documents.")
@force_option
@json_option
def prepare(
    inputs: tuple[Path, ...], out: Path, tokenizer: Path, transform: Any, as_json: bool, **settings: Any
) -> None:
    """Tokenize INPUTS (.jsonl, .jsonl.xz, .jsonl.gz, .txt or folders) into shards with sidecar, manifest and audit.

    Whole documents go to validation or to training, each begins with the tokenizer's BOS, and every byte is counted.
    """
    from golf.data.prepare import prepare as run
    from golf.log import Log

    log = Log()

    def tell(documents: int, utf8_bytes: int) -> None:
        log.note(f"prepare: {documents:,} documents, {utf8_bytes / 1e6:,.0f} MB")

    _show(run(inputs, out=out, tokenizer=tokenizer, transform=transform, progress=tell, **settings), out, as_json)


@command.command(short_help="Fetch a published data set.", epilog="Example: golf data fetch sp8192-caseops --shards 10")
@click.argument("variant")
@click.option("--shards", type=click.IntRange(min=1), help="Training shards to have.  [default: 80, or all]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to fill.  [default: data/<its published name>]")
@click.option(
    "--endpoint", metavar="URL", help="A mirror of the hub.  [default: $HF_ENDPOINT, or https://huggingface.co]"
)
@json_option
def fetch(variant: str, shards: int | None, out: Path | None, endpoint: str | None, as_json: bool) -> None:
    """Fetch a published data set: sp1024, sp4096, sp8192 or sp8192-caseops.

    The tokenizer, all of validation and the first training shards, in their frozen order. The same command again goes
    on where it stopped, and fetches anew what is damaged.
    """
    from golf.data.fetch import fetch as run
    from golf.data.published import VARIANTS
    from golf.errors import UsageError
    from golf.log import Log

    if variant not in VARIANTS:
        raise UsageError(f"no published data set is called '{variant}'; there are: {', '.join(VARIANTS)}")
    log, out = Log(), out or Path("data", VARIANTS[variant].dataset)

    def tell(name: str, done: int, total: int) -> None:
        log.note(f"fetch: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, now {name}")

    manifest = run(VARIANTS[variant], out=out, shards=shards, endpoint=endpoint, progress=tell)
    if as_json:
        echo_json(manifest)
        return
    for kind in ("train", "val"):
        click.echo(f"{kind:<8}{manifest[kind]['documents']:,} documents, {manifest[kind]['tokens']:,} tokens")
    click.echo(f"scored  {manifest['val']['scored_tokens']:,} tokens, {manifest['val']['scored_bytes']:,} bytes")
    click.echo(f"wrote   {out}")


@command.command(
    short_help="Make a small data set from the documentation inside this Python.", epilog="Example: golf data demo"
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("data/demo"), show_default=True, help="Folder to make."
)
@force_option
@json_option
def demo(out: Path, force: bool, as_json: bool) -> None:
    """Make a small data set from the documentation inside this Python, with a tokenizer trained on it."""
    from golf.data.demo import make_demo_corpus

    _show(make_demo_corpus(out, force=force), out, as_json)


@command.command(
    short_help="Count validation documents that are also in training.", epilog="Example: golf data audit data/mine"
)
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def audit(folder: Path, as_json: bool) -> None:
    """Count validation documents that are also in training; exit code 1 if there is any."""
    from golf.data.audit import audit as run
    from golf.data.shards import Dataset

    found = run(Dataset.open(folder))
    if as_json:
        echo_json(found)
    else:
        click.echo(
            f"{found['leaked_documents']:,} of {found['val_documents']:,} validation documents are among "
            f"{found['train_documents']:,} training documents ({found['leaked_fraction']:.1%})"
        )
    if found["leaked_documents"]:
        click.get_current_context().exit(1)


def _show(manifest: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        echo_json(manifest)
        return
    for kind in ("train", "val"):
        part = manifest[kind]
        click.echo(f"{kind:<8}{part['documents']:,} documents, {part['tokens']:,} tokens, {part['utf8_bytes']:,} bytes")
    leaked = manifest["audit"]["leaked_documents"]
    click.echo(f"audit   {leaked} validation documents are also in training")
    click.echo(f"wrote   {out}")
