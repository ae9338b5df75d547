"""`flowdsl completion`: what a shell needs to complete our commands and options."""

from __future__ import annotations

from typing import Literal, TypeAlias

import click

Shell: TypeAlias = Literal["bash", "zsh", "fish"]


@click.command(
    short_help="Completion for bash, zsh or fish.",
    epilog="Exit codes: 0 printed; 2 wrong usage.",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: Shell) -> None:
    """Prints what makes a shell complete commands and options.

    \b
    bash:  echo 'eval "$(flowdsl completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(flowdsl completion zsh)"' >> ~/.zshrc     (behind compinit)
    fish:  flowdsl completion fish > ~/.config/fish/completions/flowdsl.fish
    """
    from click.shell_completion import get_completion_class

    known = get_completion_class(shell)
    assert known is not None, "click knows all three"
    click.echo(known(ctx.find_root().command, {}, "flowdsl", "_FLOWDSL_COMPLETE").source())


COMMANDS = (completion,)
"""What this module adds to the command line."""
