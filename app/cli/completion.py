"""`manifold completion`: what makes a shell complete our commands."""

import sys

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script for bash or zsh that completes commands, options and files.

    \b
    echo 'eval "$(manifold completion bash)"' >> ~/.bashrc
    echo 'eval "$(manifold completion zsh)"' >> ~/.zshrc
    """
    found = get_completion_class(shell)
    if found is None:
        sys.exit(1)
    click.echo(found(ctx.find_root().command, {}, "manifold", "_MANIFOLD_COMPLETE").source())
