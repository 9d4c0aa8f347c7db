"""What the site takes from the repository instead of from pages: the options of the verbs, the recipes, and plots.

mkdocs calls these functions while it builds the site. Nothing of this is written by hand, so it cannot be out of date.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from potstill.cli import VERBS
from potstill.command_line import Option
from potstill.option_table import verb_of

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(
    r"\]\((?:\.\./)+(reproduce/README\.md|recipes/?|src/potstill/option_table\.json|reproduce/results/([\w-]+\.svg))"
    r"(#[\w-]+)?\)"
)
"""A link of a page to a file of the repository that is not in docs/. It works where the repository is browsed too."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put one page of options for each verb into the navigation."""
    pages = [{f"potstill {verb}": _options_page(verb)} for verb in VERBS]
    for section in config.nav or []:
        for entry in section.get("Reference", []):
            if isinstance(entry, dict) and "Options" in entry:
                entry["Options"] = ["reference/options/index.md", *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the plots that measurements wrote."""
    for verb in VERBS:
        files.append(File.generated(config, _options_page(verb), content=options_page(verb)))
    files.append(File.generated(config, "reference/options/index.md", content=options_index()))
    files.append(File.generated(config, "reference/recipes.md", content=recipes_page()))
    readme = (ROOT / "reproduce" / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "how-to/reproduce.md", content=readme.replace("](../docs/", "](../")))
    for plot in sorted((ROOT / "reproduce" / "results").glob("*.svg")):
        files.append(File.generated(config, f"assets/plots/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files outside of docs/ at the pages that show them."""
    up = "../" * page.file.src_uri.count("/")

    def inside(link: re.Match[str]) -> str:
        target, plot, anchor = link.groups()
        where = f"assets/plots/{plot}" if plot else PAGES[target.rstrip("/")]
        return f"]({up}{where}{anchor or ''})"

    return OUTSIDE.sub(inside, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that loads something from another address: the site works without a network."""
    for tag in re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*>", output):
        if re.search(r"""\b(?:src|href)=["']?(?:https?:)?//""", tag) and 'rel="canonical"' not in tag:
            raise PluginError(f"{page.file.src_uri} loads something from another address: {tag}")
    return output


PAGES = {
    "reproduce/README.md": "how-to/reproduce.md",
    "recipes": "reference/recipes.md",
    "src/potstill/option_table.json": "reference/options/index.md",
}
"""A file or folder of the repository → the page that shows it."""


def _options_page(verb: str) -> str:
    return f"reference/options/{verb.replace(' ', '-')}.md"


def options_index() -> str:
    """Return the page that lists the verbs."""
    rows = [f"| [`potstill {verb}`]({verb.replace(' ', '-')}.md) | {what} |" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        [
            "# Options",
            "",
            "Each verb has a page with all its options. The same texts are printed by `potstill VERB --help-all`. "
            "An option has the same name on the command line, in a recipe, and as an argument in Python.",
            "",
            "| verb | what it does |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def options_page(verb: str) -> str:
    """Return the page of one verb."""
    described = verb_of(verb, VERBS[verb][0])
    own = [option for option in described.options if option.offered and not option.inherited]
    inherited = [option for option in described.options if option.offered and option.inherited]
    lines = [f"# potstill {verb}", "", described.summary, "", *_table(own)]
    if inherited:
        link = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"
        lines += ["", f"## Options of [TrainingArguments]({link})", "", *_table(inherited)]
    return "\n".join([*lines, ""])


def _table(options: list[Option]) -> list[str]:
    return [line for option in options for line in _entry(option)]


def _entry(option: Option) -> list[str]:
    """Return an option as an entry of a list of definitions, which a phone shows as well as a wide screen."""
    value = ", ".join(f"`{choice}`" for choice in option.choices) or option.kind
    parts = [f"`--{option.name}`", value + (" …" if option.many else "")]
    parts += ["required"] if option.required else [f"default `{option.default}`"] if option.default else []
    return ["", " · ".join(parts), "", f":   {_plain(' '.join(option.help.split()))}"]


def _plain(text: str) -> str:
    """Return a text in which Markdown finds no tags and no emphasis."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("{", "&#123;")


def recipes_page() -> str:
    """Return the page that shows every recipe as its file stands."""
    lines = [
        "# Recipes",
        "",
        "A recipe is a YAML file of options. `--config FILE` reads it, and flags overrule it. These are in the folder "
        "`recipes/` of the repository. Comments say which settings were published.",
    ]
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        lines += ["", f"## {file.name}", "", "```yaml", file.read_text(encoding="utf-8").rstrip(), "```"]
    return "\n".join([*lines, ""])
