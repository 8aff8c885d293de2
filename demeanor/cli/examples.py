"""What help shows beside options: the verbs in groups, and an example at the end of the help of every verb.

In: the command line as typer built it. Out: the same with panels and epilogs. Examples are for a folder where `demeanor init my-desk` was
run. It knows no options.
"""

from __future__ import annotations

from typing import Any

PANELS = {
    "Start": ("demo", "tour", "init", "explain"),
    "Train": ("data", "train", "samples", "runs", "seeds", "export"),
    "Run": ("chat", "serve", "keys", "index", "prompt", "tools", "policy"),
    "Measure": (
        "suites",
        "eval",
        "attribute",
        "frontier",
        "diagnose",
        "gate",
        "duel",
        "judge",
        "logs",
        "report",
    ),
    "Learn from use": ("turns", "replay", "experiments", "label", "prefs", "store"),
}
"""The verbs by task, in the order of `demeanor --help` and of docs/cli.md."""
STACK = "my-desk/stack.yaml"
EXAMPLES = {
    "replay": f"{STACK} --model harbour-desk:sft --limit 20",
    "demo": "--serve",
    "init": "my-desk --base Qwen/Qwen3-0.6B --documents handbook",
    "explain": STACK,
    "train": f"{STACK} --stage sft --probe 16",
    "samples": f"{STACK} --stage dpo --prompts 3",
    "chat": f'{STACK} --ask "What is 37 times 48?"',
    "serve": f"{STACK} --api-key sk-my-key --port 8000",
    "export": f"{STACK} out --dtype bf16",
    "runs list": STACK,
    "runs prune": f"{STACK} --yes",
    "eval": f"{STACK} --limit 10 --name quick",
    "report": "results/quick.json --out quick.html",
    "attribute": f"{STACK} --limit 10",
    "frontier": f"{STACK} --between sft:dpo --points 5",
    "gate": f"{STACK} --against results/quick.json --rules my-desk/gate.yaml",
    "diagnose": f"{STACK} --axis facts --limit 10",
    "duel": f"{STACK} --variants harbour-desk harbour-desk:sft --limit 10",
    "seeds": f"{STACK} --seeds 0 1 2",
    "judge validate": f"{STACK} pairs.jsonl --limit 50",
    "judge panel": f"{STACK} pairs.jsonl --judge http://127.0.0.1:8001/v1#big",
    "suites list": "builtin:honesty my-desk/suite.jsonl",
    "suites show": "builtin:honesty --items 2",
    "logs import": "logs/base.eval logs/tuned.eval --name imported",
    "data show": f"{STACK} --stage dpo --count 2",
    "data dedup": "rows.jsonl single.jsonl --threshold 0.8",
    "data decontaminate": "rows.jsonl unseen.jsonl --suite my-desk/suite.jsonl",
    "data filter": "rows.jsonl clean.jsonl --language en --no-personal-data",
    "data revise": f"{STACK} prompts.jsonl revised.jsonl --model harbour-desk:sft --rounds 2",
    "data fit-rules": "rules.yaml graded.jsonl",
    "index build": f"{STACK} --urls urls.txt",
    "index search": f'{STACK} "When does the ferry leave?" --count 3',
    "index test": f"{STACK} labels.jsonl --compare stop_words=english",
    "index remove": STACK,
    "policy test": "builtin:default --data texts.jsonl",
    "policy train": "texts.jsonl --label insult --out insult.safetensors",
    "keys create": "anna --scopes chat --tokens-per-day 100000",
    "keys list": "--database sqlite:///runs/keys.db",
    "keys revoke": "anna",
    "store prune": "--older-than 90d --keep-feedback --yes",
    "store export": "turns.jsonl --user anna",
    "store where": "anna",
    "store forget": "anna --yes",
    "store done": "preferences.jsonl",
    "tools list": STACK,
    "tools show": f"{STACK} calculator",
    "tools approve": STACK,
    "tools check": STACK,
    "tools call": STACK + """ calculator '{"expression": "37 * 48"}'""",
    "prompt show": f'{STACK} --ask "When does the ferry leave?"',
    "prompt diff": f"{STACK} harbour-desk harbour-desk-retrieval",
    "prompt list": STACK,
    "label create": f"{STACK} --prompts prompts.jsonl --pairs --limit 50",
    "label import": "annotated_instances.jsonl --from potato --items pairs.jsonl",
    "label invite": "anna --hours 48",
    "label revoke": "anna",
    "label serve": "--port 8010",
    "label judge": f"{STACK} --min-accuracy 0.7",
    "label list": "--database sqlite:///runs/labels.db",
    "label status": "--queue labels",
    "label export": "preferences.jsonl --what rows",
    "label delete": "labels --yes",
    "tour": "--port 8000",
    "tour list": "",
    "tour show": "1",
    "tour smollm2": "smollm2-tour",
    "tour run": "1 --guess 50",
    "tour answer": "1 100",
    "tour label": "--labels ABBAB",
    "experiments list": "--json",
    "experiments show": "warmer",
    "experiments stop": 'warmer --reason "too many complaints"',
    "prefs build": f"preferences.jsonl --turns sqlite:///runs/requests.db --stack {STACK}",
    "turns list": "--feedback bad --limit 5",
    "turns search": '"ferry to Corkel"',
    "turns show": "chatcmpl-0123456789abcdef",
    "turns export": "suite.jsonl --as-suite --feedback corrected",
    "turns route": f"{STACK} --limit 20",
}
"""The words after a verb, by verb."""


def in_panels(command: Any) -> Any:
    """The command, with its verbs in the groups and the order of PANELS."""
    for panel, verbs in PANELS.items():
        for verb in verbs:
            command.commands[verb].rich_help_panel = panel
    command.commands = {verb: command.commands[verb] for verbs in PANELS.values() for verb in verbs}
    return command


def with_examples(command: Any, words: tuple[str, ...] = ()) -> Any:
    """The command, with an example at the end of the help of every verb that has one."""
    if " ".join(words) in EXAMPLES:
        command.epilog = f"Example: demeanor {' '.join((*words, EXAMPLES[' '.join(words)]))}".rstrip()
    for name, inner in getattr(command, "commands", {}).items():
        with_examples(inner, (*words, name))
    return command
