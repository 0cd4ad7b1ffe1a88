"""The tables of arguments and outputs in the modules' READMEs, made from `variables.tf` and `outputs.tf`."""

import re

BEGIN, END = "<!-- made by tests/run tables --write -->", "<!-- end -->"


def files(tree):
    """The READMEs that have such tables."""
    return sorted(tree.glob("modules/*/README.md"))


def blocks(text, kind):
    """Name and body of each block of a kind, in a file that `terraform fmt` has laid out."""
    return re.findall(rf'^{kind} "(\w+)" \{{\n(.*?)^\}}$', text, re.M | re.S)


def value(body, name):
    """What an argument directly in the block is set to, on its line; None if it is not there."""
    found = re.search(rf"^  {name} += (.*)$", body, re.M)
    return found and found[1]


def text(body):
    return value(body, "description")[1:-1].replace('\\"', '"').replace("|", "\\|")


def made(folder):
    """Both tables."""
    lines = [BEGIN, "", "| argument | type | default | |", "|---|---|---|---|"]
    for name, body in blocks((folder / "variables.tf").read_text(), "variable"):
        default = value(body, "default")
        default = "must be given" if default is None else f"`{default}`"
        sensitive = " Sensitive." if value(body, "sensitive") == "true" else ""
        lines.append(f"| `{name}` | `{value(body, 'type')}` | {default} | {text(body)}{sensitive} |")
    lines += ["", "| output | |", "|---|---|"]
    for name, body in blocks((folder / "outputs.tf").read_text(), "output"):
        sensitive = " Sensitive." if value(body, "sensitive") == "true" else ""
        lines.append(f"| `{name}` | {text(body)}{sensitive} |")
    return "\n".join([*lines, "", END])


def is_current(file, write):
    """Whether a README has the tables of its module; `write` makes it so."""
    whole = file.read_text()
    begin, end = whole.find(BEGIN), whole.find(END)
    if begin < 0 or end < begin:
        return False
    current = whole[:begin] + made(file.parent) + whole[end + len(END):]
    if write and current != whole:
        file.write_text(current)
        return True
    return current == whole
