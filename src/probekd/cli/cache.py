"""``probekd cache``: the teacher states that runs share."""

from __future__ import annotations

from typing import Annotated

import typer

from probekd.cli.parts import JsonOption, print_json

cache_app = typer.Typer(help="The cache of teacher states, shared between runs.", no_args_is_help=True)


@cache_app.command("ls")
def cache_ls(as_json: JsonOption = False) -> None:
    """List the stored states: size, rows, task, teacher, last use."""
    from probekd.cache import list_stores, print_stores

    stores = list_stores()
    print_json([s.as_dict() for s in stores]) if as_json else print_stores(stores)


@cache_app.command("verify")
def cache_verify(as_json: JsonOption = False) -> None:
    """Check every stored byte against its checksum; exit status 1 when something is damaged."""
    from probekd.cache import verify_stores

    damaged = verify_stores()
    if as_json:
        print_json(damaged)
    else:
        for place, files in damaged.items():
            print(f"damaged: {place}: {', '.join(files)}")
        print(f"{len(damaged)} damaged stores" if damaged else "every store is whole")
    if damaged:
        raise typer.Exit(1)


@cache_app.command("gc")
def cache_gc(
    keep: Annotated[
        str, typer.Option(help="Total size to keep, such as 20GB or 0; the least recently used stores go first.")
    ] = "20GB",
    as_json: JsonOption = False,
) -> None:
    """Remove stores until the cache is within a size. Run directories keep their own hold on the states they use."""
    from probekd.cache import collect, parse_size

    removed = collect(parse_size(keep))
    if as_json:
        print_json([s.as_dict() for s in removed])
    else:
        print(f"{len(removed)} stores removed, {sum(s.bytes for s in removed) / 1e6:,.1f} MB freed")
