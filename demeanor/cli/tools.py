"""`demeanor tools`: the tools that a stack offers, and the approval of those that MCP servers list."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from demeanor.cli.options import Overrides, StackFile, load
from demeanor.core.errors import UsageError

MAX_LINES = 400  # of a diff that are printed for one server
app = typer.Typer(no_args_is_help=True, help="List, approve, check and call the tools of a stack.")
ServerName = Annotated[str | None, typer.Argument(metavar="[SERVER]", help="One MCP server (default: all).")]
ToolName = Annotated[str, typer.Argument(metavar="TOOL", help="The name that `tools list` prints.")]


@app.command("list")
def list_tools(stack_file: StackFile, overrides: Overrides = None) -> None:
    """Print every tool with its source and whether it is offered to the model; connects to the MCP servers."""
    from demeanor import tool_servers
    from demeanor.core.table import visible

    for tool in tool_servers.tools_of(load(stack_file, overrides)):
        asks = "; a person is asked first" if tool.asks else ""
        print(visible(f"{tool.name}  ({tool.source})  {tool.standing}{asks}"))


@app.command()
def show(stack_file: StackFile, name: ToolName, overrides: Overrides = None) -> None:
    """Print the whole definition of a tool; characters that cannot be seen are escaped."""
    from demeanor import tool_servers
    from demeanor.core.errors import unknown
    from demeanor.core.table import visible

    stack = load(stack_file, overrides)
    tools = {tool.name: tool for tool in tool_servers.tools_of(stack)}
    if name not in tools:
        raise UsageError(f"{stack.path}: {unknown(name, tools, noun='tool')}")
    tool = tools[name]
    print(visible(f"{tool.name}  ({tool.source})  {tool.standing}"))
    if tool.asks:
        print(f"a person is asked first: {tool.asks}")
    if tool.pin:
        print(f"pin: {tool.pin}")
    for line in tool.lines:
        print(visible(line))


@app.command()
def approve(
    stack_file: StackFile,
    server: ServerName = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve without asking; read the differences first.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Compare the tools of MCP servers with the approved ones, ask, and write the lock file beside the stack.

    A tool is offered to the model only if it was approved and has not changed since.
    """
    from demeanor import tool_servers

    stack = load(stack_file, overrides)
    lists = tool_servers.listed(stack, server)
    changes = [each for each in lists if each.why or each.standing.drifted]
    for each in lists:
        _print(each)
    if not changes:
        print("nothing to approve: all tools are as they were approved")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here; read the differences above and give --yes")
        if not typer.confirm("Approve these tools?"):
            raise typer.Exit(1)
    tool_servers.approve(lists)
    for lock in sorted({str(each.lock) for each in lists}):
        print(f"written: {lock}")
    print(
        f"stack key {load(stack_file, overrides).key()}; a running server takes it over on SIGHUP (or with --watch)"
    )


@app.command()
def check(stack_file: StackFile, server: ServerName = None, overrides: Overrides = None) -> None:
    """Compare MCP servers with what was approved. Exit code 0: equal; 1: different; 3: a server cannot be reached."""
    from demeanor import tool_servers
    from demeanor.core.errors import DemeanorError

    stack = load(stack_file, overrides)
    lists = tool_servers.listed(stack, server)
    for each in lists:
        _print(each)
    if any(each.standing.drifted for each in lists if not each.why):
        print(f"\napprove with: demeanor tools approve {stack.path}{f' {server}' if server else ''}")
        raise typer.Exit(1)
    if failed := [each.server.name for each in lists if each.why]:
        raise DemeanorError(f"not reached: {', '.join(failed)}")


def _print(each: object) -> None:
    from demeanor.tool_servers import ListedServer

    assert isinstance(each, ListedServer)
    if each.why:
        print(f"{each.server.name}: not reached: {each.why}")
        return
    lines = each.standing.report()
    print(
        f"{each.server.name}: {len(each.standing.good)} tools as approved{', differences:' if lines else ''}"
    )
    for line in lines[:MAX_LINES]:
        print(f"  {line}")
    if len(lines) > MAX_LINES:
        print(f"  ... {len(lines) - MAX_LINES} more lines; `demeanor tools show STACK TOOL` prints one tool")


@app.command()
def call(
    stack_file: StackFile,
    name: ToolName,
    arguments: Annotated[str, typer.Argument(metavar="JSON", help="Its arguments as a JSON object.")] = "{}",
    overrides: Overrides = None,
) -> None:
    """Run one tool as the layer would and print what the model would read; exit code 1 if that is an error."""
    from demeanor import tool_servers
    from demeanor.core.table import visible

    result = tool_servers.call(load(stack_file, overrides), name, arguments)
    print(visible(result.content))
    if result.error:
        raise typer.Exit(1)
